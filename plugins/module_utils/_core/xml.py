# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: libvirt's XML to values and back, the only user of lxml.

Everything is built as a tree and serialized by lxml, so that no name, path or description can
change the structure of a document.
"""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Union

from .errors import VirtopsError
from .journal import JOURNAL_PREFIX, JOURNAL_URI, Journal, JournalDisk, Operation, Reverted
from .model import BlockJob, Disk, FileIdentity, Hold, Layer, OtherImages, SnapshotDisk, SnapshotRecord

LXML_IMPORT_ERROR: str | None
try:
    from lxml import etree
except ImportError:
    LXML_IMPORT_ERROR = traceback.format_exc()
else:
    LXML_IMPORT_ERROR = None

#: The path of a volume of a storage pool (pool, volume), or None where it cannot be told.
VolumePath = Callable[[str, str], Union[str, None]]

AGENT_CHANNEL = "org.qemu.guest_agent.0"
JOURNAL_SCHEMA = "1"


@dataclass(frozen=True)
class DomainXml:
    """What a domain's XML says; state and job progress come from other calls (see `DomainView`)."""

    name: str
    uuid: str
    disks: tuple[Disk, ...]
    config_disks: tuple[Disk, ...]
    agent: str
    journal_xml: str | None
    machine: str
    nvram: str | None
    tpm: bool
    pflash: bool
    nvram_format: str
    memory_bytes: int


def _unknown_volume(pool: str, volume: str) -> str | None:  # noqa: ARG001
    return None


# Reading a domain


def parse_domain(live_xml: str, config_xml: str | None, volume_path: VolumePath = _unknown_volume) -> DomainXml:
    """Read virDomainGetXMLDesc with flags 0 (`live_xml`) and INACTIVE (`config_xml`).

    `config_xml` is None for a transient domain. `volume_path` resolves disks of type 'volume'
    (virStorageVolGetPath), whose XML names a pool and a volume instead of a path.
    """
    live = _parse(live_xml)
    config = None if config_xml is None else _parse(config_xml)
    config_disks = () if config is None else tuple(replace(disk, job=None) for disk in _disks(config, volume_path))
    return DomainXml(
        name=live.findtext("name", ""),
        uuid=live.findtext("uuid", ""),
        disks=_disks(live, volume_path),
        config_disks=config_disks,
        agent=_agent(live),
        # Both hold it, unless somebody defined the domain anew from an older XML
        journal_xml=_journal_of(live) or (None if config is None else _journal_of(config)),
        machine=next((kind.get("machine", "") for kind in live.iterfind("os/type")), ""),
        nvram=_nvram(live),
        tpm=live.find("devices/tpm") is not None,
        pflash=live.find("os/loader[@type='pflash']") is not None or live.find("os[@firmware='efi']") is not None,
        nvram_format=next((found.get("format", "raw") for found in live.iterfind("os/nvram")), "raw"),
        memory_bytes=int(live.findtext("memory", "0")) * 1024,  # libvirt tells it in KiB, whatever was defined
    )


def images(live_xml: str, config_xml: str | None, volume_path: VolumePath = _unknown_volume) -> OtherImages:
    """Every image that a domain's XML names: layers and mirrors. `tips`: those whose backing files it does not tell.

    Only a running domain's XML shows whole chains.
    """
    parsed = parse_domain(live_xml, config_xml, volume_path)
    active = _parse(live_xml).get("id") is not None
    shown = {layer.path for disk in parsed.disks for layer in disk.chain} if active else set()
    mirrors = {disk.job.target for disk in parsed.disks if disk.job is not None and disk.job.target is not None}
    named = [layer for disk in parsed.disks + parsed.config_disks for layer in disk.chain]
    tips = {layer for layer in named if layer.path not in shown}
    known = frozenset(layer.path for layer in named) | mirrors
    return OtherImages(known, tuple(sorted(tips, key=lambda layer: layer.path)))


# Reading capabilities


def has_disk_snapshots(capabilities: str) -> bool:
    """virConnectGetCapabilities: <disksnapshot/>, which libvirt gives to each architecture or to none."""
    return any(found.get("default") == "on" for found in _parse(capabilities).iterfind("guest/features/disksnapshot"))


def has_external_revert(capabilities: str) -> bool:
    """virConnectGetCapabilities: <externalSnapshot/>, a libvirt that goes back to external snapshots itself."""
    return _parse(capabilities).find("guest/features/externalSnapshot") is not None


