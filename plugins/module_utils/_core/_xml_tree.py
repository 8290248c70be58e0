# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the one place where lxml reads and writes, hardened against what is in the documents.

Everything is built as a tree and serialized by lxml, so that no name, path or description can
change the structure of a document.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator

from .errors import VirtopsError

LXML_IMPORT_ERROR: str | None
try:
    from lxml import etree
except ImportError:
    LXML_IMPORT_ERROR = traceback.format_exc()
else:
    LXML_IMPORT_ERROR = None


def parse(xml: str) -> etree._Element:
    """Parse without entities, network or DTD: a domain's metadata may hold anybody's text."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, dtd_validation=False)
    try:
        root = etree.fromstring(xml.encode("utf-8"), parser)
    except etree.XMLSyntaxError as problem:
        raise bad_xml(str(problem)) from problem
    if root.getroottree().docinfo.doctype:
        raise bad_xml("it declares a document type")
    return root


class BadXml(VirtopsError):
    """`why` is the parser's word."""

    def __init__(self, why: str) -> None:
        super().__init__(
            "invalid_xml",
            f"XML that describes a domain or a snapshot cannot be read: {why}",
            "Look at it with virsh dumpxml or virsh snapshot-dumpxml",
        )
        self.why = why


def bad_xml(why: str) -> BadXml:
    return BadXml(why)


def child_of(element: etree._Element, path: str) -> etree._Element:
    found = element.find(path)
    if found is None:
        raise bad_xml(f"<{element.tag!s}> has no <{path}>")
    return found


def local_children(element: etree._Element, name: str) -> Iterator[etree._Element]:
    """The children of that local name, in whatever namespace."""
    return element.iterchildren("{*}" + name)


def set_attribute(element: etree._Element, name: str, value: str) -> None:
    try:
        element.set(name, value)
    except ValueError as problem:
        raise not_for_xml(value) from problem


def add_text(parent: etree._Element, name: str, value: str) -> None:
    try:
        etree.SubElement(parent, name).text = value
    except ValueError as problem:
        raise not_for_xml(value) from problem


def not_for_xml(value: str) -> VirtopsError:
    return VirtopsError(
        "not_representable",
        f"libvirt cannot hold the text {value!r}: XML has no control characters and no bytes outside UTF-8",
        "Use a name without them",
    )


def remove(element: etree._Element) -> None:
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


def serialize(element: etree._Element) -> str:
    return etree.tostring(element, encoding="unicode", with_tail=False)
