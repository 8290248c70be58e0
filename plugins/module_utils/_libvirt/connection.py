# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: connections to libvirt, and the events that come over one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from .._core.errors import LibvirtFailure
from .errors import LIBVIRT_IMPORT_ERROR, is_connection_lost, is_number

if LIBVIRT_IMPORT_ERROR is None:
    import libvirt

#: Seconds between keepalive messages, and how many may stay unanswered: as virsh has them.
_KEEPALIVE = (5, 6)
#: Seconds for which the first message may wait: libvirtd waits for half a minute.
_QUIET_SECONDS = 5
#: Seconds that a daemon may take to let us in.
OPEN_SECONDS = 30
#: How many seconds a daemon that went away may take to come back.
_RESTART_SECONDS = 30


class Connection:
    """One connection (virConnectOpen, virConnectOpenReadOnly). Close it, or use it as a context manager.

    With keepalive (virConnectSetKeepAlive): calls to a daemon that hangs end as those to one that went away.
    """

    def __init__(self, uri: str, readonly: bool = False) -> None:
        silence()
        self.uri = uri
        self.readonly = readonly
        self.handle: Any = None
        self._open()

    def reopen(self, sleep: Callable[[float], None] = time.sleep) -> None:
        """Connect anew after libvirtd went away; a restart gets `_RESTART_SECONDS`, a daemon that hangs no more."""
        self.close()
        for _attempt in range(_RESTART_SECONDS):
            try:
                return self._open()
            except LibvirtFailure as failure:
                if failure.code == "libvirt_hangs":
                    raise
            sleep(1)
        return self._open()

    def _open(self) -> None:
        _run_event_loop()
        self.handle = _opened(self.uri, self.readonly)
        with suppress(libvirt.libvirtError):  # drivers without a daemon have none
            self.handle.setKeepAlive(*_KEEPALIVE)

    def close(self) -> None:
        if self.handle is not None:
            with suppress(libvirt.libvirtError):
                self.handle.close()
            self.handle = None

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def volume_path(self, pool: str, volume: str) -> str | None:
        """virStorageVolGetPath; None where the pool is not active, has no such volume or is on the network."""
        try:
            path: str = self.handle.storagePoolLookupByName(pool).storageVolLookupByName(volume).path()
        except libvirt.libvirtError as problem:
            if is_connection_lost(problem):
                raise
            return None
        return path if path.startswith("/") else None


class EventWait:
    """Waits for the next event of one domain: BLOCK_JOB_2 and LIFECYCLE.

    Events only shorten a wait. Where they cannot be had (an old daemon, a lost connection) it is a sleep.
    """

    def __init__(self, connection: Connection, uuid: str) -> None:
        self._connection = connection
        self._uuid = uuid
        self._handle: Any = None
        self._callbacks: list[int] = []
        self._woken = threading.Event()

    def start(self) -> None:
        """Listen from now on, over the connection as it is now; an event before the first `wait` ends that at once."""
        if self._connection.handle in (None, self._handle):  # none while the daemon is away
            return
        _events_wanted.set()
        self._handle, self._callbacks = self._connection.handle, []
        with suppress(libvirt.libvirtError):
            domain = self._handle.lookupByUUIDString(self._uuid)
            for event in (libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE):
                self._callbacks.append(self._handle.domainEventRegisterAny(domain, event, self._wake, None))

    def wait(self, seconds: float) -> None:
        self.start()
        self._woken.wait(seconds)
        self._woken.clear()

    def close(self) -> None:
        """What listens keeps its connection open."""
        for callback in self._callbacks:
            with suppress(libvirt.libvirtError):
                self._handle.domainEventDeregisterAny(callback)
        self._handle, self._callbacks = None, []

    def _wake(self, *_: object) -> None:
        self._woken.set()


