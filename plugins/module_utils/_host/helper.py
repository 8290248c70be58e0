# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: a process that does all that touches the backup's target, and that can be left behind.

A target that stops answering (a network file system whose server is gone) keeps whoever uses it in the kernel, where
not even SIGKILL reaches, and with it every lock that it holds. So the process that holds the domain's lock and QEMU's
locks on the bases never touches the target. It starts this one, with none of its descriptors, and gives it up when
nothing has gone on for too long. What the helper starts reads images without a lock (`qemu-img -U`).

Both ends are ours, so they talk in pickles: calls in, signs of life and the result out.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import struct
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, cast

from .._core.backup import Copied, CopyOrder, CopyPort, StorePort, Told, Verified, VerifyOrder
from .._core.errors import VirtopsError
from .._core.ports import Clock
from .._core.restore import OpenSet, RestoreOrder, SetPort
from .._core.sets import SetsPort
from .._core.verification import CheckPort
from .clock import SystemClock
from .command import child_environment, failing
from .image_lock import ImageLock

_LENGTH = struct.Struct(">Q")
#: Seconds between two looks at what the caller watches.
_LOOK_SECONDS = 0.5
#: Seconds for the helper to be gone after SIGKILL, and to end by itself.
_GONE_SECONDS = 1.0
#: Seconds for Python to start on a busy host, which touches no target.
_START_SECONDS = 60.0
# As command.py ties a program to us, but that this one is Python itself.
_START = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
sys.path[:] = sys.argv[3:]
import importlib
importlib.import_module(sys.argv[2]).serve()
"""


class Helper:
    """The process; it is started at the first call, and again after one that was given up or stopped."""

    def __init__(self, stall_timeout: float, clock: Clock | None = None, work: str = "backup") -> None:
        self._stall_timeout = stall_timeout
        self._clock = clock or SystemClock()
        self._work = work
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ready = self._is_stalled = False

    def call(
        self, name: str, *arguments: Any, watch: Callable[[], None] | None = None, told: Told | None = None
    ) -> Any:
        """Have it call this method, and return what that returns, or raise the VirtopsError that it raises.

        `watch` is called now and then; what it raises ends the helper, with all that it started. Raises `copy_stalled`
        where nothing went on for `stall_timeout`; the helper is then left to itself, and so is the target.
        """
        if self._is_stalled:
            raise self._stalled()
        process = self._process or self._start()
        _send(cast(BinaryIO, process.stdin), (name, arguments))
        try:
            kind, *values = self._follow(process, watch, told)
        except _Ended:
            self.end()
            raise VirtopsError(
                "copy_failed",
                "The process that makes the %s was ended by somebody, or by the kernel for lack of memory" % self._work,
                "See dmesg, then try again",
            ) from None
        except BaseException:
            self.end()
            raise
        if kind == "failed":
            raise VirtopsError(*values)
        if kind == "bug":
            raise RuntimeError("In the helper: %s" % values[0])
        return values[0]

    def end(self) -> None:
        """SIGKILL: with it ends all that it started. One that waits for its storage is left to itself."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GONE_SECONDS)
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                cast(BinaryIO, pipe).close()

    def _start(self) -> subprocess.Popen[bytes]:
        paths = [path for path in sys.path if path]
        self._is_ready = False
        argv = [sys.executable, "-I", "-S", "-c", _START, str(os.getpid()), __name__, *paths]
        with failing("Starting the helper for the backup's target", "copy_failed"):
            self._process = subprocess.Popen(  # pylint: disable=ansible-bad-function,consider-using-with
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # One that never ends must not keep the connection open that we were started over
                stderr=subprocess.DEVNULL,
                env=child_environment(),
                cwd="/",
            )
        return self._process

    def _follow(
        self, process: subprocess.Popen[bytes], watch: Callable[[], None] | None, told: Told | None
    ) -> tuple[Any, ...]:
        """Its answer."""
        frames = _Frames(cast(BinaryIO, process.stdout))
        life, since = 0, self._clock.monotonic()
        while True:
            for frame in frames.within(_LOOK_SECONDS):
                if frame[0] == "ready":
                    self._is_ready, since = True, self._clock.monotonic()
                    continue
                if frame[0] != "signs":
                    return frame
                if frame[2] != life:
                    life, since = frame[2], self._clock.monotonic()
                for target, (done, total) in frame[1].items():
                    if told is not None:
                        told(target, done, total)
            if watch is not None:
                watch()
            limit = self._stall_timeout if self._is_ready else max(self._stall_timeout, _START_SECONDS)
            if self._clock.monotonic() - since >= limit:
                self._is_stalled = True
                raise self._stalled()

    def _stalled(self) -> VirtopsError:
        return VirtopsError(
            "copy_stalled",
            "The %s was given up: for %d s nothing went on between the images and the target, whose storage does "
            "not answer" % (self._work, self._stall_timeout),
            "Mend that storage (see dmesg and 'mount'), or give it longer (stall_timeout), then run this again",
        )


class _Proxy:
    """Each method is one of the helper's object of this name."""

    def __init__(self, helper: Helper, name: str) -> None:
        self._helper = helper
        self._name = name

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return lambda *arguments: self._helper.call("%s.%s" % (self._name, method), *arguments)


