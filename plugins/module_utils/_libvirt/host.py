# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: what is asked of the host as a whole (guests_info, preflight_info)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .._core import xml
from .._core.errors import VirtopsError
from .._core.model import DomainView, SnapshotRecord
from .._core.preflight_facts import Capabilities
from . import agent
from .connection import Connection
from .domain import read_view
from .errors import LIBVIRT_IMPORT_ERROR, is_connection_lost, is_number, mapped

if LIBVIRT_IMPORT_ERROR is None:
    import libvirt


#: libvirt works on so many calls of one client at a time (max_client_requests).
_AT_ONCE = 5
#: virDomainJobOperation by number.
_JOBS = (
    *("unknown", "start", "save", "restore", "migration in", "migration out", "snapshot", "snapshot revert", "dump"),
    *("backup", "snapshot delete"),
)


class Host:
    """All domains of one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def domains(self) -> tuple[DomainView, ...]:
        """virConnectListAllDomains, by name; domains that go away meanwhile are left out."""
        views = []
        with mapped("Listing the domains"):
            for domain in self._connection.handle.listAllDomains():
                try:
                    views.append(self._view(domain))
                except libvirt.libvirtError as problem:
                    if not is_number(problem, "VIR_ERR_NO_DOMAIN"):
                        raise
        return tuple(sorted(views, key=lambda view: view.name))

    def _view(self, domain: Any) -> DomainView:
        """Without its jobs where its QEMU does not tell them: one that hangs must not hide the other domains."""
        try:
            return read_view(self._connection, domain)
        except libvirt.libvirtError as problem:
            if is_number(problem, "VIR_ERR_NO_DOMAIN") or is_connection_lost(problem):
                raise
            return read_view(self._connection, domain, jobs=False)

    def records(self, uuid: str, wanted: Callable[[str], bool]) -> tuple[SnapshotRecord, ...]:
        """The records of a domain's snapshots with a wanted name: only those are read."""
        with mapped(f"Listing the snapshots of the domain {uuid}"):
            try:
                found = [one for one in self._lookup(uuid).listAllSnapshots() if wanted(one.getName())]
                return tuple(xml.parse_record(one.getXMLDesc()) for one in found)
            except libvirt.libvirtError as problem:
                if is_number(problem, "VIR_ERR_NO_DOMAIN", "VIR_ERR_NO_DOMAIN_SNAPSHOT", "VIR_ERR_NO_SUPPORT"):
                    return ()  # gone meanwhile
                raise

    # preflight.HostPort

    def capabilities(self) -> Capabilities:
        with mapped("Asking libvirt what it can do"):
            told = self._connection.handle.getCapabilities()
            version = self._connection.handle.getLibVersion()
        return Capabilities(xml.has_disk_snapshots(told), version, xml.security_models(told), xml.qemu_ids(told))

    def job(self, uuid: str) -> str | None:
        """The type counts from 1, bounded, and 2, unbounded; 3 and more are of a job that has ended."""
        with mapped(f"Looking for a job of the domain {uuid}"):
            try:
                stats = self._lookup(uuid).jobStats()
            except libvirt.libvirtError as problem:
                if is_number(problem, "VIR_ERR_OPERATION_INVALID", "VIR_ERR_NO_SUPPORT"):
                    return None  # it went off since
                raise
        if stats.get("type") not in (libvirt.VIR_DOMAIN_JOB_BOUNDED, libvirt.VIR_DOMAIN_JOB_UNBOUNDED):
            return None
        operation = stats.get("operation", 0)
        return _JOBS[operation] if operation < len(_JOBS) else "unknown"

    def checkpoints(self, uuid: str) -> int | None:
        with mapped(f"Listing the checkpoints of the domain {uuid}"):
            try:
                return len(self._lookup(uuid).listAllCheckpoints())
            except libvirt.libvirtError as problem:
                if is_number(problem, "VIR_ERR_NO_SUPPORT", "VIR_ERR_OPERATION_UNSUPPORTED"):
                    return None
                raise

    def keeps_checkpoints(self, uuid: str) -> bool:
        """libvirt tells it over no read-only connection, as it may start QEMU to know."""
        with mapped(f"Asking what the emulator of the domain {uuid} can do"), self._asking() as asking:
            emulation = xml.emulation(self._lookup(uuid).XMLDesc(0))
            return xml.has_backup(asking.handle.getDomainCapabilities(*emulation, 0))

    def deaf_agents(self, views: Sequence[DomainView], seconds: int) -> dict[str, VirtopsError]:
        """libvirt asks agents over no read-only connection. `seconds` are for each batch of `_AT_ONCE` deaf ones."""
        if not views:
            return {}
        with self._asking() as asking, ThreadPoolExecutor(_AT_ONCE) as pool:
            answers = pool.map(lambda view: _ping(asking, view, seconds), views)
            return {view.uuid: error for view, error in zip(views, answers) if error is not None}

    def _lookup(self, uuid: str) -> Any:
        return self._connection.handle.lookupByUUIDString(uuid)

    def _asking(self) -> Connection:
        """A connection for the questions that libvirt answers to none that is read-only."""
        return Connection(self._connection.uri)


def _ping(connection: Connection, view: DomainView, seconds: int) -> VirtopsError | None:
    try:
        with mapped(f"Asking the guest agent of {view.name}"):
            agent.ping(connection.handle.lookupByUUIDString(view.uuid), view.agent, seconds)
    except VirtopsError as error:
        return error
    return None
