# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: bytes from one file to another, with holes staying holes.

The bulk of the work is in system calls and in OpenSSL, both without Python's global lock: files side by side
in threads use as many processors.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator

from .._core.errors import VirtopsError
from .._core.ports import Clock

#: ioctl_ficlone(2); Python's fcntl has no name for it.
_FICLONE = 0x40049409
#: What these file systems or pairs of them answer to it.
_NO_CLONE = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM})

#: Bytes for one system call. Big enough that Python's own time does not count, small enough to stop soon.
_CHUNK = 4 * 1024 * 1024
#: Bytes that may wait for the disk (see `_Backlog`).
_BACKLOG = 32 * 1024 * 1024
#: Bytes hashed and compared at once; two of these buffers stay in the processor's cache.
_WINDOW = 256 * 1024
_ZEROS = bytes(_WINDOW)

#: Called between two chunks; it raises to stop the work.
Check = Callable[[], None]


class Pace:
    """Keeps an average of `rate` bytes/s since its start; 0 is no limit."""

    def __init__(self, rate: int, clock: Clock) -> None:
        self._rate = rate
        self._clock = clock
        self._began = clock.monotonic()
        self._sent = 0

    @property
    def chunk(self) -> int:
        """Bytes for one step, so that a step takes at most about a quarter of a second."""
        return min(_CHUNK, max(4096, self._rate // 4)) if self._rate else _CHUNK

    def sent(self, count: int) -> None:
        self._sent += count
        if self._rate:
            self._clock.sleep(self._began + self._sent / self._rate - self._clock.monotonic())


def clone(source: int, target: int) -> bool:
    """Share the blocks, ioctl_ficlone(2); False where the file systems cannot."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno in _NO_CLONE:
            return False
        raise
    return True


def copy_data(source: int, target: int, pace: Pace, check: Check) -> None:
    """Copy what is allocated. `target` is new and empty, and ends up with the same length and holes."""
    size = file_size(source)
    # Within the file's length XFS does not allocate ahead, so that the copy takes no more than the source.
    os.ftruncate(target, size)
    backlog = _Backlog(target)
    for start, end in _data(source, size):
        _copy_range(source, target, start, end, pace, backlog, check)


def sha256(path: str, check: Check, same_as: str | None = None) -> str:
    """The file's SHA-256, read anew; with `same_as` each byte is compared with that file's as well.

    A hole is not read, but counts as the zeros that it stands for. Raises `verify_failed` at the first difference.
    """
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file, open(same_as or path, "rb", buffering=0) as other:
        size = file_size(file.fileno())
        if same_as and file_size(other.fileno()) != size:
            raise _differs(path, same_as, min(size, file_size(other.fileno())))
        mine, theirs = bytearray(_WINDOW), bytearray(_WINDOW)
        for start, end, is_data in _pieces((file.fileno(), other.fileno()), size):
            while start < end:
                check()
                count = min(_WINDOW, end - start)
                if not is_data:
                    digest.update(memoryview(_ZEROS)[:count])
                    start += count
                    continue
                count = _read(file.fileno(), mine, count, start, path)
                if same_as:
                    _read(other.fileno(), theirs, count, start, same_as)
                    # Whole buffers, by memcmp(3): behind `count` both hold what was the same the last time.
                    if mine != theirs:
                        raise _differs(path, same_as, start)
                digest.update(memoryview(mine)[:count])
                start += count
    return digest.hexdigest()


def file_size(fd: int) -> int:
    """Bytes; fstat(2) knows none of a block device, lseek(2) does."""
    return os.lseek(fd, 0, os.SEEK_END)


class _Backlog:
    """Brings a file to the disk as it is written.

    The guest's own fsync(2) waits for all that its file system writes in the same transaction, ours as well (ext4's
    ordered mode): written back in one go at the end, a copy of some GiB is a stall of the guest.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._bytes = 0

    def written(self, count: int) -> None:
        self._bytes += count
        if self._bytes >= _BACKLOG:
            os.fdatasync(self._fd)
            self._bytes = 0


def _copy_range(source: int, target: int, start: int, end: int, pace: Pace, backlog: _Backlog, check: Check) -> None:
    os.lseek(target, start, os.SEEK_SET)
    while start < end:
        check()
        # sendfile(2) moves pages inside the kernel, between any two file systems.
        count = os.sendfile(target, source, start, min(pace.chunk, end - start))
        if count == 0:
            raise OSError(errno.EIO, "the source became shorter while it was read")
        start += count
        backlog.written(count)
        pace.sent(count)


def _data(fd: int, size: int) -> Iterator[tuple[int, int]]:
    return ((start, end) for start, end, is_data in _pieces((fd,), size) if is_data)


def _pieces(fds: tuple[int, ...], size: int) -> Iterator[tuple[int, int, bool]]:
    """The whole length as (start, end, is_data): a hole is where all files have one, lseek(2) SEEK_DATA."""
    offset = 0
    while offset < size:
        nearest, owner = min((_seek_data(fd, offset, size), fd) for fd in fds)
        if nearest > offset:
            yield offset, nearest, False
        if nearest >= size:
            return
        offset = min(size, os.lseek(owner, nearest, os.SEEK_HOLE))
        yield nearest, offset, True


def _seek_data(fd: int, offset: int, size: int) -> int:
    try:
        return min(size, os.lseek(fd, offset, os.SEEK_DATA))
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size
        raise


def _read(fd: int, buffer: bytearray, count: int, offset: int, path: str) -> int:
    """Fill the buffer's first `count` bytes; what an end of file or a signal leaves open is read again."""
    view = memoryview(buffer)
    done = 0
    while done < count:
        got = os.preadv(fd, [view[done:count]], offset + done)
        if got == 0:
            raise OSError(errno.EIO, "the file became shorter while it was read", path)
        done += got
    return done


def _differs(path: str, source: str, offset: int) -> VirtopsError:
    return VirtopsError(
        "verify_failed",
        "The copy %s is not the same as %s: the first difference is near byte %d" % (path, source, offset),
        "Look for failing storage or memory on this host (dmesg), then try again",
    )
