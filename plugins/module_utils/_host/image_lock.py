# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: QEMU's own lock on an image that we read ourselves.

qemu-img takes it, read(2) does not: without it a commit could start under a plain copy and tear it. QEMU locks
single bytes of the image with open file description locks, fcntl(2), all of them shared ones: byte 100 + n says "I use
permission n", byte 200 + n says "nobody else may use permission n". Whoever takes one looks for the opposite byte
(block/file-posix.c, raw_apply_lock_bytes and raw_check_lock_bytes; the numbers have been the same since QEMU 2.10).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from types import TracebackType

from .._core.errors import VirtopsError
from .command import failing, os_failure

_USED = 100
_REFUSED = 200
_CONSISTENT_READ, _WRITE, _RESIZE = 0, 1, 3

# struct flock on Linux; Python's fcntl has no name for it. Files past 2 GiB: off_t is 64 bits wide in CPython's builds.
_FLOCK = struct.Struct("hhqqi4x")


class ImageLock:
    """Held on `path` while we read it: QEMU then refuses to write with 'Failed to get "write" lock'.

    Entering raises `image_locked` where somebody writes already: a commit into it runs. The kernel drops the lock when
    we die.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1

    def __enter__(self) -> ImageLock:
        try:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise os_failure("Opening the image %s" % self._path, error) from error
        try:
            self._acquire()
        except BaseException:
            os.close(self._fd)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def _acquire(self) -> None:
        """Take first, then look, as QEMU does: of two that start at once, at least one sees the other."""
        for byte in (_USED + _CONSISTENT_READ, _REFUSED + _WRITE, _REFUSED + _RESIZE):
            self._take(byte)
        for byte in (_REFUSED + _CONSISTENT_READ, _USED + _WRITE, _USED + _RESIZE):
            with failing("Looking for locks on the image %s" % self._path):
                taken = _is_taken(self._fd, byte)
            if taken:
                raise VirtopsError(
                    "image_locked",
                    "Another process writes to the image %s: a commit into it, or a guest that runs on it" % self._path,
                    "Wait for its block job or end it, then try again",
                )

    def _take(self, byte: int) -> None:
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_RDLCK, byte))
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise VirtopsError(
                    "image_locked",
                    "Another process has the image %s for itself" % self._path,
                    "Wait until it has ended, then try again",
                ) from error
            raise os_failure("Locking the image %s" % self._path, error) from error


def is_being_written(path: str) -> bool:
    """Does somebody use the permission to write to it? Takes no lock. False where that cannot be known."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return _is_taken(fd, _USED + _WRITE)
    except OSError:
        return False
    finally:
        os.close(fd)


def is_lockable(path: str) -> bool:
    """As QEMU asks it: where this fails, QEMU goes on without a lock. A file that cannot be opened is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        _is_taken(fd, _USED + _WRITE)
        return stat.S_ISREG(os.fstat(fd).st_mode)
    except OSError:
        return False
    finally:
        os.close(fd)


def _is_taken(fd: int, byte: int) -> bool:
    """Would an exclusive lock meet somebody? Our own locks never count against us."""
    found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, byte))
    kind: int = _FLOCK.unpack(found)[0]
    return kind != fcntl.F_UNLCK


def _flock(kind: int, byte: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0)