def security_models(capabilities: str) -> frozenset[str]:
    """virConnectGetCapabilities: the security drivers of the host, as apparmor, selinux, dac."""
    return frozenset(found.text or "" for found in _parse(capabilities).iterfind("host/secmodel/model"))


def has_backup(domain_capabilities: str) -> bool:
    """virConnectGetDomainCapabilities: <backup supported='yes'/>, incremental backups and their checkpoints."""
    found = _parse(domain_capabilities).find("features/backup")
    return found is not None and found.get("supported") == "yes"


def emulation(domain_xml: str) -> tuple[str | None, str | None, str | None, str | None]:
    """What virConnectGetDomainCapabilities is asked for: emulator, architecture, machine and kind of domain."""
    domain = _parse(domain_xml)
    kind = domain.find("os/type")
    arch, machine = (None, None) if kind is None else (kind.get("arch"), kind.get("machine"))
    return domain.findtext("devices/emulator"), arch, machine, domain.get("type")


def _disks(domain: etree._Element, volume_path: VolumePath) -> tuple[Disk, ...]:
    return tuple(_disk(element, volume_path) for element in domain.findall("devices/disk"))


def _disk(element: etree._Element, volume_path: VolumePath) -> Disk:
    target = _child(element, "target")
    return Disk(
        target=target.get("dev", ""),
        device=element.get("device", "disk"),
        bus=target.get("bus", ""),
        source_type=element.get("type", "file"),
        chain=_chain(element, volume_path),
        readonly=element.find("readonly") is not None,
        shareable=element.find("shareable") is not None,
        transient=element.find("transient") is not None,
        job=_job(element, volume_path),
        remote=Layer(_remote_name(element), _driver_format(element)) if element.get("type") == "network" else None,
    )


def _chain(disk: etree._Element, volume_path: VolumePath) -> tuple[Layer, ...]:
    """The layers that the XML shows, active first; () where the active one is no local image."""
    path = _local_path(disk, volume_path)
    if path is None:
        return ()
    layers = [Layer(path, _driver_format(disk))]
    backing = disk.find("backingStore")
    while backing is not None and backing.get("type") is not None:
        layer_path = _local_path(backing, volume_path) or _remote_name(backing)
        layers.append(Layer(layer_path, _format(backing)))
        backing = backing.find("backingStore")
    return tuple(layers)


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


def _nvram(domain: etree._Element) -> str | None:
    nvram = domain.find("os/nvram")
    if nvram is None:
        return None
    source = nvram.find("source")
    path = (nvram.text or "").strip() if source is None else source.get("file") or source.get("dev") or ""
    return path or None


def _journal_of(domain: etree._Element) -> str | None:
    element = domain.find(f"metadata/{{{JOURNAL_URI}}}journal")
    return None if element is None else _serialize(element)


# Writing a domain


def with_disk_layers(domain_xml: str, layers: Mapping[str, Layer], drop_journal: bool = False) -> str:
    """The domain with these images as its disks' active layers, by target name.

    What belonged to the layers before (<backingStore>, <mirror>, indexes) goes; a source that the
    old chain describes keeps its type and its own settings (security labels, slices).
    """
    domain = _parse(domain_xml)
    disks = {_child(disk, "target").get("dev", ""): disk for disk in domain.findall("devices/disk")}
    for target, layer in layers.items():
        if target not in disks:
            raise VirtopsError(
                "no_such_disk",
                f"The domain has no disk {target}",
                f"Name one of its disks: {', '.join(sorted(disks))}",
            )
        _set_layer(disks[target], layer)
    if drop_journal:
        _drop_journal(domain)
    return _serialize(domain)


def with_journal(domain_xml: str, journal_xml: str | None) -> str:
    """The domain with this journal instead of its own (None: with none)."""
    domain = _parse(with_disk_layers(domain_xml, {}, drop_journal=True))
    if journal_xml is not None:
        metadata = domain.find("metadata")
        if metadata is None:
            metadata = etree.SubElement(domain, "metadata")
        metadata.append(_in_namespace(_parse(journal_xml)))
    return _serialize(domain)


