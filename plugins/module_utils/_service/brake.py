# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: holding a guest's writes back while its merge catches up, and letting go on every path.

What has to be put back is in the journal before it is changed, and a watchdog puts it back where we cannot. The limits
and the suspension are the running domain's only: its end, and so a power loss, ends them too.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from .._core.convergence import (
    LIMIT_SECONDS,
    Brake,
    Deadline,
    brake_at,
    can_end_within,
    is_short,
    throttled,
    write_limit,
)
from .._core.errors import VirtopsError
from .._core.journal import Operation
from .._core.merge import MergeGoal
from .._core.model import DomainView, Hold
from .._core.plan import Step
from .._core.ports import WATCHDOG_GRACE, BrakePort, ImagePort
from .guest import Guest


class GuestBrake:
    """Holds one guest back, as its deadline says. `begin` at the start of the merge, `release` at its end."""

    def __init__(self, deadline: Deadline, guest: Guest[BrakePort]) -> None:
        self._deadline = deadline
        self._domain = guest.domain
        self._images = guest.images
        self._clock = guest.clock
        self._watchdog = guest.watchdog
        self._operation = ""
        self._began = 0.0
        self._short_since: float | None = None
        self._hold: Hold | None = None
        self._lowered = 0
        self._limited_at = 0.0
        self._suspended_at: float | None = None
        self._speeds: dict[str, tuple[float, int]] = {}
        self._copied: dict[str, float] = {}
        #: For how many seconds the guest was held back in all, and stood still of that.
        self.held_seconds = 0.0
        self.suspended_seconds = 0.0
        self._held_at = 0.0

    def begin(self, operation: str) -> None:
        """The merge of the operation with this ID begins now."""
        self._operation = operation
        self._began = self._clock.monotonic()

    @property
    def is_over(self) -> bool:
        """Has the merge had all its time? For one that nothing can be held back for, as of a guest that is off."""
        return self._clock.monotonic() - self._began >= self._deadline.seconds

    def press(self, goals: Sequence[MergeGoal], view: DomainView) -> Brake:
        """Do what is due for the goals that are not reached. GIVE_UP is the caller's to do."""
        elapsed = self._clock.monotonic() - self._began
        self._measure(goals, view, elapsed)
        helps = any(goal.pivots for goal in goals) and (view.state == "running" or self._suspended_at is not None)
        deadline = self._deadline if helps else replace(self._deadline, on_timeout="fail")
        if deadline.brakes and self._short_since is None and self._is_short(goals):
            self._short_since = elapsed
        due = brake_at(deadline, elapsed, self._short_since)
        if due is Brake.SUSPEND and self._suspended_at is None and not self._can_end(goals, view):
            due = Brake.NONE if elapsed < deadline.timeout else Brake.GIVE_UP
        if due is Brake.THROTTLE:
            self._throttle(goals, view, elapsed)
        elif due is Brake.SUSPEND:
            self._suspend(elapsed)
        else:
            self.release()
        return due

    def release(self) -> None:
        """Let go. Where that fails the watchdog stays armed: it acts as soon as we end."""
        if self._hold is None:
            return
        let_go(self._domain, self._hold)
        now = self._clock.monotonic() - self._began
        self.held_seconds += now - self._held_at
        if self._suspended_at is not None:
            self.suspended_seconds += now - self._suspended_at
        self._write(None)
        self._watchdog.disarm()
        self._hold, self._suspended_at = None, None

    # -- what there is to know

    def _measure(self, goals: Sequence[MergeGoal], view: DomainView, elapsed: float) -> None:
        """How fast each job copies, from when we first saw it."""
        for goal in goals:
            disk = view.disk(goal.target)
            if disk is None or disk.job is None:
                continue
            since, cur = self._speeds.setdefault(goal.target, (elapsed, disk.job.cur))
            if elapsed > since:
                self._copied[goal.target] = max(0, disk.job.cur - cur) / (elapsed - since)

    def _is_short(self, goals: Sequence[MergeGoal]) -> bool:
        folders = {os.path.dirname(goal.top.path) for goal in goals if goal.pivots}
        reserve = self._deadline.keep_free
        return any(is_short(self._images.free_bytes(path), self._images.size_bytes(path), reserve) for path in folders)

    def _can_end(self, goals: Sequence[MergeGoal], view: DomainView) -> bool:
        """A guest that would stand still for nothing is not suspended."""
        jobs = {disk.target: disk.job for disk in view.disks if disk.job is not None}
        return all(
            can_end_within(jobs[goal.target], self._copied.get(goal.target, 0.0), self._deadline.suspend_timeout)
            for goal in goals
            if goal.target in jobs
        )

    # -- effects

    def _throttle(self, goals: Sequence[MergeGoal], view: DomainView, elapsed: float) -> None:
        targets = [goal.target for goal in goals if goal.pivots]
        if self._hold is None:
            self._hold = Hold(tunes={target: self._domain.io_tune(target) for target in targets})
            self._held_at = elapsed
            self._write(self._hold)
            self._watchdog.arm(view.uuid, self._deadline.brake_seconds + WATCHDOG_GRACE, self._hold)
        elif elapsed - self._limited_at < LIMIT_SECONDS:
            return
        else:
            self._lowered += 1
        self._limited_at = elapsed
        for target in targets:
            if target in self._hold.tunes:
                limit = write_limit(self._copied.get(target, 0.0), self._lowered)
                self._domain.set_io_tune(target, throttled(self._hold.tunes[target], limit))

    def _suspend(self, elapsed: float) -> None:
        if self._suspended_at is not None:
            return
        view = self._domain.view()
        if self._hold is None:
            self._held_at = elapsed
        self._hold = replace(self._hold or Hold(), suspended=True)
        self._write(self._hold)
        self._watchdog.arm(view.uuid, self._deadline.suspend_timeout + WATCHDOG_GRACE, self._hold)
        self._suspended_at = elapsed
        self._domain.suspend()

    def _write(self, hold: Hold | None) -> None:
        journal = self._domain.view().journal
        for operation in journal.operations:
            if operation.id == self._operation:
                self._domain.write_journal(journal.put(operation.held(hold)))


