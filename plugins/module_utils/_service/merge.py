# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the flow of a merge, of a running guest's layers or of one that is off.

observe -> goals -> (check mode stops here) -> journal COMMITTING -> loop: observe, decide, act, wait
-> overlays deleted -> snapshot record deleted -> journal removed, last. Each run goes on from what it sees.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from .._core.convergence import Brake
from .._core.errors import VirtopsError
from .._core.journal import COMMIT, COMMITTING, PREPARED, PULL, RESERVED, Journal, JournalDisk, Operation
from .._core.merge import MergeGoal, Next, Phase, config_layer, next_step, phase_of
from .._core.model import IO_ERROR, BlockJob, DomainView, Outcome
from .._core.ports import MergePort
from .._core.refusals import refuse_away
from .._core.snapshot import unknown_words
from .away import require_here
from .brake import GuestBrake, let_go
from .forest import keep_times, rewrite_records
from .guest import Guest
from .interrupted import awake, undo, unswitched
from .jobs import cancel_jobs
from .merge_plan import NOTHING, MergePlan, MergePlanner, MergeWish, journalled, moved_layers
from .observe import OtherFiles, chains, observe
from .ours import kept_words, noted
from .overlays import LATER, Kept, held_layers, kept_for_others, remove_layer, unsure_words, with_kept

#: Seconds between two looks while no event comes: libvirtd's restart loses events.
POLL = 0.25
#: Seconds that a job may be gone with the chain unchanged before it counts as failed: QEMU forgets a job that ended
#: before libvirt has written the new chain.
GONE_SECONDS = 5.0
#: Pivots that are refused as "not ready" before the disk counts as failed: guest writes race with it.
PIVOT_TRIES = 20


@dataclass
class _Progress:
    """What this run did to one disk."""

    goal: MergeGoal
    started: bool = False
    seen: bool = False
    gone_since: float | None = None
    pivots: int = 0
    error: VirtopsError | None = None
    done: bool = False

    @property
    def is_left(self) -> bool:
        return not self.done and self.error is None