def _in_namespace(element: etree._Element) -> etree._Element:
    """As virDomainSetMetadata would have put it there."""
    name = etree.QName(element).localname
    found = etree.Element("{%s}%s" % (JOURNAL_URI, name), dict(element.attrib), nsmap={JOURNAL_PREFIX: JOURNAL_URI})
    found.extend([_in_namespace(child) for child in element.iterchildren("{*}*")])
    return found


def definition_digest(domain_xml: str) -> str:
    """SHA-256 of a domain's XML without our journal, and without white space that means nothing."""
    domain = _parse(with_disk_layers(domain_xml, {}, drop_journal=True))
    for element in domain.iter():
        element.text = element.text if (element.text or "").strip() else None
        element.tail = None
    return hashlib.sha256(etree.tostring(domain)).hexdigest()


def odd_sources(domain_xml: str) -> dict[str, str]:
    """The disks whose image is not, as it lies there, what the guest reads; and why."""
    found = {}
    for disk in _parse(domain_xml).findall("devices/disk"):
        target = _child(disk, "target").get("dev", "")
        if disk.find("encryption") is not None or disk.find("source/encryption") is not None:
            found[target] = "it is encrypted"
        elif disk.find("source/slices") is not None:
            found[target] = "it is a slice of its image"
    return found


def _set_layer(disk: etree._Element, layer: Layer) -> None:
    old = _described_source(disk, layer.path)
    if old is None:
        source = etree.Element("source")
        kind = "block" if layer.path.startswith("/dev/") and not layer.path.startswith("/dev/shm/") else "file"
    else:
        source, kind = deepcopy(_child(old, "source")), old.get("type", "file")
        source.tail = None
    for name in ("file", "dev", "dir", "index", "pool", "volume", "mode", "protocol", "name"):
        source.attrib.pop(name, None)
    kind = "block" if kind == "block" else "file"
    _set(source, "dev" if kind == "block" else "file", layer.path)
    disk.set("type", kind)
    driver = disk.find("driver")
    if driver is None:
        driver = etree.Element("driver", name="qemu")
        disk.insert(0, driver)
    _set(driver, "type", layer.format)
    for stale in disk.findall("source") + disk.findall("backingStore") + disk.findall("mirror"):
        _remove(stale)
    disk.insert(disk.index(driver) + 1, source)
    source.tail = driver.tail


def _described_source(disk: etree._Element, path: str) -> etree._Element | None:
    """The <disk>, or the <backingStore> in it, whose source is `path`."""
    for element in (disk, *disk.iterfind(".//backingStore")):
        if _local_path(element, _unknown_volume) == path:
            return element
    return None


def _drop_journal(domain: etree._Element) -> None:
    metadata = domain.find("metadata")
    if metadata is None:
        return
    for journal in metadata.findall(f"{{{JOURNAL_URI}}}journal"):
        _remove(journal)
    if len(metadata) == 0:
        _remove(metadata)


# Snapshots


def build_snapshot(
    name: str,
    description: str | None,
    disks: Sequence[SnapshotDisk],
    memory: str | None = None,
    memory_file: str | None = None,
) -> str:
    """The request for virDomainSnapshotCreateXML; list every disk, or libvirt adds those left out.

    `memory` is external (into `memory_file`), internal or no.
    """
    root = etree.Element("domainsnapshot")
    _text(root, "name", name)
    if description is not None:
        _text(root, "description", description)
    if memory is not None:
        saved = etree.SubElement(root, "memory", snapshot=memory)
        if memory_file is not None:
            _set(saved, "file", memory_file)
    listed = etree.SubElement(root, "disks")
    for disk in disks:
        element = etree.SubElement(listed, "disk")
        _set(element, "name", disk.target)
        _set(element, "snapshot", disk.mode)
        if disk.mode != "external":
            continue
        element.set("type", "block" if disk.block else "file")
        if disk.format is not None:
            _set(etree.SubElement(element, "driver"), "type", disk.format)
        if disk.file is not None:
            _set(etree.SubElement(element, "source"), "dev" if disk.block else "file", disk.file)
    etree.indent(root)
    return _serialize(root)


def build_record(name: str, disks: Sequence[SnapshotDisk], domain_xml: str) -> str:
    """A record for data that are there, for virDomainSnapshotCreateXML with REDEFINE, as of a domain that was off."""
    root = _parse(build_snapshot(name, None, disks, memory="no"))
    _text(root, "state", "shutoff")
    _text(root, "creationTime", "1")  # libvirt takes 0 for none
    root.append(_parse(domain_xml))
    return _serialize(root)


