# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: connections to libvirt, and the events that come over one."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from .._core.errors import LibvirtFailure
from .errors import LIBVIRT_IMPORT_ERROR, is_number

if LIBVIRT_IMPORT_ERROR is None:
    import libvirt

#: Seconds between keepalive messages of the connection for events, and how many may stay unanswered.
_KEEPALIVE = (5, 3)
#: How long a daemon that went away may take to come back.
_RESTART_SECONDS = 30


class Connection:
    """One connection (virConnectOpen, virConnectOpenReadOnly). Close it, or use it as a context manager.

    It is opened without libvirt's event loop: libvirtd would send keepalive messages to a client that has
    one, and drop us during a long copy, when nothing runs it. Events come over a connection of their own.
    """

    def __init__(self, uri: str, readonly: bool = False) -> None:
        silence()
        self.uri = uri
        self.readonly = readonly
        self.handle: Any = None
        self._open()

    def reopen(self, sleep: Callable[[float], None] = time.sleep) -> None:
        """Connect anew after libvirtd went away; a restart gets `_RESTART_SECONDS`."""
        self.close()
        for _attempt in range(_RESTART_SECONDS):
            with suppress(LibvirtFailure):
                return self._open()
            sleep(1)
        return self._open()

    def _open(self) -> None:
        try:
            self.handle = libvirt.openReadOnly(self.uri) if self.readonly else libvirt.open(self.uri)
        except libvirt.libvirtError as problem:
            raise _unreachable(self.uri, problem) from problem

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
        """virStorageVolGetPath; None where the pool is not active or has no such volume."""
        try:
            path: str = self.handle.storagePoolLookupByName(pool).storageVolLookupByName(volume).path()
        except libvirt.libvirtError:
            return None
        return path


class EventWait:
    """Waits for the next event of one domain: BLOCK_JOB_2 and LIFECYCLE. No threads: the caller runs the loop.

    Events only shorten a wait. Where they cannot be had (an old daemon, a lost connection) it is a sleep.
    """

    def __init__(self, uri: str, uuid: str) -> None:
        self._uri = uri
        self._uuid = uuid
        self._connection: Any = None
        self._woken = False

    def start(self) -> None:
        """Listen from now on; an event before the first `wait` ends that wait at once."""
        if self._connection is not None:
            return
        _register_event_loop()
        try:
            connection = libvirt.openReadOnly(self._uri)
        except libvirt.libvirtError:
            return
        self._connection = connection
        with suppress(libvirt.libvirtError):
            connection.setKeepAlive(*_KEEPALIVE)
        with suppress(libvirt.libvirtError):
            domain = connection.lookupByUUIDString(self._uuid)
            for event in (libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE):
                connection.domainEventRegisterAny(domain, event, self._wake, None)

    def wait(self, seconds: float) -> None:
        self._drop_dead_connection()
        self.start()
        timer = libvirt.virEventAddTimeout(max(1, int(seconds * 1000)), self._wake, None)
        try:
            while not self._woken:
                libvirt.virEventRunDefaultImpl()
        finally:
            libvirt.virEventRemoveTimeout(timer)
            self._woken = False

    def close(self) -> None:
        if self._connection is not None:
            with suppress(libvirt.libvirtError):
                self._connection.close()
            self._connection = None

    def _wake(self, *_: object) -> None:
        self._woken = True

    def _drop_dead_connection(self) -> None:
        with suppress(libvirt.libvirtError):
            if self._connection is not None and not self._connection.isAlive():
                self.close()


_event_loop_registered = False


def _register_event_loop() -> None:
    """virEventRegisterDefaultImpl, once per process and before the connection that needs it."""
    global _event_loop_registered
    if not _event_loop_registered:
        libvirt.virEventRegisterDefaultImpl()
        _event_loop_registered = True


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
