# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the flows that list backup sets and read them back.

list -> choose -> for each set: hold it -> read its files -> compare -> note the result in it. All are looked at before
the run fails. A set that is removed meanwhile is no failure.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from .._core.backup_set import mib
from .._core.choose_sets import Choice, with_bases
from .._core.errors import VirtopsError
from .._core.model import Outcome
from .._core.plan import Done, Step
from .._core.ports import Clock, Progress, Silent
from .._core.refusals import require_going
from .._core.sets import (
    DAMAGED,
    NOTES_WORDS,
    UNKNOWN,
    BackupSet,
    Note,
    Notes,
    OpenSet,
    SetsPort,
    describe_set,
    merged_notes,
    strangers,
)
from .._core.verification import CheckPort, plan_check
from .run import Run

#: What the progress of all sets together is called.
_ALL = "sets"


@dataclass(frozen=True)
class VerifyOptions:
    """What the user asked for. `rate_limit` is MiB/s of each file, 0: no limit; without `note` nothing is written."""

    choice: Choice
    rate_limit: int = 0
    parallel: int = 4
    note: bool = True


@dataclass
class _Looked:
    """What came of one set."""

    found: BackupSet
    problems: tuple[str, ...] = ()
    is_read: bool = False
    is_gone: bool = False


@dataclass
class _Count:
    """Bytes, for the progress."""

    total: int
    before: int = 0
    now: dict[str, int] = field(default_factory=dict)


def list_sets(sets: SetsPort, dest: str, domain: str | None, now: str) -> Outcome:
    """Describe the sets that are there; no image is read."""
    return Outcome(values={"sets": [describe_set(found, now) for found in sets.list(dest, domain)]})


