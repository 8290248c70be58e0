# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Recovery after a kill at every call of a snapshot and of a merge."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Outcome
from ansible_collections.virtops.libvirt.plugins.module_utils._core.ports import ReaperPort
from ansible_collections.virtops.libvirt.plugins.module_utils._core.snapshot import SnapshotOptions
from ansible_collections.virtops.libvirt.plugins.module_utils._service.merge import Merge
from ansible_collections.virtops.libvirt.plugins.module_utils._service.merge_plan import MergeOptions
from ansible_collections.virtops.libvirt.plugins.module_utils._service.recover import RecoverOptions, Recovery
from ansible_collections.virtops.libvirt.plugins.module_utils._service.snapshot import ExternalSnapshot

from . import test_merge
from .fakes import Died

SNAPSHOT_DEATHS = [
    ("after", "write_journal"),
    ("before", "freeze"),
    ("after", "freeze"),
    ("before", "create_snapshot"),
    ("after", "create_snapshot"),
]
MERGE_DEATHS = [
    ("after", "write_journal"),
    ("after", "start_commit"),
    ("before", "pivot"),
    ("after", "pivot"),
    ("before", "delete_snapshot_record"),
]


class Lab(test_merge.MergeLab):
    """A running guest on its own images."""

    def __init__(self) -> None:
        super().__init__()
        self.backups: list[str] = []
        self.backup_fails: VirtopsError | None = None

    def die(self, when: str, call: str, kind: str, step: str) -> None:
        """Kill a snapshot of this kind, or the merge of one."""
        if step == "merge":
            self.snapshot("s1", kind)
        setattr(self.domain, "die_" + when, call)
        wish = SnapshotOptions("s1", kind=kind, quiesce="required")
        snapshot = ExternalSnapshot(wish, self.guest)
        merge = Merge(MergeOptions(snapshot="s1", delete_merged=True), self.guest)
        with pytest.raises(Died):
            (merge if step == "merge" else snapshot).run(False)
        self.domain.revive()
        self.domain.calls.clear()

    def recover(
        self,
        check: bool = False,
        operations: tuple[str, ...] = (),
        backup: bool = False,
        reaper: ReaperPort | None = None,
    ) -> Outcome:
        flow = Recovery(
            RecoverOptions(operations),
            self.guest,
            self._back_up if backup else None,
            reaper,
        )
        return flow.run(check)

    def _back_up(self, snapshot: str) -> Outcome:
        if self.backup_fails is not None:
            raise self.backup_fails
        self.backups.append(snapshot)
        return Outcome(("copy",), {"files": []}, {"files": ["vda.raw"]}, {"backup": {"path": "/b"}})


@pytest.fixture
def lab() -> Lab:
    return Lab()


def test_a_healthy_guest_is_not_changed(lab: Lab) -> None:
    assert not lab.recover().changed
    lab.snapshot("kept")
    outcome = lab.recover()
    assert not outcome.changed
    assert outcome.values["operations"] == []
    assert lab.domain.calls == []


@pytest.mark.parametrize(("when", "call"), SNAPSHOT_DEATHS)
def test_a_killed_snapshot_of_a_workflow_is_undone(lab: Lab, when: str, call: str) -> None:
    lab.die(when, call, "live_backup", "snapshot")
    frozen = lab.domain.frozen
    foreseen = lab.recover(check=True)
    assert lab.domain.frozen == frozen
    outcome = lab.recover()
    assert (foreseen.steps, foreseen.after) == (outcome.steps, outcome.after)
    assert lab.whole()
    assert not lab.domain.frozen
    assert not lab.recover().changed


@pytest.mark.parametrize("kind", ["live_backup", "snapshot"])
@pytest.mark.parametrize(("when", "call"), SNAPSHOT_DEATHS[2:])
def test_a_guest_that_is_still_frozen_is_not_healed(lab: Lab, when: str, call: str, kind: str) -> None:
    lab.die(when, call, kind, "snapshot")
    journal = lab.domain.journal
    lab.domain.fail["thaw"] = VirtopsError("agent_unresponsive", "No answer.", "Start it.")
    with pytest.raises(VirtopsError) as caught:
        lab.recover()
    assert caught.value.code == "agent_unresponsive"
    assert "may still be frozen" in caught.value.cause
    assert lab.domain.journal == journal
    lab.domain.end()
    assert not any("thaw" in step for step in lab.recover().steps)
    assert not lab.recover().changed


