# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: copies of whole images, several at a time, on the disk when they are done, and their
verification.

The methods, fastest first: share the blocks (reflink), copy the allocated bytes as they are (copy), let qemu-img
rewrite the image (convert: another format, compressed, or with the content of its backing files).

This runs in the helper (helper.py), which may hang in the kernel: nothing here takes a lock on an image.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Protocol, TypeVar

from .._core.backup import CONVERT, REFLINK, Copied, CopyOrder, Run, Verified, VerifyOrder
from .._core.errors import VirtopsError
from .._core.images import why_not_alone
from .._core.ports import Clock
from .._core.restore import RestoreOrder
from .clock import SystemClock
from .command import failing, run
from .folders import held, shown, shown_file
from .images import Images
from .locks import Slots
from .transfer import Pace, clone, copy_data, copy_whole, read_back, runs_of, sync_data

#: `qemu-img check`: no error, or only leaked clusters, which waste space and harm nothing (a guest that crashed).
_CHECK_FINE = frozenset({0, 3})
#: Between two signs of life.
_SIGN_SECONDS = 0.5
#: Between two changes of the set's time, by which other hosts see that somebody works on it.
_RENEWAL_SECONDS = 60.0

_Result = TypeVar("_Result", Copied, Verified, int)


class Signs(Protocol):
    """Gets the bytes done and in all, by target, and a number that is another while the work goes on."""

    def __call__(self, done: dict[str, tuple[int, int]], life: int) -> None:
        """Take note of them."""


class ImageCopier:
    """The work of `_core.backup.CopyPort`."""

    def __init__(self, signs: Signs, clock: Clock | None = None, slots: Callable[[int], Slots] = Slots) -> None:
        self._signs = signs
        self._clock = clock or SystemClock()
        self._slots = slots

    def copy_all(self, orders: tuple[CopyOrder, ...], directory: str, parallel: int) -> dict[str, Copied]:
        """One thread for each image; how many of them work at a time, the hypervisor's slots say."""
        tasks = {}
        for order in orders:
            work = _Work(order.target)
            tasks[order.target] = work, _Copy(order, directory, self._clock, work).run
        return self._run_all(tasks, directory, parallel)

    def verify_all(self, orders: tuple[VerifyOrder, ...], directory: str, parallel: int) -> dict[str, Verified]:
        """Likewise."""
        tasks = {}
        for order in orders:
            work = _Work(order.target)
            tasks[order.file] = work, _Verification(order, directory, work).run
        return self._run_all(tasks, directory, parallel)

    def check_all(self, orders: tuple[VerifyOrder, ...], directory: str, parallel: int) -> dict[str, Verified]:
        """The work of `_core.verification.CheckPort`. A complete set has no lease that were to be renewed."""
        tasks: dict[str, tuple[_Work, Callable[[], Verified]]] = {}
        for order in orders:
            work = _Work(order.target)
            tasks[order.file] = work, functools.partial(_checked, _Verification(order, directory, work), directory)
        return self._run_all(tasks, directory, parallel, renew=False)

    def restore_all(self, orders: tuple[RestoreOrder, ...], directory: str, parallel: int) -> dict[str, int]:
        """Likewise, out of a set, which stays untouched: the bytes that each file takes, by its name in the set."""
        tasks = {}
        for order in orders:
            work = _Work(order.target)
            tasks[order.file] = work, _Restore(order, directory, self._clock, work).run
        return self._run_all(tasks, directory, parallel, renew=False)

    def _run_all(
        self,
        tasks: dict[str, tuple[_Work, Callable[[], _Result]]],
        directory: str,
        parallel: int,
        renew: bool = True,
    ) -> dict[str, _Result]:
        slots = self._slots(parallel)
        works = [work for work, _unused in tasks.values()]
        with ThreadPoolExecutor(max(1, len(tasks))) as pool:
            futures: dict[str, Future[_Result]] = {}
            try:
                with failing("Starting the copies", "copy_failed"):
                    for name, (work, task) in tasks.items():
                        futures[name] = pool.submit(_in_slot, slots, work, task)
                self._wait(set(futures.values()), works, directory if renew else None)
            finally:
                for work in works:
                    work.stop()
        return _results(futures, directory)

    def _wait(self, running: set[Future[_Result]], works: list[_Work], directory: str | None) -> None:
        """Until all have ended, or one has failed."""
        renewed = self._clock.monotonic()
        while running:
            ended, running = wait(running, _SIGN_SECONDS, return_when=FIRST_EXCEPTION)
            done = {work.target: (work.done, max(work.done, work.total)) for work in works if work.target}
            self._signs(done, sum(work.life for work in works))
            if any(future.exception() is not None for future in ended):
                return
            if directory is not None and self._clock.monotonic() - renewed >= _RENEWAL_SECONDS:
                renewed = self._clock.monotonic()
                with contextlib.suppress(OSError):
                    os.utime(directory)


