# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""block_job on a job that a merge left running."""

from __future__ import annotations

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.journal import COMMITTING
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Outcome
from ansible_collections.virtops.libvirt.plugins.module_utils._core.xml import parse_journal
from ansible_collections.virtops.libvirt.plugins.module_utils._service.job import JobControl, JobWish

from .test_merge import Lab


@pytest.fixture
def lab() -> Lab:
    """A guest whose snapshot s1 is being merged by a run that did not wait."""
    lab = Lab()
    lab.run(snapshot="s1", wait=False)
    lab.domain.calls.clear()
    return lab


def control(lab: Lab, disk: str, state: str, check: bool = False, bandwidth: int | None = None) -> Outcome:
    wish = JobWish(disk, state, bandwidth)
    return JobControl(wish, lab.domain, lab.images, lab.clock, lab.watchdog).run(check)


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
    assert parse_journal(lab.domain.journal).operations[0].phase == COMMITTING
    assert not control(lab, "vda", "cancelled").changed


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


def test_a_job_without_a_pivot(lab: Lab) -> None:
    lab = Lab()
    lab.run(pull=True, disks=("vda",), wait=False)
    with pytest.raises(VirtopsError) as caught:
        control(lab, "vda", "pivoted")
    assert caught.value.code == "no_pivot"
