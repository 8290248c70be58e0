# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the definition that a backup set holds, as it is defined when the set is restored."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress

from ._xml_domain import with_disk_layers
from ._xml_parts import parts_of
from ._xml_tree import child_of, parse, remove, serialize, set_attribute
from .model import Layer
from .restore import HostNeeds, Identity

with suppress(ImportError):  # _xml_tree.LXML_IMPORT_ERROR tells
    from lxml import etree


def restored_definition(
    domain_xml: str,
    identity: Identity,
    layers: Mapping[str, Layer],
    nvram: str | None = None,
    dropped: Collection[str] = (),
) -> str:
    """The definition on these images, by target. A copy gets what only one domain may have anew: UUID, MACs, NVRAM,
    TPM state, and the files and sockets of its consoles. `dropped` are the disks that a copy must not have.

    The generation ID (vmgenid) is always a new one: it tells the guest that its time was turned back.
    """
    domain = parse(with_disk_layers(domain_xml, layers, drop_journal=True))
    child_of(domain, "name").text = identity.name
    child_of(domain, "uuid").text = identity.uuid
    for generation in domain.iterfind("genid"):
        generation.text = None  # libvirt makes one
    if nvram is not None:
        _set_nvram(domain, nvram)
    if identity.is_copy:
        _make_own(domain, identity)
        for disk in domain.findall("devices/disk"):
            if child_of(disk, "target").get("dev") in dropped:
                remove(disk)
    return serialize(domain)


def moved_images(domain_xml: str, moves: Mapping[str, str]) -> str:
    """The definition with other paths of images and of the NVRAM, and with nothing else changed."""
    domain = parse(domain_xml)
    for source in (*domain.iterfind("devices/disk/source"), *domain.iterfind("os/nvram/source")):
        for name in ("file", "dev"):
            path = source.get(name, "")
            if path in moves:
                set_attribute(source, name, moves[path])
    for nvram in domain.iterfind("os/nvram"):
        path = (nvram.text or "").strip()
        if path in moves:
            nvram.text = moves[path]
    return serialize(domain)


def _make_own(domain: etree._Element, identity: Identity) -> None:
    for mac in domain.findall("devices/interface/mac"):
        remove(mac)
    for source in domain.findall("devices/tpm/backend/source"):
        remove(source)
    for entry in domain.iterfind("sysinfo/system/entry[@name='uuid']"):
        entry.text = identity.uuid  # libvirt refuses another one
    for element, name in _written_by_qemu(domain):
        folder, file = os.path.split(element.get(name, ""))
        set_attribute(element, name, os.path.join(folder, "%s.%s" % (identity.name, file)))


def _written_by_qemu(domain: etree._Element) -> Iterator[tuple[etree._Element, str]]:
    """The files and sockets that a guest's QEMU makes, and so no second one may have: of consoles, channels, displays.
    Element and attribute."""
    for kind in ("serial", "console", "parallel", "channel"):
        for device in domain.iterfind("devices/%s" % kind):
            for source in device.iterfind("source"):
                if source.get("path") and (device.get("type") == "file" or source.get("mode") == "bind"):
                    yield source, "path"
            for log in device.iterfind("log"):
                if log.get("file"):
                    yield log, "file"
    for listen in (*domain.iterfind("devices/graphics"), *domain.iterfind("devices/graphics/listen")):
        if listen.get("socket"):
            yield listen, "socket"


def _set_nvram(domain: etree._Element, path: str) -> None:
    for nvram in domain.iterfind("os/nvram"):
        source = nvram.find("source")
        if source is None:
            nvram.text = path
        elif source.get("file") is not None:
            set_attribute(source, "file", path)


def host_needs(domain_xml: str) -> HostNeeds:
    """What a host must have so that a domain of this definition can be defined, and started."""
    domain = parse(domain_xml)
    kind = domain.find("os/type")
    cpu = domain.find("cpu")
    model = None if cpu is None or cpu.get("mode", "custom") != "custom" else cpu.findtext("model")
    return HostNeeds(
        emulator=domain.findtext("devices/emulator"),
        arch=None if kind is None else kind.get("arch"),
        machine=None if kind is None else kind.get("machine"),
        kind=domain.get("type", ""),
        cpu=None if cpu is not None and cpu.get("check") == "none" else model,
        networks=_each(domain, "devices/interface[@type='network']/source", "network"),
        bridges=_each(domain, "devices/interface[@type='bridge']/source", "bridge"),
        links=_each(domain, "devices/interface[@type='direct']/source", "dev"),
        pools=_each(domain, "devices/disk[@type='volume']/source", "pool"),
        secrets=tuple(part.path for part in parts_of(domain) if part.kind == "libvirt secret" and part.path),
        files=tuple(dict.fromkeys(_files(domain))),
    )


def _each(domain: etree._Element, path: str, name: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(value for value in (found.get(name) for found in domain.iterfind(path)) if value))


def _files(domain: etree._Element) -> Iterator[tuple[str, str]]:
    """What the guest starts from, and the media of its drives."""
    for part in parts_of(domain):
        if part.kind in ("kernel", "initrd", "dtb", "shim", "loader", "ACPI table"):
            yield part.kind, part.path
    for disk in domain.iterfind("devices/disk"):
        source = disk.find("source")
        path = None if source is None else source.get("file") or source.get("dev")
        if path:
            yield "image of %s," % child_of(disk, "target").get("dev", ""), path


def usable_models(domain_capabilities: str) -> frozenset[str] | None:
    """virConnectGetDomainCapabilities: the models of CPUs that this host can give; None where it does not say."""
    found = parse(domain_capabilities).find("cpu/mode[@name='custom']")
    if found is None or found.get("supported") != "yes":
        return None
    return frozenset((model.text or "") for model in found.iterfind("model") if model.get("usable") != "no")


def pool_folder(pool_xml: str) -> str | None:
    """virStoragePoolGetXMLDesc: where the volumes of a pool of files lie; None of any other pool."""
    pool = parse(pool_xml)
    return pool.findtext("target/path") if pool.get("type") in ("dir", "fs", "netfs") else None
