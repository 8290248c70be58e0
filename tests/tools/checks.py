# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs the checks of one test set, all of them even if some fail, and counts."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from xml.etree import ElementTree

from .envs import STATE

RESULTS = STATE / "results"


class Checks:
    """The checks of one set, as a context: on leaving, the counts are in .dev/results/SET for ./dev test to add up."""

    def __init__(self, name: str, fail: Callable[[str], object]) -> None:
        """Start a set of which nothing has been run; `fail` is called at the end, with the names of what failed."""
        self.name = name
        self._fail = fail
        self.passed = self.failed = self.skipped = 0
        self._failures: list[str] = []

    def run(
        self,
        label: str,
        command: Iterable[str | Path],
        *,
        cwd: Path,
        env: Mapping[str, str],
        verdict: Callable[[str], str | None] | None = None,
        counts: bool = True,
    ) -> str | None:
        """Run a command as one check, and return what was wrong.

        `verdict` reads what a successful one printed, and says what is wrong. One that does not count is for add_junit.
        """
        started = time.monotonic()
        print(f"--- {self.name}: {label}", flush=True)
        capture = subprocess.PIPE if verdict else None
        try:
            process = subprocess.Popen(
                [str(word) for word in command],
                cwd=cwd,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=capture,
                stderr=subprocess.STDOUT if verdict else None,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:  # an earlier check did not make the command
            return self.report(label, str(error), counts=counts)
        try:
            output = process.communicate()[0] or ""
        except KeyboardInterrupt:
            # It was interrupted too, and may be taking down what it had set up; subprocess.run would kill it.
            process.wait(timeout=120)
            raise
        problem = f"exit status {process.returncode}" if process.returncode else None
        if verdict:
            print(output, end="", flush=True)
            problem = problem or verdict(output)
        return self.report(label, problem, time.monotonic() - started, counts=counts)

    def side_by_side(
        self, commands: Mapping[str, Iterable[str | Path]], *, cwd: Path, env: Mapping[str, str]
    ) -> dict[str, str | None]:
        """Run commands at once, each one's output after its end; return what was wrong with each. It counts nothing."""
        processes = {}
        with ExitStack() as stack:
            logs = {label: stack.enter_context(tempfile.TemporaryFile("w+", errors="replace")) for label in commands}
            try:
                for label, command in commands.items():
                    processes[label] = subprocess.Popen(
                        [str(word) for word in command],
                        cwd=cwd,
                        env=dict(env),
                        stdin=subprocess.DEVNULL,
                        stdout=logs[label],
                        stderr=subprocess.STDOUT,
                    )
                for process in processes.values():
                    process.wait()
            except KeyboardInterrupt:
                for process in processes.values():  # they were interrupted too, and take down what they had set up
                    process.wait(timeout=120)
                raise
            finally:
                for label, log in logs.items():
                    log.seek(0)
                    print(f"--- {self.name}: {label}", log.read(), sep="\n", flush=True)
        return {
            label: f"exit status {process.returncode}" if process.returncode else None
            for label, process in processes.items()
        }

    def report(self, label: str, problem: str | None, seconds: float = 0, *, counts: bool = True) -> str | None:
        """Tell and count one check that is done: a pass if there is no problem. Return the problem."""
        if problem:
            print(f"--- {self.name}: {label}: FAILED ({problem}, {seconds:.0f} s)", flush=True)
        else:
            print(f"--- {self.name}: {label}: ok ({seconds:.0f} s)", flush=True)
        if counts and problem:
            self.failed += 1
            self._failures.append(f"{label}: {problem}")
        elif counts:
            self.passed += 1
        return problem

    def skip(self, label: str, why: str) -> None:
        """Count one check that cannot be made on this machine."""
        self.skipped += 1
        print(f"--- {self.name}: {label}: skipped ({why})", flush=True)

    def add_junit(self, label: str, files: Iterable[Path], problem: str | None) -> None:
        """Count the tests of JUnit files instead of the command that ran them.

        What was wrong with that command is a failure of its own where none of its tests tells of one.
        """
        tests = failed = skipped = 0
        for file in files:
            for suite in ElementTree.parse(file).getroot().iter("testsuite"):
                tests += int(suite.get("tests", 0))
                failed += int(suite.get("failures", 0)) + int(suite.get("errors", 0))
                skipped += int(suite.get("skipped", 0))
        self.passed += tests - failed - skipped
        self.failed += failed
        self.skipped += skipped
        if failed:
            self._failures.append(f"{label}: {failed} tests")
        elif problem or not tests:
            self.report(label, problem or "no test was run")

    def __enter__(self) -> Checks:
        """Forget the counts of an earlier run."""
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / self.name).unlink(missing_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write the counts; fail if a check has. A set that broke off has no counts, and ./dev test sees that."""
        if kind is not None:
            return
        (RESULTS / self.name).write_text(f"{self.passed} {self.failed} {self.skipped}\n", encoding="utf-8")
        counts = f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"
        print(f"=== {self.name}: {counts}", flush=True)
        if self.failed:
            self._fail("; ".join(self._failures))
