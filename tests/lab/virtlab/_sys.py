# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the lab needs from the machine: commands, locks, and processes that are told apart by more than their number."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


class LabError(Exception):
    """The lab could not do what was asked; the text says why."""


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    check: bool = True,
    timeout: float | None = 120,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command and return its text output; with `check`, its failure is a LabError with what it said."""
    try:
        done = subprocess.run(
            [os.fspath(arg) for arg in argv],
            input=stdin or "",
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            env=env,
            cwd=cwd,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{' '.join(map(str, argv))}: no end within {timeout:g} s") from error
    if check and done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise LabError(f"{' '.join(map(str, argv))} ended with {done.returncode}: {said}")
    return done


def wait_for(what: str, is_done: Callable[[], bool], timeout: float, every: float = 0.05) -> float:
    """Poll until `is_done`; returns the seconds it took, or raises a LabError that names `what`."""
    start = time.monotonic()
    while not is_done():
        if time.monotonic() - start > timeout:
            raise LabError(f"{what}: not within {timeout:g} s")
        time.sleep(every)
    return time.monotonic() - start


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file of the lab; the kernel drops it when the holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class Process:
    """A process that is ours: its number and the tick it started at, so that a reused number is never taken for it."""

    pid: int
    started: int

    @classmethod
    def parse(cls, text: str) -> Process | None:
        words = text.split()
        return cls(int(words[0]), int(words[1])) if len(words) == 2 else None

    def is_alive(self) -> bool:
        """A zombie counts as dead: where PID 1 does not reap, it stays for ever."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return False
        fields = stat.rpartition(")")[2].split()
        return fields[0] not in "ZX" and int(fields[19]) == self.started

    def kill(self, timeout: float = 10) -> None:
        if self.is_alive():
            os.kill(self.pid, signal.SIGKILL)
        wait_for(f"end of process {self.pid}", lambda: not self.is_alive(), timeout, every=0.01)
