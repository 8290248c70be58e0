# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the folders of jobs, which hold their state, their log and how they ended.

They lie beside the locks, on a tmpfs, readable by their user only. A job holds a flock(2) in its folder for as long
as it lives, so nobody takes another process for it, and a reboot ends all of them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from .._core.errors import VirtopsError
from .._core.job_state import JobEnd, JobState, Word, domain_locked, job_killed, parse_end, parse_state, parse_word
from .locks import known_directories, lock_directories
from .procs import stuck_thread

#: Seconds for which the result of a job is kept, and how many results at most.
KEPT_SECONDS = 24 * 3600
MOST_KEPT = 200
#: Bytes of a job's log; at this many it begins anew, and the one before is kept.
LOG_BYTES = 128 * 1024

_ID = re.compile(r"[0-9a-f]{32}")

T = TypeVar("T")


class JobFolder:
    """One job's folder."""

    def __init__(self, path: str) -> None:
        self.path = path

    @property
    def id(self) -> str:
        return os.path.basename(self.path)

    @property
    def log(self) -> str:
        """The path of its log."""
        return os.path.join(self.path, "log")

    def hold(self) -> int:
        """A descriptor with the lock that says: the job lives. It goes with the processes that have it."""
        fd = os.open(os.path.join(self.path, "alive"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        return fd

    def is_alive(self) -> bool:
        """One that was killed, and whose process waits for storage that does not answer, does nothing more."""
        try:
            fd = os.open(os.path.join(self.path, "alive"), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            state = self.state()
            return state is None or not state.pid or stuck_thread(state.pid) is None
        finally:
            os.close(fd)
        return False

    def state(self) -> JobState | None:
        """What it last said; None where the folder is gone, or it has said nothing yet."""
        text = self._read("state.json")
        return parse_state(text) if text else None

    def end(self) -> JobEnd | None:
        """How it ended; None where it has not, or was killed."""
        text = self._read("result.json") or self._read("alive")
        return parse_end(text) if text.endswith("\n") else None

    def end_with(self, end: JobEnd, alive: int) -> None:
        """Say how it ended. Where the folder has become read-only, what is open can still be written to."""
        text = end.as_text().rstrip("\n") + "\n"
        try:
            self.write("result.json", text)
        except OSError:
            os.pwrite(alive, text.encode("utf-8", "surrogateescape"), 0)

    def require_end(self) -> JobEnd | None:
        """How it ended; None while it goes on. Raises `job_killed` where it never will say."""
        end = self.end()
        if end is not None or self.is_alive():
            return end
        # It may have ended between the two looks
        end, state = self.end(), self.state()
        if end is None and state is not None:
            raise job_killed(state, self.log)
        return end

    def write(self, name: str, text: str) -> None:
        """Replaced at once: nobody reads the half of it."""
        path = os.path.join(self.path, name)
        try:
            fd = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fd, "w", encoding="utf-8") as file:
                file.write(text)
            os.rename(path + ".new", path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(path + ".new")
            raise

    def order_stop(self) -> None:
        """Tell it to end at the next point where it leaves nothing open."""
        with contextlib.suppress(FileExistsError):
            os.close(os.open(os.path.join(self.path, "stop"), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))

    def is_told_to_stop(self) -> bool:
        return os.path.exists(os.path.join(self.path, "stop"))

    def hand_over(self, values: Mapping[str, Any]) -> None:
        """Let those who follow the job have these values, as it waits for their word."""
        self.write("handed.json", json.dumps(values))

    def handed_over(self) -> dict[str, Any] | None:
        """The values, while the job waits for a word; else None."""
        if self.word() is not None:
            return None
        text = self._read("handed.json")
        return {**json.loads(text), "job": self.id} if text else None

    def say(self, word: Word) -> Word:
        """Tell the job this word, and return the one that counts: the first. OSError where it cannot be written."""
        path = os.path.join(self.path, "word.json")
        own = "word.%d" % os.getpid()
        self.write(own, word.as_text())
        try:
            with contextlib.suppress(FileExistsError):
                os.link(os.path.join(self.path, own), path)
        finally:
            os.unlink(os.path.join(self.path, own))
        return self.word() or word

    def word(self) -> Word | None:
        """What the job was told; None: nothing yet."""
        text = self._read("word.json")
        return parse_word(text) if text else None

    def take_back(self) -> Word | None:
        """No word counts from now on. Returns the one that came before."""
        late = Word(False, "it came too late")
        try:
            first = self.say(late)
        except OSError:  # then the next one cannot be written either, or nobody heeds it
            first = self.word() or late
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self.path, "handed.json"))
        return None if first == late else first

    def log_lines(self, most: int) -> list[str]:
        """The last lines of its log."""
        lines = (self._read("log.1") + self._read("log")).splitlines()
        return lines[-most:]

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def _read(self, name: str) -> str:
        try:
            with open(os.path.join(self.path, name), encoding="utf-8", errors="surrogateescape") as file:
                return file.read()
        except OSError:
            return ""


class JobStore:
    """The jobs of this user on this host."""

    def __init__(self, directories: Callable[[], Sequence[str]] = lock_directories) -> None:
        self._directories = directories

    def _roots(self) -> Iterator[str]:
        for directory in self._directories():
            yield os.path.join(directory, "jobs")

    def make(self, job_id: str, prepare: Callable[[JobFolder], T]) -> tuple[JobFolder, T] | None:
        """A new folder, where there is space for what `prepare` puts into it; None where there is one of this ID.

        OSError where none can be: the first folder's, which is the one that counts.
        """
        if self.find(job_id) is not None:
            return None
        failures = []
        for root in self._roots():
            folder = JobFolder(os.path.join(root, job_id))
            try:
                os.makedirs(root, 0o700, exist_ok=True)
                _prune(root)
                os.mkdir(folder.path, 0o700)
            except OSError as error:
                if os.path.isdir(folder.path):
                    return None
                failures.append(error)
                continue
            try:
                return folder, prepare(folder)
            except OSError as error:
                folder.remove()
                failures.append(error)
        raise failures[0]

    def find(self, job_id: str) -> JobFolder | None:
        """The job of this ID."""
        require_id(job_id)
        found = (os.path.join(root, job_id) for root in self._roots())
        return next((JobFolder(path) for path in found if os.path.isdir(path)), None)

    def all(self) -> list[tuple[JobFolder, JobState]]:
        """Those that run and those that are kept, the oldest first; not yet one that only waits for its domain."""
        folders = [folder for root in self._roots() for folder in _folders(root)]
        known = [(folder, folder.state()) for folder in folders]
        begun = [(folder, state) for folder, state in known if state is not None and state.has_begun]
        return sorted(begun, key=lambda found: (found[1].started, found[1].id))

    def running(self, uuid: str) -> list[tuple[JobFolder, JobState]]:
        """The jobs on this domain that go on: at most one of them changes it."""
        return [(folder, state) for folder, state in self.all() if state.uuid == uuid and folder.is_alive()]


def who_works(name: str, uuid: str, pid: int | None, since: str) -> VirtopsError:
    """The error for a domain whose lock this process holds: with its job, where it is one."""
    for folder, state in JobStore(known_directories).running(uuid):
        if pid in (None, state.pid):
            return domain_locked(name, pid, since, state, folder.log)
    return domain_locked(name, pid, since)


def job_at_work(uuid: str) -> JobState | None:
    """The job that works on this domain; None where none does, or none that this user may see."""
    return next((state for _unused, state in JobStore(known_directories).running(uuid)), None)


def require_id(job_id: str) -> None:
    """It becomes a path."""
    if not _ID.fullmatch(job_id):
        raise VirtopsError("bad_option", "The job's ID is %r" % job_id, "Give 32 hexadecimal digits, as job_info shows")


def _folders(root: str) -> list[JobFolder]:
    try:
        names = os.listdir(root)
    except OSError:
        return []
    return [JobFolder(os.path.join(root, name)) for name in names if _ID.fullmatch(name)]


def _prune(root: str) -> None:
    """Drop what is too old, and the oldest of what is too many. A folder without a process has ended, however."""
    aged = []
    for folder in _folders(root):
        with contextlib.suppress(OSError):
            aged.append((os.stat(folder.path).st_mtime, folder))
    aged.sort(key=lambda found: found[0])
    now = time.time()
    for number, (changed, folder) in enumerate(aged):
        is_old = not -KEPT_SECONDS < now - changed < KEPT_SECONDS
        if (is_old or len(aged) - number > MOST_KEPT) and not folder.is_alive():
            folder.remove()
