# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: ending a qemu-img of ours that outlived its module.

A tied program dies with the module that started it (see command.py). One can be left all the same, where the kernel
refused prctl(2). It holds QEMU's lock on the image, so that each merge fails for as long as it runs. One that was
killed, does not end and reads without a lock (-U) is in nobody's way.
What tells it from another's: the mark in its environment, see `command.marked`.
Whoever calls this holds the domain's lock, so no module that could have started it lives any more.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable

from .._core.errors import VirtopsError
from .._core.ports import Clock
from .clock import SystemClock
from .command import MARK
from .procs import emulators, living, stuck_thread

#: The only program that is ever ended: never the watchdog, which has to thaw.
PROGRAM = "qemu-img"
#: Seconds for a process to be gone after SIGKILL: it may wait for storage.
GONE_SECONDS = 10.0
_POLL = 0.05


class Reaper:
    """Implements `_core.ports.ReaperPort` by proc(5)."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()

    def orphans(self, uuid: str) -> tuple[int, ...]:
        """The PIDs of qemu-img processes that carry the mark of this domain. One that has ended holds nothing."""
        pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
        return tuple(sorted(pid for pid in pids if _is_ours(pid, uuid)))

    def emulators(self, uuid: str, images: Iterable[str]) -> tuple[int, ...]:
        """The PIDs of the QEMU processes that run this domain, whether or not libvirt knows."""
        return emulators(uuid, images)

    def reap(self, uuid: str, pid: int) -> None:
        """SIGKILL, then wait until it is gone. A number that means another process by now is left alone."""
        born = _start_time(pid)
        if born is None or not _kill(pid, uuid):
            return
        deadline = self._clock.monotonic() + GONE_SECONDS
        while _start_time(pid) == born:
            if self._clock.monotonic() >= deadline:
                raise VirtopsError(
                    "orphan_stays",
                    "The process %d (%s), which an interrupted run left, did not end within %d s of SIGKILL"
                    % (pid, PROGRAM, GONE_SECONDS),
                    "It waits for storage that does not answer: repair that (see %s/stack), then try again"
                    % (living(pid) or "/proc/%d" % pid),
                )
            self._clock.sleep(_POLL)


def _is_ours(pid: int, uuid: str) -> bool:
    """A process that ends meanwhile, or that we may not look into, is not."""
    wanted = os.fsencode("%s=%s" % (MARK, uuid))
    folder = living(pid)
    return (
        folder is not None
        and _read(folder, "comm").rstrip(b"\n") == PROGRAM.encode()
        and wanted in _read(folder, "environ").split(b"\0")
        and not (b"-U" in _read(folder, "cmdline").split(b"\0") and stuck_thread(pid) is not None)
    )


def _kill(pid: int, uuid: str) -> bool:
    """By a file descriptor where the system has such (Linux 5.3): it cannot come to mean another process.

    False where there is nobody of ours to kill.
    """
    with contextlib.suppress(ProcessLookupError):
        fd = _pidfd(pid)
        try:
            if not _is_ours(pid, uuid):
                return False
            if fd is None:
                os.kill(pid, signal.SIGKILL)
            else:
                signal.pidfd_send_signal(fd, signal.SIGKILL)
            return True
        finally:
            if fd is not None:
                os.close(fd)
    return False


def _pidfd(pid: int) -> int | None:
    """None where there are none; ProcessLookupError where the process is gone."""
    if not hasattr(os, "pidfd_open") or not hasattr(signal, "pidfd_send_signal"):
        return None
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except OSError:
        return None


def _start_time(pid: int) -> bytes | None:
    """In clock ticks since the boot; with the number it names a process. None where each thread of it has ended."""
    fields = _read("/proc/%d" % pid, "stat").rpartition(b")")[2].split()
    return fields[19] if fields and living(pid) is not None else None


def _read(folder: str, name: str) -> bytes:
    try:
        with open(os.path.join(folder, name), "rb") as file:
            return file.read()
    except OSError:
        return b""