def _checked(verification: _Verification, directory: str) -> Verified:
    """What is wrong with a file is found; that nobody can look at it is a failure."""
    try:
        return verification.run()
    except VirtopsError as error:
        if error.code in ("missing_program", "no_memory", "permission_denied"):
            raise
        return Verified("", problem=error.cause.replace(directory, shown(directory)))


def _in_slot(slots: Slots, work: _Work, task: Callable[[], _Result]) -> _Result:
    with slots.take(work.waiting):
        result = task()
    work.finish()
    return result


class _Stopped(Exception):
    """Another copy of the same set has failed."""


class _Work:
    """How far one image is. To wait for another's copy to end is no standstill."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.done = self.total = self.life = 0
        self._io = b""
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()

    def check(self) -> None:
        if self._stopped.is_set():
            raise _Stopped

    def waiting(self) -> None:
        self.life += 1
        self.check()

    def told(self, count: int) -> None:
        self.done += count
        self.life += 1

    def begin(self, total: int) -> None:
        self.done, self.total = 0, total

    def finish(self) -> None:
        """What was copied may be less than the file's blocks, and what a program read more."""
        self.done = self.total = max(self.done, self.total)
        self.life += 1

    def look_at(self, pid: int) -> None:
        """proc(5): what a program reads and writes changes while it goes on."""
        try:
            with open("/proc/%d/io" % pid, "rb") as file:
                found = file.read()
        except OSError:
            return
        if found != self._io:
            self._io = found
            self.done = int(found.split()[1])
            self.life += 1


class _Copy:
    """One image."""

    def __init__(self, order: CopyOrder, directory: str, clock: Clock, work: _Work) -> None:
        self._order = order
        self._path = os.path.join(directory, order.file)
        self._clock = clock
        self._work = work
        self._subject = "The copy of %s to %s" % (order.source.path, self._path)

    def run(self) -> Copied:
        with failing(self._subject, "copy_failed"):
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                method, runs = self._write(fd)
                self._require_alone()
                found = os.fstat(fd)
                return Copied(method, found.st_size, found.st_blocks * 512, runs)
            finally:
                os.close(fd)

    def _write(self, fd: int) -> tuple[str, tuple[Run, ...] | None]:
        """The method that did it, and what was written, as far as that is to be compared."""
        order = self._order
        self._work.begin(order.needs)
        if order.methods == (CONVERT,):
            self._convert()
            return CONVERT, self._compared(fd)
        with open(order.source.path, "rb", buffering=0) as source:
            for method in order.methods:
                runs = None
                if method == REFLINK:
                    if not clone(source.fileno(), fd):
                        continue
                else:
                    self._work.begin(os.fstat(source.fileno()).st_blocks * 512)
                    found = copy_data(
                        source.fileno(),
                        fd,
                        Pace(order.rate_limit, self._clock),
                        self._work.check,
                        self._work.told,
                        order.verify and order.backing is None,
                    )
                    runs = found if order.verify else None
                if order.backing is not None:
                    # What the header says may be relative to where the source lies, and may leave out the format.
                    Images().rebase_unsafe(self._path, order.backing)
                    return method, self._compared(fd)
                os.fsync(fd)
                return method, runs
        raise VirtopsError(
            "no_reflink",
            "%s failed: its file system cannot share blocks with the source's" % self._subject,
            "Use method: auto, or a dest on the source's own XFS or btrfs",
        )

    def _convert(self) -> None:
        order = self._order
        # -W: out of order, as the source is read in several coroutines; the target needs no order before its fsync.
        argv = ["qemu-img", "convert", "-U", "-W", "-S", "4k", "-f", order.source.format, "-O", order.format]
        argv += ["-c"] if order.compress else []
        argv += ["-r", str(order.rate_limit)] if order.rate_limit else []
        argv += ["-B", order.backing.path, "-F", order.backing.format] if order.backing else []
        _qemu([*argv, order.source.path, self._path], self._subject, "copy_failed", self._work)

    def _compared(self, fd: int) -> tuple[Run, ...] | None:
        """Of a copy with other bytes than the source: does a guest read the same from both? The disk's work goes on
        beside the processor's."""
        order = self._order
        with ThreadPoolExecutor(1) as side:
            synced = side.submit(sync_data, fd, self._work.check, self._work.told)
            runs = None
            if order.verify:
                formats = ["-f", order.source.format, "-F", order.format]
                argv = ["qemu-img", "compare", "-U", "-q", *formats, order.source.path, self._path]
                _qemu(argv, self._subject, "verify_failed", self._work)
                runs = runs_of(fd, self._work.check, self._work.told)
            synced.result()
        os.fsync(fd)
        return runs

    def _require_alone(self) -> None:
        """A set has to be good when everything else is gone."""
        why = why_not_alone(Images().info(self._path, self._order.format), self._order.backing)
        if why:
            raise VirtopsError(
                "verify_failed",
                "%s failed: the copy cannot be opened alone, %s" % (self._subject, why),
                "Use method: convert and format: qcow2",
            )


