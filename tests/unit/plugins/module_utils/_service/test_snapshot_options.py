# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Snapshots with memory, that halt, on overlays that exist, and of disks on the network: the end state of each."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.backup import BackupOptions, select
from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.journal import CREATED
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import (
    SAVING,
    Creation,
    Disk,
    ImageInfo,
    Layer,
    OtherImages,
    Outcome,
    SnapshotRecord,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._core.snapshot import DiskOptions, SnapshotOptions
from ansible_collections.virtops.libvirt.plugins.module_utils._service.merge import Merge
from ansible_collections.virtops.libvirt.plugins.module_utils._service.merge_plan import MergeOptions
from ansible_collections.virtops.libvirt.plugins.module_utils._service.recover import RecoverOptions, Recovery
from ansible_collections.virtops.libvirt.plugins.module_utils._service.snapshot import ExternalSnapshot

from .fakes import Died, FakeLab

OVERLAYS = {"vda": "/img/vm.vda.s1.qcow2", "vdb": "/img/vm.vdb.s1.qcow2"}
BASES = {"vda": "/img/a.raw", "vdb": "/img/b.qcow2"}
MEMORY = "/img/vm.s1.memory"


class Lab(FakeLab):
    def __init__(self) -> None:
        super().__init__()
        self.before = set(self.images.backing)

    def run(self, check: bool = False, **wish: object) -> Outcome:
        flow = ExternalSnapshot(
            SnapshotOptions("s1", **wish),  # type: ignore[arg-type]
            self.guest,
        )
        return flow.run(check)

    def recover(self, check: bool = False) -> Outcome:
        return Recovery(RecoverOptions(), self.guest).run(check)

    def refused(self, **wish: object) -> VirtopsError:
        """The refusal, which check mode gives too, and which comes before any effect."""
        files = set(self.images.backing)
        codes = []
        for check in (True, False):
            with pytest.raises(VirtopsError) as caught:
                self.run(check, **wish)
            codes.append(caught.value.code)
        assert codes[0] == codes[1]
        assert self.tops == BASES
        assert self.domain.journal is None
        assert set(self.images.backing) == files
        assert not self.domain.created
        return caught.value

    def cycle(self, **wish: object) -> Outcome:
        """Check, run, run again, check again."""
        foreseen = self.run(check=True, **wish)
        assert self.domain.journal is None
        assert not self.domain.created
        done = self.run(**wish)
        assert (foreseen.changed, foreseen.steps, foreseen.before) == (True, done.steps, done.before)
        assert foreseen.after == done.after
        assert set(foreseen.values) == set(done.values)
        for check in (False, True):
            again = self.run(check, **wish)
            assert not again.changed
            assert again.before == again.after
            assert again.values["overlays"] == done.values["overlays"]
        return done

    def offer(self, *targets: str) -> None:
        """The user's own overlays, where ours would be."""
        for target in targets:
            self.images.backing[OVERLAYS[target]] = ("qcow2", BASES[target])


@pytest.fixture
def lab() -> Lab:
    return Lab()


# memory


@pytest.mark.parametrize("metadata", [True, False])
@pytest.mark.parametrize("live", [True, False])
def test_memory(lab: Lab, metadata: bool, live: bool) -> None:
    done = lab.cycle(memory=MEMORY, live=live, metadata=metadata)
    assert lab.domain.created == [Creation(metadata, reuse=True, memory=True, live=live)]
    assert lab.tops == OVERLAYS
    assert "save the memory of vm to " + MEMORY in done.steps
    assert '<memory snapshot="external" file="%s"/>' % MEMORY in str(done.after["snapshot"])
    assert done.values["snapshot"]["memory"] == MEMORY  # type: ignore[index]
    (operation,) = lab.journal.operations
    assert (operation.phase, operation.memory) == (CREATED, MEMORY)


@pytest.mark.parametrize("known_by", ["journal", "record"])
@pytest.mark.parametrize(
    ("made", "asked"),
    [
        ({}, {"memory": MEMORY}),
        ({"memory": MEMORY}, {}),
        ({"memory": MEMORY}, {"memory": "/img/elsewhere"}),
    ],
)
def test_same_name_other_memory(lab: Lab, known_by: str, made: dict[str, str], asked: dict[str, str]) -> None:
    lab.run(**made)
    if known_by == "record":
        lab.domain.journal = None
    with pytest.raises(VirtopsError) as caught:
        lab.run(**asked)
    assert caught.value.code == "snapshot_differs"
    for path in (*made.values(), *asked.values()):
        assert path in caught.value.cause
    assert not lab.run(**made).changed


@pytest.mark.parametrize(
    ("wish", "code"),
    [
        ({"live": True}, "bad_option"),
        ({"memory": MEMORY, "quiesce": "required"}, "bad_option"),
        ({"memory": "memory"}, "bad_path"),
        ({"memory": "/img/../img/x"}, "bad_path"),
        ({"memory": "/nowhere/x"}, "no_directory"),
        ({"memory": "/img/a.raw"}, "memory_exists"),
        ({"memory": OVERLAYS["vda"]}, "memory_exists"),
    ],
)
def test_memory_that_cannot_be_saved_so(lab: Lab, wish: dict[str, object], code: str) -> None:
    assert lab.refused(**wish).code == code


def test_memory_without_space(lab: Lab) -> None:
    lab.images.free = (1 << 28) - 1
    refusal = lab.refused(memory=MEMORY)
    assert refusal.code == "memory_space"
    assert "256 MiB" in refusal.cause


def test_a_folder_that_memory_cannot_be_written_to(lab: Lab) -> None:
    lab.images.folders.add("/ro")
    lab.images.read_only.add("/ro")
    assert lab.refused(memory="/ro/m").code == "not_writable"


def test_memory_of_a_domain_that_is_off(lab: Lab) -> None:
    lab.domain.state = "shut off"
    assert lab.refused(memory=MEMORY).code == "memory_off"


def test_memory_with_a_freeze_that_is_preferred(lab: Lab) -> None:
    outcome = lab.run(memory=MEMORY, quiesce="preferred")
    assert "freeze" not in lab.domain.calls
    assert "with memory" in outcome.warnings[0]
    assert outcome.values["consistency"] == "crash"


@pytest.mark.parametrize(("halt", "warned"), [(False, 1), (True, 0)])
def test_memory_of_a_guest_that_is_paused(lab: Lab, halt: bool, warned: int) -> None:
    """QEMU takes its images up again when it is resumed, and commits into none of them before."""
    lab.domain.state, lab.domain.paused_by = "paused", "user"
    for check in (True, False):
        outcome = lab.run(check, memory=MEMORY, halt=halt)
        assert len([text for text in outcome.warnings if "paused before" in text]) == warned
    assert lab.domain.state == ("shut off" if halt else "paused")


def test_a_failed_snapshot_leaves_no_memory(lab: Lab) -> None:
    """libvirt removes it, unless it died."""

    def dies(_xml: str, _how: Creation) -> None:
        lab.images.backing[MEMORY] = ("memory", None)
        lab.domain.state, lab.domain.paused_by = "paused", SAVING
        raise VirtopsError("connection_lost", "Gone.", "Start libvirtd.")

    lab.domain.create_snapshot = dies  # type: ignore[method-assign]
    with pytest.raises(VirtopsError, match="Gone"):
        lab.run(memory=MEMORY)
    assert set(lab.images.backing) == lab.before
    assert lab.domain.journal is None
    assert lab.domain.state == "running"


def _die_in_save(lab: Lab, **wish: object) -> None:
    lab.domain.die_in_save = True
    with pytest.raises(Died):
        lab.run(memory=MEMORY, **wish)
    lab.domain.revive()
    assert lab.images.exists(MEMORY)


@pytest.mark.parametrize("paused_by", [None, SAVING, "user"])
@pytest.mark.parametrize("by", ["run", "recover"])
def test_libvirt_died_while_it_saved(lab: Lab, by: str, paused_by: str | None) -> None:
    _die_in_save(lab)
    if paused_by is not None:
        lab.domain.state, lab.domain.paused_by = "paused", paused_by
    if by == "recover":
        steps = lab.recover(check=True).steps
        assert lab.images.exists(MEMORY)
        assert lab.recover().steps == steps
        assert set(lab.images.backing) == lab.before
        assert lab.domain.journal is None
    else:
        steps = lab.run(check=True, memory=MEMORY).steps
        assert lab.run(memory=MEMORY).steps == steps
        assert lab.tops == OVERLAYS
        assert not lab.run(memory=MEMORY).changed
    assert any("not taken" in step and MEMORY in step for step in steps)
    assert lab.domain.state == ("paused" if paused_by == "user" else "running")
    assert any(step.startswith("resume") for step in steps) == (paused_by == SAVING)


def test_a_guest_that_is_left_paused_is_resumed_whatever_is_asked_for(lab: Lab) -> None:
    _die_in_save(lab)
    lab.domain.state, lab.domain.paused_by = "paused", SAVING
    with pytest.raises(VirtopsError):
        lab.run(overlay_dir="/nowhere")
    assert lab.domain.state == "running"


@pytest.mark.parametrize("sign", ["a job", "an open file"])
def test_libvirt_still_saves(lab: Lab, sign: str) -> None:
    """The module was killed, and libvirt goes on: to take away what it works at would fail it."""
    _die_in_save(lab)
    if sign == "a job":
        lab.domain.job_ends_at = lab.clock.monotonic() + 100
    else:
        lab.images.open_by[MEMORY] = (42,)
    for check in (True, False):
        with pytest.raises(VirtopsError) as caught:
            lab.run(check, memory=MEMORY, timeout=10)
        assert caught.value.code == "libvirt_busy"
    assert lab.images.exists(MEMORY)
    if sign == "a job":
        assert lab.run(memory=MEMORY, timeout=200).changed
        assert lab.clock.monotonic() >= 100


def test_a_module_that_is_killed_while_libvirt_finishes(lab: Lab) -> None:
    lab.domain.die_after = "create_snapshot"
    with pytest.raises(Died):
        lab.run(memory=MEMORY)
    lab.domain.revive()
    outcome = lab.run(memory=MEMORY)
    assert outcome.steps == ("note in the journal that snapshot s1 was taken",)
    assert lab.images.exists(MEMORY)
    assert not lab.run(memory=MEMORY).changed
    with pytest.raises(VirtopsError, match="of the disks only"):
        lab.run()


def test_a_lost_answer_while_libvirt_goes_on(lab: Lab) -> None:
    lab.domain.fail["create_snapshot"] = VirtopsError("connection_lost", "Gone.", "Start libvirtd.")
    lab.domain.job_ends_at = 10
    with pytest.raises(VirtopsError) as caught:
        lab.run(memory=MEMORY)
    assert caught.value.partial == [{"disk": name, "overlay": path} for name, path in OVERLAYS.items()]
    assert lab.domain.journal is not None
    assert all(lab.images.exists(path) for path in OVERLAYS.values())


def test_memory_of_a_snapshot_on_record_stays(lab: Lab) -> None:
    """Somebody else took one into the file that an interrupted run of ours had in mind."""
    _die_in_save(lab)
    lab.domain.records["foreign"] = SnapshotRecord("foreign", "running", 1, memory="external", memory_file=MEMORY)
    with pytest.raises(VirtopsError) as caught:
        lab.run(memory=MEMORY)
    assert caught.value.code == "memory_exists"
    lab.recover()
    assert lab.images.exists(MEMORY)
    assert lab.domain.journal is None


# halt


@pytest.mark.parametrize("quiesce", ["never", "required"])
@pytest.mark.parametrize("memory", [None, MEMORY])
def test_halt(lab: Lab, quiesce: str, memory: str | None) -> None:
    if memory:
        quiesce = "never"
    done = lab.cycle(halt=True, quiesce=quiesce, memory=memory)
    assert lab.domain.state == "shut off"
    assert "thaw" not in lab.domain.calls
    assert not lab.watchdog.armed
    assert (done.before["state"], done.after["state"]) == ("running", "shut off")
    assert done.values["consistency"] == ("filesystem" if quiesce == "required" else "crash")
    assert [layers[0].path for layers in lab.domain.config.values() if layers] == list(OVERLAYS.values())


def test_a_guest_that_was_started_again_is_not_halted_again(lab: Lab) -> None:
    lab.run(halt=True)
    lab.domain.state = "running"
    assert not lab.run(halt=True).changed
    assert lab.domain.state == "running"


def test_a_halt_that_fails_is_thawed(lab: Lab) -> None:
    lab.domain.fail["create_snapshot"] = VirtopsError("libvirt_error", "No.", "Look.")
    with pytest.raises(VirtopsError):
        lab.run(halt=True, quiesce="required")
    assert not lab.domain.frozen
    assert not lab.watchdog.armed
    assert set(lab.images.backing) == lab.before


def test_a_transient_domain_is_not_halted(lab: Lab) -> None:
    lab.domain.persistent = False
    assert lab.refused(halt=True).code == "halt_transient"
    assert lab.run().changed


def test_a_domain_that_is_off_needs_no_halt(lab: Lab) -> None:
    lab.domain.state = "shut off"
    done = lab.cycle(halt=True)
    assert done.before["state"] == done.after["state"] == "shut off"
    assert not any("turn" in step for step in done.steps)


# reuse


def test_reuse(lab: Lab) -> None:
    lab.offer("vda", "vdb")
    done = lab.cycle(reuse=True)
    assert lab.tops == OVERLAYS
    assert not [call for call in lab.images.calls if call.startswith("create_overlay")]
    assert "reuse the overlay %s on /img/a.raw (vda)" % OVERLAYS["vda"] in done.steps
    (operation,) = lab.journal.operations
    assert [disk.reused for disk in operation.disks] == [True, True]


def test_an_overlay_on_a_block_device(lab: Lab) -> None:
    lab.images.backing["/dev/vg/o"] = ("qcow2", "/img/a.raw")
    lab.images.kinds["/dev/vg/o"] = "block"
    wish = {"reuse": True, "disks": (DiskOptions("vda", file="/dev/vg/o"), DiskOptions("vdb", snapshot="no"))}
    done = lab.cycle(**wish)
    assert '<source dev="/dev/vg/o"/>' in str(done.values["snapshot"]["xml"])  # type: ignore[index]
    assert lab.tops["vda"] == "/dev/vg/o"


@pytest.mark.parametrize(
    ("info", "words"),
    [
        ({"encrypted": True}, "it is encrypted"),
        ({"beside": ("/etc/shadow",)}, "its data are in /etc/shadow"),
        ({"corrupt": True}, "corrupt"),
        ({"backing_path": None}, "has no backing file"),
        ({"backing_path": "/img/golden.raw"}, "is /img/golden.raw, not /img/a.raw"),
        ({"backing_path": "/img/gone.raw"}, "is /img/gone.raw"),
        ({"backing_format": None}, "does not say"),
        ({"backing_format": "qcow2"}, "says that its backing file is qcow2"),
        ({"virtual_size": (1 << 30) - 512}, "smaller"),
    ],
)
def test_an_overlay_that_does_not_fit(lab: Lab, info: dict[str, object], words: str) -> None:
    lab.offer("vda", "vdb")
    fits = ImageInfo(OVERLAYS["vda"], "qcow2", 1 << 30, 1 << 18, "/img/a.raw", "raw")
    lab.images.infos[OVERLAYS["vda"]] = replace(fits, **info)  # type: ignore[arg-type]
    refusal = lab.refused(reuse=True)
    assert refusal.code == "overlay_unsuitable"
    assert words in refusal.cause
    lab.images.infos[OVERLAYS["vda"]] = fits
    assert lab.run(reuse=True).changed


def test_an_overlay_that_is_missing(lab: Lab) -> None:
    lab.offer("vda")
    refusal = lab.refused(reuse=True)
    assert refusal.code == "overlay_missing"
    assert OVERLAYS["vdb"] in refusal.cause


def test_a_folder_is_no_overlay(lab: Lab) -> None:
    lab.offer("vda", "vdb")
    lab.images.kinds[OVERLAYS["vda"]] = "other"
    assert lab.refused(reuse=True).code == "overlay_unsuitable"


def test_an_overlay_that_holds_data(lab: Lab) -> None:
    lab.offer("vda", "vdb")
    lab.images.dirty.add(OVERLAYS["vdb"])
    assert lab.refused(reuse=True).code == "overlay_not_empty"


@pytest.mark.parametrize("by", ["another domain", "a process", "the domain itself"])
def test_an_overlay_that_is_taken(lab: Lab, by: str) -> None:
    lab.offer("vda", "vdb")
    wish: dict[str, object] = {"reuse": True}
    if by == "another domain":
        lab.domain.others = OtherImages(frozenset({OVERLAYS["vda"]}))
    elif by == "a process":
        lab.images.open_by[OVERLAYS["vda"]] = (42,)
    else:
        wish["disks"] = (DiskOptions("vda", file="/img/golden.raw"),)
    assert lab.refused(**wish).code == "overlay_taken"


@pytest.mark.parametrize("by", ["failure", "run", "recover"])
def test_the_users_own_overlays_are_never_removed(lab: Lab, by: str) -> None:
    lab.offer("vda", "vdb")
    if by == "failure":
        lab.domain.fail["create_snapshot"] = VirtopsError("libvirt_error", "No.", "Look.")
        with pytest.raises(VirtopsError):
            lab.run(reuse=True)
        assert lab.domain.journal is None
    else:
        lab.domain.die_before = "create_snapshot"
        with pytest.raises(Died):
            lab.run(reuse=True)
        lab.domain.revive()
        if by == "recover":
            steps = lab.recover(check=True).steps
            assert lab.recover().steps == steps == ("remove operation s1 from the journal",)
        else:
            assert lab.run(reuse=True).changed
            assert lab.tops == OVERLAYS
    assert not [call for call in lab.images.calls if call.startswith("remove")]
    assert all(lab.images.exists(path) for path in OVERLAYS.values())


def test_a_run_that_reuses_no_more_leaves_them_too(lab: Lab) -> None:
    lab.offer("vda", "vdb")
    lab.domain.die_before = "create_snapshot"
    with pytest.raises(Died):
        lab.run(reuse=True)
    lab.domain.revive()
    lab.images.folders.add("/fast")
    assert lab.run(overlay_dir="/fast").changed
    assert lab.tops["vda"].startswith("/fast/")
    assert all(lab.images.exists(path) for path in OVERLAYS.values())


def test_an_interrupted_run_without_reuse_does_not_take_the_overlays_from_one_with_it(lab: Lab) -> None:
    lab.domain.die_before = "create_snapshot"
    with pytest.raises(Died):
        lab.run()
    lab.domain.revive()
    assert lab.run(reuse=True).changed
    assert lab.tops == OVERLAYS


def test_a_reused_overlay_that_qemu_switched_to_unseen_keeps_the_journal(lab: Lab) -> None:
    lab.offer("vda", "vdb")
    lab.domain.fail["create_snapshot"] = VirtopsError("connection_lost", "Gone.", "Start libvirtd.")
    original = lab.domain.create_snapshot

    def switched(xml: str, how: Creation) -> None:
        lab.images.open_by[OVERLAYS["vda"]] = (42,)
        original(xml, how)

    lab.domain.create_snapshot = switched  # type: ignore[method-assign]
    with pytest.raises(VirtopsError) as caught:
        lab.run(reuse=True)
    assert caught.value.partial == [{"disk": "vda", "overlay": OVERLAYS["vda"]}]
    assert lab.domain.journal is not None


# Disks on the network

NBD = Layer("nbd://storage:10809/web", "raw")


@pytest.fixture
def far(lab: Lab) -> Lab:
    lab.domain.live["vdc"] = Disk("vdc", source_type="network", remote=NBD)
    lab.domain.config["vdc"] = ()
    return lab


def test_a_disk_on_the_network_takes_a_local_overlay(far: Lab) -> None:
    done = far.cycle(disks=(DiskOptions("vdc", file="/img/c.qcow2"),))
    # Only libvirt knows how to name that base in the overlay, and it makes all of a request or none
    assert far.domain.created == [Creation(reuse=False)]
    assert not [call for call in far.images.calls if call.startswith("create_overlay")]
    assert far.tops["vdc"] == "/img/c.qcow2"
    overlays = {overlay["disk"]: overlay for overlay in done.values["overlays"]}  # type: ignore[attr-defined]
    assert overlays["vdc"]["base"] == NBD.path
    (operation,) = far.journal.operations
    assert [disk.identity is None for disk in operation.disks] == [False, False, True]


@pytest.mark.parametrize(
    ("wish", "code"),
    [
        ({}, "overlay_needed"),
        ({"overlay_dir": "/img"}, "overlay_needed"),
        ({"disks": (DiskOptions("vdc", file="/img/c.qcow2"),), "kind": "live_backup"}, "disk_unsuitable"),
        ({"disks": (DiskOptions("vdc", file="/img/c.qcow2"),), "reuse": True}, "disk_unsuitable"),
    ],
)
def test_a_disk_on_the_network_that_is_refused(far: Lab, wish: dict[str, object], code: str) -> None:
    refusal = far.refused(**wish)
    assert refusal.code == code
    assert NBD.path in refusal.cause
    assert "snapshot: no" in refusal.remedy


def test_a_disk_on_the_network_of_a_domain_that_is_off(far: Lab) -> None:
    far.domain.state = "shut off"
    refusal = far.refused(disks=(DiskOptions("vdc", file="/img/c.qcow2"),))
    assert refusal.code == "disk_unsuitable"
    assert "Start the domain" in refusal.remedy


def test_a_disk_on_the_network_may_be_left_out(far: Lab) -> None:
    far.cycle(disks=(DiskOptions("vdc", snapshot="no"),))
    assert far.domain.created == [Creation(reuse=True)]


def test_what_libvirt_created_before_it_failed_is_removed(far: Lab) -> None:
    original = far.domain.create_snapshot

    def fails(xml: str, how: Creation) -> None:
        far.images.backing["/img/c.qcow2"] = ("qcow2", NBD.path)
        far.domain.fail["create_snapshot"] = VirtopsError("libvirt_error", "No.", "Look.")
        original(xml, how)

    far.domain.create_snapshot = fails  # type: ignore[method-assign]
    with pytest.raises(VirtopsError, match="No"):
        far.run(disks=(DiskOptions("vdc", file="/img/c.qcow2"),))
    assert set(far.images.backing) == far.before
    assert far.domain.journal is None


def test_a_base_on_the_network_is_neither_merged_into_nor_copied(far: Lab) -> None:
    far.run(disks=(DiskOptions("vdc", file="/img/c.qcow2"),))
    calls = list(far.domain.calls)
    for check in (True, False):
        with pytest.raises(VirtopsError) as caught:
            Merge(MergeOptions(snapshot="s1"), far.guest).run(check)
        assert caught.value.code == "base_remote"
        assert "virsh blockcommit vm vdc" in caught.value.remedy
    assert far.domain.calls == calls
    for wish in (BackupOptions("/backup", snapshot="s1"), BackupOptions("/backup", overlays=("/img/c.qcow2",))):
        with pytest.raises(VirtopsError) as caught:
            select(wish, far.domain.view(), far.journal, far.images)
        assert caught.value.code == "base_remote"


def test_what_is_left_of_one_that_was_merged_by_hand_goes(far: Lab) -> None:
    far.run(disks=(DiskOptions("vda", "no"), DiskOptions("vdb", "no"), DiskOptions("vdc", file="/img/c.qcow2")))
    far.domain.live["vdc"] = Disk("vdc", source_type="network", remote=NBD)
    far.domain.config["vdc"] = ()
    wish = MergeOptions(snapshot="s1", delete_merged=True)
    assert Merge(wish, far.guest).run(False).changed
    assert far.domain.journal is None
    assert not far.domain.records
    assert set(far.images.backing) == far.before
