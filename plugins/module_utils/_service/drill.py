# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the flow that boots backup sets, to see whether they do.

choose the sets -> (check mode stops here) -> for each: folder, servers, overlays -> boot -> wait until it is up ->
check -> all of that goes away -> note in the set what came of it. All are tried before the run fails. A set is only
read.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

from .._core import xml
from .._core.backup import DOMAIN_XML
from .._core.drill import (
    OF_THE_SET,
    WORDS_LIMIT,
    DrillOptions,
    DrillPlan,
    ScratchPort,
    TrialGuest,
    TrialHost,
    check_failed,
    is_up,
    not_up,
    plan_drill,
    require_pattern,
    some_failed,
)
from .._core.errors import VirtopsError
from .._core.model import Outcome
from .._core.plan import Done, Step
from .._core.ports import Clock, Progress
from .._core.refusals import require_going
from .._core.sets import BackupSet, Note, Notes, SetsPort, describe_set
from .run import Run

#: Seconds between two looks at a guest that boots.
_LOOK_SECONDS = 0.5


@dataclass
class _Tried:
    """What came of one set. `problem` is the set's fault, `seconds` are those until it was up."""

    found: BackupSet
    problem: str = ""
    seconds: float | None = None
    check: dict[str, object] | None = None
    left_out: tuple[str, ...] = ()
    is_booted: bool = False
    warning: str = ""


class Drill:
    """Boot sets. `scratch` makes the folder for the one at a path, `slot` waits until the host may boot one more."""

    def __init__(
        self,
        options: DrillOptions,
        sets: SetsPort,
        host: TrialHost,
        scratch: Callable[[str], AbstractContextManager[ScratchPort]],
        slot: Callable[[Callable[[], None]], AbstractContextManager[None]],
        clock: Clock,
        progress: Progress,
    ) -> None:
        self._options = options
        self._sets = sets
        self._host = host
        self._scratch = scratch
        self._slot = slot
        self._clock = clock
        self._progress = progress

    def run(self, check: bool) -> Outcome:
        """Raises `drill_failed`, with what came of each set in `told`, where one did not boot."""
        choice = self._options.choice
        require_pattern(self._options)
        there = choice.look(self._sets)
        chosen, others = choice.choose(there)
        tried = [_Tried(found) for found in chosen]
        with Run(check, self._clock, self._progress) as run:
            if tried:
                run.apply(Step(tuple(_words(one.found) for one in tried), partial(self._try_all, tried)))
        now = self._clock.utcnow()
        matched, unmatched = choice.patterns(there)
        outcome = run.outcome(
            {"booted": []},
            {"booted": [one.found.path for one in tried if not one.problem]},
            {
                "sets": [_describe(one, now) for one in tried],
                "others": [describe_set(found, now) for found in others],
                "matched": matched,
                "unmatched": unmatched,
            },
        )
        failed = {one.found.path: one.problem for one in tried if one.problem}
        if failed:
            error = some_failed(failed, len(tried))
            error.actions, error.told = outcome.steps, outcome.values
            raise error
        return outcome

    def _try_all(self, tried: list[_Tried]) -> Done:
        """What the host lacks, or an order to stop, ends them all."""
        self._progress.phase("boot")
        with ThreadPoolExecutor(self._options.at_once) as pool:
            for number, one in enumerate(pool.map(self._try, tried), 1):
                self._note(one)
                self._progress.disk("sets", number, len(tried))
        return Done(warnings=tuple(one.warning for one in tried if one.warning))

    def _try(self, one: _Tried) -> _Tried:
        require_going(self._progress, "drill")
        try:
            plan = plan_drill(one.found)
            with self._slot(lambda: require_going(self._progress, "drill")), self._scratch(one.found.path) as scratch:
                one.is_booted = True
                self._boot(one, plan, scratch)
        except VirtopsError as error:
            if error.code not in OF_THE_SET:
                raise
            one.problem = error.cause
            self._progress.step("%s: %s" % (one.found.path, error.cause))
        return one

    def _note(self, one: _Tried) -> None:
        """That it cannot be written is no reason to give up what was found out."""
        if not one.is_booted:
            return
        try:
            self._sets.note(one.found.path, Notes(booted=Note(self._clock.utcnow(), not one.problem, one.problem)))
        except VirtopsError as error:
            if error.code == "copy_stalled":
                raise
            one.warning = "The result could not be noted in the set %s: %s" % (one.found.path, error)

    def _boot(self, one: _Tried, plan: DrillPlan, scratch: ScratchPort) -> None:
        options = self._options
        disks = {}
        for image in plan.images:
            socket = scratch.serve(image)
            disks[image.target] = xml.TrialDisk(scratch.overlay(image, socket), socket)
        trial = xml.Trial(
            plan.name,
            plan.uuid,
            disks,
            scratch.console_path,
            "%s/nvram" % scratch.folder if plan.nvram is None else scratch.take_copy(plan.nvram),
            {kind: scratch.take_copy(file) for kind, file in plan.boot.items()},
            options.memory,
        )
        definition, one.left_out = xml.isolated(scratch.read(DOMAIN_XML), trial)
        scratch.hand_over()
        began = self._clock.monotonic()
        with self._host.boot(definition) as guest:
            self._await(guest, scratch, began)
            one.seconds = round(self._clock.monotonic() - began, 1)
            self._progress.step("%s is up after %.1f s" % (plan.name, one.seconds))
            if options.command:
                code, said = guest.execute(options.command, options.command_timeout)
                one.check = {"rc": code, "output": said[-WORDS_LIMIT:]}
                if code != 0:
                    raise check_failed(code, said)

    def _await(self, guest: TrialGuest, scratch: ScratchPort, began: float) -> None:
        options = self._options
        while True:
            lacking = self._lacking(guest, scratch)
            if not lacking:
                return
            seconds = self._clock.monotonic() - began
            ended = not guest.is_running()
            if ended or seconds >= options.timeout:
                raise not_up("its guest ended" if ended else lacking, seconds, scratch.console())
            require_going(self._progress, "drill")
            self._clock.sleep(_LOOK_SECONDS)

    def _lacking(self, guest: TrialGuest, scratch: ScratchPort) -> str:
        """What is waited for, in words; nothing once the guest is up. A check needs the agent in any case."""
        options = self._options
        if options.pattern and not is_up(options.pattern, scratch.console()):
            return "its console did not show the pattern"
        needs_agent = not options.pattern or options.command
        return "its agent did not answer" if needs_agent and not guest.answers() else ""


def _words(found: BackupSet) -> str:
    return "boot the set %s as a transient guest without a network, and note in it what came of it" % found.path


def _describe(one: _Tried, now: str) -> dict[str, object]:
    return {
        **describe_set(one.found, now),
        "problem": one.problem,
        "boot_seconds": one.seconds,
        "check": one.check,
        "left_out": list(one.left_out),
    }
