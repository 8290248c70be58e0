# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: how far a job is, in its folder, and what it did, in its log and the system's.

Neither may end the job: where nothing can be written, it goes on unseen.
"""

from __future__ import annotations

import contextlib
import os
import syslog
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .._core.job_state import JobState, Speed, Word, in_phase
from .._core.ports import Clock
from .._core.text import shown
from .command import failing
from .job_store import LOG_BYTES, JobFolder

#: Seconds between two writings of the state, and between two looks for an order.
_WRITE_SECONDS = 1.0
_LOOK_SECONDS = 0.5
_MIB = 1024 * 1024


class JobProgress:
    """Implements `_core.ports.Progress` for a job with a folder. Copies call it from threads of their own."""

    def __init__(self, folder: JobFolder, state: JobState, clock: Clock, system_log: bool) -> None:
        self._folder = folder
        self._state = state
        self._clock = clock
        self._system_log = system_log
        self._lock = threading.Lock()
        self._speed = Speed()
        self._phase_began = clock.monotonic()
        self._written = self._looked = self._phase_began - _WRITE_SECONDS
        self._is_stopping = False

    @property
    def state(self) -> JobState:
        return self._state

    def begin(self, name: str, uuid: str, digest: str) -> None:
        """The lock of this domain is held from now on; both are "" where it works on none."""
        with self._lock:
            self._state = replace(self._state, domain=name, uuid=uuid, digest=digest, pid=os.getpid())
            self._write()
        self.step("began %s%s" % (self._state.words, " (%s)" % uuid if uuid else ""))

    def phase(self, name: str) -> None:
        """The one before it is over: its seconds and bytes go to the log, then that this one begins."""
        now = self._clock.monotonic()
        with self._lock:
            before, seconds = self._state, now - self._phase_began
            self._state = in_phase(self._state, name, seconds)
            self._speed, self._phase_began = Speed(), now
            self._write()
        if before.phase:
            done = sum(done for done, _unused in before.disks.values())
            self.step("%s: %.1f s%s" % (before.phase, seconds, ", %d MiB" % (done // _MIB) if before.disks else ""))
        if name:
            self.step("%s begins" % name)

    def end(self, words: str) -> None:
        """The job is over; of one that never got the lock nothing is told."""
        if self._state.has_begun:
            self.phase("")
            self.step(words)

    def step(self, words: str) -> None:
        """A line of the log."""
        words = shown(words)
        with contextlib.suppress(OSError):
            self._log(words)
        if self._system_log:
            syslog.syslog("job %s: %s" % (self._state.id, words))

    def disk(self, target: str, done: int, total: int) -> None:
        """Written once a second at most, and where a disk is finished."""
        now = self._clock.monotonic()
        with self._lock:
            is_finished = done >= total and self._state.disks.get(target) != (done, total)
            self._state.disks[target] = (done, total)
            if now - self._written < _WRITE_SECONDS and not is_finished:
                return
            speed = self._speed.of(now, sum(done for done, _unused in self._state.disks.values()))
            self._state = replace(self._state, speed=speed)
            self._write()

    def is_stopping(self) -> bool:
        """Was there a SIGTERM, or an order in the folder?"""
        now = self._clock.monotonic()
        if not self._is_stopping and now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            self._is_stopping = self._folder.is_told_to_stop()
        return self._is_stopping

    def stop(self, *_unused: object) -> None:
        """The handler of SIGTERM."""
        self._is_stopping = True

    def hand_over(self, values: Mapping[str, Any]) -> None:
        """Raises where the values cannot be written: nobody would ever come to know of them."""
        with failing("Writing the values that the job %s hands over" % self._state.id):
            self._folder.hand_over(values)

    def word(self) -> Word | None:
        return self._folder.word()

    def take_back(self) -> Word | None:
        return self._folder.take_back()

    def _write(self) -> None:
        self._written = self._clock.monotonic()
        with contextlib.suppress(OSError):
            self._folder.write("state.json", self._state.as_text())

    def _log(self, words: str) -> None:
        path = self._folder.log
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_size > LOG_BYTES:
                os.rename(path, path + ".1")
        with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write("%s %s\n" % (time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), words))
