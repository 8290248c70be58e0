# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The runner: what it calls, in which order, and what it tells."""

from __future__ import annotations

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.plan import Done, Step
from ansible_collections.virtops.libvirt.plugins.module_utils._core.ports import Silent
from ansible_collections.virtops.libvirt.plugins.module_utils._service.run import Run

from .fakes import FakeClock


class Log(Silent):
    """Remembers the job's lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def step(self, words: str) -> None:
        self.lines.append(words)


class Bench:
    """Steps that remember their calls: a name in capitals has an undo, one with "!" fails, with "~" its undo fails; one
    with "=" has to stay, with "|" is final."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.clock, self.log = FakeClock(), Log()

    def step(self, text: str) -> Step:
        name = text.strip("!~|=")

        def act() -> None:
            self.clock.seconds += 2
            self.calls.append(name)
            if "!" in text:
                raise VirtopsError("failed", f"{name} failed.", "Mend it.")

        def undo(error: VirtopsError) -> bool:
            assert error.code == "failed"
            if "~" in text:
                raise VirtopsError("stuck", f"{name} stays", "Look.")
            if "=" not in text:
                self.calls.append(f"-{name}")
            return "=" not in text

        return Step((f"do {name}",), act, undo if name.isupper() else None, "|" in text)

    def run(self, steps: str, check: bool = False) -> tuple[Run, VirtopsError | None]:
        run = Run(check, self.clock, self.log)
        try:
            with run:
                run.apply(*(self.step(text) for text in steps.split()))
        except VirtopsError as error:
            return run, error
        return run, None


#: The steps, what is called, and what counts as done in the end.
TABLE = {
    "all of them": ("a B c", "a B c", "a B c"),
    "a failure ends it": ("a b! c", "a b", "a"),
    "what has an undo is undone, last first": ("A b C d! E", "A b C d -C -A", "b"),
    "the failed step has nothing to undo": ("A B!", "A B -A", ""),
    "nothing is undone once a base may have changed": ("A B c| d!", "A B c d", "A B c"),
    "also when that step itself fails": ("A b|!", "A b", "A"),
    "but what comes after it is": ("A b| C d!", "A b C d -C", "A b"),
    "what has to stay keeps all before it": ("A B= C d!", "A B C d -C", "A B"),
    "an undo that fails leaves the rest": ("A B~ c!", "A B c", "A B"),
}


@pytest.mark.parametrize(("steps", "calls", "done"), TABLE.values(), ids=TABLE)
def test_what_is_called_and_what_is_told(steps: str, calls: str, done: str) -> None:
    bench = Bench()
    run, error = bench.run(steps)
    assert bench.calls == calls.split()
    assert run.actions == [f"do {name}" for name in done.split()]
    assert (error is not None) == ("!" in steps)
    assert error is None or error.actions == tuple(run.actions)


def test_a_check_calls_nothing() -> None:
    bench = Bench()
    run, error = bench.run("a B! c|", check=True)
    assert (error, bench.calls, bench.log.lines) == (None, [], [])
    assert run.actions == ["do a", "do B", "do c"]


def test_both_failures_are_told() -> None:
    _run, error = Bench().run("A~ b!")
    assert error is not None
    assert (error.code, error.cause) == ("failed", "b failed. Undoing it failed too: A stays")


def test_each_step_is_a_line_when_it_begins_and_one_with_its_time() -> None:
    """What hangs is the last line."""
    bench = Bench()
    bench.run("A b c!")
    done = ["begins: do A", "do A (2.0 s)", "begins: do b", "do b (2.0 s)"]
    assert bench.log.lines == [*done, "begins: do c", "undone: do A"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_step_may_have_done_less_than_it_was_to_do(fails: bool) -> None:
    """One of two disks, or an overlay that stays."""

    def act() -> Done:
        if fails:
            problem = VirtopsError("failed", "vdb failed.", "Mend it.")
            problem.actions = ("merge vda",)
            raise problem
        return Done(("merge vda",), ("vdb was kept",))

    run = Run(False, FakeClock(), Silent())
    steps = Step((), lambda: None), Step(("merge vda", "merge vdb"), act)
    if fails:
        with pytest.raises(VirtopsError) as caught, run as begun:
            begun.apply(*steps)
        assert caught.value.actions == ("merge vda",)
    else:
        run.apply(*steps)
        assert (run.actions, run.warnings) == (["merge vda"], ["vdb was kept"])