class HelpedCopier:
    """Implements `_core.backup.CopyPort`: QEMU's locks are ours, the work is the helper's."""

    def __init__(self, helper: Helper) -> None:
        self._helper = helper

    @contextlib.contextmanager
    def hold(self, paths: tuple[str, ...]) -> Iterator[None]:
        """QEMU's image lock on each path."""
        with contextlib.ExitStack() as stack:
            for path in paths:
                stack.enter_context(ImageLock(path))
            yield

    def copy_all(
        self, orders: tuple[CopyOrder, ...], directory: str, parallel: int, watch: Callable[[], None], told: Told
    ) -> dict[str, Copied]:
        found: dict[str, Copied] = self._helper.call(
            "copier.copy_all", orders, directory, parallel, watch=watch, told=told
        )
        return found

    def verify_all(
        self, orders: tuple[VerifyOrder, ...], directory: str, parallel: int, watch: Callable[[], None], told: Told
    ) -> dict[str, Verified]:
        found: dict[str, Verified] = self._helper.call(
            "copier.verify_all", orders, directory, parallel, watch=watch, told=told
        )
        return found

    def check_all(
        self, orders: tuple[VerifyOrder, ...], directory: str, parallel: int, watch: Callable[[], None], told: Told
    ) -> dict[str, Verified]:
        found: dict[str, Verified] = self._helper.call(
            "copier.check_all", orders, directory, parallel, watch=watch, told=told
        )
        return found


@contextlib.contextmanager
def backup_target(stall_timeout: float, clock: Clock | None = None) -> Iterator[tuple[StorePort, CopyPort]]:
    """What `_service.backup.Backup` needs of the target; the helper ends with the context."""
    helper = Helper(stall_timeout, clock)
    try:
        yield cast(StorePort, _Proxy(helper, "store")), HelpedCopier(helper)
    finally:
        helper.end()


@contextlib.contextmanager
def backup_sets(stall_timeout: float, clock: Clock | None = None) -> Iterator[tuple[SetsPort, CheckPort]]:
    """The sets that lie in a target, and reading them back; likewise."""
    helper = Helper(stall_timeout, clock, "work on the backup sets")
    try:
        yield cast(SetsPort, _Proxy(helper, "sets")), HelpedCopier(helper)
    finally:
        helper.end()


class HelpedSet:
    """Implements `_core.restore.SetPort`."""

    def __init__(self, helper: Helper) -> None:
        self._helper = helper

    def newest(self, src: str) -> tuple[str, tuple[str, ...]]:
        return cast("tuple[str, tuple[str, ...]]", self._helper.call("restorer.newest", src))

    def open_set(self, path: str) -> OpenSet:
        return cast(OpenSet, self._helper.call("restorer.open_set", path))

    def machine(self) -> str:
        return str(self._helper.call("store.machine"))

    def tpm_root(self) -> str:
        return str(self._helper.call("store.tpm_root"))

    def sha256_of(self, path: str) -> str:
        return str(self._helper.call("restorer.sha256_of", path))

    def restore_all(
        self, orders: tuple[RestoreOrder, ...], path: str, parallel: int, watch: Callable[[], None], told: Told
    ) -> dict[str, int]:
        found: dict[str, int] = self._helper.call(
            "restorer.restore_all", orders, path, parallel, watch=watch, told=told
        )
        return found


@contextlib.contextmanager
def backup_source(stall_timeout: float, clock: Clock | None = None) -> Iterator[SetPort]:
    """What a restore needs of the sets' storage; the helper ends with the context."""
    helper = Helper(stall_timeout, clock, "restore")
    try:
        yield HelpedSet(helper)
    finally:
        helper.end()


# -- both ends


def _send(pipe: BinaryIO, message: object) -> None:
    data = pickle.dumps(message)
    try:
        pipe.write(_LENGTH.pack(len(data)) + data)
        pipe.flush()
    except BrokenPipeError:
        pass  # its end shows where its answers are read


class _Ended(Exception):
    """The other end is gone."""


class _Frames:
    """Messages as they come."""

    def __init__(self, pipe: BinaryIO) -> None:
        self._fd = pipe.fileno()
        self._data = bytearray()

    def within(self, seconds: float | None) -> Iterator[tuple[Any, ...]]:
        """Those that have come after so many seconds at most."""
        poll = select.poll()  # select(2) knows no descriptor beyond 1023
        poll.register(self._fd, select.POLLIN)
        if not poll.poll(None if seconds is None else seconds * 1000):
            return
        chunk = os.read(self._fd, 1 << 16)
        if not chunk:
            raise _Ended
        self._data += chunk
        while len(self._data) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._data)
            if len(self._data) < _LENGTH.size + length:
                return
            message = pickle.loads(bytes(self._data[_LENGTH.size : _LENGTH.size + length]))
            del self._data[: _LENGTH.size + length]
            yield message


# -- the helper's end


def serve() -> None:
    """Answer calls until there are no more: the helper's whole life."""
    from .copy import ImageCopier
    from .restore import SetReader
    from .sets import BackupSets
    from .store import BackupStore

    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # A bug reaches the user as a traceback
    sys.excepthook = lambda *found: _send(answers, ("bug", "".join(traceback.format_exception(*found))))

    def tell(done: dict[str, tuple[int, int]], life: int) -> None:
        _send(answers, ("signs", done, life))

    copier = ImageCopier(tell)
    objects = {"store": BackupStore(), "sets": BackupSets(), "copier": copier, "restorer": SetReader(copier)}
    _send(answers, ("ready",))
    calls = _Frames(os.fdopen(0, "rb", closefd=False))
    with contextlib.suppress(_Ended):
        while True:
            for name, arguments in calls.within(None):
                thing, _dot, method = name.partition(".")
                _send(answers, _answer(getattr(objects[thing], method), arguments))


def _answer(call: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    try:
        return "done", call(*arguments)
    except VirtopsError as error:
        return "failed", error.code, error.cause, error.remedy
