# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: a domain's XML, read and written."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Union

from ._xml_journal import build_journal, parse_journal
from ._xml_parts import parts_of
from ._xml_tree import child_of, parse, remove, serialize, set_attribute
from .errors import VirtopsError
from .journal import JOURNAL_PREFIX, JOURNAL_URI, Journal
from .model import BlockJob, Disk, Layer, OtherImages, Part, is_device

with suppress(ImportError):  # _xml_tree.LXML_IMPORT_ERROR tells
    from lxml import etree

#: The path of a volume of a storage pool (pool, volume), or None where it cannot be told.
VolumePath = Callable[[str, str], Union[str, None]]

AGENT_CHANNEL = "org.qemu.guest_agent.0"


@dataclass(frozen=True)
class DomainXml:
    """What a domain's XML says; state and job progress come from other calls (see `DomainView`)."""

    name: str
    uuid: str
    disks: tuple[Disk, ...]
    config_disks: tuple[Disk, ...]
    agent: str
    journal: Journal | VirtopsError
    machine: str
    nvram: str | None
    parts: tuple[Part, ...]
    pflash: bool
    nvram_format: str
    memory_bytes: int
    journal_of: str | None
    qemu_ids: tuple[int, int] | None


def unknown_volume(pool: str, volume: str) -> str | None:  # noqa: ARG001
    return None


def parse_domain(live_xml: str, config_xml: str | None, volume_path: VolumePath = unknown_volume) -> DomainXml:
    """Read virDomainGetXMLDesc with flags 0 (`live_xml`) and INACTIVE (`config_xml`).

    `config_xml` is None for a transient domain. `volume_path` resolves disks of type 'volume'
    (virStorageVolGetPath), whose XML names a pool and a volume instead of a path.
    """
    live = parse(live_xml)
    config = None if config_xml is None else parse(config_xml)
    config_disks = () if config is None else tuple(replace(disk, job=None) for disk in disks_of(config, volume_path))
    return DomainXml(
        name=live.findtext("name", ""),
        uuid=live.findtext("uuid", ""),
        disks=disks_of(live, volume_path),
        config_disks=config_disks,
        agent=_agent(live),
        # Both hold it, unless somebody defined the domain anew from an older XML
        journal=_journal_in(live, config),
        machine=next((kind.get("machine", "") for kind in live.iterfind("os/type")), ""),
        nvram=_nvram(live),
        parts=parts_of(live),
        pflash=live.find("os/loader[@type='pflash']") is not None or live.find("os[@firmware='efi']") is not None,
        nvram_format=next((found.get("format", "raw") for found in live.iterfind("os/nvram")), "raw"),
        memory_bytes=int(live.findtext("memory", "0")) * 1024,  # libvirt tells it in KiB, whatever was defined
        journal_of=_other_owner(live) or (None if config is None else _other_owner(config)),
        qemu_ids=owner_of(live.findtext("seclabel[@model='dac']/label", "")),
    )


def images(live_xml: str, config_xml: str | None, volume_path: VolumePath = unknown_volume) -> OtherImages:
    """Every image that a domain's XML names: layers and mirrors. `tips`: those whose backing files it does not tell.

    Only a running domain's XML shows whole chains.
    """
    parsed = parse_domain(live_xml, config_xml, volume_path)
    active = parse(live_xml).get("id") is not None
    shown = {layer.path for disk in parsed.disks for layer in disk.chain} if active else set()
    mirrors = {disk.job.target for disk in parsed.disks if disk.job is not None and disk.job.target is not None}
    named = [layer for disk in parsed.disks + parsed.config_disks for layer in disk.chain]
    tips = {layer for layer in named if layer.path not in shown}
    known = frozenset(layer.path for layer in named) | mirrors
    return OtherImages(known, tuple(sorted(tips, key=lambda layer: layer.path)))


def disks_of(domain: etree._Element, volume_path: VolumePath) -> tuple[Disk, ...]:
    return tuple(_disk(element, volume_path) for element in domain.findall("devices/disk"))


def _disk(element: etree._Element, volume_path: VolumePath) -> Disk:
    target = child_of(element, "target")
    return Disk(
        target=target.get("dev", ""),
        device=element.get("device", "disk"),
        bus=target.get("bus", ""),
        source_type=element.get("type", "file"),
        chain=chain_of(element, volume_path),
        readonly=element.find("readonly") is not None,
        shareable=element.find("shareable") is not None,
        transient=element.find("transient") is not None,
        job=_job(element, volume_path),
        remote=Layer(_remote_name(element), _driver_format(element)) if element.get("type") == "network" else None,
        volume=_volume(element),
        snapshot=element.get("snapshot", ""),
        whole=_tells_its_end(element),
    )