class _Restore:
    """One file out of a set, to a new file of this host. It is the caller's to remove where this fails."""

    def __init__(self, order: RestoreOrder, directory: str, clock: Clock, work: _Work) -> None:
        self._order = order
        self._source = os.path.join(directory, order.file)
        self._clock = clock
        self._work = work

    def run(self) -> int:
        order = self._order
        with failing("Restoring %s to %s" % (self._source, shown_file(order.path)), "restore_failed"):
            self._work.begin(order.allocated)
            with held(_open_quietly(self._source)) as source:
                fd = os.open(order.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                with held(fd):
                    self._work.begin(os.fstat(source).st_blocks * 512)
                    found = os.fstat(source).st_size
                    if found != order.bytes:
                        raise self._damaged("it has %d bytes instead of %d" % (found, order.bytes))
                    pace = Pace(order.rate_limit, self._clock)
                    sha256 = copy_whole(source, fd, pace, self._work.check, self._work.told)
                    if sha256 != order.sha256:
                        raise self._damaged("its SHA-256 is %s instead of %s" % (sha256, order.sha256))
                    os.fsync(fd)
                    if order.format:
                        self._require_alone()
                    return os.fstat(fd).st_blocks * 512

    def _require_alone(self) -> None:
        """Whoever wrote the set, an image of it may name no other file that the guest would then read."""
        info = Images().info(self._order.path, self._order.format)
        why = why_not_alone(info, self._order.backing)
        if not why and info.virtual_size != self._order.virtual_size:
            why = "its virtual size is %d instead of %d" % (info.virtual_size, self._order.virtual_size)
        if why:
            raise self._damaged("it is not the image that the manifest describes, %s" % why)

    def _damaged(self, why: str) -> VirtopsError:
        return VirtopsError(
            "set_damaged",
            "The file %s of the backup is damaged: %s" % (self._source, why),
            "Restore another set. See dmesg for failing storage",
        )


def _open_quietly(path: str) -> int:
    """A regular file, without a trace in its time of access where we may."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(path, flags | os.O_NOATIME)
    except PermissionError:
        fd = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "It is no regular file", path)
    return fd


class _Verification:
    """One file of a set, as it lies on the disk."""

    def __init__(self, order: VerifyOrder, directory: str, work: _Work) -> None:
        self._order = order
        self._path = os.path.join(directory, order.file)
        self._work = work
        self._subject = "The verification of %s" % self._path

    def run(self) -> Verified:
        order = self._order
        with failing(self._subject, "verify_failed"):
            found = os.stat(self._path, follow_symlinks=False)
            self._work.begin(found.st_blocks * 512)
            if order.bytes not in (None, found.st_size):
                raise self._differs("it has %d bytes instead of %s" % (found.st_size, order.bytes))
            pace = Pace(order.rate_limit, SystemClock())

            def told(count: int) -> None:
                self._work.told(count)
                pace.sent(count)

            sha256, from_disk = read_back(self._path, order.runs, self._work.check, told, from_disk=order.from_disk)
            if order.sha256 not in (None, sha256):
                raise self._differs("its SHA-256 is %s instead of %s" % (sha256, order.sha256))
            if order.format == "qcow2":
                argv = ["qemu-img", "check", "-U", "-q", "-f", order.format, self._path]
                _qemu(argv, self._subject, "verify_failed", self._work, _CHECK_FINE)
            if order.virtual_size is not None:
                self._require_image(order.virtual_size)
        return Verified(sha256, from_disk)

    def _require_image(self, virtual_size: int) -> None:
        info = Images().info(self._path, self._order.format)
        if info.virtual_size != virtual_size:
            raise self._differs("its virtual size is %d instead of %d" % (info.virtual_size, virtual_size))
        why = why_not_alone(info, self._order.backing)
        if why:
            raise self._differs(why)

    def _differs(self, why: str) -> VirtopsError:
        return VirtopsError(
            "verify_failed",
            "The copy %s is not what was written: %s" % (self._path, why),
            "Look for failing storage or memory on this host and on the target (dmesg), then try again",
        )


def _qemu(argv: list[str], subject: str, code: str, work: _Work, fine: frozenset[int] = frozenset({0})) -> None:
    try:
        run(argv, subject, tied=True, fine=fine, check=work.check, watch=work.look_at)
    except VirtopsError as error:
        if error.code != "image_failed":
            raise
        raise VirtopsError(code, error.cause, error.remedy) from error


def _results(futures: dict[str, Future[_Result]], directory: str) -> dict[str, _Result]:
    """The first failure that is one: those that were stopped only followed it. It names the directory by its own path,
    and not by that of a descriptor."""
    errors = [error for error in (future.exception() for future in futures.values()) if error is not None]
    for error in sorted(errors, key=lambda found: isinstance(found, _Stopped)):
        if isinstance(error, VirtopsError):
            raise VirtopsError(error.code, error.cause.replace(directory, shown(directory)), error.remedy) from error
        raise error
    return {name: future.result() for name, future in futures.items()}