@pytest.mark.parametrize(("when", "call"), SNAPSHOT_DEATHS)
def test_a_killed_snapshot_that_the_user_keeps_is_kept_or_undone(lab: Lab, when: str, call: str) -> None:
    lab.die(when, call, "snapshot", "snapshot")
    lab.recover()
    taken = (when, call) == ("after", "create_snapshot")
    assert lab.whole() != taken
    assert [op.open for op in lab.journal.operations] == ([False] if taken else [])
    assert not lab.domain.frozen
    assert not lab.recover().changed


@pytest.mark.parametrize("kind", ["live_backup", "snapshot"])
@pytest.mark.parametrize(("when", "call"), MERGE_DEATHS)
def test_a_killed_merge_is_finished(lab: Lab, when: str, call: str, kind: str) -> None:
    lab.die(when, call, kind, "merge")
    foreseen = lab.recover(check=True)
    outcome = lab.recover()
    assert (foreseen.changed, foreseen.steps, foreseen.after) == (outcome.changed, outcome.steps, outcome.after)
    assert lab.whole()
    assert not lab.recover().changed


@pytest.mark.parametrize("pull", [False, True])
def test_a_killed_merge_by_path_is_finished(lab: Lab, pull: bool) -> None:
    lab.snapshot("s1")
    lab.snapshot("s2")
    lab.domain.die_after = "start_pull" if pull else "start_commit"
    wish = MergeOptions(disks=("vda",), base="/img/a.raw", pull=pull)
    merge = Merge(wish, lab.guest)
    with pytest.raises(Died):
        merge.run(False)
    lab.domain.revive()
    lab.recover()
    assert lab.chains["vda"] == (["/img/vm.vda.s2.qcow2", "/img/a.raw"] if pull else ["/img/a.raw"])
    assert not any(op.open for op in lab.journal.operations)
    assert not lab.recover().changed


def test_an_interrupted_copy_is_finished_before_the_merge(lab: Lab) -> None:
    lab.snapshot("s1", "live_backup")
    outcome = lab.recover(backup=True)
    assert lab.backups == ["s1"]
    assert outcome.values["backup"] == {"path": "/b"}
    assert outcome.steps[0] == "copy"
    assert lab.whole()


def test_without_a_target_the_overlays_are_merged_only(lab: Lab) -> None:
    lab.snapshot("s1", "live_backup")
    assert lab.recover().values["backup"] is None
    assert lab.whole()


def test_a_copy_that_fails_leaves_the_bases_for_the_next_try(lab: Lab) -> None:
    lab.snapshot("s1", "live_backup")
    lab.backup_fails = VirtopsError("no_space", "Full.", "Make room.")
    with pytest.raises(VirtopsError, match="Full"):
        lab.recover(backup=True)
    assert lab.domain.calls == []
    lab.backup_fails = None
    assert lab.recover(backup=True).values["backup"] == {"path": "/b"}


@pytest.mark.parametrize("by_us", [True, False])
def test_after_a_commit_was_attempted_no_copy_is_the_snapshot(lab: Lab, by_us: bool) -> None:
    """By somebody else: the journal does not say so, the base does."""
    if by_us:
        lab.die("after", "start_commit", "live_backup", "merge")
    else:
        lab.snapshot("s1", "live_backup")
    lab.backup_fails = VirtopsError("base_modified", "A commit was begun.", "Take a new one.")
    outcome = lab.recover(backup=True)
    assert outcome.values["backup"] is None
    assert "A commit was begun" in outcome.warnings[0]
    assert lab.whole()


def test_operations_of_others_are_refused(lab: Lab) -> None:
    lab.snapshot("s1", "their_workflow")
    with pytest.raises(VirtopsError) as caught:
        lab.recover(operations=("live_backup",))
    assert caught.value.code == "operation_open"
    assert lab.domain.calls == []


