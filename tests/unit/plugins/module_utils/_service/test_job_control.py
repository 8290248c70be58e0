# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""block_job on a job that a merge left running."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.convergence import Deadline
from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.journal import COMMITTING
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Outcome
from ansible_collections.virtops.libvirt.plugins.module_utils._service.job_control import JobControl, JobOptions
from ansible_collections.virtops.libvirt.plugins.module_utils._service.snapshot_delete import SnapshotDeletion

from .fakes import Died
from .test_merge import Lab


@pytest.fixture
def lab() -> Lab:
    """A guest whose snapshot s1 is being merged by a run that did not wait."""
    lab = Lab()
    lab.run(snapshot="s1", wait=False)
    lab.domain.calls.clear()
    return lab


def control(lab: Lab, disk: str, state: str, check: bool = False, bandwidth: int | None = None) -> Outcome:
    wish = JobOptions(disk, state, bandwidth)
    return JobControl(wish, lab.guest).run(check)


def test_pivot_waits_for_ready_and_the_last_disk_closes_the_snapshot(lab: Lab) -> None:
    foreseen = control(lab, "vda", "pivoted", check=True)
    done = control(lab, "vda", "pivoted")
    assert (foreseen.steps, foreseen.after, foreseen.values) == (done.steps, done.after, done.values)
    assert lab.chains["vda"] == ["/img/a.raw"]
    assert list(lab.domain.records) == ["s1"]
    assert not control(lab, "vda", "pivoted").changed
    control(lab, "vdb", "pivoted")
    assert not lab.domain.records
    assert lab.domain.journal is None


def test_cancel_leaves_the_guest_on_its_overlay_and_the_journal_open(lab: Lab) -> None:
    assert control(lab, "vda", "cancelled", check=True).steps == control(lab, "vda", "cancelled").steps
    assert lab.domain.live["vda"].job is None
    assert lab.chains["vda"][0] == "/img/vm.vda.s1.qcow2"
    assert lab.journal.operations[0].phase == COMMITTING
    assert not control(lab, "vda", "cancelled").changed


@pytest.mark.parametrize("off", [False, True])
@pytest.mark.parametrize("by_path", [False, True])
def test_no_pivot_is_claimed_where_the_job_died(off: bool, by_path: bool) -> None:
    """As with no space in the base, or where the guest was destroyed."""
    lab = Lab()
    lab.run(**({"base": "/img/a.raw", "disks": ("vda",)} if by_path else {"snapshot": "s1"}), wait=False)
    if off:
        lab.domain.state = "shut off"
    for target in lab.domain.live:
        lab.domain.live[target] = replace(lab.domain.live[target], job=None)
    before = lab.chains, lab.domain.journal
    lab.domain.calls.clear()
    for check in (True, False):
        with pytest.raises(VirtopsError) as caught:
            control(lab, "vda", "pivoted", check=check)
        assert caught.value.code == "commit_failed"
        assert "/img/vm.vda.s1.qcow2" in caught.value.cause
    assert (lab.chains, lab.domain.journal, lab.domain.calls) == (*before, [])
    assert not control(lab, "sda", "pivoted").changed, "it has no part in the merge"
    assert not control(lab, "vda", "cancelled").changed


def test_no_job_and_a_snapshot_that_is_kept() -> None:
    assert not control(Lab(), "vda", "pivoted").changed


@pytest.mark.parametrize("gone", [True, False])
def test_a_job_that_cannot_be_cancelled_keeps_no_other(lab: Lab, gone: bool) -> None:
    """Where it ended between the look and the call, that is no failure."""
    real = lab.domain.cancel_job

    def cancel_job(disk: str) -> None:
        if disk == "vda":
            if gone:
                real(disk)
            raise VirtopsError("libvirt_error", "No such job.", "Look.")
        real(disk)

    lab.domain.cancel_job = cancel_job  # type: ignore[method-assign]
    lab.domain.never_ready = True
    with pytest.raises(VirtopsError) as caught:
        lab.run(snapshot="s1", timeout=5)
    assert caught.value.code == ("timeout" if gone else "libvirt_error")
    assert lab.domain.live["vdb"].job is None
    assert (caught.value.partial is not None) == gone


def test_speed(lab: Lab) -> None:
    foreseen = control(lab, "vda", "present", check=True, bandwidth=5)
    done = control(lab, "vda", "present", bandwidth=5)
    assert (foreseen.steps, foreseen.after) == (done.steps, done.after)
    assert "set_job_speed vda 5242880" in lab.domain.calls
    assert not control(lab, "vda", "present", bandwidth=5).changed
    assert not control(lab, "vda", "present").changed


@pytest.mark.parametrize(("disk", "code"), [("vdz", "no_such_disk"), ("sda", "no_job")])
def test_refusals(lab: Lab, disk: str, code: str) -> None:
    with pytest.raises(VirtopsError) as caught:
        control(lab, disk, "present", bandwidth=1)
    assert caught.value.code == code


@pytest.mark.parametrize("check", [True, False])
def test_a_pivot_leaves_an_interrupted_deletion_to_its_own_task(check: bool) -> None:
    """Else its overlay would stay for ever: nothing would know of it any more."""
    lab = Lab()
    deletion = SnapshotDeletion("s1", "keep", Deadline(), lab.guest)
    lab.domain.die_after = "start_commit"
    with pytest.raises(Died):
        deletion.run(False)
    lab.domain.revive()
    journal = lab.journal
    outcome = control(lab, "vda", "pivoted", check)
    assert outcome.steps[-1] == "pivot vda to /img/a.raw"
    assert "interrupted" in outcome.warnings[0]
    if check:
        return
    assert lab.chains["vda"] == ["/img/a.raw"]
    left = lab.journal
    assert [(op.kind, op.name) for op in left.operations] == [(op.kind, op.name) for op in journal.operations]
    assert "/img/vm.vda.s1.qcow2" in lab.images.backing
    deletion.run(False)
    assert lab.whole()


def test_a_job_without_a_pivot(lab: Lab) -> None:
    lab = Lab()
    lab.run(pull=True, disks=("vda",), wait=False)
    with pytest.raises(VirtopsError) as caught:
        control(lab, "vda", "pivoted")
    assert caught.value.code == "no_pivot"
