# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the journal as an element of the domain's metadata."""

from __future__ import annotations

import re
from contextlib import suppress

from ._xml_tree import local_children, parse, serialize, set_attribute
from .errors import VirtopsError
from .journal import DELETE, JOURNAL_URI, REVERT, Journal, JournalDisk, Operation, Reverted
from .model import FileIdentity, Hold
from .text import command

with suppress(ImportError):  # _xml_tree.LXML_IMPORT_ERROR tells
    from lxml import etree

JOURNAL_SCHEMA = "1"

#: Operations on a snapshot that has an operation of its own, and how older releases told the one's name from the other.
_ON_A_SNAPSHOT = {
    DELETE: re.compile(r"(?P<name>.*) \(children: (?P<children>\w*)\)", re.DOTALL),
    REVERT: re.compile(r"revert to (?P<name>.*)(?P<children>)", re.DOTALL),
}


def build_journal(journal: Journal) -> str | None:
    """The element for virDomainSetMetadata; None, which removes it, where there is nothing to tell.

    It carries no namespace: virDomainSetMetadata puts the whole element into the one that it is
    given, and fails ("failed to create a new XML namespace") where the prefix is declared already.
    """
    if journal == Journal():
        return None
    root = etree.Element("journal", schema=JOURNAL_SCHEMA)
    named = [("operation", operation) for operation in journal.operations]
    for tag, operation in (*named, *(("merged", ended) for ended in journal.merged)):
        element = etree.SubElement(root, tag)
        for name in ("id", "kind", "name", "phase", "started", "consistency"):
            set_attribute(element, name, getattr(operation, name))
        if operation.memory is not None:
            set_attribute(element, "memory", operation.memory)
        if operation.boot:
            set_attribute(element, "boot", operation.boot)
        if operation.kind in _ON_A_SNAPSHOT:
            set_attribute(element, "children", operation.children)
        for name in operation.also:
            set_attribute(etree.SubElement(element, "also"), "name", name)
        for disk in operation.disks:
            _add_journal_disk(element, disk)
        if operation.hold is not None:
            _add_hold(element, operation.hold)
    for tag, rest in (("reverted", journal.reverted), ("restored", journal.restored)):
        if rest is not None:
            _add_reverted(root, tag, rest)
    return serialize(root)


def _add_reverted(root: etree._Element, tag: str, reverted: Reverted) -> None:
    element = etree.SubElement(root, tag)
    set_attribute(element, "name", reverted.name)
    element.set("definition", reverted.definition)
    for path, identity in reverted.images:
        image = etree.SubElement(element, "image")
        set_attribute(image, "path", path)
        _add_identity(image, identity)


def _add_identity(parent: etree._Element, identity: FileIdentity) -> None:
    element = etree.SubElement(parent, "identity")
    set_attribute(element, "device", identity.device or "0")  # an older release reads a number
    for name in ("inode", "size", "mtime_ns"):
        element.set(name, str(getattr(identity, name)))


def _add_hold(operation: etree._Element, hold: Hold) -> None:
    element = etree.SubElement(operation, "hold", suspended="yes" if hold.suspended else "no")
    if hold.frozen:
        element.set("frozen", "yes")
    for target, tune in hold.tunes.items():
        limits = etree.SubElement(element, "tune")
        set_attribute(limits, "target", target)
        for name, value in tune.items():
            set_attribute(etree.SubElement(limits, "limit", value=str(value)), "name", name)


def _add_journal_disk(operation: etree._Element, disk: JournalDisk) -> None:
    element = etree.SubElement(operation, "disk")
    for name in ("target", "base", "base_format", "overlay"):
        set_attribute(element, name, getattr(disk, name))
    if disk.pivoting:
        element.set("pivoting", "yes")
    if disk.reused:
        element.set("reused", "yes")
    if disk.made is not None:
        element.set("made", str(disk.made))
    if disk.identity is not None:
        _add_identity(element, disk.identity)