class SetVerification:
    """Read sets back. Raises `set_damaged`, with what was found of each set in `told`, where one is not whole."""

    def __init__(
        self,
        options: VerifyOptions,
        sets: SetsPort,
        checker: CheckPort,
        clock: Clock,
        progress: Progress | None = None,
    ) -> None:
        self._options = options
        self._sets = sets
        self._checker = checker
        self._clock = clock
        self._progress = progress or Silent()
        self._looked: dict[str, _Looked] = {}
        self._count = _Count(0)

    def run(self, check: bool) -> Outcome:
        """Plan, and where not `check`, read."""
        outcome, damaged = self._look(check)
        if damaged:
            words = "; ".join("%s: %s" % (path, ". ".join(problems)) for path, problems in damaged.items())
            error = VirtopsError(
                "set_damaged",
                "%d of %d backup sets are not whole: %s" % (len(damaged), len(self._looked), words),
                "Keep what is left of them until there is a whole one, look for failing storage or memory (dmesg), and "
                "back these guests up again",
                actions=outcome.steps,
            )
            error.told = outcome.values
            raise error
        return outcome

    def look_only(self) -> Outcome:
        """Read, and fail for no damage."""
        outcome, _damaged = self._look(check=False)
        return outcome

    def _look(self, check: bool) -> tuple[Outcome, dict[str, tuple[str, ...]]]:
        """What is there, and the problems of the sets that are not whole, by their paths."""
        with Run(check, self._clock, self._progress) as run:
            choice = self._options.choice
            there = choice.look(self._sets)
            chosen, others = choice.choose(there)
            # One is no better than those that it is incremental on
            chosen = with_bases(chosen, there) if choice.newest else chosen
            self._looked = {found.path: _Looked(found, () if found.is_complete else (found.why,)) for found in chosen}
            self._count = _Count(sum(found.allocated for found in chosen))
            self._progress.phase("verify")
            for found in chosen:
                if found.state != UNKNOWN:
                    run.apply(Step((_words(found),), partial(self._verify, found)))
            self._judge_chains(there)
            return self._outcome(run, there, others)

    # -- reading one

    def _verify(self, found: BackupSet) -> Done:
        """Its words say what was really done: nothing where the set is gone."""
        looked = self._looked[found.path]
        opened = self._sets.open(found.path)
        if opened is None:
            looked.is_gone = True
            return Done(())
        try:
            problems, from_disk = self._problems(found, opened)
        finally:
            looked.is_gone = not self._sets.close(found.path)
        self._count.before += found.allocated
        self._count.now = {}
        self._tell()
        if looked.is_gone:
            return Done(())
        looked.problems, looked.is_read = problems, True
        warnings = self._note(looked)
        if not from_disk:
            warnings += (
                "The set %s was read from this host's page cache: its file system neither does without it nor lets it "
                "be dropped" % found.path,
            )
        return Done(warnings=warnings)

    def _problems(self, found: BackupSet, opened: OpenSet) -> tuple[tuple[str, ...], bool]:
        """What is wrong with it, and whether it was read from the disk."""
        # It may have changed since it was listed; what its chain lacks only the list tells
        whys = dict.fromkeys(words for words in (found.why, opened.found.why) if words)
        orders, problems = plan_check(opened, self._options.rate_limit << 20)
        read = self._checker.check_all(
            orders,
            opened.directory,
            self._options.parallel,
            lambda: require_going(self._progress, "verification"),
            self._told,
        )
        bad = [one.problem.replace(opened.directory, found.path) for one in read.values() if one.problem]
        from_disk = all(one.from_disk for one in read.values())
        return (*whys, *problems, *bad), from_disk

    def _note(self, looked: _Looked) -> tuple[str, ...]:
        """That the note cannot be written is no reason to give up what was found out."""
        words = "; ".join(looked.problems)[:NOTES_WORDS]
        notes = Notes(verified=Note(self._clock.utcnow(), not looked.problems, words))
        if not self._options.note:
            return ()
        try:
            self._sets.note(looked.found.path, notes)
        except VirtopsError as error:
            if error.code == "copy_stalled":
                raise
            return ("The result could not be noted in the set %s: %s" % (looked.found.path, error),)
        looked.found = replace(looked.found, notes=merged_notes(looked.found.notes, notes))
        return ()

    def _told(self, target: str, done: int, _total: int) -> None:
        self._count.now[target] = done
        self._tell()

    def _tell(self) -> None:
        done = self._count.before + sum(self._count.now.values())
        self._progress.disk(_ALL, min(done, self._count.total), self._count.total)

    # -- all of them

    def _judge_chains(self, there: Sequence[BackupSet]) -> None:
        """A set is no better than the one that it is incremental on; the older ones were looked at first."""
        failed = {found.path for found in there if found.notes.is_failed and found.path not in self._looked}
        for path, looked in self._looked.items():
            base = looked.found.base
            below = "" if base is None else os.path.join(os.path.dirname(path), base)
            if looked.problems:
                failed.add(path)
            elif below in failed:
                looked.problems = ("The set %s, which it is incremental on, is not whole" % base,)
                failed.add(path)

    def _outcome(
        self, run: Run, there: tuple[BackupSet, ...], others: list[BackupSet]
    ) -> tuple[Outcome, dict[str, tuple[str, ...]]]:
        strange, (matched, unmatched) = strangers(there), self._options.choice.patterns(there)
        damaged: dict[str, tuple[str, ...]] = {}
        described, now = [], self._clock.utcnow()
        for path, looked in self._looked.items():
            if looked.is_gone:
                others.append(replace(looked.found, state="removed", why="It was removed meanwhile"))
                continue
            problems = (*looked.problems, *([strange[path]] if path in strange else []))
            if problems:
                damaged[path] = problems
            state = DAMAGED if looked.problems and looked.found.is_complete else looked.found.state
            found = replace(looked.found, state=state, why="; ".join(looked.problems))
            described.append({**describe_set(found, now), "read": looked.is_read, "problems": list(problems)})
        return run.outcome(
            {"noted": []},
            {"noted": [path for path, looked in self._looked.items() if _is_noted(looked, run.check)]},
            {
                "sets": described,
                "others": [describe_set(found, now) for found in others],
                "matched": matched,
                "unmatched": unmatched,
            },
        ), damaged


def _is_noted(looked: _Looked, check: bool) -> bool:
    """Or would be, in check mode."""
    return not looked.is_gone and looked.found.state != UNKNOWN and (check or looked.is_read)


def _words(found: BackupSet) -> str:
    return "verify %s (%d MiB)" % (found.path, mib(found.allocated))
