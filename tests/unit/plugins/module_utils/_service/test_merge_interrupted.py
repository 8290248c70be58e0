# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The merge by a snapshot's name where the snapshot, or an earlier merge, broke off: nothing that may be the only copy
of data is committed over, deleted or forgotten."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Layer
from ansible_collections.virtops.libvirt.plugins.module_utils._core.snapshot import SnapshotOptions
from ansible_collections.virtops.libvirt.plugins.module_utils._service.merge_plan import PIVOT_DOUBT_NS
from ansible_collections.virtops.libvirt.plugins.module_utils._service.snapshot import ExternalSnapshot

from . import test_merge
from .fakes import Died

OVERLAY = "/img/vm.vda.s1.qcow2"
WISH = {"snapshot": "s1", "delete_merged": True}


class Lab(test_merge.MergeLab):
    """A running guest on its own images."""

    def die_at(self, call: str, **options: object) -> None:
        """The module that takes snapshot s1 is killed before this call."""
        self.domain.die_before = call
        wish = SnapshotOptions("s1", **options)  # type: ignore[arg-type]
        with pytest.raises(Died):
            ExternalSnapshot(wish, self.guest).run(False)
        self.domain.revive()
        self.images.calls.clear()

    def refused(self, check: bool = False) -> str:
        before = (dict(self.images.backing), self.domain.journal)
        with pytest.raises(VirtopsError) as caught:
            self.run(check, **WISH)
        assert (dict(self.images.backing), self.domain.journal) == before
        return caught.value.code


@pytest.fixture
def lab() -> Lab:
    return Lab()


def test_a_snapshot_that_was_never_taken_is_undone(lab: Lab) -> None:
    lab.die_at("create_snapshot")
    foreseen = lab.run(True, **WISH)
    outcome = lab.run(**WISH)
    assert foreseen.steps == outcome.steps
    assert "remove the overlay %s, which nothing was written to" % OVERLAY in outcome.steps
    assert set(foreseen.values) == set(outcome.values)
    assert lab.whole()
    assert not lab.run(**WISH).changed


@pytest.mark.parametrize("state", ["running", "shut off"])
@pytest.mark.parametrize("check", [True, False])
def test_qemu_switched_and_libvirt_died(lab: Lab, state: str, check: bool) -> None:
    """The overlay has what the guest wrote since, whether its QEMU still has it open or has ended."""
    lab.die_at("create_snapshot")
    lab.domain.state = state
    if state == "running":
        lab.images.open_by[OVERLAY] = (4711,)
    else:
        lab.images.dirty.add(OVERLAY)
    assert lab.refused(check) == "overlay_in_use"


def test_the_same_for_one_of_two_disks(lab: Lab) -> None:
    lab.die_at("create_snapshot")
    lab.domain.live["vdb"] = replace(lab.domain.live["vdb"], chain=lab.images.chain("/img/vm.vdb.s1.qcow2"))
    lab.images.dirty.add(OVERLAY)
    assert lab.refused() == "overlay_in_use"


@pytest.mark.parametrize("switched", [False, True])
def test_a_guest_that_was_left_frozen_is_thawed_first(lab: Lab, switched: bool) -> None:
    lab.die_at("thaw" if switched else "create_snapshot", quiesce="required")
    lab.domain.fail["thaw"] = VirtopsError("agent_unresponsive", "No answer.", "Start it.")
    assert lab.refused() == "agent_unresponsive"
    assert lab.domain.frozen
    lab.domain.fail.clear()
    foreseen = lab.run(True, **WISH)
    assert lab.domain.frozen
    lab.domain.calls.clear()
    outcome = lab.run(**WISH)
    assert foreseen.steps == outcome.steps
    assert [step for step in outcome.steps if "thaw" in step or "let go" in step] == [outcome.steps[0]]
    assert lab.domain.calls[0] == "thaw"
    assert not lab.domain.frozen
    assert lab.whole()