def chain_of(disk: etree._Element, volume_path: VolumePath) -> tuple[Layer, ...]:
    """The layers that the XML shows, active first; () where the active one is no local image."""
    path = _local_path(disk, volume_path)
    if path is None:
        return ()
    layers = [Layer(path, _driver_format(disk), _oddity(disk), _data_file(disk))]
    backing = disk.find("backingStore")
    while backing is not None and backing.get("type") is not None:
        layer_path = _local_path(backing, volume_path) or _remote_name(backing)
        layers.append(Layer(layer_path, _format(backing), _oddity(backing), _data_file(backing)))
        backing = backing.find("backingStore")
    return tuple(layers)


def _volume(disk: etree._Element) -> str | None:
    source = disk.find("source")
    if disk.get("type") != "volume" or source is None:
        return None
    return "%s/%s" % (source.get("pool", ""), source.get("volume", ""))


def _tells_its_end(disk: etree._Element) -> bool:
    """An empty <backingStore/>; where there is none at all, libvirt asks the images."""
    backing = disk.find("backingStore")
    while backing is not None and backing.get("type") is not None:
        backing = backing.find("backingStore")
    return backing is not None


def _oddity(element: etree._Element) -> str:
    """Of a <disk> or <backingStore>: why its file is not, as it lies there, what the guest reads."""
    if element.find("encryption") is not None or element.find("source/encryption") is not None:
        return "encrypted"
    return "a slice of its file" if element.find("source/slices") is not None else ""


def _data_file(element: etree._Element) -> str | None:
    """libvirt names it since 10.10."""
    source = element.find("source/dataStore/source")
    return None if source is None else source.get("file") or source.get("dev")


def _driver_format(disk: etree._Element) -> str:
    driver = disk.find("driver")
    return "raw" if driver is None else driver.get("type", "raw")


def _format(element: etree._Element) -> str:
    found = element.find("format")
    return "raw" if found is None else found.get("type", "raw")


def _local_path(element: etree._Element, volume_path: VolumePath) -> str | None:
    """The path of a <disk>, <backingStore> or <mirror> that lies on this host."""
    source = element.find("source")
    if source is None:
        return None
    if element.get("type") == "volume":
        return volume_path(source.get("pool", ""), source.get("volume", ""))
    if element.get("type", "file") in ("file", "block"):
        return source.get("file") or source.get("dev")
    return None


def _remote_name(element: etree._Element) -> str:
    """Words for a layer that is no local image, so that the chain shows that it is there."""
    source = element.find("source")
    if source is None:
        return element.get("type", "")
    host = source.find("host")
    found: Mapping[str, str] = {} if host is None else {str(key): str(value) for key, value in host.attrib.items()}
    scheme = source.get("protocol") or element.get("type", "")
    name = source.get("name") or source.get("volume") or ""
    if found.get("transport") == "unix":
        return f"{scheme}+unix:///{name}?socket={found.get('socket', '')}"
    port = f":{found.get('port')}" if found.get("port") else ""
    return f"{scheme}://{found.get('name', '')}{port}/{name}"


def _job(disk: etree._Element, volume_path: VolumePath) -> BlockJob | None:
    """The job that <mirror> tells of: copy and active-commit only. Other kinds show in no XML.

    For a moment after a pivot libvirt shows the mirror of a job that has ended already, as job=''.
    """
    mirror = disk.find("mirror")
    if mirror is None:
        return None
    return BlockJob(
        kind=mirror.get("job", "copy"),
        ready=mirror.get("ready") == "yes",
        ending=mirror.get("ready") in ("pivot", "abort") or mirror.get("job") == "",
        target=_local_path(mirror, volume_path) or mirror.get("file"),
    )


def _agent(domain: etree._Element) -> str:
    for target in domain.findall("devices/channel/target"):
        if target.get("name") == AGENT_CHANNEL:
            return "connected" if target.get("state") == "connected" else "disconnected"
    return "absent"


def owner_of(label: str) -> tuple[int, int] | None:
    """A DAC label, +64055:+108; None where it names nobody by number."""
    found = re.fullmatch(r"\+(\d+):\+(\d+)", label.strip())
    return None if found is None else (int(found[1]), int(found[2]))


def _nvram(domain: etree._Element) -> str | None:
    nvram = domain.find("os/nvram")
    if nvram is None:
        return None
    source = nvram.find("source")
    path = (nvram.text or "").strip() if source is None else source.get("file") or source.get("dev") or ""
    return path or None


def journal_of(domain: etree._Element) -> str | None:
    """The domain's own journal: one that came along with a copied definition tells of another one's disks."""
    element = domain.find(f"metadata/{{{JOURNAL_URI}}}journal")
    return None if element is None or _other_owner(domain) is not None else serialize(element)


def _journal_in(live: etree._Element, config: etree._Element | None) -> Journal | VirtopsError:
    """What cannot be read is for those to tell who ask for it."""
    try:
        return parse_journal(journal_of(live) or (None if config is None else journal_of(config)))
    except VirtopsError as error:
        return error


def _other_owner(domain: etree._Element) -> str | None:
    """The UUID of the domain whose journal this one has. One that an older release wrote does not say."""
    element = domain.find(f"metadata/{{{JOURNAL_URI}}}journal")
    owner = None if element is None else element.get("domain")
    return owner if owner != domain.findtext("uuid", owner or "") else None


