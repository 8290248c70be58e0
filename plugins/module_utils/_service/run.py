# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the one runner of all plans."""

from __future__ import annotations

from types import TracebackType

from .._core.errors import VirtopsError
from .._core.model import Outcome
from .._core.plan import Step
from .._core.ports import Clock, Progress


class Run:
    """One run of a flow: a context manager. In check mode no act is called, and `actions` are what would be done.

    A VirtopsError that leaves it, whoever raised it, takes back the steps that have an undo, the last one first, and
    carries what was done, and not undone, as its `actions`.
    """

    def __init__(self, check: bool, clock: Clock, progress: Progress) -> None:
        self.check = check
        self.actions: list[str] = []
        self.warnings: list[str] = []
        self._clock = clock
        self._progress = progress
        self._undoable: list[Step] = []

    def apply(self, *steps: Step) -> None:
        """Execute these steps, in their order."""
        for step in steps:
            if self.check:
                self.actions += step.words
            else:
                self._apply(step)

    def _apply(self, step: Step) -> None:
        if step.final:
            self._undoable.clear()
        began = self._clock.monotonic()
        for text in step.words:
            self._progress.step("begins: %s" % text)
        done = step.act()
        words = step.words if done is None or done.words is None else done.words
        self.actions += words
        self.warnings += () if done is None else done.warnings
        for text in words:
            self._progress.step("%s (%.1f s)" % (text, self._clock.monotonic() - began))
        if step.undo is not None:
            self._undoable.append(step)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _at: TracebackType | None) -> None:
        if isinstance(error, VirtopsError):
            self._undo(error)
            error.actions = (*self.actions, *(error.actions or ()))

    def _undo(self, error: VirtopsError) -> None:
        """A failure in here must not hide the first one: what is left then is for the next run to find."""
        try:
            for step in reversed(self._undoable):
                if step.undo is not None and not step.undo(error):
                    return
                for text in step.words:
                    self.actions.remove(text)
                    self._progress.step("undone: %s" % text)
        except VirtopsError as second:
            error.cause = "%s. Undoing it failed too: %s" % (error.cause.rstrip("."), second.cause)

    def outcome(self, before: dict[str, object], after: dict[str, object], values: dict[str, object]) -> Outcome:
        """What was done, or would be."""
        return Outcome(tuple(self.actions), before, after, values, tuple(self.warnings))

    def include(self, outcome: Outcome) -> Outcome:
        """Count what another flow did as done in this run. The same outcome."""
        self.actions += outcome.steps
        self.warnings += outcome.warnings
        return outcome