def test_newest_data_in_an_overlay_that_no_chain_knows(lab: Lab) -> None:
    lab.die("before", "create_snapshot", "live_backup", "snapshot")
    lab.images.dirty.add("/img/vm.vdb.s1.qcow2")
    with pytest.raises(VirtopsError) as caught:
        lab.recover()
    assert caught.value.code == "overlay_in_use"
    assert lab.images.exists("/img/vm.vda.s1.qcow2")
    assert lab.domain.journal is not None


def test_a_domain_that_went_off_is_merged_offline(lab: Lab) -> None:
    lab.die("after", "start_commit", "live_backup", "merge")
    lab.domain.state = "shut off"
    lab.domain.live = {name: replace(disk, job=None) for name, disk in lab.domain.live.items()}
    lab.recover()
    assert any(call.startswith("commit ") for call in lab.images.calls)
    assert lab.whole()


@pytest.mark.parametrize("has_data", [True, False])
def test_a_guest_that_was_started_from_an_older_definition(lab: Lab, has_data: bool) -> None:
    """It runs on its bases again, and no commit was attempted: what it wrote in between is only in the overlays."""
    lab.snapshot("s1", "live_backup")
    for name, disk in lab.domain.live.items():
        lab.domain.config[name] = disk.chain[1:]
    lab.domain.live = {name: replace(disk, chain=disk.chain[1:]) for name, disk in lab.domain.live.items()}
    if has_data:
        lab.images.dirty.add("/img/vm.vdb.s1.qcow2")
        with pytest.raises(VirtopsError) as caught:
            lab.recover()
        assert caught.value.code == "overlay_in_use"
        assert lab.images.exists("/img/vm.vdb.s1.qcow2")
        assert lab.domain.journal is not None
    else:
        lab.recover()
        assert lab.whole()


class FakeReaper:
    """One orphan of each domain that was named."""

    def __init__(self, orphans: dict[str, int], emulators: tuple[int, ...] = ()) -> None:
        self.orphans_of = dict(orphans)
        self.running = emulators

    def emulators(self, uuid: str, images: Iterable[str]) -> tuple[int, ...]:
        return self.running

    def orphans(self, uuid: str) -> tuple[int, ...]:
        return tuple(pid for owner, pid in self.orphans_of.items() if owner == uuid)

    def reap(self, uuid: str, pid: int) -> None:
        assert self.orphans_of.pop(uuid) == pid


def test_an_orphaned_copy_is_ended_before_anything_else(lab: Lab) -> None:
    lab.snapshot("s1", "live_backup")
    uuid = lab.domain.view().uuid
    reaper = FakeReaper({uuid: 4711, "another": 4712})

    def recover(check: bool) -> Outcome:
        return Recovery(RecoverOptions(), lab.guest, reaper=reaper).run(check)

    foreseen = recover(True)
    assert reaper.orphans(uuid) == (4711,)
    outcome = recover(False)
    assert foreseen.steps == outcome.steps
    assert outcome.steps[0] == "end process 4711, a copy that an interrupted run left"
    assert reaper.orphans_of == {"another": 4712}
    assert not recover(False).changed


def test_a_guest_that_libvirt_has_lost(lab: Lab) -> None:
    """It is shown as off, on overlays that its QEMU may have left: nothing is merged, nothing is removed."""
    lab.die("after", "start_commit", "live_backup", "merge")
    lab.domain.state = "shut off"
    lab.domain.live = {name: replace(disk, job=None) for name, disk in lab.domain.live.items()}
    lab.images.calls.clear()
    for check in (True, False):
        with pytest.raises(VirtopsError) as caught:
            lab.recover(check=check, reaper=FakeReaper({}, (4711,)))
        assert caught.value.code == "guest_lost"
        assert "4711" in caught.value.cause
    assert (lab.images.calls, lab.domain.calls) == ([], [])
    lab.recover(reaper=FakeReaper({}))
    assert lab.whole()
