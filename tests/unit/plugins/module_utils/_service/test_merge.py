# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The merge flow: the end state it leaves, what it refuses, and every place where it may be killed."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.convergence import Deadline
from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.journal import COMMITTING
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import (
    BlockJob,
    Layer,
    OtherImages,
    Outcome,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._service.merge import Merge
from ansible_collections.virtops.libvirt.plugins.module_utils._service.merge_plan import MergeOptions

from .fakes import Died, FakeLab


class MergeLab(FakeLab):
    """A running guest on its own images, whose layers can be merged."""

    def run(self, check: bool = False, **wish: object) -> Outcome:
        limits = {item.name: wish.pop(item.name) for item in fields(Deadline) if item.name in wish}
        asked = MergeOptions(**wish, deadline=Deadline(**limits))  # type: ignore[arg-type]
        return Merge(asked, self.guest).run(check)

    @property
    def chains(self) -> dict[str, list[str]]:
        return {name: [layer.path for layer in disk.chain] for name, disk in self.domain.live.items() if disk.chain}

    def whole(self) -> bool:
        """As before the snapshot: chains, persistent XML, files, records, jobs, journal."""
        return (
            self.chains == {"vda": ["/img/a.raw"], "vdb": ["/img/b.qcow2", "/img/golden.raw"]}
            and self.domain.config["vda"][0] == Layer("/img/a.raw", "raw")
            and self.domain.config["vdb"][0] == Layer("/img/b.qcow2", "qcow2")
            and set(self.images.backing) == {"/img/a.raw", "/img/b.qcow2", "/img/golden.raw"}
            and not self.domain.records
            and not any(disk.job for disk in self.domain.live.values())
            and self.domain.journal is None
        )


class Lab(MergeLab):
    """A running guest on the overlays of snapshot s1."""

    def __init__(self) -> None:
        super().__init__()
        self.snapshot("s1")


@pytest.fixture
def lab() -> Lab:
    return Lab()


def test_all_disks_of_a_snapshot(lab: Lab) -> None:
    outcome = lab.run(snapshot="s1", delete_merged=True)
    assert outcome.changed
    assert lab.whole()
    assert "/img/golden.raw" not in lab.images.written
    assert outcome.values["disks"] == [
        {
            "disk": "vda",
            "before": ["/img/vm.vda.s1.qcow2", "/img/a.raw"],
            "after": ["/img/a.raw"],
            "merged": ["/img/vm.vda.s1.qcow2"],
            "job": None,
        },
        {
            "disk": "vdb",
            "before": ["/img/vm.vdb.s1.qcow2", "/img/b.qcow2", "/img/golden.raw"],
            "after": ["/img/b.qcow2", "/img/golden.raw"],
            "merged": ["/img/vm.vdb.s1.qcow2"],
            "job": None,
        },
    ]


def test_check_run_again_check(lab: Lab) -> None:
    wish = {"snapshot": "s1", "delete_merged": True}
    before = (lab.chains, lab.domain.journal, dict(lab.images.backing))
    foreseen = lab.run(check=True, **wish)
    assert (lab.chains, lab.domain.journal, dict(lab.images.backing)) == before
    done = lab.run(**wish)
    assert (foreseen.changed, foreseen.steps, foreseen.before, foreseen.after) == (
        done.changed,
        done.steps,
        done.before,
        done.after,
    )
    for check in (False, True):
        again = lab.run(check=check, **wish)
        assert not again.changed
        assert set(again.values) == set(done.values)


def test_intent_is_written_before_the_first_commit(lab: Lab) -> None:
    lab.domain.die_before = "start_commit"
    with pytest.raises(Died):
        lab.run(snapshot="s1")
    assert lab.journal.operations[0].phase == COMMITTING


@pytest.mark.parametrize(
    ("when", "call"),
    [
        ("after", "write_journal"),
        ("after", "start_commit"),
        ("before", "pivot"),
        ("after", "pivot"),
        ("before", "delete_snapshot_record"),
    ],
)
def test_killed_anywhere_the_next_run_ends_the_same(lab: Lab, when: str, call: str) -> None:
    setattr(lab.domain, "die_" + when, call)
    with pytest.raises(Died):
        lab.run(snapshot="s1", delete_merged=True)
    lab.domain.revive()
    lab.run(snapshot="s1", delete_merged=True)
    assert lab.whole()
    assert not lab.run(snapshot="s1", delete_merged=True).changed


def test_a_job_of_an_earlier_run_is_adopted(lab: Lab) -> None:
    lab.domain.start_commit("vda", "/img/a.raw", "/img/vm.vda.s1.qcow2", True, 0, False)
    lab.domain.calls.clear()
    lab.run(snapshot="s1", delete_merged=True)
    assert lab.whole()
    assert not any(call.startswith("start_commit vda") for call in lab.domain.calls)


@pytest.mark.parametrize("job", [BlockJob("backup"), BlockJob("active-commit", target="/img/else.raw")])
def test_a_foreign_job_is_refused(lab: Lab, job: BlockJob) -> None:
    lab.domain.live["vda"] = replace(lab.domain.live["vda"], job=job)
    with pytest.raises(VirtopsError) as caught:
        lab.run(snapshot="s1")
    assert caught.value.code == "job_running"
    assert lab.domain.calls == []


def test_a_pivot_that_is_not_ready_yet_is_tried_again(lab: Lab) -> None:
    lab.domain.refuse_pivots = 3
    lab.run(snapshot="s1", delete_merged=True)
    assert lab.whole()


@pytest.mark.parametrize("answered", [False, True])
def test_libvirtd_restarts_under_the_start_of_a_job(lab: Lab, answered: bool) -> None:
    """Whether it began the job or not, only the next look tells; neither is an error, nor a second job."""
    real, calls = lab.domain.start_commit, []

    def start(disk: str, *arguments: Any) -> None:
        calls.append(disk)
        if answered or len(calls) > 1:
            real(disk, *arguments)
        if len(calls) == 1:
            raise VirtopsError("connection_lost", "The connection to libvirt was lost", "Run the task again")

    lab.domain.start_commit = start  # type: ignore[method-assign]
    lab.run(snapshot="s1", delete_merged=True)
    assert lab.whole()
    assert sorted(calls) == (["vda", "vdb"] if answered else ["vda", "vda", "vdb"])


def test_a_job_that_vanished_did_not_merge(lab: Lab) -> None:
    lab.domain.jobs_vanish = True
    with pytest.raises(VirtopsError) as caught:
        lab.run(snapshot="s1", delete_merged=True)
    assert caught.value.code == "commit_failed"
    assert lab.images.exists("/img/vm.vda.s1.qcow2")
    assert lab.domain.records
    lab.domain.jobs_vanish = False
    lab.run(snapshot="s1", delete_merged=True)
    assert lab.whole()


def test_one_disk_fails_the_other_is_merged_and_both_are_reported(lab: Lab) -> None:
    real = lab.domain.start_commit

    def second_fails(disk: str, *arguments: Any) -> None:
        if disk == "vdb":
            raise VirtopsError("libvirt_error", "No.", "Look.")
        real(disk, *arguments)

    lab.domain.start_commit = second_fails  # type: ignore[method-assign]
    with pytest.raises(VirtopsError) as caught:
        lab.run(snapshot="s1", delete_merged=True)
    assert caught.value.partial is not None
    assert [(item["disk"], item["merged"]) for item in caught.value.partial] == [
        ("vda", ["/img/vm.vda.s1.qcow2"]),
        ("vdb", []),
    ]
    assert [item["error"] for item in caught.value.partial] == [None, "No. Look."]
    assert caught.value.actions == (
        "commit /img/vm.vda.s1.qcow2 into /img/a.raw (vda)",
        "pivot vda to /img/a.raw",
    )
    lab.domain.start_commit = real  # type: ignore[method-assign]
    lab.run(snapshot="s1", delete_merged=True)
    assert lab.whole()


def test_each_disk_that_fails_is_told(lab: Lab) -> None:
    def fails(disk: str, *_arguments: Any) -> None:
        raise VirtopsError("libvirt_error", f"No {disk}.", "Look.")

    lab.domain.start_commit = fails  # type: ignore[method-assign]
    with pytest.raises(VirtopsError) as caught:
        lab.run(snapshot="s1", delete_merged=True)
    assert str(caught.value) == "No vda. No vdb. Look."
    assert [item["error"] for item in caught.value.partial or ()] == ["No vda. Look.", "No vdb. Look."]
    assert caught.value.actions == ()


def test_timeout_ends_the_job_and_leaves_the_guest_on_its_overlay(lab: Lab) -> None:
    lab.domain.ticks_until_ready = 10**6
    with pytest.raises(VirtopsError) as caught:
        lab.run(snapshot="s1", timeout=10)
    assert caught.value.code == "timeout"
    assert lab.chains["vda"][0] == "/img/vm.vda.s1.qcow2"
    assert lab.domain.live["vda"].job is None
    lab.domain.ticks_until_ready = 1
    lab.run(snapshot="s1", delete_merged=True)
    assert lab.whole()


def test_overlays_are_kept_unless_deletion_was_asked_for(lab: Lab) -> None:
    lab.run(snapshot="s1")
    assert lab.images.exists("/img/vm.vda.s1.qcow2")
    assert lab.domain.journal is None


@pytest.mark.parametrize("why", ["open", "other", "other name", "own definition"])
def test_an_overlay_that_somebody_needs_is_kept(lab: Lab, why: str) -> None:
    overlay = "/img/vm.vda.s1.qcow2"
    real = lab.domain.pivot

    def pivot(disk: str) -> None:
        real(disk)
        if why == "open":
            lab.images.open_by[overlay] = (42,)
        elif why == "own definition":
            lab.domain.config["vdb"] = (Layer(lab.images.another_name(overlay), "qcow2"),)
        else:
            name = overlay if why == "other" else lab.images.another_name(overlay)
            lab.domain.others = OtherImages(frozenset(), (Layer(name, "qcow2"),))

    lab.domain.pivot = pivot  # type: ignore[method-assign]
    outcome = lab.run(snapshot="s1", delete_merged=True)
    assert lab.images.exists(overlay)
    assert overlay in outcome.warnings[0]


def test_an_overlay_that_qemu_is_about_to_close_is_deleted(lab: Lab) -> None:
    """libvirt shows the new chain a moment before QEMU drops the merged layer."""
    overlay, closes = "/img/vm.vda.s1.qcow2", lab.clock.monotonic() + 1
    lab.images.holders = (  # type: ignore[method-assign]
        lambda path: (7,) if path == overlay and lab.clock.monotonic() < closes else ()
    )
    assert lab.run(snapshot="s1", delete_merged=True).warnings == ()
    assert lab.whole()


def test_a_base_that_another_domain_stands_on_is_refused(lab: Lab) -> None:
    lab.images.backing["/img/other.qcow2"] = ("qcow2", "/img/a.raw")
    lab.domain.others = OtherImages(frozenset(), (Layer("/img/other.qcow2", "qcow2"),))
    with pytest.raises(VirtopsError) as caught:
        lab.run(snapshot="s1")
    assert caught.value.code == "base_shared"
    assert lab.domain.calls == []


STARTED = 1795176000 * 10**9  # what FakeClock says, in nanoseconds since 1970


@pytest.mark.parametrize(
    ("why", "changed", "kept"),
    [
        ("no base", 0, False),
        ("no base", STARTED, True),
        ("unreadable", 0, False),
        ("unreadable", STARTED, True),
        ("device", 0, True),
        ("loop", STARTED, False),
        ("no tip", STARTED, False),
    ],
)
def test_what_is_wrong_with_another_domain_stops_nothing(lab: Lab, why: str, changed: int, kept: bool) -> None:
    """The overlay goes as well, unless that domain may have come to stand on it: what is older cannot name it."""
    tip, below, overlay = "/img/other.qcow2", "/img/gone.qcow2", "/img/vm.vda.s1.qcow2"
    lab.images.times[tip] = changed
    lab.images.backing[tip] = ("qcow2", below)
    if why == "loop":
        lab.images.backing[below] = ("qcow2", tip)
    elif why == "device":
        lab.images.kinds[tip] = "block"
    elif why == "unreadable":
        lab.images.unreadable.add(tip)
    elif why == "no tip":
        del lab.images.backing[tip]
    lab.domain.others = OtherImages(frozenset({tip}), (Layer(tip, "qcow2"),), owners={tip: "other"})
    outcome = lab.run(snapshot="s1", delete_merged=True)
    assert lab.chains["vda"] == ["/img/a.raw"]
    journal = lab.journal
    assert (journal.operations, journal.merged_as(overlay) is not None) == ((), kept)
    assert lab.images.exists(overlay) is kept
    told = [text for text in outcome.warnings if overlay in text]
    assert ["domain other" in text and (tip in text or below in text) for text in told] == [True] * kept


def test_what_can_be_seen_above_a_fault_of_another_domain_counts(lab: Lab) -> None:
    lab.images.backing["/img/other.qcow2"] = ("qcow2", "/img/a.raw")
    lab.images.backing["/img/a.raw"] = ("raw", "/img/gone")
    lab.domain.others = OtherImages(frozenset(), (Layer("/img/other.qcow2", "qcow2"),))
    with pytest.raises(VirtopsError) as caught:
        lab.run(snapshot="s1")
    assert caught.value.code == "base_shared"


def test_by_path_the_golden_image_of_others_is_refused(lab: Lab) -> None:
    lab.domain.others = OtherImages(frozenset({"/img/golden.raw"}))
    with pytest.raises(VirtopsError) as caught:
        lab.run(disks=("vdb",), base="/img/golden.raw")
    assert caught.value.code == "base_shared"


@pytest.mark.parametrize("path", ["/img/a.raw", "/img/golden.raw"])
@pytest.mark.parametrize("off", [False, True])
def test_what_another_domain_stands_on_under_another_name_is_refused(lab: Lab, path: str, off: bool) -> None:
    """As of /dev/VG/LV, a symlink, and its node in /dev/mapper; or of a folder's path through a symlink."""
    name = lab.images.another_name(path)
    lab.images.backing["/img/other.qcow2"] = ("qcow2", name)
    known, tips = ((), (Layer("/img/other.qcow2", "qcow2"),)) if off else ((name,), ())
    lab.domain.others = OtherImages(frozenset(known), tips)
    disk = "vda" if path == "/img/a.raw" else "vdb"
    with pytest.raises(VirtopsError) as caught:
        lab.run(disks=(disk,), base=path)
    assert caught.value.code == "base_shared"
    assert path in caught.value.cause
    assert lab.domain.calls == []


def test_by_path_several_layers(lab: Lab) -> None:
    lab.snapshot("s2")
    outcome = lab.run(disks=("vda",), base="/img/a.raw", delete_merged=True)
    assert lab.chains["vda"] == ["/img/a.raw"]
    assert not lab.images.exists("/img/vm.vda.s1.qcow2")
    assert not lab.images.exists("/img/vm.vda.s2.qcow2")
    assert len(outcome.warnings) == 2  # both records name layers that are gone
    assert [[d.target for d in op.disks] for op in lab.journal.operations] == [["vdb"], ["vdb"]]
    assert not lab.run(disks=("vda",), base="/img/a.raw", delete_merged=True).changed


@pytest.mark.parametrize("state", ["running", "shut off"])
def test_the_persistent_xml_never_names_a_layer_that_is_gone(lab: Lab, state: str) -> None:
    """libvirt writes the whole chain into it; a guest whose XML names a deleted image does not start."""
    lab.snapshot("s2")
    assert len(lab.domain.config["vda"]) == 3
    lab.domain.state = state
    lab.run(snapshot="s1", delete_merged=True)
    assert lab.domain.config["vda"] == (Layer("/img/vm.vda.s2.qcow2", "qcow2"),)
    lab.domain.config["vda"] += (Layer("/img/a.raw", "raw"),)
    lab.snapshot("s3")
    lab.run(pull=True, disks=("vda",), base="/img/a.raw", delete_merged=True)
    assert not any(layer.path == "/img/vm.vda.s2.qcow2" for layer in lab.domain.config["vda"])


def test_an_inner_snapshot_leaves_the_ones_above(lab: Lab) -> None:
    lab.snapshot("s2")
    lab.run(snapshot="s1", delete_merged=True)
    assert lab.chains["vda"] == ["/img/vm.vda.s2.qcow2", "/img/a.raw"]
    assert list(lab.domain.records) == ["s2"]
    (operation,) = lab.journal.operations
    assert operation.name == "s2"
    assert operation.disks[0].base == "/img/a.raw"
    lab.run(snapshot="s2", delete_merged=True)
    assert lab.whole()


def test_base_that_is_not_in_the_chain(lab: Lab) -> None:
    with pytest.raises(VirtopsError) as caught:
        lab.run(disks=("vda",), base="/img/b.qcow2")
    assert caught.value.code == "base_not_in_chain"
    with pytest.raises(VirtopsError) as caught:
        lab.run(base="/img/nowhere")
    assert caught.value.code == "base_not_in_chain"


def test_top_below_base(lab: Lab) -> None:
    with pytest.raises(VirtopsError) as caught:
        lab.run(disks=("vda",), base="/img/vm.vda.s1.qcow2", top="/img/a.raw")
    assert caught.value.code == "top_below_base"


def test_a_chain_that_somebody_changed_is_not_ours(lab: Lab) -> None:
    disk = lab.domain.live["vda"]
    lab.domain.live["vda"] = replace(disk, chain=(disk.chain[0], Layer("/img/b.qcow2", "qcow2")))
    with pytest.raises(VirtopsError) as caught:
        lab.run(snapshot="s1")
    assert caught.value.code == "chain_changed"


def test_an_operation_under_way_blocks_other_merges(lab: Lab) -> None:
    lab.snapshot("s2", kind="live_backup")
    with pytest.raises(VirtopsError) as caught:
        lab.run(snapshot="s1")
    assert caught.value.code == "operation_open"
    lab.run(snapshot="s2", delete_merged=True)
    lab.run(snapshot="s1", delete_merged=True)
    assert lab.whole()


def test_some_disks_of_a_snapshot_keep_it_on_record(lab: Lab) -> None:
    lab.run(snapshot="s1", disks=("vda",), delete_merged=True)
    assert lab.chains["vda"] == ["/img/a.raw"]
    assert list(lab.domain.records) == ["s1"]
    assert lab.journal.operations[0].phase == COMMITTING
    lab.run(snapshot="s1", delete_merged=True)
    assert lab.whole()


def test_without_waiting_the_job_goes_on_and_a_later_run_ends_it(lab: Lab) -> None:
    outcome = lab.run(snapshot="s1", wait=False, delete_merged=True)
    assert outcome.changed
    assert outcome.values["disks"][0]["job"]["type"] == "active-commit"  # type: ignore[index]
    assert not lab.run(snapshot="s1", wait=False, delete_merged=True).changed
    lab.domain.wait_event(10)
    lab.domain.wait_event(10)
    assert not lab.run(snapshot="s1", wait=False, delete_merged=True).changed
    assert lab.chains["vda"][0] == "/img/vm.vda.s1.qcow2"
    lab.run(snapshot="s1", delete_merged=True)
    assert lab.whole()


def test_without_waiting_a_job_that_is_ready_at_once_is_not_pivoted(lab: Lab) -> None:
    lab.domain.ticks_until_ready = 0
    real = lab.domain.start_commit

    def ready_at_once(*arguments: Any) -> None:
        real(*arguments)
        lab.domain.wait_event(0)

    lab.domain.start_commit = ready_at_once  # type: ignore[method-assign]
    foreseen = lab.run(check=True, snapshot="s1", wait=False)
    done = lab.run(snapshot="s1", wait=False)
    assert (foreseen.steps, foreseen.after) == (done.steps, done.after)
    assert not any(call.startswith("pivot") for call in lab.domain.calls)


def test_without_pivot_the_job_stays_ready(lab: Lab) -> None:
    lab.run(snapshot="s1", pivot=False)
    job = lab.domain.live["vda"].job
    assert job is not None
    assert job.ready
    assert not lab.run(snapshot="s1", pivot=False).changed
    lab.run(snapshot="s1", delete_merged=True)
    assert lab.whole()


def test_bandwidth_is_mib_per_second(lab: Lab) -> None:
    lab.run(snapshot="s1", bandwidth=3)
    assert "start_commit vda /img/vm.vda.s1.qcow2 /img/a.raw 3145728" in lab.domain.calls


@pytest.mark.parametrize(
    ("bandwidth", "words"),
    [
        (0, "lift the limit of the commit of vda that runs already"),
        (5, "limit the commit of vda that runs already to 5 MiB/s"),
        (1, None),
        (None, None),
    ],
)
def test_a_job_of_an_earlier_run_gets_this_runs_limit(lab: Lab, bandwidth: int | None, words: str | None) -> None:
    """Its own one may have kept it from ever ending."""
    lab.run(snapshot="s1", bandwidth=1, wait=False)
    lab.domain.ticks_until_ready = 3
    foreseen = lab.run(check=True, snapshot="s1", bandwidth=bandwidth, delete_merged=True)
    lab.domain.calls.clear()
    done = lab.run(snapshot="s1", bandwidth=bandwidth, delete_merged=True)
    assert foreseen.steps == done.steps
    assert [step for step in done.steps if "limit" in step and "vda" in step] == ([words] if words else [])
    speeds = [call for call in lab.domain.calls if call.startswith("set_job_speed")]
    assert speeds == ([f"set_job_speed {disk} {(bandwidth or 0) << 20}" for disk in ("vda", "vdb")] if words else [])
    assert lab.whole()


def test_a_job_that_ends_before_its_limit_is_set_is_no_failure(lab: Lab) -> None:
    lab.run(snapshot="s1", bandwidth=1, wait=False)

    def end(disk: str, _bandwidth: int) -> None:
        lab.domain.live[disk] = replace(lab.domain.live[disk], job=None)
        raise VirtopsError("libvirt_failed", "There is no job.", "Look.")

    lab.domain.set_job_speed = end  # type: ignore[method-assign]
    lab.run(snapshot="s1", delete_merged=True)
    assert lab.whole()


def test_a_limit_that_cannot_be_lifted_is_no_silence(lab: Lab) -> None:
    lab.run(snapshot="s1", bandwidth=1, wait=False)
    lab.domain.never_ready = True
    lab.domain.fail["set_job_speed"] = VirtopsError("libvirt_failed", "It cannot.", "Look.")
    with pytest.raises(VirtopsError, match="It cannot") as caught:
        lab.run(snapshot="s1", delete_merged=True)
    assert caught.value.code == "libvirt_failed"


def test_a_domain_that_is_off_is_committed_by_qemu_img(lab: Lab) -> None:
    lab.domain.state = "shut off"
    lab.run(snapshot="s1", delete_merged=True)
    assert "commit /img/vm.vda.s1.qcow2 /img/a.raw" in lab.images.calls
    assert lab.whole()


@pytest.mark.parametrize("pull", [False, True])
def test_a_domain_that_is_off_has_a_deadline_too(lab: Lab, pull: bool) -> None:
    """And the next run begins again."""
    lab.domain.state = "shut off"
    lab.images.while_copying = lambda: lab.clock.sleep(11)
    wish: dict[str, object] = {"pull": True, "disks": ("vdb",)} if pull else {"snapshot": "s1"}
    lab.domain.config = {name: disk.chain for name, disk in lab.domain.live.items()}
    before = {name: chain[:1] for name, chain in lab.domain.config.items()}
    with pytest.raises(VirtopsError) as caught:
        lab.run(**wish, timeout=10)
    assert caught.value.code == "timeout"
    assert caught.value.partial is not None
    assert {name: chain[:1] for name, chain in lab.domain.config.items()} == before
    assert lab.domain.journal is not None
    lab.run(**wish, timeout=60)
    assert lab.domain.journal is None or pull


def test_off_and_in_the_middle_of_a_chain(lab: Lab) -> None:
    lab.snapshot("s2")
    lab.domain.state = "shut off"
    lab.run(snapshot="s1", delete_merged=True)
    assert lab.images.backing["/img/vm.vda.s2.qcow2"] == ("qcow2", "/img/a.raw")
    lab.run(snapshot="s2", delete_merged=True)
    assert lab.whole()


def test_the_guest_stops_mid_commit(lab: Lab) -> None:
    real = lab.domain.wait_event

    def stop(_seconds: float) -> None:
        lab.domain.state = "shut off"
        for name, disk in lab.domain.live.items():
            lab.domain.live[name] = replace(disk, job=None)
        lab.domain.wait_event = real  # type: ignore[method-assign]

    lab.domain.wait_event = stop  # type: ignore[method-assign]
    lab.run(snapshot="s1", delete_merged=True)
    assert lab.whole()


def test_the_pivot_reached_the_guest_but_not_the_persistent_xml(lab: Lab) -> None:
    lab.domain.die_after = "pivot"
    with pytest.raises(Died):
        lab.run(snapshot="s1")
    lab.domain.revive()
    lab.domain.config["vda"] = (Layer("/img/vm.vda.s1.qcow2", "qcow2"),)
    foreseen = lab.run(check=True, snapshot="s1", delete_merged=True)
    outcome = lab.run(snapshot="s1", delete_merged=True)
    assert foreseen.steps == outcome.steps
    # Or the guest was started from another definition: then the overlay has data that nobody merged.
    assert "was kept" in outcome.warnings[0]
    assert lab.images.exists("/img/vm.vda.s1.qcow2")
    lab.images.remove("/img/vm.vda.s1.qcow2")
    assert lab.whole()


def test_nothing_is_known_of_the_snapshot(lab: Lab) -> None:
    assert not lab.run(snapshot="never-was").changed
    assert lab.domain.calls == []


@pytest.mark.parametrize("state", ["running", "shut off"])
def test_pull_a_part_of_the_chain(lab: Lab, state: str) -> None:
    lab.domain.state = state
    wish = {"pull": True, "disks": ("vdb",), "base": "/img/golden.raw", "delete_merged": True}
    foreseen = lab.run(check=True, **wish)
    done = lab.run(**wish)
    assert (foreseen.steps, foreseen.after) == (done.steps, done.after)
    assert lab.images.backing["/img/vm.vdb.s1.qcow2"] == ("qcow2", "/img/golden.raw")
    assert done.after["disks"]["vdb"] == ["/img/vm.vdb.s1.qcow2", "/img/golden.raw"]  # type: ignore[index]
    assert lab.images.exists("/img/b.qcow2")  # no snapshot of ours made it
    assert not lab.images.written
    assert not lab.run(**wish).changed


def test_pull_the_whole_chain_of_every_disk(lab: Lab) -> None:
    lab.run(pull=True)
    assert lab.chains == {"vda": ["/img/vm.vda.s1.qcow2"], "vdb": ["/img/vm.vdb.s1.qcow2"]}
    assert lab.domain.journal is None
    assert not lab.run(pull=True).changed


def test_pull_deletes_only_overlays_of_our_snapshots(lab: Lab) -> None:
    lab.snapshot("s2")
    outcome = lab.run(pull=True, disks=("vda",), delete_merged=True)
    assert lab.chains["vda"] == ["/img/vm.vda.s2.qcow2"]
    assert not lab.images.exists("/img/vm.vda.s1.qcow2")
    assert lab.images.exists("/img/a.raw")
    assert "snapshot s1" in outcome.warnings[0]


def test_pull_killed_and_run_again(lab: Lab) -> None:
    lab.domain.die_after = "start_pull"
    with pytest.raises(Died):
        lab.run(pull=True, disks=("vda",))
    lab.domain.revive()
    with pytest.raises(VirtopsError) as caught:
        lab.run(snapshot="s1")
    assert caught.value.code == "operation_open"
    lab.run(pull=True, disks=("vda",))
    assert lab.chains["vda"] == ["/img/vm.vda.s1.qcow2"]
    assert [op.name for op in lab.journal.operations] == ["s1"]


def test_a_pull_that_ended_unseen_is_closed_by_the_next_run(lab: Lab) -> None:
    lab.snapshot("s2")
    lab.domain.die_after = "start_pull"
    wish = {"pull": True, "disks": ("vda",), "base": "/img/a.raw", "delete_merged": True}
    with pytest.raises(Died):
        lab.run(**wish)
    lab.domain.revive()
    lab.domain.wait_event(10)
    lab.domain.wait_event(10)
    assert lab.run(**wish).changed
    assert not lab.run(**wish).changed
    s1, s2 = sorted(lab.journal.operations, key=lambda op: op.name)
    assert [disk.target for disk in s1.disks] == ["vdb"]
    assert s2.disk("vda").base == "/img/a.raw"  # type: ignore[union-attr]
    lab.run(snapshot="s1", delete_merged=True)
    lab.run(snapshot="s2", delete_merged=True)
    assert lab.whole()


def test_libvirt_changes_the_chain_a_moment_after_the_job_is_gone(lab: Lab) -> None:
    real = lab.domain.wait_event
    seen: list[str] = []

    def late(seconds: float) -> None:
        before = dict(lab.domain.live)
        real(seconds)
        if not lab.domain.live["vda"].job and len(seen) < 3:
            seen.append("gone")
            lab.domain.ticks_until_ready = 1
            lab.domain.live["vda"] = replace(before["vda"], job=None)
            if len(seen) == 3:
                lab.domain.live["vda"] = replace(before["vda"], chain=(before["vda"].chain[0],))

    lab.domain.wait_event = late  # type: ignore[method-assign]
    lab.run(pull=True, disks=("vda",))
    assert len(seen) == 3
    assert lab.domain.calls.count("start_pull vda None 0") == 1


def test_pull_down_to_the_active_layer_itself(lab: Lab) -> None:
    with pytest.raises(VirtopsError) as caught:
        lab.run(pull=True, disks=("vda",), base="/img/vm.vda.s1.qcow2")
    assert caught.value.code == "base_not_in_chain"


def test_a_pivot_that_libvirt_has_lost_is_said_so_and_soon(lab: Lab) -> None:
    """The mirror stays in the XML and no job is behind it; that is so for a moment at each end, too."""
    lost = BlockJob("active-commit", target="/img/a.raw", ending=True, tracked=False)
    lab.domain.live["vda"] = replace(lab.domain.live["vda"], job=lost)
    lab.domain.wait_event = lab.clock.sleep  # type: ignore[method-assign]
    with pytest.raises(VirtopsError) as caught:
        lab.run(snapshot="s1", disks=("vda",), delete_merged=True)
    assert caught.value.code == "pivot_lost"
    assert 5 <= lab.clock.seconds < 10
    assert lab.images.exists("/img/vm.vda.s1.qcow2")
    assert not any(call.startswith(("start_commit", "cancel_job", "pivot")) for call in lab.domain.calls)


def ends_at_the_pivot(lab: Lab, done_by_qemu: bool) -> None:
    """The guest and we end after libvirt was asked to pivot vda, before it has noted that QEMU did so."""
    lab.domain.die_before = "pivot"
    with pytest.raises(Died):
        lab.run(snapshot="s1", disks=("vda",), delete_merged=True)
    lab.domain.revive()
    (operation,) = lab.journal.operations
    assert [disk.pivoting for disk in operation.disks] == [True, False]
    lab.domain.state = "shut off"
    for name, disk in lab.domain.live.items():
        lab.domain.live[name] = replace(disk, job=None)
    older, newer = 10**18, 10**18 + 3600 * 10**9
    lab.images.times["/img/vm.vda.s1.qcow2"] = older if done_by_qemu else newer
    lab.images.times["/img/a.raw"] = newer if done_by_qemu else older


def test_a_pivot_that_libvirt_did_not_note_is_not_undone(lab: Lab) -> None:
    """The base is an hour newer than the overlay: to commit would write old data over new."""
    ends_at_the_pivot(lab, done_by_qemu=True)
    foreseen = lab.run(True, snapshot="s1", delete_merged=True)
    outcome = lab.run(snapshot="s1", delete_merged=True)
    assert foreseen.steps == outcome.steps
    assert not any(call.startswith("commit /img/vm.vda") for call in lab.images.calls)
    assert lab.domain.config["vda"] == (Layer("/img/a.raw", "raw"),)
    assert lab.images.exists("/img/vm.vda.s1.qcow2")
    assert "/img/vm.vda.s1.qcow2 was kept" in outcome.warnings[0]
    assert lab.domain.journal is None


def test_a_pivot_that_qemu_did_not_make_is_merged_offline(lab: Lab) -> None:
    ends_at_the_pivot(lab, done_by_qemu=False)
    lab.run(snapshot="s1", delete_merged=True)
    assert "commit /img/vm.vda.s1.qcow2 /img/a.raw" in lab.images.calls
    assert lab.whole()


@pytest.mark.parametrize("seconds", [0, 1, 10.9])  # the overlay of 1 MiB may have been copied for a second
@pytest.mark.parametrize("same", [True, False])
def test_in_doubt_the_images_are_compared_and_a_human_is_asked(lab: Lab, same: bool, seconds: float) -> None:
    ends_at_the_pivot(lab, done_by_qemu=True)
    lab.images.times["/img/a.raw"] = lab.images.times["/img/vm.vda.s1.qcow2"] + int(seconds * 10**9)
    lab.images.same = same
    if same:  # whoever wrote last, a commit undoes nothing, and the overlay has nothing that the base has not
        lab.run(snapshot="s1", delete_merged=True)
        assert lab.whole()
        return
    with pytest.raises(VirtopsError) as caught:
        lab.run(snapshot="s1", delete_merged=True)
    assert caught.value.code == "pivot_lost"
    assert lab.images.calls == ["same_content /img/vm.vda.s1.qcow2 /img/a.raw"]
    lab.domain.state = "running"  # the human has found the overlay to be the right one, and started the guest on it
    lab.run(snapshot="s1", delete_merged=True)
    assert lab.whole()


def test_a_guest_that_was_started_past_its_overlay_keeps_it(lab: Lab) -> None:
    """No merge was begun: the overlay has what the guest wrote, and the base has what it writes now."""
    disk = lab.domain.live["vda"]
    lab.domain.live["vda"] = replace(disk, chain=disk.chain[1:])
    lab.domain.config["vda"] = disk.chain[1:]
    lab.images.dirty.add("/img/vm.vda.s1.qcow2")
    outcome = lab.run(snapshot="s1", delete_merged=True)
    assert lab.images.exists("/img/vm.vda.s1.qcow2")
    assert "/img/vm.vda.s1.qcow2 was kept" in outcome.warnings[0]
