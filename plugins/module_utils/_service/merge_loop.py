# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the steps that merge layers of a guest's chains, running or off.

The jobs of several disks are one step, which loops: observe, decide, act, wait. It goes on from what it sees, so each
may be made again after any death.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from .._core.convergence import MIB, Brake
from .._core.errors import VirtopsError
from .._core.journal import COMMITTING, PULL, Operation
from .._core.merge import MergeGoal, Next, Phase, config_layer, next_step, phase_of
from .._core.model import IO_ERROR, DomainView
from .._core.plan import Done, Step
from .._core.ports import MergePort
from .._core.refusals import refuse_away
from .block_jobs import cancel_jobs, describe_disks
from .brake import GuestBrake
from .guest import Guest
from .merge_plan import Layers, MergeOptions, MergePlanner, config_words, merged_by
from .observe import chains

#: Seconds between two looks while no event comes: libvirtd's restart loses events.
POLL = 0.25
#: Seconds that a job may be gone with the chain unchanged before it counts as failed: QEMU forgets a job that ended
#: before libvirt has written the new chain.
GONE_SECONDS = 5.0
#: Pivots that are refused as "not ready" before the disk counts as failed: guest writes race with it.
PIVOT_TRIES = 20
#: Limits that are refused before the disk counts as failed, one at each look.
SPEED_TRIES = 20


@dataclass
class _Course:
    """What this run did to one disk."""

    goal: MergeGoal
    started: bool = False
    seen: bool = False
    gone_since: float | None = None
    paced: bool = False
    speeds: int = 0
    end: int = 0
    pivots: int = 0
    error: VirtopsError | None = None
    done: bool = False

    @property
    def is_left(self) -> bool:
        return not self.done and self.error is None