class Merge:
    """Merge layers of one domain's disks."""

    def __init__(self, wish: MergeWish, guest: Guest[MergePort]) -> None:
        self._wish = wish
        self._domain = guest.domain
        self._images = guest.images
        self._clock = guest.clock
        self._planner = MergePlanner(wish, guest)
        self._brake = GuestBrake(wish.deadline, guest)
        self._pivoted: frozenset[str] = frozenset()
        #: Overlays that may hold data which nobody merged, as the last run found.
        self.unsure: frozenset[str] = frozenset()

    def run(self, check: bool) -> Outcome:
        """Plan, and where not `check`, apply. Raises VirtopsError with what was done per disk."""
        view = observe(self._domain, self._images)
        journal = view.journal
        if self._wish.adopted is not None:
            journal = journal.put(self._wish.adopted)
        begun: tuple[str, ...] = ()
        prepared = self._prepared(journal)
        if prepared is not None:
            require_here(view, self._images)
            seconds = self._wish.deadline.timeout
            view, begun = awake(prepared, self._domain, self._images, self._clock, seconds, check)
            journal = view.journal
            if len(unswitched(prepared, view, self._domain, self._images)) == len(prepared.disks):
                undone = undo(prepared, view, self._domain, self._images, check)
                return self._outcome(NOTHING, view, chains(view), begun + undone.steps, undone.warnings)
        plan = self._planner.plan(view, journal)
        plan = replace(plan, steps=begun + plan.steps)
        self.unsure = plan.unsure
        if check or not plan.steps:
            warnings = self._stale_records(plan) + _not_ours(plan) + plan.sweep.warnings
            warnings += self._unknown_name(plan, view, journal)
            return self._outcome(plan, view, self._foreseen(plan, view), plan.steps, warnings)
        if plan.operation is not None and plan.operation.hold is not None:
            let_go(self._domain, plan.operation.hold)
            free = plan.operation.held(None)
            plan, journal = replace(plan, operation=free), journal.put(free)
            self._domain.write_journal(journal)
        if plan.goals:
            plan = replace(plan, operation=self._write_intent(plan, journal))
        progress = self._merge(plan, view)
        plan = self._with_pivots(plan)
        after = observe(self._domain, self._images)
        for error in (item.error for item in progress if item.error is not None):
            error.partial = self._results(plan, view, after)
            raise error
        warnings = self._clean(plan, after) + self._stale_records(plan) + _not_ours(plan) + self._held()
        return self._outcome(plan, view, chains(after), plan.steps, warnings, after)

    def _unknown_name(self, plan: MergePlan, view: DomainView, journal: Journal) -> tuple[str, ...]:
        name = self._wish.snapshot
        if (
            name is None
            or plan.steps
            or journal.of_snapshot(name) is not None
            or self._domain.snapshot(name) is not None
        ):
            return ()
        return unknown_words(name, view)

    def _prepared(self, journal: Journal) -> Operation | None:
        """The snapshot whose creation was interrupted: its disks may or may not stand on the overlays."""
        found = journal.of_snapshot(self._wish.snapshot) if self._wish.snapshot is not None else None
        return found if found is not None and found.phase == PREPARED and found.kind not in RESERVED else None

    # -- effects

    def _merge(self, plan: MergePlan, view: DomainView) -> list[_Progress]:
        progress = [_Progress(goal) for goal in plan.goals]
        self._pivoted = plan.pivoted
        self._brake.begin(plan.operation.id if plan.operation else "")
        try:
            self._loop(progress, view)
        except BaseException:
            with suppress(VirtopsError):  # the watchdog goes on trying; the first failure is the one to tell
                self._brake.release()
            raise
        self._brake.release()
        return progress

    def _loop(self, progress: list[_Progress], view: DomainView) -> None:
        while True:
            waiting = [item for item in progress if item.is_left and not self._act(item, view)]
            left = [item for item in progress if item.is_left]
            if not left:
                return
            if self._brake.press([item.goal for item in left], view) is Brake.GIVE_UP:
                self._give_up(left)
                return
            if waiting:
                self._domain.wait_event(POLL)
            view = observe(self._domain, self._images)

    def _write_intent(self, plan: MergePlan, journal: Journal) -> Operation:
        """From here on the bases are nobody's point in time any more; say so before it is true."""
        operation = plan.operation or self._new_operation(plan.goals)
        if operation.phase != COMMITTING or plan.operation is None:
            operation = operation.at(COMMITTING)
            self._domain.write_journal(journal.put(operation))
        return operation

    def _new_operation(self, goals: tuple[MergeGoal, ...]) -> Operation:
        operation = Operation(
            id=str(uuid.uuid4()),
            kind=PULL if self._wish.pull else COMMIT,
            name=self._wish.snapshot or "%s into %s" % (goals[0].kind, goals[0].into.path),
            phase=COMMITTING,
            started=self._clock.utcnow(),
            boot=self._clock.boot(),
            disks=tuple(journalled(goal, layer) for goal in goals for layer in goal.merged),
        )
        return noted(operation, self._images)

    def _act(self, item: _Progress, view: DomainView) -> bool:
        """One step for one disk. True where the next observation may differ at once."""
        phase = phase_of(item.goal, view)
        step = next_step(phase, self._wish.pivots)
        try:
            if step is Next.START:
                item.done = not self._wish.wait and not item.started
                return self._start(item)
            item.seen = True
            self._refuse_lost(item, view)
            if step is Next.WAIT:
                item.done = not self._wish.wait
                return item.done
            if step is Next.PIVOT:
                return self._pivot(item)
            if step is Next.COMMIT_OFFLINE:
                refuse_away(view)
                self._see_pivot(item.goal, view)
                self._merge_offline(item.goal, view)
                return True
            if step is Next.UPDATE_CONFIG:
                self._domain.set_config_disks({item.goal.target: config_layer(item.goal, view)})
                return False  # where it does not help, the deadline ends it
            if step is Next.REFUSE:
                self._planner.check_goal(item.goal, view)
            item.done = True
        except VirtopsError as error:
            if error.code == "connection_lost":
                return self._unknown(item)
            if error.code == "image_locked":
                self._name_holders(error, item.goal, view)
            item.error = error
        return True

    def _name_holders(self, error: VirtopsError, goal: MergeGoal, view: DomainView) -> None:
        """QEMU says that an image is locked, and not by whom. The guest's own QEMU has all of its layers open; what
        else has the active one open reads it without a lock (`qemu-img -U`)."""
        above = () if goal.above is None else (goal.above,)
        paths = (*above, *(layer.path for layer in goal.merged), goal.into.path)
        disk = view.disk(goal.target)
        own = self._images.holders(disk.active.path) if view.active and disk is not None and disk.active else ()
        found = [(path, pid) for path in paths for pid in self._images.holders(path) if pid not in own]
        if found:
            told = ", ".join("process %d has %s open" % (pid, path) for path, pid in found)
            error.cause = "%s (%s)" % (error.cause.rstrip("."), told)

    def _refuse_lost(self, item: _Progress, view: DomainView) -> None:
        """libvirt's daemon may die after QEMU has ended the job and before that is written down: it never learns."""
        disk = view.disk(item.goal.target)
        if disk is None or disk.job is None or disk.job.tracked:
            item.gone_since = None
        elif self._is_gone(item):
            raise VirtopsError(
                "pivot_lost",
                "libvirt shows a pivot of disk %s of domain %s that never ends: its daemon was killed while QEMU ended "
                "it, and does not know which image the guest uses" % (disk.target, view.name),
                "Do not restart the guest before QEMU has told that: see the recovery guide, 'A pivot that libvirt has "
                "lost'",
            )

    def _unknown(self, item: _Progress) -> bool:
        """libvirtd went away before it answered: only the next look, over a new connection, tells what came of it."""
        item.started = item.done = False
        return True

    def _start(self, item: _Progress) -> bool:
        """Start the job, once. True where the next observation may differ at once."""
        if (item.started or item.seen) and not self._is_gone(item):
            return False
        if item.started:
            raise _ended_without_merging(item.goal)
        item.started = True
        goal = item.goal
        bandwidth = self._wish.bandwidth * 1024 * 1024
        relative = goal.above is not None and self._images.info(goal.above, "qcow2").backing_is_relative
        if goal.kind == PULL:
            below = goal.below.path if goal.below else None
            self._domain.start_pull(goal.target, below, bandwidth, relative and below is not None)
        else:
            self._note_pivot(goal, False)
            self._domain.start_commit(goal.target, goal.into.path, goal.top.path, goal.pivots, bandwidth, relative)
        return True

    def _is_gone(self, item: _Progress) -> bool:
        """The job is gone and the chain as before: is that final, or is libvirt just about to change the chain?"""
        now = self._clock.monotonic()
        item.gone_since = now if item.gone_since is None else item.gone_since
        return now - item.gone_since >= GONE_SECONDS

    def _pivot(self, item: _Progress) -> bool:
        if not item.pivots:
            self._note_pivot(item.goal, True)
        try:
            self._domain.pivot(item.goal.target)
        except VirtopsError as error:
            item.pivots += 1
            if error.code != "not_ready" or item.pivots >= PIVOT_TRIES:
                raise
            return False
        return True

    def _note_pivot(self, goal: MergeGoal, asked: bool) -> None:
        """Once it was asked for the guest may be on the base at any moment, whatever libvirt shows. A new commit, of
        layers that the guest is seen to stand on or that it ended on, begins without: what it has copied of a base says
        nothing of a pivot."""
        journal = self._domain.view().journal
        for operation in journal.operations:
            noted = operation.pivoting(goal.target, goal.top.path, asked)
            if operation.open and noted != operation:
                self._domain.write_journal(journal.put(noted))

    def _see_pivot(self, goal: MergeGoal, view: DomainView) -> None:
        """The guest ended while this run merged: was that after its pivot? The plan could not know."""
        for operation in view.journal.operations:
            if operation.open and self._planner.has_pivoted(goal, view, operation):
                self._pivoted |= {goal.target}

    def _with_pivots(self, plan: MergePlan) -> MergePlan:
        """What the plan could not know: overlays of disks that pivoted before their guest ended."""
        left = {goal.top.path for goal in plan.goals if goal.target in self._pivoted}
        self.unsure = plan.unsure | left
        deletions = tuple(path for path in plan.deletions if path not in left)
        return replace(plan, unsure=self.unsure, deletions=deletions)

    def _merge_offline(self, goal: MergeGoal, view: DomainView) -> None:
        """Where the active layer stays, the persistent XML drops first what it says of the layers below."""
        self._planner.check_offline(goal, view)

        def check() -> None:
            if self._brake.is_over:
                raise _timed_out(goal, self._wish.deadline.timeout)

        if not goal.pivots:
            self._domain.set_config_disks({goal.target: config_layer(goal, view)})
        if goal.target in self._pivoted:
            self._domain.set_config_disks({goal.target: goal.into})
            return
        if goal.kind == PULL:
            self._images.rebase(goal.into.path, goal.below, check)
            return
        self._note_pivot(goal, False)
        self._images.commit(goal.top, goal.into, check)
        if goal.above is not None:
            self._images.rebase_unsafe(goal.above, goal.into)
        else:
            self._domain.set_config_disks({goal.target: goal.into})

    def _give_up(self, items: list[_Progress]) -> None:
        """The deadline: end our jobs as `virsh blockcommit --timeout` does. The guest stays on its overlay."""
        view = cancel_jobs(self._domain, [item.goal.target for item in items], self._clock)
        for item in items:
            phase = phase_of(item.goal, view)
            if next_step(phase) is Next.DONE:
                item.done = True  # a pivot that was under way came to its end
            elif phase in (Phase.ENDING, Phase.COPYING, Phase.READY):
                item.error = _still_ending(item.goal, view)
            else:
                item.error = _timed_out(item.goal, self._wish.deadline.timeout)

    # -- after the merge

    def _clean(self, plan: MergePlan, view: DomainView) -> tuple[str, ...]:
        """Overlays, then the record, then the journal: what is left tells the next run to go on here."""
        if plan.stale_config:
            self._domain.set_config_disks(plan.stale_config)
            view = observe(self._domain, self._images)
        if plan.resumes and view.paused_by == IO_ERROR:
            self._domain.resume()
        if not plan.whole or self._wish.within is not None:
            return ()
        if self._wish.snapshot is not None:
            keep_times(moved_layers(plan.goals, plan.operation, view).items(), view, self._images)
            if plan.writes:
                moved = moved_layers(plan.goals, plan.operation, view)
                rewrite_records(self._domain, moved, frozenset({self._wish.snapshot}))
        others = self._planner.images_of_others
        found = [remove_layer(path, view, others, self._images, self._clock) for path in plan.deletions]
        kept = [layer for layer in found if layer is not None]
        for path in plan.memory:
            self._images.remove(path)
        kept += self._sweep(plan, view, others)
        if plan.record is not None and self._domain.snapshot(plan.record.name) is not None:
            self._domain.delete_snapshot_record(plan.record.name)
        journal = self._close(plan, kept)
        noted_paths = {disk.overlay for op in journal.merged for disk in op.disks}
        warnings = tuple(
            "The merged overlay %s%s" % (layer.why, " " + LATER if layer.path in noted_paths else "") for layer in kept
        )
        return warnings + plan.sweep.warnings + tuple(unsure_words(path) for path in sorted(plan.unsure))

    def _sweep(self, plan: MergePlan, view: DomainView, others: Callable[[], OtherFiles]) -> list[Kept]:
        """Delete what earlier runs kept. The merge may have taken long: what was in use again meanwhile stays."""
        journal = view.journal
        untouched = [path for path in plan.sweep.gone if kept_for_others(path, journal, self._images)]
        found = [remove_layer(path, view, others, self._images, self._clock) for path in untouched]
        return [layer for layer in found if layer is not None]

    def _stale_records(self, plan: MergePlan) -> tuple[str, ...]:
        """A merge by path leaves libvirt's records as they are, as virsh does; they no longer say what is."""
        if self._wish.snapshot is not None or self._wish.within is not None:
            return ()
        merged = {layer.path for goal in plan.goals for layer in goal.merged}
        return tuple(
            "The record of snapshot %s names a layer that was merged: remove it with "
            "virtops.libvirt.snapshot_metadata and state: absent." % record.name
            for record in (self._domain.snapshots() if merged else ())
            if any(disk.file in merged for disk in record.disks)
        )

    def _close(self, plan: MergePlan, kept: Sequence[Kept]) -> Journal:
        """Remove our operation, or leave it what is held; note what is kept for others; and bring the snapshots that
        are kept above the merge up to date. The journal as it is then."""
        held = held_layers(kept)
        journal = self._domain.view().journal
        merged = {disk.overlay: disk for disk in plan.operation.disks} if plan.operation else {}
        operations = []
        for op in journal.operations:
            disks = tuple(self._after_merge(disk, merged) for disk in op.disks if disk.overlay not in merged)
            left = tuple(disk for disk in disks if disk is not None)
            if left and (plan.operation is None or op.id != plan.operation.id):
                operations.append(replace(op, disks=left))
        rest = tuple(disk for disk in plan.operation.disks if disk.overlay in held) if plan.operation else ()
        if plan.operation is not None and rest:
            operations.append(replace(plan.operation, disks=rest, hold=None))
        gone = frozenset(plan.sweep.gone) - {layer.path for layer in kept}
        swept = journal.without_merged((*gone, *plan.sweep.forgotten)).merged
        after = Journal(tuple(operations), merged=swept)
        if plan.operation is not None:
            after = with_kept(after, plan.operation, kept, self._images)
        self._domain.write_journal(after)
        return after

    def _after_merge(self, disk: JournalDisk, merged: dict[str, JournalDisk]) -> JournalDisk | None:
        """What a kept snapshot's overlay stands on now, and what that is, so that it is known for untouched later; None
        where it stands on nothing any more."""
        if disk.base not in merged:
            return disk
        layer = merged[disk.base]
        if not layer.base:
            return None
        return replace(disk, base=layer.base, base_format=layer.base_format, identity=self._images.identity(layer.base))

    def _held(self) -> tuple[str, ...]:
        """The guest noticed: say so."""
        if not self._brake.held_seconds:
            return ()
        return (
            "The guest's writes were held back for %.1f s, %.1f s of which it stood still, so that the merge could end."
            % (self._brake.held_seconds, self._brake.suspended_seconds),
        )

    # -- words

    def _foreseen(self, plan: MergePlan, view: DomainView) -> dict[str, list[str]]:
        """The chains as they will be."""
        after = chains(view)
        for goal in plan.goals:
            if not goal.pivots or self._wish.pivots:
                merged = {layer.path for layer in goal.merged}
                after[goal.target] = [path for path in after[goal.target] if path not in merged]
        return after

    def _outcome(
        self,
        plan: MergePlan,
        view: DomainView,
        after: dict[str, list[str]],
        steps: tuple[str, ...],
        warnings: tuple[str, ...] = (),
        seen: DomainView | None = None,
    ) -> Outcome:
        values: dict[str, object] = {"disks": self._results(plan, view, seen, after)}
        if self._wish.deadline.brakes:
            values["held_seconds"] = round(self._brake.held_seconds, 1)
            values["suspended_seconds"] = round(self._brake.suspended_seconds, 1)
        return Outcome(steps, {"disks": chains(view)}, {"disks": after}, values, warnings)

    def _results(
        self, plan: MergePlan, view: DomainView, seen: DomainView | None, after: dict[str, list[str]] | None = None
    ) -> list[dict[str, Any]]:
        """Per disk that the wish names: the chain before and after, what was merged, the job that runs."""
        before = chains(view)
        after = after if after is not None else chains(seen or view)
        merged = {goal.target: [layer.path for layer in goal.merged] for goal in plan.goals}
        targets = self._wish.disks or tuple(merged) or tuple(before)
        results = []
        for target in targets:
            left = after.get(target, [])
            results.append(
                {
                    "disk": target,
                    "before": before.get(target, []),
                    "after": left,
                    "merged": [path for path in merged.get(target, []) if path not in left],
                    "job": _job(seen or view, target),
                }
            )
        return results


