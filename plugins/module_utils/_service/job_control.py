# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the flow of one disk's block job: its speed, its pivot, its end."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

from .._core.convergence import Deadline
from .._core.errors import VirtopsError
from .._core.journal import DELETE, PULL, RESERVED, REVERT, Operation
from .._core.merge import goal_to_base
from .._core.model import BlockJob, DomainView, Outcome
from .._core.plan import Step
from .._core.ports import MergePort
from .._core.refusals import require_disk
from .._core.snapshot import is_in_chain
from .block_jobs import cancel_jobs, describe_job
from .guest import Guest
from .merge import Merge
from .merge_plan import MergeOptions
from .run import Run

MIB = 1024 * 1024
_UNFINISHED = (
    "This job belongs to an interrupted deletion, which must still delete the overlays and the records: run that task "
    "again, or virtops.libvirt.recover."
)


@dataclass(frozen=True)
class JobOptions:
    """`state` is present, pivoted or cancelled; `bandwidth` in MiB/s (None: leave it)."""

    disk: str
    state: str
    bandwidth: int | None = None
    deadline: Deadline = field(default_factory=Deadline)
    delete_merged: bool = False


class JobControl:
    """Bring the block job of one disk into the state that was asked for."""

    def __init__(self, options: JobOptions, guest: Guest[MergePort]) -> None:
        self._options = options
        self._guest = guest
        self._domain = guest.domain

    def run(self, check: bool) -> Outcome:
        """Raises VirtopsError; a job that ended while we looked is no error."""
        with self._guest.run(check) as run:
            view = self._guest.observe()
            job = self._job(view)
            if self._options.state == "pivoted" and job is not None:
                return self._pivot(view, job, run)
            if self._options.state == "pivoted":
                self._refuse_unmerged(view)
            run.apply(*self._steps(job))
            after = None if self._options.state == "cancelled" else self._with_speed(job)
            if run.actions and not check:
                after = self._job(self._domain.view())
            return run.outcome({"job": describe_job(job)}, {"job": describe_job(after)}, {"job": describe_job(after)})

    def _job(self, view: DomainView) -> BlockJob | None:
        disk = require_disk(view, self._options.disk)
        if disk.job is None and self._options.state == "present":
            raise VirtopsError(
                "no_job",
                "No block job runs on disk %s of domain %s." % (disk.target, view.name),
                "Start one with virtops.libvirt.block_commit or virtops.libvirt.block_pull and wait: false",
            )
        return disk.job

    def _refuse_unmerged(self, view: DomainView) -> None:
        """A job that is gone means nothing: the chain tells whether it came to its end."""
        target = self._options.disk
        for operation in view.journal.operations:
            if not operation.open or operation.kind in (PULL, REVERT):
                continue
            for disk in operation.disks:
                if disk.target == target and is_in_chain(view, target, disk.overlay):
                    raise VirtopsError(
                        "commit_failed",
                        "No block job runs on disk %s of domain "
                        "%s, which still uses %s: the merge of %r is not done."
                        % (target, view.name, disk.overlay, operation.name),
                        "Run virtops.libvirt.block_commit, or the play that began it, again; if its job died, the "
                        "domain's QEMU log has the cause, most often no space for the base. If it fails again in the "
                        "same way, as QEMU may do after an I/O error, shut the guest down and run it again: it then "
                        "merges offline",
                    )

    def _steps(self, job: BlockJob | None) -> tuple[Step, ...]:
        if job is None:
            return ()
        if self._options.state == "cancelled":
            return (Step(("cancel the %s job of %s" % (job.kind, self._options.disk),), self._cancel),)
        wanted = self._options.bandwidth
        if wanted is None or job.bandwidth == wanted * MIB:
            return ()
        words = "limit the %s job of %s to %d MiB/s (0 is no limit)" % (job.kind, self._options.disk, wanted)
        return (Step((words,), partial(self._domain.set_job_speed, self._options.disk, wanted * MIB)),)

    def _with_speed(self, job: BlockJob | None) -> BlockJob | None:
        wanted = self._options.bandwidth
        return job if job is None or wanted is None else replace(job, bandwidth=wanted * MIB)

    def _cancel(self) -> None:
        disk = cancel_jobs(self._domain, [self._options.disk], self._guest.clock).disk(self._options.disk)
        if disk is not None and disk.job is not None:
            raise VirtopsError(
                "job_ending",
                "The %s job of disk %s was ordered to end, but has not ended yet." % (disk.job.kind, disk.target),
                "QEMU ends it when the guest writes less: run the task again",
            )

    def _pivot(self, view: DomainView, job: BlockJob, run: Run) -> Outcome:
        """The merge flow waits for ready, pivots, and brings persistent XML, record and journal into step."""
        if job.kind != "active-commit" or job.target is None:
            raise VirtopsError(
                "no_pivot",
                "The %s job on disk %s of domain %s ends by itself: it has no pivot."
                % (job.kind, self._options.disk, view.name),
                "Wait for its end, or cancel it with state: cancelled",
            )
        run.apply(*self._steps(job))
        outcome = run.include(self._finish(view, job.target, run.check))
        return run.outcome(outcome.before, outcome.after, {"job": None})

    def _finish(self, view: DomainView, base: str, check: bool) -> Outcome:
        """The merge that began this job, as the journal has it; a job of somebody else's is a merge by path."""
        options = MergeOptions(
            disks=(self._options.disk,),
            bandwidth=None,
            deadline=self._options.deadline,
            delete_merged=self._options.delete_merged,
        )
        operation = self._operation(view, base)
        if operation is None:
            return Merge(replace(options, base=base), self._guest).run(check)
        if operation.kind != DELETE:
            return Merge(replace(options, snapshot=operation.name), self._guest).run(check)
        goal = goal_to_base(require_disk(view, self._options.disk), base, None, view.name)
        outcome = Merge(options, self._guest).run_goals(() if goal is None else (goal,), operation, check)
        return replace(outcome, warnings=(*outcome.warnings, _UNFINISHED))

    def _operation(self, view: DomainView, base: str) -> Operation | None:
        """The one that this job belongs to: of a snapshot, or of a deletion, which is not for us to end."""
        for operation in view.journal.operations:
            ours = operation.kind == DELETE or operation.kind not in RESERVED
            mine = [disk for disk in operation.disks if (disk.target, disk.base) == (self._options.disk, base)]
            if operation.open and ours and mine:
                return operation
        return None
