# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the records of a domain's snapshots as a tree, and the filters of `virsh snapshot-list`.

The filters are libvirt's (virDomainListAllSnapshots): those of one group are joined by "or", the groups by "and". They
are applied here and not by libvirt, because children are known only when all records are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .model import SnapshotRecord

#: What becomes of a snapshot's descendants: virsh's plain delete, --children and --children-only.
CHILDREN = ("keep", "delete", "only")
#: Levels of a tree that is drawn.
DEEPEST = 100


@dataclass(frozen=True)
class Filters:
    """What to list; all unset: everything. `start` is the snapshot whose children are listed."""

    name: str | None = None
    current: bool = False
    roots: bool = False
    leaves: bool = False
    has_children: bool = False
    metadata: bool | None = None
    active: bool = False
    inactive: bool = False
    disk_only: bool = False
    internal: bool = False
    external: bool = False
    start: str | None = None
    descendants: bool = False


def children_of(records: Sequence[SnapshotRecord]) -> dict[str, list[str]]:
    """The names of each snapshot's children, in the order of the records."""
    found: dict[str, list[str]] = {record.name: [] for record in records}
    for record in records:
        if record.parent is not None and record.parent in found:
            found[record.parent].append(record.name)
    return found


def family_of(name: str, records: Sequence[SnapshotRecord]) -> frozenset[str]:
    """The snapshot's descendants; not itself."""
    children = children_of(records)
    found: set[str] = set()
    waiting = list(children.get(name, ()))
    while waiting:
        one = waiting.pop()
        found.add(one)
        waiting += children[one]
    return frozenset(found)


def doomed_by(name: str, children: str, records: Sequence[SnapshotRecord]) -> tuple[SnapshotRecord, ...]:
    """Those that go where this one is deleted; `children` is one of CHILDREN."""
    family = family_of(name, records)
    doomed = {"keep": {name}, "delete": family | {name}, "only": family}[children]
    return tuple(record for record in records if record.name in doomed)


def selected(records: Sequence[SnapshotRecord], current: str | None, filters: Filters) -> tuple[SnapshotRecord, ...]:
    """The records that pass every filter, in their order."""
    children = children_of(records)
    among = None if filters.start is None else _started(filters, records, children)
    return tuple(
        record
        for record in records
        if (among is None or record.name in among)
        and (filters.name is None or record.name == filters.name)
        and (not filters.current or record.name == current)
        and (not filters.roots or record.parent is None)
        and not (filters.leaves and children[record.name])
        and not (filters.has_children and not children[record.name])
        and (filters.metadata is None or filters.metadata == record.metadata)
        and _has_state(record, filters)
        and _one_of((filters.internal, not record.external), (filters.external, record.external))
    )


def _started(filters: Filters, records: Sequence[SnapshotRecord], children: dict[str, list[str]]) -> frozenset[str]:
    name = filters.start or ""
    return family_of(name, records) if filters.descendants else frozenset(children.get(name, ()))


def _has_state(record: SnapshotRecord, filters: Filters) -> bool:
    """libvirt's states of a record: shutoff, disk-snapshot (of a running guest's disks alone), or a running guest's."""
    off, disk_only = record.state == "shutoff", record.state == "disk-snapshot"
    return _one_of((filters.inactive, off), (filters.disk_only, disk_only), (filters.active, not off and not disk_only))


def _one_of(*choices: tuple[bool, bool]) -> bool:
    """Each choice: was it asked for, and is it so? Where none was asked for, everything passes."""
    return not any(asked for asked, _unused in choices) or any(asked and is_so for asked, is_so in choices)


def tree_data(records: Sequence[SnapshotRecord]) -> list[dict[str, object]]:
    """Name and depth, in the order of the drawing. One whose parent is not among them is a root, of depth 0.

    Flat: a guest may have a thousand snapshots each below the other, and no JSON is nested so deep.
    """
    siblings = _by_name(records)
    children = children_of(siblings)
    found: list[dict[str, object]] = []
    waiting = [(record.name, 0) for record in reversed(siblings) if record.parent not in children]
    while waiting:
        name, depth = waiting.pop()
        found.append({"name": name, "depth": depth})
        waiting += [(child, depth + 1) for child in reversed(children[name])]
    return found


def _by_name(records: Sequence[SnapshotRecord]) -> list[SnapshotRecord]:
    """In the order of virsh (strcasecmp), which sorts what libvirt lists: libvirt has siblings in no lasting order."""
    return sorted(records, key=lambda record: record.name.encode("utf-8", "surrogateescape").lower())


def tree_text(records: Sequence[SnapshotRecord]) -> str | None:
    """As `virsh snapshot-list --tree` draws it, without its blanks at the ends of lines.

    None where it is too deep: each level indents all that is below it.
    """
    if any(int(str(node["depth"])) > DEEPEST for node in tree_data(records)):
        return None
    siblings = _by_name(records)
    children = children_of(siblings)
    lines: list[str] = []
    for record in siblings:
        if record.parent not in children:
            lines += _drawn(record.name, children, "", is_root=True, is_last=True)
    return "\n".join(line.rstrip() for line in lines)


def _drawn(name: str, children: dict[str, list[str]], indent: str, is_root: bool, is_last: bool) -> list[str]:
    lines = [indent + ("" if is_root else "+- ") + name]
    below = indent + ("" if is_root else ("  " if is_last else "| ")) + "  "
    if children[name]:
        lines.append(below + "|")
    elif is_last:
        lines.append(below[:-2])
    for child in children[name]:
        lines += _drawn(child, children, below, is_root=False, is_last=child == children[name][-1])
    return lines