class Activity:
    """What becomes of one domain from `start` on: LIFECYCLE, where a definition that changes counts for nothing."""

    def __init__(self, connection: Connection, uuid: str) -> None:
        self._connection = connection
        self._uuid = uuid
        self._handle: Any = None
        self._callback: int | None = None
        self._seen = False

    def start(self) -> None:
        """Listen over the connection as it is now. Raises libvirtError."""
        self.close()
        _events_wanted.set()
        self._seen, self._handle = False, self._connection.handle
        domain = self._handle.lookupByUUIDString(self._uuid)
        event = libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE
        self._callback = self._handle.domainEventRegisterAny(domain, event, self._note, None)

    def seen(self) -> str:
        """In words, "" for nothing. What libvirt sent before its last answer has been looked at."""
        if self._callback is None or self._connection.handle is not self._handle or not self._is_alive():
            return "The connection to libvirt was lost meanwhile"
        if not _come_round():
            return "libvirt's events did not come"
        return "libvirt has told of its start or its end" if self._seen else ""

    def close(self) -> None:
        """Listen no more."""
        if self._callback is not None:
            with suppress(libvirt.libvirtError):
                self._handle.domainEventDeregisterAny(self._callback)
        self._handle, self._callback = None, None

    def _is_alive(self) -> bool:
        with suppress(libvirt.libvirtError):
            return bool(self._handle.isAlive() == 1)
        return False

    def _note(self, _connection: Any, _domain: Any, event: int, _detail: int, _opaque: Any) -> None:
        if event not in (libvirt.VIR_DOMAIN_EVENT_DEFINED, libvirt.VIR_DOMAIN_EVENT_UNDEFINED):
            self._seen = True


def _come_round(seconds: float = 30) -> bool:
    """Wait until the event loop has handed out what it had: its timers go in the order in which they were made, and
    that of a connection's events is older than this one."""
    turned = threading.Event()
    timer = libvirt.virEventAddTimeout(0, lambda *_: turned.set(), None)
    try:
        return turned.wait(seconds)
    finally:
        libvirt.virEventRemoveTimeout(timer)


_event_loop: threading.Thread | None = None
_events_wanted = threading.Event()


def _run_event_loop() -> None:
    """virEventRegisterDefaultImpl, once per process and before the first connection, which needs it.

    It runs beside everything else, for keepalive in both directions: libvirtd drops a client that has an event loop and
    does not answer, be it in the middle of a long copy.
    """
    global _event_loop
    if _event_loop is None:
        libvirt.virEventRegisterDefaultImpl()
        _event_loop = threading.Thread(target=_answer_events, name="libvirt events", daemon=True)
        _event_loop.start()


def _answer_events() -> None:
    """Meanwhile each call takes longer, so it begins when somebody waits for an event, or has been at it for long."""
    _events_wanted.wait(_QUIET_SECONDS)
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError:
            time.sleep(1)  # what fails at once may do so again


def _opened(uri: str, readonly: bool) -> Any:
    """A new connection. Keepalive comes only with it, so a thread opens it, which a daemon that hangs may keep."""
    ended: list[Any] = []

    def open_it() -> None:
        try:
            ended.append(libvirt.openReadOnly(uri) if readonly else libvirt.open(uri))
        except libvirt.libvirtError as problem:
            ended.append(_unreachable(uri, problem))

    opener = threading.Thread(target=open_it, name="libvirt open", daemon=True)
    opener.start()
    opener.join(OPEN_SECONDS)
    if not ended:
        raise LibvirtFailure(
            "libvirt_hangs",
            f"libvirt's daemon at {uri} did not answer for {OPEN_SECONDS} seconds",
            "See on the hypervisor what libvirtd (or virtqemud) waits for, restart it, then run the same task again",
        )
    if isinstance(ended[0], LibvirtFailure):
        raise ended[0]
    return ended[0]


def silence() -> None:
    """libvirt prints each error on stderr unless a handler is set; ours reach the user as exceptions."""
    libvirt.registerErrorHandler(lambda *_: None, None)


def _unreachable(uri: str, problem: libvirt.libvirtError) -> LibvirtFailure:
    if is_number(
        problem,
        "VIR_ERR_AUTH_FAILED",
        "VIR_ERR_AUTH_DENIED",
        "VIR_ERR_AUTH_CANCELLED",
        "VIR_ERR_AUTH_UNAVAILABLE",
        "VIR_ERR_OPERATION_DENIED",
        "VIR_ERR_ACCESS_DENIED",
    ) or "Permission denied" in str(problem):
        remedy = "Use become, or a user who may manage this libvirt (the group libvirt on most systems)"
    else:
        remedy = "See whether libvirtd (or virtqemud) runs on this host, and that uri names the right hypervisor"
    return LibvirtFailure("uri_unreachable", f"Connecting to {uri} failed: {problem}", remedy)
