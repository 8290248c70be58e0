# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: bytes from one file to another, read once, and read back from the disk.

The bulk of the work is in system calls and in OpenSSL, both without Python's global lock: one thread reads and writes
while a second one hashes, and files side by side use as many processors.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import hashlib
import mmap
import os
import queue
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

from .._core.backup import Run
from .._core.errors import VirtopsError
from .._core.ports import Clock

#: ioctl_ficlone(2); Python's fcntl has no name for it.
_FICLONE = 0x40049409
#: What these file systems or pairs of them answer to it.
_NO_CLONE = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM})

#: Bytes for one system call. Big enough that Python's own time does not count, small enough to stay in the processor's
#: cache: with 4 MiB a copy takes twice the processor's time.
_CHUNK = 1024 * 1024
#: The same for the disk itself, which has nothing to do between two of them.
_READ = 4 * 1024 * 1024
#: Bytes that one thread may be ahead of the other.
_AHEAD = 8 * 1024 * 1024
#: What a page and a block of any disk are multiples of, or divide: O_DIRECT needs offsets and lengths of it.
_BLOCK = 4096
_ZEROS = bytes(256 * 1024)
#: Bytes of a run, unless a file had more of them than so many.
_RUN, _RUNS = 4 * 1024 * 1024, 65536
#: Bytes that may wait for the disk, and for one step of waiting for them: see `_WriteBack`.
_BACKLOG = 64 * 1024 * 1024
#: sync_file_range(2): wait for what is under way, start to write, wait for that.
_WAIT_BEFORE, _WRITE, _WAIT_AFTER = 1, 2, 4
#: What file systems answer to it that do without.
_NO_SYNC_RANGE = frozenset({errno.EINVAL, errno.ESPIPE, errno.ENOSYS, errno.EOPNOTSUPP})

#: Called between two chunks; it raises to stop the work.
Check = Callable[[], None]
#: Called with the bytes done since the last call.
Told = Callable[[int], None]


def nobody(_count: int) -> None:
    """Where nobody wants to be told."""


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


def copy_data(
    source: int, target: int, pace: Pace, check: Check, told: Told = nobody, digest: bool = True
) -> tuple[Run, ...]:
    """Copy what is allocated, and bring it to the disk. `target` is new and empty, and ends up with the same length and
    holes. Returns the runs of the data, hashed as they passed (none without `digest`)."""
    runs = _Runs(file_size(source))
    _copy(source, target, pace, check, told, runs.add if digest else None)
    return runs.ended()


def copy_whole(source: int, target: int, pace: Pace, check: Check, told: Told = nobody) -> str:
    """The same; returns the SHA-256 of the whole source, whose holes count as the zeros that they stand for."""
    whole = _Whole("", file_size(source), None, told)
    _copy(source, target, pace, check, told, whole.add)
    return whole.ended()


def _copy(
    source: int, target: int, pace: Pace, check: Check, told: Told, work: Callable[[int, memoryview], None] | None
) -> None:
    size = file_size(source)
    # Within the file's length XFS does not allocate ahead, so that the copy takes no more than the source.
    os.ftruncate(target, size)
    back = _WriteBack(target)
    with _Beside(work) as beside:
        for start, end in _data(source, size):
            while start < end:
                check()
                chunk = beside.buffer()
                count = _read(source, chunk, min(pace.chunk, end - start), start)
                _write(target, chunk, count, start)
                beside.put(start, chunk, 0, count)
                back.written(start, count)
                start += count
                told(count)
                pace.sent(count)
    back.finish(check, told)


def sync_data(fd: int, check: Check, told: Told = nobody) -> None:
    """Bring a file that another program wrote to the disk, in steps that show that it goes on."""
    back = _WriteBack(fd)
    for start, end in _data(fd, file_size(fd)):
        while start < end:
            check()
            count = min(_CHUNK, end - start)
            back.written(start, count)
            start += count
            told(0)
    back.finish(check, told)


def runs_of(fd: int, check: Check, told: Told = nobody) -> tuple[Run, ...]:
    """The runs of a file that was just written, from the page cache."""
    runs = _Runs(file_size(fd))
    with _Beside(runs.add) as beside:
        for start, end in _data(fd, file_size(fd)):
            while start < end:
                check()
                chunk = beside.buffer()
                count = _read(fd, chunk, min(_CHUNK, end - start), start)
                beside.put(start, chunk, 0, count)
                start += count
                told(count)
    return runs.ended()


