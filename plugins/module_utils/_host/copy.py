# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: copies of whole images, several at a time, checked and on the disk when they are done.

The methods, fastest first: share the blocks (reflink), copy the allocated bytes as they are (copy), let qemu-img
rewrite the image (convert: another format, compressed, or with the content of its backing files).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait

from .._core.backup import CONVERT, REFLINK, Copied, CopyOrder
from .._core.errors import VirtopsError
from .._core.images import why_not_alone
from .._core.ports import Clock
from .clock import SystemClock
from .command import failing, os_failure, run
from .folders import shown
from .image_lock import ImageLock
from .images import Images
from .locks import CopySlots, never_stop
from .transfer import Check, Pace, clone, copy_data, sha256

#: `qemu-img check`: no error, or only leaked clusters, which waste space and harm nothing (a guest that crashed).
_CHECK_FINE = frozenset({0, 3})
#: Between two calls of `watch`.
_WATCH_SECONDS = 1.0


class ImageCopier:
    """Implements `_core.backup.CopyPort`."""

    def __init__(self, clock: Clock | None = None, slots: Callable[[int], CopySlots] = CopySlots) -> None:
        self._clock = clock or SystemClock()
        self._slots = slots

    @contextlib.contextmanager
    def hold(self, paths: tuple[str, ...]) -> Iterator[None]:
        """QEMU's image lock on each path."""
        with contextlib.ExitStack() as stack:
            for path in paths:
                stack.enter_context(ImageLock(path))
            yield

    def copy_all(
        self, orders: tuple[CopyOrder, ...], directory: str, parallel: int, watch: Callable[[], None] = never_stop
    ) -> dict[str, Copied]:
        """One thread for each image; how many of them work at a time, the hypervisor's slots say."""
        slots = self._slots(parallel)
        stop = _Stop()
        with ThreadPoolExecutor(max(1, len(orders))) as pool:
            futures = {}
            try:
                with failing("Starting the copies", "copy_failed"):
                    for order in orders:
                        futures[order.target] = pool.submit(_Copy(order, directory, self._clock, stop).run, slots)
                _wait(set(futures.values()), watch)
            finally:
                stop.set()
        return _results(futures)


class _Stopped(Exception):
    """Another copy of the same set has failed."""


class _Stop:
    """Tells all copies of a set to end."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def check(self) -> None:
        if self._event.is_set():
            raise _Stopped


class _Copy:
    """One image."""

    def __init__(self, order: CopyOrder, directory: str, clock: Clock, stop: _Stop) -> None:
        self._order = order
        self._directory = directory
        self._path = os.path.join(directory, order.file)
        self._clock = clock
        self._check: Check = stop.check
        self._subject = "The copy of %s to %s" % (order.source.path, self._path)

    def run(self, slots: CopySlots) -> Copied:
        """Errors name the directory by its own path, and not by that of a descriptor."""
        try:
            return self._run(slots)
        except VirtopsError as error:
            told = shown(self._directory)
            raise VirtopsError(error.code, error.cause.replace(self._directory, told), error.remedy) from error

    def _run(self, slots: CopySlots) -> Copied:
        try:
            with slots.take(self._check):
                fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                try:
                    return self._finish(fd, self._write(fd))
                finally:
                    os.close(fd)
        except OSError as error:
            raise os_failure(self._subject, error, "copy_failed") from error

    def _write(self, fd: int) -> str:
        """Returns the method that did it."""
        if self._order.methods == (CONVERT,):
            self._convert()
            return CONVERT
        with open(self._order.source.path, "rb", buffering=0) as source:
            for method in self._order.methods:
                if method != REFLINK:
                    copy_data(source.fileno(), fd, Pace(self._order.rate_limit, self._clock), self._check)
                elif not clone(source.fileno(), fd):
                    continue
                if self._order.backing is not None:
                    # What the header says may be relative to where the source lies, and may leave out the format.
                    Images().rebase_unsafe(self._path, self._order.backing)
                return method
        raise VirtopsError(
            "no_reflink",
            "%s failed: its file system cannot share blocks with the source's" % self._subject,
            "Use method: auto, or a dest on the source's own XFS or btrfs",
        )

    def _convert(self) -> None:
        order = self._order
        # -W: out of order, as the source is read in several coroutines; the target needs no order before its fsync.
        argv = ["qemu-img", "convert", "-W", "-S", "4k", "-f", order.source.format, "-O", order.format]
        argv += ["-c"] if order.compress else []
        argv += ["-r", str(order.rate_limit)] if order.rate_limit else []
        argv += ["-B", order.backing.path, "-F", order.backing.format] if order.backing else []
        self._qemu([*argv, order.source.path, self._path], "copy_failed")

    def _finish(self, fd: int, method: str) -> Copied:
        """The disk's work (fsync) goes on beside the processor's (hash)."""
        bytewise = self._order.verify and method != CONVERT and self._order.backing is None
        with ThreadPoolExecutor(1) as side:
            synced = side.submit(os.fsync, fd)
            self._require_alone()
            if self._order.verify:
                self._verify(bytewise)
            digest = sha256(self._path, self._check, self._order.source.path if bytewise else None)
            synced.result()
        found = os.fstat(fd)
        return Copied(method, found.st_size, found.st_blocks * 512, digest)

    def _require_alone(self) -> None:
        """A set has to be good when everything else is gone."""
        why = why_not_alone(Images().info(self._path, self._order.format), self._order.backing)
        if why:
            raise VirtopsError(
                "verify_failed",
                "%s failed: the copy cannot be opened alone, %s" % (self._subject, why),
                "Use method: convert and format: qcow2",
            )

    def _verify(self, bytewise: bool) -> None:
        order = self._order
        if order.format == "qcow2":
            self._qemu(["qemu-img", "check", "-q", "-f", order.format, self._path], "verify_failed", _CHECK_FINE)
        if not bytewise:
            formats = ["-f", order.source.format, "-F", order.format]
            self._qemu(["qemu-img", "compare", "-q", *formats, order.source.path, self._path], "verify_failed")

    def _qemu(self, argv: list[str], code: str, fine: frozenset[int] = frozenset({0})) -> None:
        try:
            run(argv, self._subject, tied=True, fine=fine, check=self._check)
        except VirtopsError as error:
            if error.code != "image_failed":
                raise
            raise VirtopsError(code, error.cause, error.remedy) from error


def _wait(running: set[Future[Copied]], watch: Callable[[], None]) -> None:
    """Until all have ended, or one has failed."""
    while running:
        watch()
        ended, running = wait(running, _WATCH_SECONDS, return_when=FIRST_EXCEPTION)
        if any(future.exception() is not None for future in ended):
            return


def _results(futures: dict[str, Future[Copied]]) -> dict[str, Copied]:
    """The first failure that is one: those that were stopped only followed it."""
    errors = [error for error in (future.exception() for future in futures.values()) if error is not None]
    for error in sorted(errors, key=lambda found: isinstance(found, _Stopped)):
        raise error
    return {target: future.result() for target, future in futures.items()}
