# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Private to virtops.libvirt: going back to an external snapshot by hand, decided without any effect.

The snapshot's images are never written: each disk gets a new overlay on the image that it wrote to at that moment.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace

from .errors import VirtopsError
from .journal import CREATED, PREPARED, REVERT, Journal, JournalDisk, Operation
from .model import Disk, DomainView, FileIdentity, Layer, SnapshotRecord
from .revert import journal_after
from .snapshot import overlay_path, why_not_snapshotable
from .text import command

#: How long after a snapshot's time its image may have been written last: QEMU closes it then.
_GRACE_SECONDS = 60


@dataclass(frozen=True)
class NewLayer:
    """A disk that goes back: `chain` is the snapshot's image with what is below, `old` what the disk writes to now."""

    target: str
    overlay: str
    chain: tuple[Layer, ...]
    old: tuple[Layer, ...]

    @property
    def base(self) -> Layer:
        return self.chain[0]

    @property
    def discarded(self) -> str | None:
        """The layer that the snapshot added, where nothing else came between: nobody can want it any more."""
        if len(self.old) > 1 and self.old[1].path == self.base.path:
            return self.old[0].path
        return None


def interrupted(record: SnapshotRecord, journal: Journal) -> Operation | None:
    """What an earlier run of the same task left: PREPARED, no disk was switched; CREATED, old layers may be left."""
    return journal.find(REVERT, record.name)


def why_not_by_libvirt(
    record: SnapshotRecord,
    current: SnapshotRecord | None,
    saved: Sequence[Sequence[Disk]],
    view: DomainView,
    users: Mapping[str, Container[str]],
    is_file: Callable[[str], bool],
) -> str | None:
    """Why a libvirt that goes back to external snapshots must not be asked to, as a clause; None where it may.

    Seen with 11.3 (qemuSnapshotRevertExternalPrepare, qemuSnapshotRevertExternalFinish): it turns the guest off, makes
    an overlay for each disk of the record's definitions that is not empty, and then deletes the files of the *current*
    record, whoever needs them. Without a current record it crashes. `saved` are the disks of those definitions, `users`
    the images that others need, by who they are.
    """
    now = (view.disks, view.config_disks) if view.persistent else (view.disks,)
    for disks in (*now, *saved):
        amiss = _why_no_overlays(record, [disk for disk in disks if not disk.empty], is_file)
        if amiss is not None:
            return amiss
    folders = (os.path.dirname(disk.active.path) for disks in saved for disk in disks if disk.active is not None)
    if any("," in folder for folder in folders):  # it doubles each comma in the names of overlays
        return "libvirt makes no overlays in a folder with a comma in its name"
    if current is None:
        return "there is no current snapshot, without which libvirt fails halfway"
    files = {disk.target: disk.file for disk in current.disks if disk.mode == "external"}
    if any(files != {disk.target: disk.active.path for disk in disks if disk.active is not None} for disks in now):
        return "libvirt would delete the files of the current snapshot %r, and the disks write to others" % current.name
    needed_by = [(path, who) for who, paths in users.items() for path in files.values() if path in paths]
    return "libvirt would delete %s, which %s needs" % needed_by[0] if needed_by else None


def _why_no_overlays(record: SnapshotRecord, disks: Sequence[Disk], is_file: Callable[[str], bool]) -> str | None:
    """It makes overlays for all of these disks, also for those that the snapshot left out, and beside files only."""
    targets = {disk.target for disk in record.disks if disk.mode == "external"}
    others = sorted(targets ^ {disk.target for disk in disks})
    if others:
        return "libvirt reverts all disks, but the disks of snapshot %r are others (not the same: %s)" % (
            record.name,
            ", ".join(others),
        )
    for disk in disks:
        fits = why_not_snapshotable(disk) is None and disk.source_type == "file"
        if not fits or disk.active is None or not is_file(disk.active.path):
            return "libvirt makes overlays beside regular files only, and disk %s is none" % disk.target
    return None


def base_of(record: SnapshotRecord, target: str, saved: Mapping[str, Layer], view: DomainView) -> Layer:
    """The image of the snapshot's moment, or why there is none to go back to."""
    disk, layer = view.disk(target), saved.get(target)
    if disk is None or disk.active is None or layer is None:
        raise VirtopsError(
            "chain_changed",
            "Snapshot %r has the disk %s, and domain %s has no such disk on an image of this host now."
            % (record.name, target, view.name),
            "Attach the disk as it was, then run the task again",
        )
    if disk.active.path == layer.path:
        raise base_modified(record, target, layer)
    return layer


