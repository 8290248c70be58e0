# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: one operation per domain, and a limit of copies per hypervisor, by flock(2).

The kernel drops the locks when the process dies, however it dies. Their files lie on a tmpfs and are removed with
the lock; one that a killed process left behind is only a file, and the next run takes it over.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from types import TracebackType

from .._core.errors import VirtopsError
from .._core.ports import Clock
from .clock import SystemClock

#: Seconds between two looks for a free slot.
_POLL = 0.2


def lock_directory() -> str:
    """For root under /run, else in the user's own runtime directory; mode 0700, ours."""
    parent = "/run"
    if os.geteuid() != 0:
        parent = os.environ.get("XDG_RUNTIME_DIR") or "/run/user/%d" % os.geteuid()
    path = os.path.join(parent, "virtops.libvirt")
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        found = os.lstat(path)
    except OSError as error:
        raise VirtopsError(
            "no_lock_directory",
            "The directory %s for locks cannot be made: %s" % (path, os.strerror(error.errno or 0)),
            "Run the module as root (become), or with XDG_RUNTIME_DIR set",
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise VirtopsError("no_lock_directory", "%s is not a directory of this user" % path, "Remove it")
    return path


def never_stop() -> None:
    """The default of a check that may raise."""


class DomainLock:
    """Held while a module changes a domain. A second one is refused, not queued: it would plan on old ground."""

    def __init__(self, uuid: str, directory: Callable[[], str] = lock_directory) -> None:
        self._uuid = uuid
        self._directory = directory
        self._held: _FileLock | None = None

    def __enter__(self) -> DomainLock:
        lock = _FileLock(os.path.join(self._directory(), "domain-%s.lock" % self._uuid))
        if not lock.acquire():
            raise VirtopsError(
                "locked",
                "Another task%s works on domain %s" % (lock.owner(), self._uuid),
                "Wait until it has ended, then try again",
            )
        self._held = lock
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._held is not None:
            self._held.release()
            self._held = None


class CopySlots:
    """At most `count` copies at a time on this hypervisor, whichever playbook or process they belong to.

    `take()` waits for a slot for as long as it takes: each holder's copy ends by itself, and a killed one frees its
    slot. Users with different limits share the slots of the smaller one.
    """

    def __init__(self, count: int, clock: Clock | None = None, directory: Callable[[], str] = lock_directory) -> None:
        self._count = count
        self._clock = clock or SystemClock()
        self._directory = directory

    @contextlib.contextmanager
    def take(self, check: Callable[[], None] = never_stop) -> Iterator[None]:
        """A context in which one slot is ours. Each thread may take its own. `check` raises to end the waiting."""
        lock = self._acquire(check)
        try:
            yield
        finally:
            lock.release()

    def _acquire(self, check: Callable[[], None]) -> _FileLock:
        directory = self._directory()
        while True:
            check()
            for number in range(self._count):
                lock = _FileLock(os.path.join(directory, "copy-%d.lock" % number))
                if lock.acquire():
                    return lock
            self._clock.sleep(_POLL)


class _FileLock:
    """An exclusive flock(2) on a file that is removed on release."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1

    def acquire(self) -> bool:
        while True:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                return False
            # Its holder may have removed it between our open and our lock: then we hold a file without a name.
            if self._is_current(fd):
                break
            os.close(fd)
        os.truncate(fd, 0)
        os.write(fd, b"%d\n" % os.getpid())
        self._fd = fd
        return True

    def release(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        os.close(self._fd)

    def owner(self) -> str:
        """The holder for a message, as " (process 123)"; nothing where it is just gone."""
        try:
            with open(self._path, encoding="ascii") as file:
                pid = file.read().strip()
        except OSError:
            return ""
        return " (process %s)" % pid if pid else ""

    def _is_current(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self._path))
        except FileNotFoundError:
            return False
