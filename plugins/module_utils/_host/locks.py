# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: one operation per domain, and a limit of copies per hypervisor, by flock(2).

The kernel drops the locks when the process dies, however it dies. Their files lie on a tmpfs and are removed with
the lock; one that a killed process left behind is only a file, and the next run takes it over.

No merge may fail because /run is full or read-only: the lock of a domain is taken in each of two folders where it can
be, and holds with one of them. Two tasks meet where they have one in common.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import TracebackType

from .._core.errors import VirtopsError
from .._core.job_state import domain_locked
from .._core.ports import Clock
from .clock import SystemClock
from .procs import stuck_thread

#: Seconds between two looks for a free slot, or for the end of a killed task.
_POLL = 0.2
#: Seconds for a task to end that was killed.
_KILLED_SECONDS = 3.0


def lock_directories() -> tuple[str, ...]:
    """For root one under /run, else in the user's own runtime directory, and one in /dev/shm; mode 0700, ours. Those of
    the two that there can be; raises if that is none. One may be read-only."""
    found, errors = [], []
    for path in _paths():
        try:
            found.append(_own_directory(path))
        except VirtopsError as error:
            errors.append(error)
    if not found:
        raise errors[0]
    return tuple(found)


def known_directories() -> tuple[str, ...]:
    """Those of `lock_directories` that are there. Who only looks makes none."""
    return tuple(path for path in _paths() if os.path.isdir(path) and _is_own(os.lstat(path)))


def _paths() -> tuple[str, str]:
    parent, mine = "/run", "virtops.libvirt"
    if os.geteuid() != 0:
        parent = os.environ.get("XDG_RUNTIME_DIR") or "/run/user/%d" % os.geteuid()
        mine = "virtops.libvirt-%d" % os.geteuid()
    return os.path.join(parent, "virtops.libvirt"), os.path.join("/dev/shm", mine)


def _is_own(found: os.stat_result) -> bool:
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def _own_directory(path: str) -> str:
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        found = os.lstat(path)
    except OSError as error:
        raise _no_lock(path, error) from error
    if not _is_own(found):
        raise VirtopsError("no_lock_directory", "%s is not a directory of this user" % path, "Remove it")
    return path


def _no_lock(path: str, error: OSError) -> VirtopsError:
    return VirtopsError(
        "no_lock_directory",
        "%s, for a lock, cannot be made: %s" % (path, os.strerror(error.errno or 0)),
        "Run the module as root (become), or with XDG_RUNTIME_DIR set, and see that there is space on /run or /dev/shm "
        "and that one of them is writable",
    )


def never_stop() -> None:
    """The default of a check that may raise."""


class DomainLock:
    """Held while a module changes a domain. A second one is refused, not queued: it would plan on old ground.

    `refused` makes the error `locked`, of the process that holds the lock and since when, as far as that is known.
    """

    def __init__(
        self,
        uuid: str,
        directories: Callable[[], Sequence[str]] = lock_directories,
        clock: Clock | None = None,
        refused: Callable[[int | None, str], VirtopsError] | None = None,
    ) -> None:
        self._uuid = uuid
        self._directories = directories
        self._clock = clock or SystemClock()
        self._refused = refused or partial(domain_locked, uuid)
        self._held: list[_FileLock] = []

    def __enter__(self) -> DomainLock:
        try:
            self._acquire()
        except BaseException:
            self._release()
            raise
        return self

    def _acquire(self) -> None:
        errors = []
        for directory in self._directories():
            lock = _FileLock(os.path.join(directory, "domain-%s.lock" % self._uuid))
            try:
                taken = lock.acquire()
            except OSError as error:
                errors.append(_no_lock(lock.path, error))
                continue
            if not taken and not self._outlived(lock):
                raise self._refused(lock.owner(), lock.since())
            self._held.append(lock)
        if not self._held:
            raise errors[0]

    def _outlived(self, lock: _FileLock) -> bool:
        """Take the lock of a task that was killed once it has ended; False where nobody killed it."""
        deadline = self._clock.monotonic() + _KILLED_SECONDS
        while True:
            pid = lock.owner()
            thread = None if pid is None else stuck_thread(pid)
            if pid is None or thread is None:
                return lock.acquire()
            if self._clock.monotonic() >= deadline:
                raise VirtopsError(
                    "orphan_stays",
                    "Process %d, which worked on domain %s and was killed, does not end and holds the domain's lock: "
                    "its thread %d waits for storage that does not answer" % (pid, self._uuid, thread),
                    "Repair that storage (see /proc/%d/task/%d/stack), then run again" % (pid, thread),
                )
            self._clock.sleep(_POLL)

    def _release(self) -> None:
        while self._held:
            self._held.pop().release()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()


class Slots:
    """At most `count` copies (or what else `kind` says) at a time on this hypervisor, whichever playbook or process
    they belong to.

    `take()` waits for a slot for as long as it takes: each holder's work ends by itself, and a killed one frees its
    slot. Users with different limits share the slots of the smaller one.
    """

    def __init__(
        self,
        count: int,
        clock: Clock | None = None,
        directories: Callable[[], Sequence[str]] = lock_directories,
        kind: str = "copy",
    ) -> None:
        self._count = count
        self._kind = kind
        self._clock = clock or SystemClock()
        self._directories = directories

    @contextlib.contextmanager
    def take(self, check: Callable[[], None] = never_stop) -> Iterator[None]:
        """A context in which one slot is ours. Each thread may take its own. `check` raises to end the waiting."""
        lock = self._acquire(check)
        try:
            yield
        finally:
            lock.release()

    def _acquire(self, check: Callable[[], None]) -> _FileLock:
        directories = list(self._directories())
        while True:
            check()
            try:
                for lock in self._slots(directories[0]):
                    if lock.acquire():
                        return lock
                self._clock.sleep(_POLL)
            except OSError as error:  # no file can be made there: the next one serves
                if len(directories) == 1:
                    raise _no_lock(directories[0], error) from error
                del directories[0]

    def _slots(self, directory: str) -> Iterator[_FileLock]:
        """As many as there may be at a time: one whose killed task never ends does not count."""
        left = self._count
        for number in itertools.count():
            if not left:
                return
            lock = _FileLock(os.path.join(directory, "%s-%d.lock" % (self._kind, number)))
            owner = lock.owner()
            left -= owner is None or stuck_thread(owner) is None
            yield lock


class _FileLock:
    """An exclusive flock(2) on a file that is removed on release."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1

    def acquire(self) -> bool:
        """False where another holds it; OSError where there can be no such file."""
        while True:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                return False
            except OSError:
                os.close(fd)
                raise
            # Its holder may have removed it between our open and our lock: then we hold a file without a name.
            if self._is_current(fd):
                break
            os.close(fd)
        # For a message only: where no byte can be written, it holds all the same.
        with contextlib.suppress(OSError):
            os.truncate(fd, 0)
            os.write(fd, b"%d\n" % os.getpid())
        self._fd = fd
        return True

    def release(self) -> None:
        # Where it cannot be removed, on what is read-only by now, the next task takes it over.
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        os.close(self._fd)

    def owner(self) -> int | None:
        """The process that holds it; None where it is just gone, or could not write that down."""
        try:
            with open(self.path, encoding="ascii") as file:
                return int(file.read())
        except (OSError, ValueError):
            return None

    def since(self) -> str:
        """The UTC time at which it was taken, as 20261120T120000Z; empty where it is just gone."""
        try:
            return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(os.stat(self.path).st_mtime))
        except OSError:
            return ""

    def _is_current(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self.path))
        except FileNotFoundError:
            return False