def read_back(
    path: str, runs: Sequence[Run] | None, check: Check, told: Told = nobody, from_disk: bool = True
) -> tuple[str, bool]:
    """The file's SHA-256, and whether it was read from the disk: with O_DIRECT, or while nothing was in the page cache.

    A hole is not read, but counts as the zeros that it stands for. Raises `verify_failed` at the first of `runs` that
    is another, and at data outside of them.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.ExitStack() as stack:
        fd = _open(path, flags, stack)
        size = file_size(fd)
        whole = _Whole(path, size, runs, told)
        source, is_disk = fd, False
        if from_disk:
            # Also for O_DIRECT: some file systems take it, and read from their cache all the same
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            source = _direct(path, flags, stack) or fd
            is_disk = source != fd or not is_cached(fd)
            stack.callback(os.posix_fadvise, fd, 0, 0, os.POSIX_FADV_DONTNEED)
        at = 0
        with _Beside(whole.add, _READ) as beside:
            for begin, end in _data(fd, size):
                at = max(at, begin)
                while at < end:
                    check()
                    chunk = beside.buffer()
                    start = at - at % _BLOCK
                    stop = min(end, start + os.preadv(source, [chunk], start))
                    if stop <= at:
                        raise _shorter()
                    beside.put(at, chunk, at - start, stop - start)
                    told(stop - at)
                    at = stop
        return whole.ended(), is_disk


def is_cached(fd: int) -> bool:
    """mincore(2): is any of the file's data in the page cache?"""
    libc = _libc()
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_int64)
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    for start, end in _data(fd, file_size(fd)):
        start -= start % mmap.PAGESIZE
        while start < end:
            count = min(1 << 30, end - start)
            pages = (ctypes.c_ubyte * -(-count // mmap.PAGESIZE))()
            area = libc.mmap(None, count, mmap.PROT_READ, mmap.MAP_SHARED, fd, start)
            if area == ctypes.c_void_p(-1).value:
                return True  # nothing tells
            failed = libc.mincore(area, count, pages)
            libc.munmap(area, count)
            if failed or any(bytes(pages)):
                return True
            start += count
    return False


def file_size(fd: int) -> int:
    """Bytes; fstat(2) knows none of a block device, lseek(2) does."""
    return os.lseek(fd, 0, os.SEEK_END)


class _Beside:
    """A second thread, which gets what the first one has read, in the same order; its error comes up in the first."""

    def __init__(self, work: Callable[[int, memoryview], None] | None, size: int = _CHUNK) -> None:
        self._work = work
        self._free: queue.SimpleQueue[mmap.mmap] = queue.SimpleQueue()
        self._full: queue.SimpleQueue[tuple[int, mmap.mmap, int, int] | None] = queue.SimpleQueue()
        self._pool = ThreadPoolExecutor(1)
        for _unused in range(_AHEAD // size + 1):
            # Of whole pages, as O_DIRECT needs them
            self._free.put(mmap.mmap(-1, size))

    def __enter__(self) -> _Beside:
        self._ended = self._pool.submit(self._run)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._full.put(None)
        self._pool.shutdown()
        if error is None:
            self._ended.result()

    def buffer(self) -> mmap.mmap:
        """One that is free; waits for the second thread where it is behind."""
        if self._ended.done():
            self._ended.result()
        return self._free.get()

    def put(self, start: int, chunk: mmap.mmap, begin: int, end: int) -> None:
        """Hand these bytes of the buffer on; `start` is where they are in the file."""
        self._full.put((start, chunk, begin, end))

    def _run(self) -> None:
        """An error ends it, after which the first thread gets one more buffer."""
        for item in iter(self._full.get, None):
            start, chunk, begin, end = item
            try:
                if self._work is not None:
                    self._work(start, memoryview(chunk)[begin:end])
            finally:
                self._free.put(chunk)


class _Runs:
    """SHA-256 of a file's data, by runs: what lies close together is one, with its holes, up to a limit.

    They tell what has to lie on the disk, whatever the extents are there, and where it does not.
    """

    def __init__(self, size: int) -> None:
        self._most = max(_RUN, size // _RUNS)
        self._gap = self._most // 4
        self._ended: list[Run] = []
        self._start = self._end = 0
        self._digest = hashlib.sha256()

    def add(self, start: int, view: memoryview) -> None:
        if start - self._end > self._gap or start + len(view) - self._start > self._most:
            self._close()
            self._start = self._end = start
            self._digest = hashlib.sha256()
        for zeros in _zeros(start - self._end):
            self._digest.update(zeros)
        self._digest.update(view)
        self._end = start + len(view)

    def _close(self) -> None:
        if self._end > self._start:
            self._ended.append((self._start, self._end, self._digest.hexdigest()))

    def ended(self) -> tuple[Run, ...]:
        self._close()
        self._end = self._start
        return tuple(self._ended)


class _Whole:
    """A file that is read from its start to its end: its SHA-256 and, where there are `runs`, theirs. `told` hears that
    it goes on while the zeros of a long hole are hashed."""

    def __init__(self, path: str, size: int, runs: Sequence[Run] | None, told: Told = nobody) -> None:
        self._path = path
        self._size = size
        self._told = told
        self._runs = None if runs is None else deque(runs)
        self._at = 0
        self._digest = hashlib.sha256()
        self._run = hashlib.sha256()

    def add(self, start: int, view: memoryview) -> None:
        self._skip(start - self._at)
        self._take(view)

    def ended(self) -> str:
        self._skip(self._size - self._at)
        if self._runs:
            raise _differs(self._path, *self._runs[0][:2])
        return self._digest.hexdigest()

    def _skip(self, count: int) -> None:
        for zeros in _zeros(count):
            self._take(zeros)
            self._told(0)

    def _take(self, view: memoryview) -> None:
        self._digest.update(view)
        end = self._at + len(view)
        if self._runs is None:
            self._at = end
        while self._at < end:
            part = view[len(view) - (end - self._at) :]
            self._at += self._compare(part, self._runs or deque())

    def _compare(self, part: memoryview, runs: deque[Run]) -> int:
        """Returns how many bytes of it are done with."""
        start, stop, digest = runs[0] if runs else (self._size, self._size, "")
        if self._at < start:
            part = part[: start - self._at]
            if bytes(part) != bytes(len(part)):
                raise _differs(self._path, self._at, self._at + len(part))
            return len(part)
        part = part[: stop - self._at]
        self._run.update(part)
        if self._at + len(part) == stop:
            if self._run.hexdigest() != digest:
                raise _differs(self._path, start, stop)
            runs.popleft()
            self._run = hashlib.sha256()
        return len(part)


class _WriteBack:
    """Brings a file to the disk as it is written, without waiting where the disk keeps up.

    The guest's own fsync(2) waits for all that its file system writes in the same transaction, ours as well (ext4's
    ordered mode): written back in one go at the end, a copy of some GiB is a stall of the guest.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pending: deque[tuple[int, int]] = deque()
        self._bytes = 0

    def written(self, start: int, count: int) -> None:
        _sync_range(self._fd, start, count, _WRITE)
        self._pending.append((start, count))
        self._bytes += count
        while self._bytes > _BACKLOG:
            self._wait()

    def finish(self, check: Check, told: Told) -> None:
        """On the disk is what fdatasync(2) says, and the time of it; the steps only show that it goes on."""
        while self._pending:
            check()
            self._wait()
            told(0)
        os.fdatasync(self._fd)

    def _wait(self) -> None:
        start, count = self._pending.popleft()
        self._bytes -= count
        _sync_range(self._fd, start, count, _WAIT_BEFORE | _WRITE | _WAIT_AFTER)


def _sync_range(fd: int, start: int, count: int, flags: int) -> None:
    """sync_file_range(2). An error of the disk is told once only, so it counts here as well."""
    call = getattr(_libc(), "sync_file_range", None)
    if call is not None and call(ctypes.c_int(fd), ctypes.c_int64(start), ctypes.c_int64(count), ctypes.c_uint(flags)):
        number = ctypes.get_errno()
        if number not in _NO_SYNC_RANGE:
            raise OSError(number, os.strerror(number))


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _open(path: str, flags: int, stack: contextlib.ExitStack) -> int:
    fd = os.open(path, flags)
    stack.callback(os.close, fd)
    return fd


def _direct(path: str, flags: int, stack: contextlib.ExitStack) -> int | None:
    """A descriptor with O_DIRECT that can be read; None where the file system does without."""
    try:
        fd = _open(path, flags | os.O_DIRECT, stack)
        with mmap.mmap(-1, _BLOCK) as block:
            os.preadv(fd, [block], 0)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return None
        raise
    return fd


def _zeros(count: int) -> Iterator[memoryview]:
    """So many zeros."""
    while count > 0:
        yield memoryview(_ZEROS)[:count]
        count -= len(_ZEROS)


def _data(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """The extents that hold data, lseek(2) SEEK_DATA, from the first to the last."""
    start = 0
    while start < size:
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = min(size, os.lseek(fd, start, os.SEEK_HOLE))
        yield start, end
        start = end


def _read(fd: int, chunk: mmap.mmap, count: int, offset: int) -> int:
    """At most so many bytes; never none."""
    got = os.preadv(fd, [memoryview(chunk)[:count]], offset)
    if got == 0:
        raise _shorter()
    return got


def _write(fd: int, chunk: mmap.mmap, count: int, offset: int) -> None:
    done = 0
    while done < count:
        done += os.pwrite(fd, memoryview(chunk)[done:count], offset + done)


def _shorter() -> OSError:
    return OSError(errno.EIO, "the file became shorter while it was read")


def _differs(path: str, start: int, end: int) -> VirtopsError:
    return VirtopsError(
        "verify_failed",
        "The copy %s does not hold on the disk what was written to it: the bytes %d to %d differ"
        % (path, start, end - 1),
        "Look for failing storage or memory on this host and on the target (dmesg), then try again",
    )