def parse_snapshot(xml: str) -> SnapshotRecord:
    """Read virDomainSnapshotGetXMLDesc."""
    root = _parse(xml)
    memory = root.find("memory")
    return SnapshotRecord(
        name=root.findtext("name", ""),
        state=root.findtext("state", ""),
        creation_time=int(root.findtext("creationTime", "0")),
        disks=tuple(_snapshot_disk(disk) for disk in root.findall("disks/disk")),
        description=root.findtext("description"),
        parent=root.findtext("parent/name"),
        memory="no" if memory is None else memory.get("snapshot", "no"),
        memory_file=None if memory is None else memory.get("file"),
    )


def parse_record(xml: str) -> SnapshotRecord:
    """As parse_snapshot, of a text that libvirt wrote: the definitions in it are nearly all of it, come last, and need
    not be parsed. A guest may have a thousand records."""
    start = xml.find("<domain ")
    return parse_snapshot(xml if start < 0 else xml[:start] + "</domainsnapshot>")


def _snapshot_disk(disk: etree._Element) -> SnapshotDisk:
    source, driver = disk.find("source"), disk.find("driver")
    return SnapshotDisk(
        target=disk.get("name", ""),
        mode=disk.get("snapshot", ""),
        file=None if source is None else source.get("file") or source.get("dev"),
        format=None if driver is None else driver.get("type"),
        block=disk.get("type") == "block",
    )


def snapshot_images(xml: str) -> dict[str, Layer]:
    """What each disk wrote to when the snapshot was taken, by the definition that its record keeps."""
    domain = _parse(xml).find("domain")
    if domain is None:
        return {}
    return {disk.target: disk.active for disk in _disks(domain, _unknown_volume) if disk.active is not None}


def snapshot_paths(xml: str) -> frozenset[str]:
    """Every image that a snapshot's record names: those of its moment, and the overlays made then."""
    own = frozenset(disk.file for disk in parse_snapshot(xml).disks if disk.file is not None)
    return own | frozenset(layer.path for layer in snapshot_images(xml).values())


def with_moved_images(xml: str, moved: Mapping[str, Layer]) -> str:
    """A snapshot's XML whose definitions name other images instead of those that are gone; the same text where none is.

    Below the image of a disk that is changed nothing is said: libvirt then asks the images.
    """
    root = _parse(xml)
    changed = False
    for disk in (*root.iterfind("domain/devices/disk"), *root.iterfind("inactiveDomain/devices/disk")):
        chain = _chain(disk, _unknown_volume)
        if any(layer.path in moved for layer in chain):
            _set_layer(disk, moved.get(chain[0].path, chain[0]))
            changed = True
    return _serialize(root) if changed else xml


def with_snapshot_files(xml: str, files: Mapping[str, str]) -> str:
    """A snapshot's XML with other overlays, by disk."""
    root = _parse(xml)
    for disk in root.findall("disks/disk"):
        source = disk.find("source")
        path = files.get(disk.get("name", ""))
        if path is None:
            continue
        if source is None:
            source = etree.SubElement(disk, "source")
        source.attrib.pop("dev", None)
        disk.set("type", "file")
        _set(source, "file", path)
    return _serialize(root)


def snapshot_journal(xml: str) -> str | None:
    """The journal in the definition that a snapshot's record keeps: that of its moment."""
    domain = _parse(xml).find("domain")
    return None if domain is None else _journal_of(domain)


def snapshot_uuid(xml: str) -> str | None:
    """The UUID of the domain whose definition is in a snapshot's XML; None where there is none in it."""
    return _parse(xml).findtext("domain/uuid")


def edited_snapshot(
    xml: str, name: str | None = None, description: str | None = None, parent: str | None = None
) -> str:
    """A snapshot's XML with another name, description or parent; an empty description is none."""
    root = _parse(xml)
    if root.tag != "domainsnapshot":
        raise _bad_xml(f"it is a <{root.tag!s}>, and no <domainsnapshot>")
    if name is not None:
        _set_text(root, "name", name, 0)
    if description is not None:
        _set_text(root, "description", description, 1)
    if parent is not None:
        _set_text(_child(root, "parent"), "name", parent, 0)
    return _serialize(root)


