# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the flow of snapshot_info. It reads each record once, and changes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .._core import xml
from .._core.errors import VirtopsError
from .._core.journal import KEPT, Journal, Operation, epoch
from .._core.model import Outcome, SnapshotDisk, SnapshotRecord
from .._core.ports import SnapshotInfoPort
from .._core.snapshot_tree import Filters, children_of, selected, tree_data, tree_text


@dataclass(frozen=True)
class SnapshotInfoOptions:
    """`xml`: each snapshot's XML as well, with `security_info` passwords and the like in it."""

    filters: Filters = field(default_factory=Filters)
    xml: bool = False
    security_info: bool = False


def snapshots(options: SnapshotInfoOptions, domain: SnapshotInfoPort) -> Outcome:
    """Those that pass the filters, parents first; their tree, in words and as data; and which one is current."""
    texts = domain.snapshot_xmls(options.security_info)
    records = tuple(xml.parse_record(text) for text in texts)
    if options.filters.start is not None and options.filters.start not in {record.name for record in records}:
        raise VirtopsError(
            "no_such_snapshot",
            "The domain has no snapshot %r." % options.filters.start,
            "virtops.libvirt.snapshot_info without from lists them",
        )
    current = domain.current_snapshot() if records else None
    known = {record.name for record in records}
    everything = records + tuple(record for record in unrecorded(domain.view().journal) if record.name not in known)
    chosen = selected(everything, current, options.filters)
    children = children_of(everything)
    by_name = dict(zip((record.name for record in records), texts))
    told = [describe_snapshot(record, children[record.name], record.name == current) for record in chosen]
    if options.xml:
        told = [{**one, "xml": by_name.get(one["name"])} for one in told]
    values: dict[str, object] = {
        "snapshots": told,
        "current": current,
        "tree": tree_text(chosen),
        "tree_data": tree_data(chosen),
    }
    return Outcome(values=values)


def unrecorded(journal: Journal) -> tuple[SnapshotRecord, ...]:
    """The snapshots that the journal knows. Of those that were taken without a record nothing else does."""
    return tuple(_as_record(operation) for operation in journal.operations if operation.kind == KEPT)


def _as_record(operation: Operation) -> SnapshotRecord:
    """libvirt's record of one with memory has the state of the guest: that of a guest which was paused before is not in
    the journal."""
    without_memory = "shutoff" if operation.consistency == "offline" else "disk-snapshot"
    return SnapshotRecord(
        name=operation.name,
        state=without_memory if operation.memory is None else "running",
        creation_time=epoch(operation.started),
        disks=tuple(SnapshotDisk(disk.target, "external", disk.overlay, "qcow2") for disk in operation.disks),
        memory="no" if operation.memory is None else "external",
        memory_file=operation.memory,
        metadata=False,
    )


def describe_snapshot(record: SnapshotRecord, children: list[str], current: bool) -> dict[str, Any]:
    """A snapshot as results show it; `creation_time` in seconds since 1970."""
    return {
        "name": record.name,
        "description": record.description,
        "parent": record.parent,
        "children": children,
        "creation_time": record.creation_time,
        "state": record.state,
        "kind": "external" if record.external else "internal",
        "memory": {"snapshot": record.memory, "file": record.memory_file},
        "disks": [
            {"name": disk.target, "snapshot": disk.mode, "file": disk.file, "format": disk.format}
            for disk in record.disks
        ],
        "current": current,
        "metadata": record.metadata,
    }