def test_overlays_of_the_users_own_stay(lab: Lab) -> None:
    for target, base in (("vda", "/img/a.raw"), ("vdb", "/img/b.qcow2")):
        lab.images.backing["/img/vm.%s.s1.qcow2" % target] = ("qcow2", base)
    lab.die_at("create_snapshot", reuse=True)
    lab.run(**WISH)
    assert lab.images.exists(OVERLAY)
    assert lab.domain.journal is None


def test_half_a_memory_file_goes(lab: Lab) -> None:
    lab.die_at("create_snapshot", memory="/img/s1.mem")
    lab.images.backing["/img/s1.mem"] = ("memory", None)
    outcome = lab.run(**WISH)
    assert any("/img/s1.mem" in step for step in outcome.steps)
    assert lab.whole()


def test_the_memory_goes_with_the_snapshot(lab: Lab) -> None:
    wish = SnapshotOptions("s1", memory="/img/s1.mem")
    ExternalSnapshot(wish, lab.guest).run(False)
    lab.images.backing["/img/s1.mem"] = ("memory", None)
    foreseen = lab.run(True, **WISH)
    assert foreseen.steps == lab.run(**WISH).steps
    assert "delete the memory of a snapshot, /img/s1.mem" in foreseen.steps
    assert lab.whole()


def test_the_guest_ends_right_after_its_pivot(lab: Lab) -> None:
    """In this very run, so that the plan could not know: the base has newer data than the overlay."""
    lab.snapshot("s1")

    def pivot(disk: str) -> None:
        lab.domain.calls.append("pivot %s" % disk)
        lab.domain.state = "shut off"
        for name, found in lab.domain.live.items():
            lab.domain.live[name] = replace(found, job=None)
        lab.images.times.update({"/img/a.raw": 10**18 + 2 * PIVOT_DOUBT_NS, OVERLAY: 10**18})

    lab.domain.pivot = pivot  # type: ignore[method-assign]
    outcome = lab.run(disks=("vda",), **WISH)
    assert not any(call.startswith("commit") for call in lab.images.calls)
    assert lab.domain.config["vda"] == (Layer("/img/a.raw", "raw"),)
    assert lab.images.exists(OVERLAY)
    assert not any("remove %s" % OVERLAY in call for call in lab.images.calls)
    assert outcome.changed


def test_what_a_new_commit_copied_is_no_pivot(lab: Lab) -> None:
    """A pivot was asked for and not made; the next run's commit is cut off half-way, with the base written last."""
    lab.snapshot("s1")
    lab.domain.die_before = "pivot"
    with pytest.raises(Died):
        lab.run(disks=("vda",), **WISH)
    lab.domain.revive()
    lab.domain.live["vda"] = replace(lab.domain.live["vda"], job=None)  # that QEMU ended, the guest was started again
    lab.domain.die_after = "start_commit"
    with pytest.raises(Died):
        lab.run(disks=("vda",), **WISH)
    lab.domain.revive()
    (operation,) = lab.journal.operations
    assert not any(disk.pivoting for disk in operation.disks)
    lab.domain.state = "shut off"
    for name, found in lab.domain.live.items():
        lab.domain.live[name] = replace(found, job=None)
    lab.images.times.update({"/img/a.raw": 10**18 + 2 * PIVOT_DOUBT_NS, OVERLAY: 10**18})
    lab.run(**WISH)
    assert "commit %s /img/a.raw" % OVERLAY in lab.images.calls
    assert lab.whole()


@pytest.mark.parametrize("by_path", [False, True])
def test_an_overlay_that_somebody_reads_is_deleted_by_the_next_run(lab: Lab, by_path: bool) -> None:
    lab.snapshot("s1")
    wish = {"disks": ("vda",), "base": "/img/a.raw", "delete_merged": True} if by_path else WISH
    lab.images.open_by[OVERLAY] = (4711,)
    outcome = lab.run(**wish)
    assert "a process has it open (PID 4711)" in outcome.warnings[0]
    assert lab.chains["vda"] == ["/img/a.raw"]
    lab.images.open_by.clear()
    foreseen = lab.run(True, **wish)
    assert foreseen.steps == lab.run(**wish).steps
    assert not lab.images.exists(OVERLAY)
    assert not lab.run(**wish).changed
    assert by_path or lab.whole()