def _set_text(parent: etree._Element, tag: str, value: str, position: int) -> None:
    """The child's text; empty: without the child."""
    found = parent.find(tag)
    if found is None and value:
        found = etree.Element(tag)
        parent.insert(position, found)
    if found is None:
        return
    if not value:
        _remove(found)
        return
    try:
        found.text = value
    except ValueError as problem:
        raise _not_for_xml(value) from problem


def covers(found: str, wanted: str) -> bool:
    """Does a record's XML say all that another text asks for? libvirt adds defaults and addresses of its own."""
    return _covers(_parse(found), _parse(wanted))


def _covers(found: etree._Element, wanted: etree._Element) -> bool:
    if found.tag != wanted.tag or (wanted.text or "").strip() != (found.text or "").strip():
        return False
    if any(found.get(str(key)) != value for key, value in wanted.attrib.items()):
        return False
    left = [child for child in found if isinstance(child.tag, str)]
    for child in wanted:
        if not isinstance(child.tag, str):
            continue
        match = next((one for one in left if _covers(one, child)), None)
        if match is None:
            return False
        left.remove(match)
    return True


# The journal


def build_journal(journal: Journal) -> str | None:
    """The element for virDomainSetMetadata; None, which removes it, where there is nothing to tell.

    It carries no namespace: virDomainSetMetadata puts the whole element into the one that it is
    given, and fails ("failed to create a new XML namespace") where the prefix is declared already.
    """
    if not journal.operations and journal.reverted is None:
        return None
    root = etree.Element("journal", schema=JOURNAL_SCHEMA)
    for operation in journal.operations:
        element = etree.SubElement(root, "operation")
        for name in ("id", "kind", "name", "phase", "started", "consistency"):
            _set(element, name, getattr(operation, name))
        if operation.memory is not None:
            _set(element, "memory", operation.memory)
        for disk in operation.disks:
            _add_journal_disk(element, disk)
        if operation.hold is not None:
            _add_hold(element, operation.hold)
    if journal.reverted is not None:
        _add_reverted(root, journal.reverted)
    return _serialize(root)


def _add_reverted(root: etree._Element, reverted: Reverted) -> None:
    element = etree.SubElement(root, "reverted")
    _set(element, "name", reverted.name)
    element.set("definition", reverted.definition)
    for path, identity in reverted.images:
        image = etree.SubElement(element, "image")
        _set(image, "path", path)
        _add_identity(image, identity)


def _add_identity(parent: etree._Element, identity: FileIdentity) -> None:
    element = etree.SubElement(parent, "identity")
    for name in ("device", "inode", "size", "mtime_ns"):
        element.set(name, str(getattr(identity, name)))


def _add_hold(operation: etree._Element, hold: Hold) -> None:
    element = etree.SubElement(operation, "hold", suspended="yes" if hold.suspended else "no")
    for target, tune in hold.tunes.items():
        limits = etree.SubElement(element, "tune")
        _set(limits, "target", target)
        for name, value in tune.items():
            _set(etree.SubElement(limits, "limit", value=str(value)), "name", name)


def _add_journal_disk(operation: etree._Element, disk: JournalDisk) -> None:
    element = etree.SubElement(operation, "disk")
    for name in ("target", "base", "base_format", "overlay"):
        _set(element, name, getattr(disk, name))
    if disk.pivoting:
        element.set("pivoting", "yes")
    if disk.reused:
        element.set("reused", "yes")
    if disk.identity is not None:
        _add_identity(element, disk.identity)


def parse_journal(xml: str | None) -> Journal:
    """Read the journal's element, with or without its namespace (virDomainGetMetadata strips it)."""
    if xml is None:
        return Journal()
    root = _parse(xml)
    schema = root.get("schema")
    if schema != JOURNAL_SCHEMA:
        raise _journal_unreadable(f"its schema is {schema}, and this release knows {JOURNAL_SCHEMA}")
    try:
        operations = tuple(_operation(element) for element in _local(root, "operation"))
        return Journal(operations, next((_reverted(element) for element in _local(root, "reverted")), None))
    except (KeyError, ValueError) as problem:
        raise _journal_unreadable(f"it is damaged ({problem})") from problem