def _not_ours(plan: MergePlan) -> tuple[str, ...]:
    return tuple(kept_words(path, why) for path, why in plan.not_ours.items())


def _ended_without_merging(goal: MergeGoal) -> VirtopsError:
    return VirtopsError(
        "commit_failed",
        "The %s of %s into %s ended without merging it (disk %s)."
        % (goal.kind, goal.top.path, goal.into.path, goal.target),
        "Look for the cause in the domain's QEMU log (most often no space for the image), mend it, and run "
        "the play again; the guest goes on, on its overlay. If it fails so again, as after an I/O error, which a QEMU "
        "does not get over, shut the guest down and run it once more: then the merge is made offline",
    )


def _timed_out(goal: MergeGoal, seconds: int) -> VirtopsError:
    return VirtopsError(
        "timeout",
        "The merge of %s into %s did not end within %d seconds (disk %s)."
        % (goal.top.path, goal.into.path, seconds, goal.target),
        "The guest goes on, on its overlay: run the play again with a longer timeout, more bandwidth, or on_timeout: "
        "throttle or suspend",
    )


def _still_ending(goal: MergeGoal, view: DomainView) -> VirtopsError:
    return VirtopsError(
        "job_ending",
        "The %s job of disk %s of domain %s was told to end, and has not ended yet."
        % (goal.kind, goal.target, view.name),
        "QEMU ends it as soon as the guest's writes leave it the time: run the play again, which sees what came of it",
    )


def _job(view: DomainView, target: str) -> dict[str, object] | None:
    disk = view.disk(target)
    return told_job(disk.job if disk else None)


def told_job(job: BlockJob | None) -> dict[str, object] | None:
    """A job as results show it: bytes, bytes/s, percent."""
    if job is None:
        return None
    return {
        "type": job.kind,
        "cur": job.cur,
        "end": job.end,
        "bandwidth": job.bandwidth,
        "ready": job.ready,
        "progress": 100.0 if job.ready else (100.0 * job.cur / job.end if job.end else 0.0),
    }
