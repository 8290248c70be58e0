# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the host that a domain is restored on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .._core import xml
from .._core.errors import VirtopsError
from .._core.model import OtherImages
from .._core.restore import HostLacks, HostNeeds
from .connection import Connection
from .domain import Domain, images_of, name_of
from .errors import LIBVIRT_IMPORT_ERROR, is_connection_lost, is_number, mapped
from .host import Host

if LIBVIRT_IMPORT_ERROR is None:
    import libvirt


class RestoreHost:
    """Implements `_core.restore.RestoreHostPort`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def uuid_of(self, name: str) -> str | None:
        found = self._find(lambda handle: handle.lookupByName(name))
        return None if found is None else str(found.UUIDString())

    def name_of(self, uuid: str) -> str | None:
        found = self._find(lambda handle: handle.lookupByUUIDString(uuid))
        return None if found is None else name_of(found)

    def _find(self, look: Callable[[Any], Any]) -> Any:
        with mapped("Looking for the domain"):
            try:
                return self._again(look)
            except libvirt.libvirtError as problem:
                if is_number(problem, "VIR_ERR_NO_DOMAIN"):
                    return None
                raise

    def _again(self, call: Callable[[Any], Any]) -> Any:
        """libvirtd may have been restarted during a long copy."""
        try:
            return call(self._connection.handle)
        except libvirt.libvirtError as problem:
            if not is_connection_lost(problem):
                raise
        self._connection.reopen()
        return call(self._connection.handle)

    def domain(self, uuid: str) -> Domain:
        return Domain(self._connection, uuid)

    def define(self, definition: str) -> None:
        with mapped("Defining the restored domain"):
            self._again(lambda handle: handle.defineXMLFlags(definition, 0))

    def other_images(self, uuid: str) -> OtherImages:
        with mapped("Reading the definitions of the host's other domains"):
            domains = self._again(lambda handle: handle.listAllDomains())
        return images_of(domains, self._connection, besides=uuid)

    def qemu_ids(self) -> tuple[int, int] | None:
        with mapped("Asking libvirt which user QEMU runs as"):
            return xml.qemu_ids(self._again(lambda handle: handle.getCapabilities()))

    def checkpoints(self, uuid: str) -> int | None:
        return Host(self._connection).checkpoints(uuid)

    def lacks(self, needs: HostNeeds) -> HostLacks:
        return HostLacks(tuple(self._hard(needs)), tuple(self._soft(needs)))

    def _hard(self, needs: HostNeeds) -> Iterator[str]:
        """libvirt names the emulator, architecture, machine type or kind of domain that it does not have."""
        emulation = needs.emulator, needs.arch, needs.machine, needs.kind
        try:
            told = self._connection.handle.getDomainCapabilities(*emulation, 0)
        except libvirt.libvirtError as problem:
            if is_connection_lost(problem):
                with mapped("Asking libvirt what this host can do"):
                    raise
            yield "the emulator %s for %s machines of type %s and domains of type %s (%s)" % (
                needs.emulator or "of its own",
                needs.arch,
                needs.machine,
                needs.kind,
                str(problem).rstrip("."),
            )
            return
        models = xml.usable_models(told)
        if needs.cpu is not None and models is not None and needs.cpu not in models:
            yield "the CPU model %s" % needs.cpu

    def _soft(self, needs: HostNeeds) -> Iterator[str]:
        handle = self._connection.handle
        for name in needs.networks:
            if self._is_missing(handle.networkLookupByName, name):
                yield "the network %s of libvirt" % name
        for name in needs.pools:
            if self._is_missing(handle.storagePoolLookupByName, name):
                yield "the storage pool %s" % name
        for secret in needs.secrets:
            if not self._has_secret(secret):
                yield "the secret %s of libvirt" % secret

    def _has_secret(self, secret: str) -> bool:
        """The XML names it by its UUID or by its usage."""
        with mapped("Listing libvirt's secrets"):
            found = self._connection.handle.listAllSecrets()
            return any(secret in (one.UUIDString(), one.usageID()) for one in found)

    def _is_missing(self, look: Callable[[str], Any], name: str) -> bool:
        try:
            look(name)
        except libvirt.libvirtError as problem:
            if is_number(problem, "VIR_ERR_NO_NETWORK", "VIR_ERR_NO_STORAGE_POOL", "VIR_ERR_NO_SUPPORT"):
                return True
            with mapped("Looking for what the domain needs"):
                raise
        return False

    def pool_folder(self, name: str) -> str:
        pool = self._pool(name)
        if not pool.isActive():
            raise _unsuitable(name, "is not active", "Start it (virsh pool-start)")
        folder = xml.pool_folder(pool.XMLDesc(0))
        if folder is None:
            raise _unsuitable(name, "is no folder", "Name a pool of the type dir, fs or netfs")
        return folder

    def refresh_pool(self, name: str) -> None:
        with mapped("Refreshing the storage pool %s" % name):
            self._pool(name).refresh()

    def _pool(self, name: str) -> Any:
        with mapped("Looking for the storage pool %s" % name):
            try:
                return self._again(lambda handle: handle.storagePoolLookupByName(name))
            except libvirt.libvirtError as problem:
                if is_number(problem, "VIR_ERR_NO_STORAGE_POOL"):
                    raise _unsuitable(name, "does not exist", "See virsh pool-list --all") from problem
                raise


def _unsuitable(name: str, why: str, remedy: str) -> VirtopsError:
    return VirtopsError(
        "pool_unsuitable", "The storage pool %s %s" % (name, why), "%s, or give a folder with dest" % remedy
    )
