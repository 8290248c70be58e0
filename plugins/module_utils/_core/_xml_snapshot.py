# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: a snapshot's XML: requests, records, and what records name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

from ._xml_domain import chain_of, disks_of, journal_of, set_layer, unknown_volume
from ._xml_journal import parse_journal
from ._xml_tree import add_text, bad_xml, child_of, not_for_xml, parse, remove, serialize, set_attribute
from .journal import Journal
from .model import Disk, Layer, SnapshotDisk, SnapshotRecord

with suppress(ImportError):  # _xml_tree.LXML_IMPORT_ERROR tells
    from lxml import etree


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
    add_text(root, "name", name)
    if description is not None:
        add_text(root, "description", description)
    if memory is not None:
        saved = etree.SubElement(root, "memory", snapshot=memory)
        if memory_file is not None:
            set_attribute(saved, "file", memory_file)
    listed = etree.SubElement(root, "disks")
    for disk in disks:
        element = etree.SubElement(listed, "disk")
        set_attribute(element, "name", disk.target)
        set_attribute(element, "snapshot", disk.mode)
        if disk.mode != "external":
            continue
        element.set("type", "block" if disk.block else "file")
        if disk.format is not None:
            set_attribute(etree.SubElement(element, "driver"), "type", disk.format)
        if disk.file is not None:
            set_attribute(etree.SubElement(element, "source"), "dev" if disk.block else "file", disk.file)
    etree.indent(root)
    return serialize(root)


def build_record(name: str, disks: Sequence[SnapshotDisk], domain_xml: str) -> str:
    """A record for data that are there, for virDomainSnapshotCreateXML with REDEFINE, as of a domain that was off."""
    root = parse(build_snapshot(name, None, disks, memory="no"))
    add_text(root, "state", "shutoff")
    add_text(root, "creationTime", "1")  # libvirt takes 0 for none
    root.append(parse(domain_xml))
    return serialize(root)


def parse_snapshot(xml: str) -> SnapshotRecord:
    """Read virDomainSnapshotGetXMLDesc."""
    root = parse(xml)
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


def snapshot_definitions(xml: str) -> tuple[tuple[Disk, ...], ...]:
    """The disks of each definition that a snapshot's record keeps: that of its moment, and the persistent one."""
    root = parse(xml)
    kept = (*root.findall("domain"), *root.findall("inactiveDomain"))
    return tuple(disks_of(domain, unknown_volume) for domain in kept)


def snapshot_images(xml: str) -> dict[str, Layer]:
    """What each disk wrote to when the snapshot was taken, by the definition that its record keeps."""
    domain = parse(xml).find("domain")
    if domain is None:
        return {}
    return {disk.target: disk.active for disk in disks_of(domain, unknown_volume) if disk.active is not None}


def snapshot_paths(xml: str) -> frozenset[str]:
    """Every image that a snapshot's record names: those of its moment, what is below, and the overlays made then."""
    own = frozenset(disk.file for disk in parse_snapshot(xml).disks if disk.file is not None)
    return own | {layer.path for disks in snapshot_definitions(xml) for disk in disks for layer in disk.chain}


def with_moved_images(xml: str, moved: Mapping[str, Layer]) -> str:
    """A snapshot's XML whose definitions name other images instead of those that are gone; the same text where none is.

    Below the image of a disk that is changed nothing is said: libvirt then asks the images.
    """
    root = parse(xml)
    changed = False
    for disk in (*root.iterfind("domain/devices/disk"), *root.iterfind("inactiveDomain/devices/disk")):
        chain = chain_of(disk, unknown_volume)
        if any(layer.path in moved for layer in chain):
            set_layer(disk, moved.get(chain[0].path, chain[0]))
            changed = True
    return serialize(root) if changed else xml


def with_snapshot_files(xml: str, files: Mapping[str, str]) -> str:
    """A snapshot's XML with other overlays, by disk."""
    root = parse(xml)
    for disk in root.findall("disks/disk"):
        source = disk.find("source")
        path = files.get(disk.get("name", ""))
        if path is None:
            continue
        if source is None:
            source = etree.SubElement(disk, "source")
        source.attrib.pop("dev", None)
        disk.set("type", "file")
        set_attribute(source, "file", path)
    return serialize(root)


def snapshot_journal(xml: str) -> Journal:
    """The journal in the definition that a snapshot's record keeps: that of its moment."""
    domain = parse(xml).find("domain")
    return parse_journal(None if domain is None else journal_of(domain))


def snapshot_uuid(xml: str) -> str | None:
    """The UUID of the domain whose definition is in a snapshot's XML; None where there is none in it."""
    return parse(xml).findtext("domain/uuid")


def edited_snapshot(
    xml: str, name: str | None = None, description: str | None = None, parent: str | None = None
) -> str:
    """A snapshot's XML with another name, description or parent; an empty description is none."""
    root = parse(xml)
    if root.tag != "domainsnapshot":
        raise bad_xml(f"it is a <{root.tag!s}>, and no <domainsnapshot>")
    if name is not None:
        _set_text(root, "name", name, 0)
    if description is not None:
        _set_text(root, "description", description, 1)
    if parent is not None:
        _set_text(child_of(root, "parent"), "name", parent, 0)
    return serialize(root)


def _set_text(parent: etree._Element, tag: str, value: str, position: int) -> None:
    """The child's text; empty: without the child."""
    found = parent.find(tag)
    if found is None and value:
        found = etree.Element(tag)
        parent.insert(position, found)
    if found is None:
        return
    if not value:
        remove(found)
        return
    try:
        found.text = value
    except ValueError as problem:
        raise not_for_xml(value) from problem


def covers(found: str, wanted: str) -> bool:
    """Does a record's XML say all that another text asks for? libvirt adds defaults and addresses of its own."""
    return _covers(parse(found), parse(wanted))


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