def let_go(domain: BrakePort, hold: Hold) -> None:
    """Put the guest's limits back and let it run. One that is off has neither; a disk that is gone needs none."""
    view = domain.view()
    if not view.active:
        return
    for target, tune in hold.tunes.items():
        if view.disk(target) is not None:
            domain.set_io_tune(target, tune)
    if hold.suspended and view.state == "paused" and view.paused_by == "user":
        domain.resume()


def letting_go(operation: Operation, hold: Hold, view: DomainView, guest: Guest[BrakePort]) -> Step:
    """The step after a merge that held the guest's writes back died, and its watchdog with it."""
    what = ["lift the limit of writes of %s" % target for target in hold.tunes]
    what += ["resume it"] if hold.suspended else []
    words = "let go of %s, which an interrupted merge held back: %s" % (view.name, ", ".join(what))

    def act() -> None:
        let_go(guest.domain, hold)
        guest.put(operation.held(None))

    return Step((words,), act)


def refuse_short(images: ImagePort, overlays: Sequence[str], reserve: int) -> None:
    """Raise where the file system of one of these growing overlays is nearly full (`reserve` in MiB)."""
    for folder in sorted({os.path.dirname(path) for path in overlays}):
        free = images.free_bytes(folder)
        if is_short(free, images.size_bytes(folder), reserve):
            raise VirtopsError(
                "overlay_space",
                "Only %d MiB are free in %s, where the guest's overlays grow; if it is full, QEMU pauses the guest."
                % (free // 1024 // 1024, folder),
                "Make space there, or give the overlays another place (overlay_dir)",
            )
