# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: what of a set is read to know that it is whole, and what its words must agree on.

SHA256SUMS covers the manifest and the manifest each other file, so a manifest of another set is found out, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from . import xml
from .backup import MANIFEST, Told, Verified, VerifyOrder
from .model import Layer
from .sets import OpenSet, lost_files

_LINE = re.compile(r"(\\?)([0-9a-f]{64}) [ *](.+)")
_ESCAPES = {"\\\\": "\\", "\\n": "\n", "\\r": "\r"}


class CheckPort(Protocol):
    """Reading what lies in a target. Raises `copy_stalled` where it does not answer."""

    def check_all(
        self, orders: tuple[VerifyOrder, ...], directory: str, parallel: int, watch: Callable[[], None], told: Told
    ) -> dict[str, Verified]:
        """Read each, and go on where one is not as it must be: `problem` says so then; by file. `watch` is called now
        and then; it raises to stop them all."""


def parse_sums(data: bytes) -> dict[str, str]:
    """The digests by file, as sha256sum(1) writes them; ValueError where it is nothing like it."""
    if data and not data.endswith(b"\n"):
        raise ValueError("its last line is cut off")
    found = {}
    for line in data.decode("utf-8", "surrogateescape").split("\n")[:-1]:
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError("a line of it is no SHA-256 and no name of a file")
        escaped, digest, name = match.groups()
        found[_unescaped(name) if escaped else name] = digest
    return found


def _unescaped(name: str) -> str:
    return re.sub(r"\\.", lambda part: _ESCAPES.get(str(part.group()), str(part.group())), name)


def plan_check(opened: OpenSet, rate_limit: int = 0) -> tuple[tuple[VerifyOrder, ...], tuple[str, ...]]:
    """What is to be read of a set, and what is wrong with it without that, but for what its state says. Files that are
    missing or have another length are not read. `rate_limit` is bytes/s of each file."""
    said = opened.found.manifest
    if said is None:
        return (), ()
    problems: list[str] = []
    sums: dict[str, str] | None = None
    try:
        sums = None if opened.sums is None else parse_sums(opened.sums)
    except ValueError as error:
        problems.append("Its SHA256SUMS cannot be used: %s" % error)
    lost = lost_files(said, opened.files)
    orders = [order for order in _orders(said, sums or {}, rate_limit) if order.file not in lost]
    if sums is not None:
        problems += filter(None, (_why_not_summed(order, sums) for order in orders))
    if said["domain_xml"] not in lost:
        problems += _xml_problems(said, opened.domain_xml)
    return tuple(orders), tuple(problems)


def _why_not_summed(order: VerifyOrder, sums: Mapping[str, str]) -> str:
    if order.file not in sums:
        return "SHA256SUMS has no line for %s" % order.file
    if order.sha256 != sums[order.file]:
        return "SHA256SUMS and %s tell different SHA-256 of %s" % (MANIFEST, order.file)
    return ""


def _orders(manifest: Mapping[str, Any], sums: Mapping[str, str], rate_limit: int) -> list[VerifyOrder]:
    """Each file once: earlier releases had the NVRAM beside the list of extras."""
    orders: dict[str, VerifyOrder] = {}
    for disk in manifest["disks"]:
        backing = disk["backing"]
        orders[disk["file"]] = VerifyOrder(
            disk["file"],
            disk["bytes"],
            disk["target"],
            disk["format"],
            sha256=disk["sha256"],
            virtual_size=disk["virtual_size"],
            backing=None if backing is None else Layer(backing["path"], backing["format"]),
            rate_limit=rate_limit,
        )
    nvram = [manifest["nvram"]] if manifest["nvram"] else []
    for extra in (*nvram, *manifest.get("extras", ())):
        orders[extra["file"]] = VerifyOrder(extra["file"], extra["bytes"], sha256=extra["sha256"])
    for name in (manifest["domain_xml"], MANIFEST):
        orders[name] = VerifyOrder(name, sha256=sums.get(name))
    return list(orders.values())


def _xml_problems(manifest: Mapping[str, Any], data: bytes | None) -> list[str]:
    name, wanted = manifest["domain_xml"], manifest["domain"]["uuid"]
    if data is None:
        return ["%s is no file that can be read" % name]
    try:
        uuid = xml.parse_domain(data.decode("utf-8", "replace"), None).uuid
    except xml.BadXml as error:
        return ["%s cannot be read: %s" % (name, error.why)]
    return [] if uuid == wanted else ["%s is of the domain with the UUID %s instead of %s" % (name, uuid, wanted)]