def memory_file(record: SnapshotRecord) -> str | None:
    """Where the guest's memory of that moment is; None of a disk-only snapshot."""
    return record.memory_file if record.memory == "external" else None


def check_untouched(
    record: SnapshotRecord,
    target: str,
    layer: Layer,
    identity: FileIdentity,
    journal: Journal,
    memory: FileIdentity | None = None,
) -> None:
    """The image has to be what it was at the snapshot. The journal knows; else its last write tells.

    `memory` is the memory image's: the disks are switched when that is written, which may take long.
    """
    operation = journal.of_snapshot(record.name)
    known = None if operation is None else operation.disk(target)
    if known is not None and known.identity is not None and known.base == layer.path:
        if known.identity != identity:
            raise _changed(record, target, layer, "expected %s, found %s" % (_told(known.identity), _told(identity)))
        return
    moment = max(record.creation_time * 10**9, 0 if memory is None else memory.mtime_ns)
    if not identity.device and identity.mtime_ns > moment + _GRACE_SECONDS * 10**9:
        raise _changed(record, target, layer, "its last write is later than the snapshot")


def _told(identity: FileIdentity) -> str:
    if identity.device:
        return "the device %r of %d bytes" % (identity.device, identity.size)
    return "inode %d, %d bytes, written at %d ns" % (identity.inode, identity.size, identity.mtime_ns)


def _changed(record: SnapshotRecord, target: str, layer: Layer, why: str) -> VirtopsError:
    """Not for certain gone: a copy or a restore of the file changes these, too."""
    return VirtopsError(
        "base_modified",
        "The image %s of disk %s is not what it was at snapshot %r (%s): after a merge into it, its state of that "
        "moment is gone." % (layer.path, target, record.name, why),
        "Find out what changed the image, and until then delete neither the image nor its record. If it was only "
        "copied to another storage, its state is good: put an overlay of your own on it (%s), and name that in 'virsh "
        "edit' while the domain is off"
        % command("qemu-img", "create", "-f", "qcow2", "-F", layer.format, "-b", layer.path, "NEW"),
    )


def base_modified(record: SnapshotRecord, target: str, layer: Layer) -> VirtopsError:
    return VirtopsError(
        "base_modified",
        "The image %s of disk %s was written to after snapshot %r, as by a merge: its state of that moment is gone."
        % (layer.path, target, record.name),
        "Delete the record with virtops.libvirt.snapshot_metadata and state: absent",
    )


def new_overlay(record: SnapshotRecord, disk: Disk, view: DomainView, exists: Callable[[str], bool]) -> str:
    """Where the snapshot's overlay is, under the first name that is free: check mode has to find the same one."""
    saved = next((found.file for found in record.disks if found.target == disk.target), None)
    directory = os.path.dirname(saved or disk.chain[0].path)
    number = 1
    while True:
        path = overlay_path(directory, view.name, disk.target, "%s.revert-%d" % (record.name, number))
        if not exists(path):
            return path
        number += 1


def view_after(layers: Sequence[NewLayer], view: DomainView) -> DomainView:
    """The domain as it will be: off, on the new overlays."""
    chains = {layer.target: (Layer(layer.overlay, "qcow2"), *layer.chain) for layer in layers}
    disks = tuple(replace(disk, chain=chains.get(disk.target, disk.chain), job=None) for disk in view.disks)
    return replace(view, state="shut off", disks=disks)


def prepared(record: SnapshotRecord, layers: Sequence[NewLayer], identifier: str, started: str) -> Operation:
    disks = tuple(JournalDisk(one.target, one.base.path, one.base.format, one.overlay) for one in layers)
    return Operation(identifier, REVERT, record.name, PREPARED, started, disks)


def switched(operation: Operation, layers: Sequence[NewLayer], gone: Sequence[str]) -> Operation:
    """The same once the disks are on the new overlays: what is left to do is to remove the old ones."""
    disks = tuple(
        JournalDisk(one.target, one.base.path, one.base.format, one.discarded)
        for one in layers
        if one.discarded is not None and one.discarded in gone
    )
    return replace(operation, phase=CREATED, disks=disks)


def settled(journal: Journal, layers: Sequence[NewLayer], view: DomainView) -> Journal:
    """The journal that is true once the disks are on the new overlays."""
    return journal_after(journal, Journal(), view_after(layers, view))


def needed(path: str, name: str, records: Mapping[str, frozenset[str]], journal: Journal) -> bool:
    """Does another snapshot stand on this layer? `records` are the images that each record names."""
    return any(path in paths for other, paths in records.items() if other != name) or any(
        path in (disk.overlay, disk.base) for operation in journal.operations for disk in operation.disks
    )
