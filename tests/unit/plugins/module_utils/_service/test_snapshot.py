# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The snapshot flow: the end state it leaves, what it refuses, and every place where it may be killed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.journal import COMMITTING, CREATED
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import (
    BlockJob,
    Creation,
    DomainView,
    Layer,
    Outcome,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._core.snapshot import (
    DiskOptions,
    SnapshotOptions,
    SnapshotPlan,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._core.xml import build_journal
from ansible_collections.virtops.libvirt.plugins.module_utils._service.snapshot import ExternalSnapshot

from .fakes import Died, FakeDomain, FakeLab

OVERLAY_A = "/img/vm.vda.s1.qcow2"
OVERLAY_B = "/img/vm.vdb.s1.qcow2"


class Lab(FakeLab):
    def run(self, check: bool = False, **wish: object) -> Outcome:
        flow = ExternalSnapshot(
            SnapshotOptions(**{"name": "s1", **wish}),  # type: ignore[arg-type]
            self.guest,
        )
        return flow.run(check)

    def untouched(self) -> bool:
        return (
            self.tops == {"vda": "/img/a.raw", "vdb": "/img/b.qcow2"}
            and self.domain.journal is None
            and not self.domain.records
            and set(self.images.backing) == {"/img/a.raw", "/img/b.qcow2", "/img/golden.raw"}
            and not self.domain.frozen
        )


@pytest.fixture
def lab() -> Lab:
    return Lab()


def test_every_disk_is_switched_or_named_as_skipped(lab: Lab) -> None:
    outcome = lab.run(quiesce="required")
    assert lab.tops == {"vda": OVERLAY_A, "vdb": OVERLAY_B}
    assert outcome.values["skipped_disks"] == [{"disk": "sda", "reason": "it is a cdrom drive"}]
    assert outcome.values["consistency"] == "filesystem"
    assert not lab.domain.frozen
    assert not lab.watchdog.armed


def test_the_order_of_effects(lab: Lab) -> None:
    lab.run(quiesce="required")
    calls = ["write_journal", "write_journal", "freeze", "create_snapshot", "thaw", "write_journal"]
    assert lab.domain.calls == ["agent_ping", *calls]
    assert lab.images.calls == ["create_overlay " + OVERLAY_A, "create_overlay " + OVERLAY_B]
    assert lab.watchdog.calls[0] == "arm"


def test_the_journal_ends_with_the_identity_of_each_base(lab: Lab) -> None:
    lab.run()
    (operation,) = lab.journal.operations
    assert operation.phase == CREATED
    assert not operation.open
    assert [disk.identity for disk in operation.disks] == [
        lab.images.identity("/img/a.raw"),
        lab.images.identity("/img/b.qcow2"),
    ]


def test_check_run_again_check(lab: Lab) -> None:
    foreseen = lab.run(check=True, quiesce="required")
    assert lab.untouched()
    done = lab.run(quiesce="required")
    assert (foreseen.changed, foreseen.steps, foreseen.after) == (done.changed, done.steps, done.after)
    assert set(foreseen.values) == set(done.values)
    calls = list(lab.domain.calls)
    for check in (False, True):
        again = lab.run(check=check, quiesce="required")
        assert not again.changed
        assert again.values["overlays"] == done.values["overlays"]
        assert again.values["consistency"] == "filesystem"
    assert lab.domain.calls == calls


def test_a_snapshot_without_record_is_idempotent_too(lab: Lab) -> None:
    assert lab.run(metadata=False).changed
    assert not lab.domain.records
    assert not lab.run(metadata=False).changed


def test_without_record_any_name_will_do_that_files_can_have(lab: Lab) -> None:
    assert lab.run(name=".é" * 100, metadata=False).changed


def test_a_record_that_was_deleted_since_is_missed(lab: Lab) -> None:
    assert lab.run().values["snapshot"]["metadata"] is True  # type: ignore[index]
    lab.domain.records.clear()
    outcome = lab.run()
    assert (outcome.changed, outcome.values["snapshot"]["metadata"]) == (False, False)  # type: ignore[index]
    assert "no record of snapshot 's1'" in outcome.warnings[0]
    assert lab.run(metadata=False).warnings == ()


def test_a_recorded_snapshot_that_the_journal_does_not_know(lab: Lab) -> None:
    lab.run()
    lab.domain.journal = None
    outcome = lab.run()
    assert not outcome.changed
    assert outcome.values["overlays"][0]["base"] == "/img/a.raw"  # type: ignore[index]


def test_excluded_disk(lab: Lab) -> None:
    outcome = lab.run(disks=(DiskOptions("vda", snapshot="no"),))
    assert lab.tops == {"vda": "/img/a.raw", "vdb": OVERLAY_B}
    assert {"disk": "vda", "reason": "excluded by the request"} in outcome.values["skipped_disks"]  # type: ignore[operator]


@pytest.mark.parametrize("said", ["no", "internal", "manual"])
def test_a_disk_whose_definition_speaks_against_it(lab: Lab, said: str) -> None:
    lab.domain.live["vda"] = replace(lab.domain.live["vda"], snapshot=said)
    outcome = lab.run()
    assert lab.tops == {"vda": "/img/a.raw", "vdb": OVERLAY_B}
    told = {item["disk"]: item["reason"] for item in outcome.values["skipped_disks"]}  # type: ignore[attr-defined]
    assert f"its definition says snapshot='{said}'" in told["vda"]
    assert not lab.run().changed


def test_a_disk_that_is_named_takes_part_whatever_its_definition_says(lab: Lab) -> None:
    lab.domain.live["vda"] = replace(lab.domain.live["vda"], snapshot="no")
    lab.run(disks=(DiskOptions("vda"),))
    assert lab.tops["vda"] != "/img/a.raw"


def test_a_snapshot_stays_what_it_is_when_the_definition_comes_to_speak_against_it(lab: Lab) -> None:
    """As one that an earlier release took, which did not ask the definition."""
    lab.run()
    lab.domain.live["vda"] = replace(lab.domain.live["vda"], snapshot="no")
    assert not lab.run().changed
    lab.domain.journal = None
    assert not lab.run().changed


def test_a_volume_is_an_image_like_others(lab: Lab) -> None:
    lab.domain.live["vda"] = replace(lab.domain.live["vda"], source_type="volume", volume="pool/a.raw")
    lab.run()
    assert lab.tops["vda"] == "/img/vm.vda.s1.qcow2"


def test_a_volume_without_a_path_is_refused_in_true_words(lab: Lab) -> None:
    disk = replace(lab.domain.live["vda"], source_type="volume", volume="pool/a.raw", chain=())
    lab.domain.live["vda"], lab.domain.config["vda"] = disk, ()
    with pytest.raises(VirtopsError) as caught:
        lab.run()
    assert caught.value.code == "disk_unsuitable"
    assert "its volume pool/a.raw has no path on this host" in caught.value.cause
    assert "virsh pool-start" in caught.value.remedy


def test_no_overlay_is_put_beside_a_volume_that_is_a_device(lab: Lab) -> None:
    layer = Layer("/dev/vg0/a", "raw")
    disk = replace(lab.domain.live["vda"], source_type="volume", volume="vg0/a", chain=(layer,))
    lab.domain.live["vda"] = disk
    with pytest.raises(VirtopsError) as caught:
        lab.run()
    assert caught.value.code == "overlay_needed"


def test_overlay_paths_of_the_user(lab: Lab) -> None:
    lab.images.folders.add("/fast, ünd gut")
    lab.run(overlay_dir="/fast, ünd gut", disks=(DiskOptions("vdb", file="/img/mine.qcow2"),))
    assert lab.tops == {"vda": "/fast, ünd gut/vm.vda.s1.qcow2", "vdb": "/img/mine.qcow2"}


@pytest.mark.parametrize(
    ("wish", "code"),
    [
        ({"disks": (DiskOptions("vdz"),)}, "no_such_disk"),
        ({"disks": (DiskOptions("sda"),)}, "disk_unsuitable"),
        ({"overlay_dir": "/nowhere"}, "no_directory"),
        ({"overlay_dir": "img"}, "bad_path"),
        ({"overlay_dir": "/img/../etc"}, "bad_path"),
        ({"disks": (DiskOptions("vda", file="/img/b.qcow2"),)}, "overlay_exists"),
        ({"disks": (DiskOptions("vda", file="/img/x"), DiskOptions("vdb", file="/img/x"))}, "overlay_exists"),
        ({"disks": (DiskOptions("vda", "no"), DiskOptions("vdb", "no"))}, "nothing_to_snapshot"),
        ({"name": ""}, "name_unsuitable"),
        ({"name": "a/b"}, "name_unsuitable"),
        ({"name": "a/b", "metadata": False}, "name_unsuitable"),
        ({"name": ".hidden"}, "name_unsuitable"),
        ({"name": "é" * 200}, "name_unsuitable"),
    ],
)
@pytest.mark.parametrize("check", [True, False])
def test_bad_input_is_refused_before_the_first_effect(
    lab: Lab, wish: dict[str, object], code: str, check: bool
) -> None:
    with pytest.raises(VirtopsError) as caught:
        lab.run(check=check, **wish)
    assert caught.value.code == code
    assert lab.untouched()
    assert lab.domain.calls == []


@pytest.mark.parametrize("check", [True, False])
def test_what_the_caller_refuses_is_refused_before_the_first_effect(lab: Lab, check: bool) -> None:
    seen = []

    def refuse(view: DomainView, plan: SnapshotPlan) -> None:
        seen.append((view.name, [disk.base.path for disk in plan.disks]))
        raise VirtopsError("dest_missing", "No.", "Mount it.")

    flow = ExternalSnapshot(SnapshotOptions("s1"), lab.guest, refuse)
    with pytest.raises(VirtopsError, match="Mount it"):
        flow.run(check)
    assert seen == [("vm", ["/img/a.raw", "/img/b.qcow2"])]
    assert lab.untouched()


def test_a_folder_without_write_permission(lab: Lab) -> None:
    lab.images.read_only.add("/img")
    with pytest.raises(VirtopsError, match="cannot be written"):
        lab.run()
    assert lab.untouched()


def test_a_running_job_is_refused(lab: Lab) -> None:
    lab.domain.live["vda"] = replace(lab.domain.live["vda"], job=BlockJob("backup"))
    with pytest.raises(VirtopsError) as caught:
        lab.run()
    assert caught.value.code == "job_running"
    assert lab.untouched()


def test_another_operation_under_way_is_refused(lab: Lab) -> None:
    lab.run(kind="live_backup")
    journal = lab.journal
    (operation,) = journal.operations
    lab.domain.journal = build_journal(journal.put(replace(operation, name="other")))
    with pytest.raises(VirtopsError) as caught:
        lab.run()
    assert caught.value.code == "operation_open"
    assert "'other'" in str(caught.value)


def test_a_snapshot_whose_merge_began_is_no_snapshot_any_more(lab: Lab) -> None:
    lab.run()
    journal = lab.journal
    lab.domain.journal = build_journal(journal.put(journal.operations[0].at(COMMITTING)))
    with pytest.raises(VirtopsError, match="block_commit"):
        lab.run()


def test_same_name_other_disks(lab: Lab) -> None:
    lab.run()
    with pytest.raises(VirtopsError) as caught:
        lab.run(disks=(DiskOptions("vda", snapshot="no"),))
    assert caught.value.code == "snapshot_differs"
    assert "vda, vdb" in caught.value.cause


def test_same_name_other_kind(lab: Lab) -> None:
    lab.run()
    lab.domain.journal = None
    record = lab.domain.records["s1"]
    lab.domain.records["s1"] = replace(
        record, memory="internal", disks=tuple(replace(disk, mode="internal", file=None) for disk in record.disks)
    )
    with pytest.raises(VirtopsError) as caught:
        lab.run()
    assert caught.value.code == "snapshot_differs"


@pytest.mark.parametrize(("code", "state"), [("agent_unresponsive", "running"), ("guest_paused", "paused")])
def test_no_agent(lab: Lab, code: str, state: str) -> None:
    lab.domain.state = state
    lab.domain.fail["agent_ping"] = VirtopsError("agent_unresponsive", "No answer.", "Start it.")
    with pytest.raises(VirtopsError) as caught:
        lab.run(quiesce="required")
    assert caught.value.code == code
    assert lab.untouched()
    outcome = lab.run(quiesce="preferred")
    assert outcome.values["consistency"] == "crash"
    assert "crash-consistent" in outcome.warnings[0]


def test_a_freeze_that_fails_is_thawed(lab: Lab) -> None:
    lab.domain.fail["freeze"] = VirtopsError("agent_unresponsive", "Too late.", "Look at the agent.")
    with pytest.raises(VirtopsError, match="Too late"):
        lab.run(quiesce="required")
    assert lab.untouched()
    assert "thaw" in lab.domain.calls
    assert not lab.watchdog.armed
    assert lab.run(quiesce="preferred").values["consistency"] == "crash"


def test_a_guest_without_file_systems_is_not_called_consistent(lab: Lab) -> None:
    lab.domain.filesystems = 0
    with pytest.raises(VirtopsError) as caught:
        lab.run(quiesce="required")
    assert caught.value.code == "nothing_frozen"
    assert lab.untouched()


def test_a_guest_that_thawed_by_itself_is_not_called_consistent(lab: Lab) -> None:
    original = lab.domain.create_snapshot

    def slow(xml: str, how: Creation) -> None:
        original(xml, how)
        lab.domain.frozen = False

    lab.domain.create_snapshot = slow  # type: ignore[method-assign]
    with pytest.raises(VirtopsError) as caught:
        lab.run(quiesce="required")
    assert caught.value.code == "freeze_lost"


@pytest.mark.parametrize("disks", [(), (DiskOptions("vdb", file="/elsewhere/of any name"),)])
def test_creation_fails_no_stray_file_no_frozen_guest(lab: Lab, disks: tuple[DiskOptions, ...]) -> None:
    lab.images.folders.add("/elsewhere")
    lab.domain.fail["create_snapshot"] = VirtopsError("libvirt_error", "No.", "Look.")
    with pytest.raises(VirtopsError, match=r"No[.]"):
        lab.run(quiesce="required", disks=disks)
    assert lab.untouched()
    assert not lab.watchdog.armed


@pytest.mark.parametrize("sign", ["open", "written"])
def test_an_overlay_that_qemu_switched_to_unseen_is_never_removed(lab: Lab, sign: str) -> None:
    """libvirtd or QEMU died in the call: QEMU had switched, libvirt does not know."""
    lab.domain.fail["create_snapshot"] = VirtopsError("connection_lost", "Gone.", "Start libvirtd.")
    if sign == "open":
        lab.images.open_by[OVERLAY_A] = (42,)
    else:
        lab.images.dirty.add(OVERLAY_A)
    with pytest.raises(VirtopsError) as caught:
        lab.run()
    assert caught.value.partial == [{"disk": "vda", "overlay": OVERLAY_A}]
    assert lab.images.exists(OVERLAY_A)
    assert lab.domain.journal is not None
    del lab.domain.fail["create_snapshot"]
    with pytest.raises(VirtopsError) as caught:
        lab.run()
    assert caught.value.code == "overlay_in_use"
    lab.images.open_by.clear()
    lab.images.dirty.clear()
    assert lab.run().changed
    assert lab.tops["vda"] == OVERLAY_A


def test_the_second_overlay_cannot_be_made(lab: Lab) -> None:
    real = lab.images.create_overlay

    def second_fails(path: str, base: object, size: int, user: object) -> None:
        if path == OVERLAY_B:
            raise VirtopsError("no_space", "Full.", "Make room.")
        real(path, base, size)  # type: ignore[arg-type]

    lab.images.create_overlay = second_fails  # type: ignore[method-assign, assignment]
    with pytest.raises(VirtopsError, match="Full"):
        lab.run()
    assert lab.untouched()


def test_thaw_fails_the_watchdog_stays_armed(lab: Lab) -> None:
    lab.domain.fail["thaw"] = VirtopsError("connection_lost", "Gone.", "Start libvirtd.")
    with pytest.raises(VirtopsError):
        lab.run(quiesce="required")
    assert lab.watchdog.armed


def test_a_guest_that_cannot_be_thawed_is_not_forgotten(lab: Lab) -> None:
    """Though nothing was switched. The watchdog may fail as well."""
    lab.domain.fail["create_snapshot"] = VirtopsError("libvirt_error", "No.", "Look.")
    lab.domain.fail["thaw"] = VirtopsError("agent_unresponsive", "No answer.", "Start it.")
    with pytest.raises(VirtopsError, match="Thawing the guest failed too: No answer") as caught:
        lab.run(quiesce="required")
    assert (caught.value.code, lab.watchdog.armed) == ("libvirt_error", True)
    (operation,) = lab.journal.operations
    assert operation.frozen
    lab.domain.fail.clear()
    lab.run(quiesce="required")
    (operation,) = lab.journal.operations
    assert (operation.phase, operation.hold, lab.domain.frozen) == (CREATED, None, False)


def test_an_agent_that_may_neither_freeze_nor_thaw_has_not_frozen(lab: Lab) -> None:
    for name in ("freeze", "thaw"):
        lab.domain.fail[name] = VirtopsError("agent_failed", "The command %s is not allowed." % name, "Allow it.")
    with pytest.raises(VirtopsError, match="freeze is not allowed"):
        lab.run(quiesce="required")
    assert lab.untouched()
    assert lab.run(quiesce="preferred").values["consistency"] == "crash"
    assert not lab.watchdog.armed


def _left_frozen(lab: Lab, when: str, call: str) -> None:
    _kill(lab.domain, when, call)
    with pytest.raises(Died):
        lab.run(quiesce="required")
    lab.domain.revive()
    assert lab.domain.frozen


FROZEN_DEATHS = [("after", "freeze"), ("before", "create_snapshot"), ("after", "create_snapshot")]


@pytest.mark.parametrize("quiesce", ["required", "preferred", "never"])
@pytest.mark.parametrize(("when", "call"), FROZEN_DEATHS)
def test_the_next_run_thaws_what_the_watchdog_did_not(lab: Lab, when: str, call: str, quiesce: str) -> None:
    _left_frozen(lab, when, call)
    foreseen = lab.run(True, quiesce=quiesce)
    assert lab.domain.frozen
    outcome = lab.run(quiesce=quiesce)
    assert foreseen.steps == outcome.steps
    assert outcome.steps[0].startswith("thaw ")
    assert not lab.domain.frozen
    (operation,) = lab.journal.operations
    assert (operation.phase, operation.hold) == (CREATED, None)
    assert lab.domain.lasting_journal == lab.domain.journal
    assert not lab.run(quiesce=quiesce).changed


@pytest.mark.parametrize("quiesce", ["preferred", "never"])
@pytest.mark.parametrize(("when", "call"), FROZEN_DEATHS)
def test_a_guest_that_is_still_frozen_keeps_the_operation_open(lab: Lab, when: str, call: str, quiesce: str) -> None:
    """Until it is thawed, or its QEMU ends."""
    _left_frozen(lab, when, call)
    tops, journal = lab.tops, lab.domain.journal
    lab.domain.fail["thaw"] = VirtopsError("agent_unresponsive", "No answer.", "Start it.")
    with pytest.raises(VirtopsError) as caught:
        lab.run(quiesce=quiesce)
    assert caught.value.code == "agent_unresponsive"
    assert (lab.tops, lab.domain.journal) == (tops, journal)
    lab.domain.end()
    lab.domain.state = "running"
    lab.domain.fail["agent_ping"] = lab.domain.fail["thaw"]  # the guest is booting
    outcome = lab.run(quiesce=quiesce)
    assert not any("thaw" in step for step in outcome.steps)


def _kill(domain: FakeDomain, when: str, call: str) -> None:
    setattr(domain, "die_" + when, call)


@pytest.mark.parametrize(
    ("when", "call"),
    [
        ("after", "write_journal"),
        ("before", "freeze"),
        ("after", "freeze"),
        ("before", "create_snapshot"),
        ("after", "create_snapshot"),
    ],
)
def test_killed_anywhere_the_next_run_ends_the_same(lab: Lab, when: str, call: str) -> None:
    _kill(lab.domain, when, call)
    with pytest.raises(Died):
        lab.run(quiesce="preferred", kind="live_backup")
    lab.domain.revive()
    lab.domain.frozen = False  # the watchdog's work
    lab.run(quiesce="preferred", kind="live_backup")
    assert lab.tops == {"vda": OVERLAY_A, "vdb": OVERLAY_B}
    (operation,) = lab.journal.operations
    assert operation.phase == CREATED
    assert not lab.run(quiesce="preferred", kind="live_backup").changed


def test_a_domain_that_is_off(lab: Lab) -> None:
    lab.domain.state = "shut off"
    outcome = lab.run(quiesce="required")
    assert outcome.values["consistency"] == "offline"
    assert "freeze" not in lab.domain.calls
