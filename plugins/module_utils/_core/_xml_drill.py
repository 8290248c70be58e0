# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: a domain's XML made into that of a transient guest that reaches nothing outside of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from ._xml_domain import AGENT_CHANNEL
from ._xml_tree import add_text, child_of, parse, remove, serialize, set_attribute

with suppress(ImportError):  # _xml_tree.LXML_IMPORT_ERROR tells
    from lxml import etree

#: Devices that lead out of the guest, or stand for something of the host. Of a TPM the drill has no state.
_LEADS_OUT = (
    *("interface", "hostdev", "filesystem", "redirdev", "redirfilter", "smartcard", "shmem", "lease", "vsock"),
    *("graphics", "audio", "sound", "tpm", "watchdog", "nvram", "pstore", "memory"),
)
#: What the guest says and hears over; the drill gives it one console of its own, and the agent's channel.
_TALKS = ("parallel", "serial", "console", "channel")
#: What binds a guest to this host's resources, or to what a user of it set up.
_BINDINGS = (
    *("metadata", "maxMemory", "memtune", "memoryBacking", "blkiotune", "cputune", "numatune", "resource", "seclabel"),
    *("launchSecurity", "perf", "on_poweroff", "on_reboot", "on_crash"),
)
_HARMLESS_DISKS = ("cdrom", "floppy")


@dataclass(frozen=True)
class TrialDisk:
    """A disk of the trial: a qcow2 `overlay` on what a server at `socket` exports."""

    overlay: str
    socket: str


@dataclass(frozen=True)
class Trial:
    """What a set's domain is booted as. `nvram` and `console` are paths, `boot` those of kernel, initrd and dtb;
    `memory` is in bytes, 0 for what the definition says."""

    name: str
    uuid: str
    disks: Mapping[str, TrialDisk]
    console: str
    nvram: str
    boot: Mapping[str, str]
    memory: int = 0


def isolated(domain_xml: str, trial: Trial) -> tuple[str, tuple[str, ...]]:
    """The XML for virDomainCreateXML, and in words what the guest had besides and the trial has not."""
    domain = parse(domain_xml)
    devices = child_of(domain, "devices")
    left_out = [*_stripped(devices, trial), *_rewired(devices, trial)]
    for foreign in [child for child in domain if _is_foreign(child)]:  # as qemu:commandline
        remove(foreign)
        left_out.append("its own settings of %s" % etree.QName(foreign).localname)
    for name in _BINDINGS:
        for element in domain.findall(name):
            remove(element)
    _set_text(domain, "name", trial.name)
    _set_text(domain, "uuid", trial.uuid)
    for fate in ("on_poweroff", "on_reboot", "on_crash"):
        add_text(domain, fate, "destroy")
    for uuid in domain.findall("sysinfo/system/entry[@name='uuid']"):
        remove(uuid)  # libvirt refuses one that is not the domain's
    _set_boot(domain, trial)
    if trial.memory:
        _limit_memory(domain, trial.memory)
    return serialize(domain), tuple(dict.fromkeys(left_out))


def _is_foreign(element: etree._Element) -> bool:
    return isinstance(element.tag, str) and etree.QName(element).namespace is not None


def _stripped(devices: etree._Element, trial: Trial) -> Iterator[str]:
    for name in _LEADS_OUT:
        for element in devices.findall(name):
            remove(element)
            if name != "audio":  # libvirt gives one to every guest
                yield {"interface": "network interfaces", "tpm": "TPM"}.get(name, name)
    for backend in devices.findall("rng/backend[@model='egd']"):
        remove(child_of(backend, ".."))
        yield "rng"
    for name in _TALKS:
        for element in devices.findall(name):
            remove(element)
    for name, target in (("serial", {"port": "0"}), ("console", {"port": "0", "type": "serial"})):
        found = etree.SubElement(devices, name, type="file")
        set_attribute(etree.SubElement(found, "source"), "path", trial.console)
        etree.SubElement(found, "target").attrib.update(target)
    channel = etree.SubElement(devices, "channel", type="unix")
    etree.SubElement(channel, "target", type="virtio", name=AGENT_CHANNEL)


def _rewired(devices: etree._Element, trial: Trial) -> Iterator[str]:
    for disk in devices.findall("disk"):
        target = child_of(disk, "target").get("dev", "")
        if target in trial.disks:
            _rewire(disk, trial.disks[target])
            continue
        if disk.get("device") in _HARMLESS_DISKS:
            for source in disk.findall("source"):
                remove(source)
                yield "medium in %s" % target
            disk.set("type", "file")
            for name in ("backingStore", "mirror"):
                for element in disk.findall(name):
                    remove(element)
            continue
        remove(disk)
        yield "disk %s" % target


def _rewire(disk: etree._Element, trial: TrialDisk) -> None:
    """Where and how it sits in the guest stays."""
    for element in list(disk):
        if element.tag not in ("target", "address", "alias", "boot", "serial", "wwn", "vendor", "product", "blockio"):
            remove(element)
    disk.attrib.clear()
    disk.attrib.update({"type": "file", "device": "disk"})
    # Thrown away, so that nothing of it has to come to the disk
    disk.insert(0, etree.Element("driver", name="qemu", type="qcow2", cache="unsafe"))
    source = etree.Element("source")
    set_attribute(source, "file", trial.overlay)
    disk.insert(1, source)
    backing = etree.Element("backingStore", type="network")
    etree.SubElement(backing, "format", type="raw")
    exported = etree.SubElement(backing, "source", protocol="nbd")
    set_attribute(etree.SubElement(exported, "host", transport="unix"), "socket", trial.socket)
    etree.SubElement(backing, "backingStore")
    disk.insert(2, backing)


def _set_boot(domain: etree._Element, trial: Trial) -> None:
    system = child_of(domain, "os")
    for nvram in system.findall("nvram"):
        for child in list(nvram):
            remove(child)
        nvram.attrib.pop("type", None)
        nvram.text = trial.nvram
    for kind, path in trial.boot.items():
        _set_text(system, kind, path)


def _limit_memory(domain: etree._Element, most: int) -> None:
    """libvirt's own XML has KiB. Cells of NUMA would have to add up to the new size."""
    kib = min(int(domain.findtext("memory", "0")), most // 1024)
    for name in ("memory", "currentMemory"):
        element = domain.find(name)
        if element is not None:
            element.text = str(kib)
            element.attrib.pop("dumpCore", None)
            element.set("unit", "KiB")
    for numa in domain.findall("cpu/numa"):
        remove(numa)


def _set_text(parent: etree._Element, name: str, text: str) -> None:
    for element in parent.findall(name):
        element.text = text
        return
    add_text(parent, name, text)