class MergeLoop:
    """Merges the layers that were planned. `pivoted` are the disks whose base has more than their overlay, as the plan
    or this run saw: those overlays are never merged, nor deleted."""

    def __init__(self, options: MergeOptions, planner: MergePlanner, guest: Guest[MergePort]) -> None:
        self._options = options
        self._guest = guest
        self._domain = guest.domain
        self._images = guest.images
        self._clock = guest.clock
        self._planner = planner
        self.brake = GuestBrake(options.deadline, guest)
        self.pivoted: frozenset[str] = frozenset()

    def steps(self, layers: Layers, operation: Operation | None) -> tuple[Step, ...]:
        """From the note of what is going to be merged to a guest that runs on."""
        steps = []
        if layers.goals and operation is not None:
            if layers.operation is None or operation.phase != COMMITTING:
                # From here on the bases are nobody's point in time any more; say so before it is true
                steps.append(Step((), partial(self._guest.put, operation.at(COMMITTING))))
            words = tuple(text for goal in layers.goals for text in layers.words[goal.target, goal.top.path])
            steps.append(Step(words, lambda: self._run(layers, operation), final=True))
        for target, layer in layers.stale_config.items():
            write = partial(self._domain.set_config_disks, {target: layer})
            steps.append(Step((config_words(target, layer),), write))
        if layers.resumes:
            words = ("resume %s, which QEMU paused at a write that failed" % layers.domain,)
            steps.append(Step(words, self._resume))
        return tuple(steps)

    def unsure(self, layers: Layers) -> frozenset[str]:
        """Overlays that may hold data which nobody merged, as the plan or this run found."""
        return layers.unsure | {goal.top.path for goal in layers.goals if goal.target in self.pivoted}

    def _resume(self) -> None:
        if self._domain.view().paused_by == IO_ERROR:
            self._domain.resume()

    def _run(self, layers: Layers, operation: Operation) -> Done:
        view = self._guest.observe()
        courses = [_Course(goal) for goal in layers.goals]
        self.pivoted = layers.pivoted
        self.brake.begin(operation.id)
        try:
            self._loop(courses, view)
        except BaseException:
            with suppress(VirtopsError):  # the watchdog goes on trying; the first failure is the one to tell
                self.brake.release()
            raise
        self.brake.release()
        merged = [course.goal for course in courses if course.error is None]
        words = tuple(text for goal in merged for text in layers.words[goal.target, goal.top.path])
        errors = {course.goal.target: course.error for course in courses if course.error is not None}
        if errors:
            raise self._failure(errors, words, layers, view)
        return Done(words, self._held())

    def _failure(
        self, errors: Mapping[str, VirtopsError], words: tuple[str, ...], layers: Layers, view: DomainView
    ) -> VirtopsError:
        """All of them, and what became of each disk."""
        first = next(iter(errors.values()))
        causes = dict.fromkeys(error.cause.rstrip(".") for error in errors.values())
        remedies = dict.fromkeys(error.remedy.rstrip(".") for error in errors.values())
        after = self._guest.observe()
        partial = describe_disks(
            self._options.disks, chains(view), chains(after), merged_by(layers.goals), after, errors
        )
        return VirtopsError(first.code, ". ".join(causes), ". ".join(remedies), partial, words)

    def _held(self) -> tuple[str, ...]:
        """The guest noticed: say so."""
        if not self.brake.held_seconds:
            return ()
        return (
            "So that the merge could end, the guest's writes were slowed for %.1f s, and it was paused for %.1f s of "
            "these." % (self.brake.held_seconds, self.brake.suspended_seconds),
        )

    def _loop(self, courses: list[_Course], view: DomainView) -> None:
        while True:
            waiting = [item for item in courses if item.is_left and not self._act(item, view)]
            left = [item for item in courses if item.is_left]
            if not left:
                return
            if self.brake.press([item.goal for item in left], view) is Brake.GIVE_UP:
                self._give_up(left)
                return
            if waiting:
                self._domain.wait_event(POLL)
            view = self._guest.observe()
            self._show(left, view)

    def _show(self, courses: Sequence[_Course], view: DomainView) -> None:
        for course in courses:
            disk = view.disk(course.goal.target)
            if disk is not None and disk.job is not None:
                course.end = disk.job.end
                self._guest.progress.disk(disk.target, disk.job.cur, disk.job.end)

    def _act(self, item: _Course, view: DomainView) -> bool:
        """One step for one disk. True where the next observation may differ at once."""
        phase = phase_of(item.goal, view)
        step = next_step(phase, self._options.pivots)
        try:
            if step is Next.START:
                item.done = not self._options.wait and not item.started
                return self._start(item)
            item.seen = True
            self._refuse_lost(item, view)
            if step is Next.WAIT:
                item.done = not self._options.wait
                if phase is Phase.COPYING:
                    self._pace(item, view)
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
            if item.end:
                self._guest.progress.disk(item.goal.target, item.end, item.end)
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

    def _refuse_lost(self, item: _Course, view: DomainView) -> None:
        """libvirt's daemon may die after QEMU has ended the job and before that is written down: it never learns."""
        disk = view.disk(item.goal.target)
        if disk is None or disk.job is None or disk.job.tracked:
            item.gone_since = None
        elif self._is_gone(item):
            raise VirtopsError(
                "pivot_lost",
                "libvirt shows a pivot of disk %s of domain %s that never ends: its daemon was killed while QEMU ended "
                "it, and does not know which image the guest uses" % (disk.target, view.name),
                "Do not restart the guest before you have asked QEMU: see the recovery guide, 'A pivot that libvirt "
                "has lost'",
            )

    def _unknown(self, item: _Course) -> bool:
        """libvirtd went away before it answered: only the next look, over a new connection, tells what came of it."""
        item.started = item.done = False
        return True

    def _start(self, item: _Course) -> bool:
        """Start the job, once. True where the next observation may differ at once."""
        if (item.started or item.seen) and not self._is_gone(item):
            return False
        if item.started:
            raise _ended_without_merging(item.goal)
        item.started = True
        goal = item.goal
        bandwidth = (self._options.bandwidth or 0) * MIB
        relative = goal.above is not None and self._images.info(goal.above, "qcow2").backing_is_relative
        if goal.kind == PULL:
            below = goal.below.path if goal.below else None
            self._domain.start_pull(goal.target, below, bandwidth, relative and below is not None)
        else:
            self._note_pivot(goal, False)
            self._domain.start_commit(goal.target, goal.into.path, goal.top.path, goal.pivots, bandwidth, relative)
        return True

    def _pace(self, item: _Course, view: DomainView) -> None:
        """Once, and only of a job that this run has not started: it has the limit of the run that did. One that is just
        ending takes no limit, and needs none: the next looks show whether it is that."""
        disk = view.disk(item.goal.target)
        if item.started or item.paced or disk is None or disk.job is None:
            return
        speed = self._options.new_speed(disk.job)
        try:
            if speed is not None:
                self._domain.set_job_speed(disk.target, speed)
        except VirtopsError as error:
            item.speeds += 1
            if error.code == "connection_lost" or item.speeds >= SPEED_TRIES:
                raise
            return
        item.paced = True

    def _is_gone(self, item: _Course) -> bool:
        """The job is gone and the chain as before: is that final, or is libvirt just about to change the chain?"""
        now = self._clock.monotonic()
        item.gone_since = now if item.gone_since is None else item.gone_since
        return now - item.gone_since >= GONE_SECONDS

    def _pivot(self, item: _Course) -> bool:
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
        for operation in self._guest.journal.operations:
            noted = operation.pivoting(goal.target, goal.top.path, asked)
            if operation.open and noted != operation:
                self._guest.put(noted)

    def _see_pivot(self, goal: MergeGoal, view: DomainView) -> None:
        """The guest ended while this run merged: was that after its pivot? The plan could not know."""
        for operation in view.journal.operations:
            if operation.open and self._planner.has_pivoted(goal, view, operation):
                self.pivoted |= {goal.target}

    def _merge_offline(self, goal: MergeGoal, view: DomainView) -> None:
        """Where the active layer stays, the persistent XML drops first what it says of the layers below."""
        self._planner.check_offline(goal, view)

        def check() -> None:
            if self.brake.is_over:
                raise _timed_out(goal, self._options.deadline.timeout)

        if not goal.pivots:
            self._domain.set_config_disks({goal.target: config_layer(goal, view)})
        if goal.target in self.pivoted:
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

    def _give_up(self, items: list[_Course]) -> None:
        """The deadline: end our jobs as `virsh blockcommit --timeout` does. The guest stays on its overlay."""
        view = cancel_jobs(self._domain, [item.goal.target for item in items], self._clock)
        for item in items:
            phase = phase_of(item.goal, view)
            if next_step(phase) is Next.DONE:
                item.done = True  # a pivot that was under way came to its end
            elif phase in (Phase.ENDING, Phase.COPYING, Phase.READY):
                item.error = _still_ending(item.goal, view)
            else:
                item.error = _timed_out(item.goal, self._options.deadline.timeout)


def _ended_without_merging(goal: MergeGoal) -> VirtopsError:
    return VirtopsError(
        "commit_failed",
        "The %s of %s into %s ended without merging it (disk %s)."
        % (goal.kind, goal.top.path, goal.into.path, goal.target),
        "Look for the cause in the domain's QEMU log (most often no space for the image), correct it, and run the play "
        "again; the guest goes on, on its overlay. If it fails again in the same way, as QEMU may do after an I/O "
        "error, shut the guest down and run the play again: it then merges offline",
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
        "The %s job of disk %s of domain %s was ordered to end, but has not ended yet."
        % (goal.kind, goal.target, view.name),
        "QEMU ends it when the guest writes less: run the play again, which checks the result",
    )
