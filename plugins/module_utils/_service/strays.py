# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: looking for what a live backup left whose journal is gone."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterable
from dataclasses import replace

from .._core.errors import VirtopsError
from .._core.journal import CREATED, PREPARED, Journal, JournalDisk, Operation
from .._core.model import Disk, DomainView, Layer, SnapshotRecord, is_local
from .._core.ports import ImagePort
from .._core.strays import WORKFLOW, left_words, snapshot_of, strays
from .observe import FileSet
from .overlays import kept_for_others

Records = Callable[[], Iterable[SnapshotRecord]]
#: Those of the domain with this UUID.
GuestRecords = Callable[[str], Iterable[SnapshotRecord]]


def with_bases(view: DomainView, images: ImagePort) -> DomainView:
    """The base of each layer that a live backup may have left: the definition of a guest that is off shows none, and to
    read all its chains takes long."""
    return view.with_disks(tuple(_with_base(view.name, disk, images) for disk in view.disks))


def _with_base(domain: str, disk: Disk, images: ImagePort) -> Disk:
    if disk.active is None or len(disk.chain) > 1 or snapshot_of(disk.active.path, domain, disk.target) is None:
        return disk
    base = images.signature(disk.active.path).backing
    return disk if base is None else replace(disk, chain=(disk.active, Layer(base, "")))


def lost_operations(view: DomainView, journal: Journal, records: Records) -> tuple[Operation, ...]:
    """What stands in the chains, or has a record. Who does not hold the domain's lock may look while a run begins: a
    record counts that was there before, and still is after, the reading in which its journal is not.

    While libvirt works at a snapshot with memory it lists no records (9.0: "name in virGetDomainSnapshot must not be
    NULL"), so where one may be under way nothing is looked for: what is lost is seen once that has ended.
    """
    if any(operation.open and operation.phase == PREPARED for operation in journal.operations):
        return ()
    found = strays(view, records(), journal)
    return found and strays(view, records(), journal)


def lost_files(
    view: DomainView, journal: Journal, images: ImagePort, others: Callable[[], Container[str]]
) -> tuple[Operation, ...]:
    """Overlays that hold data, stand on an image of the disk, and are in no chain and no journal.

    `others` are the images of the host's other domains: one of them may be called so.
    """
    found = []
    own = FileSet((layer.path for disk in view.disks + view.config_disks for layer in disk.chain), images)
    for disk in view.disks:
        chain = FileSet((layer.path for layer in disk.chain), images)
        for folder in sorted({os.path.dirname(layer.path) for layer in disk.chain if is_local(layer.path)}):
            for path in (os.path.join(folder, name) for name in images.names(folder)):
                name = snapshot_of(path, view.name, disk.target)
                if name is None or path in journal.overlays() or path in own:
                    continue
                if kept_for_others(path, journal, images):
                    continue
                base = images.signature(path).backing
                if base is not None and base in chain and images.holds_data(path) and path not in others():
                    noted = JournalDisk(disk.target, base, "", path)
                    found.append(Operation(path, WORKFLOW, name, CREATED, "", (noted,)))
    return tuple(found)


def left_behind(operation: Operation, view: DomainView) -> VirtopsError:
    """The refusal where there is such a file."""
    disk = operation.disks[0]
    return VirtopsError("overlay_in_use", *left_words(disk.overlay, disk.target, view.name))
