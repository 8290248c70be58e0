# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: block jobs: ending them in bounded time, and what results show of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .._core.errors import VirtopsError
from .._core.model import BlockJob, DomainView
from .._core.ports import Clock, MergePort

#: Seconds for jobs that were told to end. Writes under way go first, which is quick. A pivot that was asked for cannot
#: be taken back, and takes as long as the guest lets it.
END_SECONDS = 10.0
_POLL = 0.25


def cancel_jobs(domain: MergePort, targets: Sequence[str], clock: Clock) -> DomainView:
    """End the jobs of these disks, and return the domain as it is then: a job may be there still, at its end."""
    view = domain.view()
    failures = [_cancel(domain, target) for target in targets if _goes_on(view, target)]
    for failure in failures:
        if failure is not None:
            raise failure
    until = clock.monotonic() + END_SECONDS
    while True:
        view = domain.view()
        if not any(disk.job for disk in view.disks if disk.target in targets) or clock.monotonic() >= until:
            return view
        domain.wait_event(_POLL)


def _cancel(domain: MergePort, target: str) -> VirtopsError | None:
    """Why the job goes on; one that ended between the look and the call is no failure, and keeps none of the others."""
    try:
        domain.cancel_job(target)
    except VirtopsError as error:
        return error if _goes_on(domain.view(), target) else None
    return None


def _goes_on(view: DomainView, target: str) -> bool:
    disk = view.disk(target)
    return disk is not None and disk.job is not None and not disk.job.ending


def describe_job(job: BlockJob | None) -> dict[str, Any] | None:
    """A job as every result shows it: bytes, bytes/s, percent; `target` is what an active commit goes into."""
    if job is None:
        return None
    return {
        "type": job.kind,
        "cur": job.cur,
        "end": job.end,
        "bandwidth": job.bandwidth,
        "ready": job.ready,
        "target": job.target,
        "progress": 100.0 if job.ready else (100.0 * job.cur / job.end if job.end else 0.0),
    }


def describe_disks(
    targets: Sequence[str],
    before: Mapping[str, list[str]],
    after: Mapping[str, list[str]],
    merged: Mapping[str, Sequence[str]],
    view: DomainView | None = None,
    errors: Mapping[str, VirtopsError] | None = None,
) -> list[dict[str, Any]]:
    """What became of these disks, of those with merged layers, or of all: the chain before and after, what was merged,
    the job that runs by this reading; after a failure also each disk's own error, in words."""
    told = []
    for target in targets or merged or before:
        left = after.get(target, [])
        disk = None if view is None else view.disk(target)
        told.append(
            {
                "disk": target,
                "before": before.get(target, []),
                "after": left,
                "merged": [path for path in merged.get(target, ()) if path not in left],
                "job": describe_job(disk.job if disk else None),
            }
        )
        if errors is not None:
            told[-1]["error"] = str(errors[target]) if target in errors else None
    return told