# Writing


def with_disk_layers(
    domain_xml: str,
    layers: Mapping[str, Layer],
    drop_journal: bool = False,
    volume_path: VolumePath = unknown_volume,
) -> str:
    """The domain with these images as its disks' active layers, by target name.

    What belonged to the layers before (<backingStore>, <mirror>, indexes) goes; a source that the
    old chain describes keeps its type and its own settings (security labels, slices). A volume stays one where
    `volume_path` tells its path.
    """
    domain = parse(domain_xml)
    disks = {child_of(disk, "target").get("dev", ""): disk for disk in domain.findall("devices/disk")}
    for target, layer in layers.items():
        if target not in disks:
            raise VirtopsError(
                "no_such_disk",
                f"The domain has no disk {target}",
                f"Name one of its disks: {', '.join(sorted(disks))}",
            )
        set_layer(disks[target], layer, volume_path)
    if drop_journal:
        _drop_journal(domain)
    return serialize(domain)


def without_data_files(domain_xml: str) -> str:
    """The domain for images that stand alone: what is left of a data file would be the running guest's own."""
    domain = parse(domain_xml)
    for data_file in list(domain.iterfind("devices/disk//source/dataStore")):
        remove(data_file)
    return serialize(domain)


def with_journal(domain_xml: str, journal: Journal) -> str:
    """The domain with this journal instead of its own."""
    domain = parse(with_disk_layers(domain_xml, {}, drop_journal=True))
    element = owned_journal(journal, domain.findtext("uuid", ""))
    if element is not None:
        metadata = domain.find("metadata")
        if metadata is None:
            metadata = etree.SubElement(domain, "metadata")
        metadata.append(_in_namespace(parse(element)))
    return serialize(domain)


def without_empty_metadata(domain_xml: str) -> str | None:
    """The domain without a <metadata/> that holds nothing; None where it has no such."""
    domain = parse(domain_xml)
    metadata = domain.find("metadata")
    if metadata is None or len(metadata) or (metadata.text or "").strip():
        return None
    remove(metadata)
    return serialize(domain)


def owned_journal(journal: Journal, uuid: str) -> str | None:
    """The journal's element with the domain in it that it belongs to; None where there is nothing to tell."""
    text = build_journal(journal)
    if text is None:
        return None
    element = parse(text)
    set_attribute(element, "domain", uuid)
    return serialize(element)


def _in_namespace(element: etree._Element) -> etree._Element:
    """As virDomainSetMetadata would have put it there."""
    name = etree.QName(element).localname
    found = etree.Element("{%s}%s" % (JOURNAL_URI, name), dict(element.attrib), nsmap={JOURNAL_PREFIX: JOURNAL_URI})
    found.extend([_in_namespace(child) for child in element.iterchildren("{*}*")])
    return found


def definition_digest(domain_xml: str) -> str:
    """SHA-256 of a domain's XML without our journal, and without white space that means nothing."""
    domain = parse(with_disk_layers(domain_xml, {}, drop_journal=True))
    for element in domain.iter():
        element.text = element.text if (element.text or "").strip() else None
        element.tail = None
    return hashlib.sha256(etree.tostring(domain)).hexdigest()


def set_layer(disk: etree._Element, layer: Layer, volume_path: VolumePath = unknown_volume) -> None:
    old = _described_source(disk, layer.path, volume_path)
    if old is None:
        source, kind = etree.Element("source"), "block" if is_device(layer.path) else "file"
    else:
        source, kind = deepcopy(child_of(old, "source")), old.get("type", "file")
        source.tail = None
    source.attrib.pop("index", None)
    if kind != "volume":
        for name in ("file", "dev", "dir", "pool", "volume", "mode", "protocol", "name"):
            source.attrib.pop(name, None)
        kind = "block" if kind == "block" else "file"
        set_attribute(source, "dev" if kind == "block" else "file", layer.path)
    disk.set("type", kind)
    driver = disk.find("driver")
    if driver is None:
        driver = etree.Element("driver", name="qemu")
        disk.insert(0, driver)
    set_attribute(driver, "type", layer.format)
    for stale in disk.findall("source") + disk.findall("backingStore") + disk.findall("mirror"):
        remove(stale)
    disk.insert(disk.index(driver) + 1, source)
    source.tail = driver.tail


def _described_source(disk: etree._Element, path: str, volume_path: VolumePath) -> etree._Element | None:
    """The <disk>, or the <backingStore> in it, whose source is `path`."""
    for element in (disk, *disk.iterfind(".//backingStore")):
        if _local_path(element, volume_path) == path:
            return element
    return None


def _drop_journal(domain: etree._Element) -> None:
    metadata = domain.find("metadata")
    if metadata is None:
        return
    for journal in metadata.findall(f"{{{JOURNAL_URI}}}journal"):
        remove(journal)
    if len(metadata) == 0:
        remove(metadata)
