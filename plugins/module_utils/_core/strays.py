# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: what a live backup left whose journal is gone, known by the names that only we give.

Somebody removed the domain's metadata, or defined an older XML. A layer in the chain, or a record, of a live backup is
then as open as with a journal, but for its backup: nothing tells what its base was. A file alone may hold the newest
data of a guest that was started from older XML, or what was merged by hand long ago: a human has to look.
"""

from __future__ import annotations

import re
import shlex
import uuid
from collections.abc import Iterable
from dataclasses import replace

from .journal import CREATED, Journal, JournalDisk, Operation, stamp_of
from .model import DomainView, SnapshotRecord
from .snapshot import is_overlay_name

#: The workflow, and what its role calls its snapshots where nobody gives another name.
WORKFLOW = "live_backup"
PREFIX = "live-backup-"

_STAMP = re.compile(r"\d{8}T\d{6}Z")


def is_stray_name(name: str) -> bool:
    """Is it a snapshot's that a live backup gives, and nobody keeps?"""
    return name.startswith(PREFIX)


def snapshot_of(path: str, domain: str, target: str) -> str | None:
    """The live backup whose overlay of this disk the file is by its name."""
    name = path.rpartition("/")[2]
    snapshot = name[len("%s.%s." % (domain, target)) : -len(".qcow2")]
    return snapshot if is_overlay_name(name, domain, target) and is_stray_name(snapshot) else None


def left_words(path: str, target: str, domain: str) -> tuple[str, str]:
    """Cause and remedy of such a file that holds data."""
    return (
        "An old overlay lies beside the disk %s of %s, and it is not known whether its data were merged: %s."
        % (target, domain, path),
        "If you know that they were merged, by you or by a run that kept the file, move it away: 'mv %s FOLDER', to a "
        "folder without images of the guest. If you are not sure, delete neither file, shut the guest down, copy both "
        "files, and read 'An overlay that no chain knows' in the recovery guide" % shlex.quote(path),
    )


def strays(view: DomainView, records: Iterable[SnapshotRecord], journal: Journal) -> tuple[Operation, ...]:
    """Operations as a journal would have them, the topmost first, for the layers and records that none has.

    `view` has the whole chains, else a base may be missing. A layer on which nothing else is left, as after a pull, has
    nothing to be merged into.
    """
    known = {op.name for op in journal.operations}
    found: dict[str, dict[str, JournalDisk]] = {}
    depths: dict[str, int] = {}
    times: dict[str, int] = {}
    for disk in view.disks:
        for depth, layer in enumerate(disk.chain):
            name, below = snapshot_of(layer.path, view.name, disk.target), disk.below(layer.path)
            if name is not None and below is not None and layer.path not in journal.overlays():
                noted = JournalDisk(disk.target, below.path, below.format, layer.path)
                found.setdefault(name, {}).setdefault(disk.target, noted)
                depths[name] = min(depth, depths.get(name, depth))
    for record in records:
        if record.name in known or not record.external or not is_stray_name(record.name):
            continue
        times[record.name] = record.creation_time
        for made in record.disks:
            noted_disk = _of_record(made.target, made.file, view) if made.mode == "external" else None
            if noted_disk is not None and noted_disk.overlay not in journal.overlays():
                found.setdefault(record.name, {})[made.target] = noted_disk
    names = sorted(found, key=lambda name: (depths.get(name, len(depths)), name))
    return tuple(_operation(name, view, found[name], times.get(name, 0)) for name in names)


def _of_record(target: str, overlay: str | None, view: DomainView) -> JournalDisk | None:
    disk = view.disk(target)
    if overlay is None:
        return None
    below = None if disk is None else disk.below(overlay)
    if below is not None:
        return JournalDisk(target, below.path, below.format, overlay)
    if disk is not None and disk.index_of(overlay) is not None:
        return None
    return JournalDisk(target, "", "", overlay)


def _operation(name: str, view: DomainView, disks: dict[str, JournalDisk], created: int) -> Operation:
    """By its name each run finds the same one."""
    stamp = _STAMP.search(name)
    identifier = str(uuid.uuid5(uuid.NAMESPACE_OID, "%s %s" % (view.uuid, name)))
    started = stamp[0] if stamp is not None else stamp_of(created)
    return Operation(identifier, WORKFLOW, name, CREATED, started, tuple(disks.values()))


def with_strays(journal: Journal, found: Iterable[Operation]) -> Journal:
    """The journal as it should be."""
    return replace(journal, operations=(*journal.operations, *found))