def parse_journal(xml: str | None) -> Journal:
    """Read the journal's element, with or without its namespace (virDomainGetMetadata strips it)."""
    if xml is None:
        return Journal()
    root = parse(xml)
    schema = root.get("schema")
    if schema != JOURNAL_SCHEMA:
        raise _journal_unreadable(f"its schema is {schema}, and this release knows {JOURNAL_SCHEMA}")
    try:
        operations = tuple(_operation(element) for element in local_children(root, "operation"))
        merged = tuple(_operation(element) for element in local_children(root, "merged"))
        reverted = next((_reverted(element) for element in local_children(root, "reverted")), None)
        restored = next((_reverted(element) for element in local_children(root, "restored")), None)
        return Journal(operations, reverted, merged, restored)
    except (KeyError, ValueError) as problem:
        raise _journal_unreadable(f"it is damaged ({problem})") from problem


def _operation(element: etree._Element) -> Operation:
    attributes = dict(element.attrib)
    kind, name, children = str(attributes["kind"]), str(attributes["name"]), attributes.get("children")
    if children is None and kind in _ON_A_SNAPSHOT:  # an older release had them in the name
        found = _ON_A_SNAPSHOT[kind].fullmatch(name)
        name, children = (name, "keep") if found is None else found.group("name", "children")
    return Operation(
        id=str(attributes["id"]),
        kind=kind,
        name=name,
        phase=str(attributes["phase"]),
        started=str(attributes["started"]),
        disks=tuple(_journal_disk(disk) for disk in local_children(element, "disk")),
        consistency=str(attributes.get("consistency", "")),
        hold=next((_hold(hold) for hold in local_children(element, "hold")), None),
        memory=None if attributes.get("memory") is None else str(attributes["memory"]),
        boot=str(attributes.get("boot", "")),
        children=str(children or ""),
        also=tuple(str(one.attrib["name"]) for one in local_children(element, "also")),
    )


def _hold(element: etree._Element) -> Hold:
    tunes = {
        str(tune.attrib["target"]): {
            str(limit.attrib["name"]): int(limit.attrib["value"]) for limit in local_children(tune, "limit")
        }
        for tune in local_children(element, "tune")
    }
    return Hold(element.get("frozen") == "yes", element.get("suspended") == "yes", tunes)


def _journal_disk(element: etree._Element) -> JournalDisk:
    attributes = dict(element.attrib)
    identity = next((_identity(child) for child in local_children(element, "identity")), None)
    return JournalDisk(
        target=str(attributes["target"]),
        base=str(attributes["base"]),
        base_format=str(attributes["base_format"]),
        overlay=str(attributes["overlay"]),
        identity=identity,
        pivoting=attributes.get("pivoting") == "yes",
        reused=attributes.get("reused") == "yes",
        made=int(attributes["made"]) if "made" in attributes else None,
    )


def _identity(element: etree._Element) -> FileIdentity:
    """Older releases noted the number of the file's device, which tells nothing after a reboot."""
    device = str(element.attrib["device"])
    numbers = {name: int(element.attrib[name]) for name in ("inode", "size", "mtime_ns")}
    return FileIdentity("" if device.isdigit() else device, **numbers)


def _reverted(element: etree._Element) -> Reverted:
    images = tuple(
        (str(image.attrib["path"]), next(_identity(child) for child in local_children(image, "identity")))
        for image in local_children(element, "image")
    )
    return Reverted(str(element.attrib["name"]), str(element.attrib["definition"]), images)


def _journal_unreadable(why: str) -> VirtopsError:
    return VirtopsError(
        "journal_unreadable",
        f"The journal of virtops.libvirt in the domain's metadata cannot be read: {why}",
        "Finish the operation with the release of the collection that wrote it; or, when you know that none is "
        "under way, remove it: "
        + command("virsh", "metadata", "DOMAIN", "--uri", JOURNAL_URI, "--live", "--config", "--remove"),
    )