def _operation(element: etree._Element) -> Operation:
    attributes = dict(element.attrib)
    return Operation(
        id=str(attributes["id"]),
        kind=str(attributes["kind"]),
        name=str(attributes["name"]),
        phase=str(attributes["phase"]),
        started=str(attributes["started"]),
        disks=tuple(_journal_disk(disk) for disk in _local(element, "disk")),
        consistency=str(attributes.get("consistency", "")),
        hold=next((_hold(hold) for hold in _local(element, "hold")), None),
        memory=None if attributes.get("memory") is None else str(attributes["memory"]),
    )


def _hold(element: etree._Element) -> Hold:
    tunes = {
        str(tune.attrib["target"]): {
            str(limit.attrib["name"]): int(limit.attrib["value"]) for limit in _local(tune, "limit")
        }
        for tune in _local(element, "tune")
    }
    return Hold(suspended=element.get("suspended") == "yes", tunes=tunes)


def _journal_disk(element: etree._Element) -> JournalDisk:
    attributes = dict(element.attrib)
    identity = next((_identity(child) for child in _local(element, "identity")), None)
    return JournalDisk(
        target=str(attributes["target"]),
        base=str(attributes["base"]),
        base_format=str(attributes["base_format"]),
        overlay=str(attributes["overlay"]),
        identity=identity,
        pivoting=attributes.get("pivoting") == "yes",
        reused=attributes.get("reused") == "yes",
    )


def _identity(element: etree._Element) -> FileIdentity:
    return FileIdentity(**{name: int(element.attrib[name]) for name in ("device", "inode", "size", "mtime_ns")})


def _reverted(element: etree._Element) -> Reverted:
    images = tuple(
        (str(image.attrib["path"]), next(_identity(child) for child in _local(image, "identity")))
        for image in _local(element, "image")
    )
    return Reverted(str(element.attrib["name"]), str(element.attrib["definition"]), images)


def _journal_unreadable(why: str) -> VirtopsError:
    return VirtopsError(
        "journal_unreadable",
        f"The journal of virtops.libvirt in the domain's metadata cannot be read: {why}",
        "Finish the operation with the release of the collection that wrote it; or, when you know that none is "
        f"under way, remove it: virsh metadata DOMAIN --uri {JOURNAL_URI} --live --config --remove",
    )


# lxml


def _parse(xml: str) -> etree._Element:
    """Parse without entities, network or DTD: a domain's metadata may hold anybody's text."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, dtd_validation=False)
    try:
        root = etree.fromstring(xml.encode("utf-8"), parser)
    except etree.XMLSyntaxError as problem:
        raise _bad_xml(str(problem)) from problem
    if root.getroottree().docinfo.doctype:
        raise _bad_xml("it declares a document type")
    return root


def _bad_xml(why: str) -> VirtopsError:
    return VirtopsError(
        "invalid_xml",
        f"XML that describes a domain or a snapshot cannot be read: {why}",
        "Look at it with virsh dumpxml or virsh snapshot-dumpxml",
    )


def _child(element: etree._Element, path: str) -> etree._Element:
    found = element.find(path)
    if found is None:
        raise _bad_xml(f"<{element.tag!s}> has no <{path}>")
    return found


def _local(element: etree._Element, name: str) -> Iterator[etree._Element]:
    """The children of that local name, in whatever namespace."""
    return element.iterchildren("{*}" + name)


def _set(element: etree._Element, name: str, value: str) -> None:
    try:
        element.set(name, value)
    except ValueError as problem:
        raise _not_for_xml(value) from problem


def _text(parent: etree._Element, name: str, value: str) -> None:
    try:
        etree.SubElement(parent, name).text = value
    except ValueError as problem:
        raise _not_for_xml(value) from problem


def _not_for_xml(value: str) -> VirtopsError:
    return VirtopsError(
        "not_representable",
        f"libvirt cannot hold the text {value!r}: XML has no control characters and no bytes outside UTF-8",
        "Use a name without them",
    )


def _remove(element: etree._Element) -> None:
    """Remove an element and leave the white space around the others as it was."""
    parent = element.getparent()
    if parent is None:
        return
    previous = element.getprevious()
    if element.getnext() is None:
        if previous is not None:
            previous.tail = element.tail
        elif len(parent) == 1:
            parent.text = None
    element.tail = None
    parent.remove(element)


def _serialize(element: etree._Element) -> str:
    return etree.tostring(element, encoding="unicode", with_tail=False)
