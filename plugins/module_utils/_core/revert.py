# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Private to virtops.libvirt: what going back to a snapshot has to do, decided without any effect."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace

from .errors import VirtopsError
from .internal import Inside, version_words
from .journal import Journal, JournalDisk, Operation
from .model import DomainView, Layer, SnapshotRecord
from .refusals import image_shared, refuse_jobs
from .snapshot import is_in_chain

#: How the guest is afterwards: as it was at the snapshot, or in any case so.
RUN_STATES = ("snapshot", "running", "paused")
#: The libvirt that starts a guest that runs anew at a snapshot of its being off, without being told to force it.
_RESPAWN_SINCE = 9_000_000
#: The libvirt that can put fresh UEFI variables in place (virConnectGetLibVersion).
_RESET_NVRAM_SINCE = 8_001_000


@dataclass(frozen=True)
class RevertOptions:
    """What the user asked for; without a `name` the current snapshot is meant."""

    name: str | None = None
    run_state: str = "snapshot"
    force: bool = False
    reset_nvram: bool = False


def state_after(options: RevertOptions, record: SnapshotRecord) -> str:
    """The domain's state after the revert, in the words of `virsh domstate`."""
    if options.run_state != "snapshot":
        return options.run_state
    return {"running": "running", "paused": "paused"}.get(record.state, "shut off")


def refuse_revert(
    options: RevertOptions,
    record: SnapshotRecord,
    view: DomainView,
    libvirt_version: int,
) -> None:
    """What holds for each kind of snapshot."""
    refuse_jobs(view)
    if not view.persistent and state_after(options, record) == "shut off":
        raise VirtopsError(
            "run_state_needed",
            "Domain %s is transient, and snapshot %r would leave it off, so that it would be gone."
            % (view.name, record.name),
            "Set run_state: running or paused",
        )
    if options.reset_nvram and libvirt_version < _RESET_NVRAM_SINCE:
        raise VirtopsError(
            "unsupported",
            "libvirt %s cannot reset the UEFI variables of a guest (8.1.0 does)." % version_words(libvirt_version),
            "Leave out reset_nvram, or remove the variables' file while the guest is off",
        )
    respawns = view.active and options.run_state != "snapshot" and record.state == "shutoff" and not record.external
    if respawns and not options.force and libvirt_version < _RESPAWN_SINCE:
        raise VirtopsError(
            "revert_risky",
            "Domain %s runs, and was off at snapshot %r, so that libvirt %s would have to start a new QEMU."
            % (view.name, record.name, version_words(libvirt_version)),
            "Set force: true if its consoles may be cut off, or shut it down first",
        )


def refuse_internal(
    record: SnapshotRecord,
    saved: Mapping[str, Layer],
    view: DomainView,
    inside: Inside,
    others: Container[str],
) -> None:
    """The data have to be there, and nothing else may stand on the images that they are written back into.

    `saved` is what the disks wrote to at the snapshot; libvirt puts those images back into the definition.
    """
    for target in [disk.target for disk in record.disks if disk.mode == "internal"]:
        layer = saved.get(target)
        if layer is None:
            continue  # a volume of a pool, which libvirt finds by itself
        if record.name not in inside.get(layer.path, ()):
            raise VirtopsError(
                "snapshot_stale",
                "The image %s of disk %s has no snapshot %r inside, or is gone." % (layer.path, target, record.name),
                "Bring the image back; or delete the record with virtops.libvirt.snapshot_metadata and state: absent",
            )
        if layer.path in others:
            raise image_shared(layer.path, target)
        _refuse_other_chain(record, target, layer, view)


def _refuse_other_chain(record: SnapshotRecord, target: str, layer: Layer, view: DomainView) -> None:
    disk = view.disk(target)
    if disk is None or disk.active is None or disk.active.path == layer.path:
        return
    if disk.index_of(layer.path) is not None:
        raise VirtopsError(
            "layers_above",
            "The data of snapshot %r are in %s, and disk %s of domain %s has layers above that image: going back would "
            "write below them." % (record.name, layer.path, target, view.name),
            "Merge those layers first, with virtops.libvirt.snapshot_external and state: absent, or "
            "virtops.libvirt.block_commit",
        )
    raise VirtopsError(
        "chain_changed",
        "Disk %s of domain %s stands on %s now, and at snapshot %r it stood on %s, which is not in its chain."
        % (target, view.name, disk.active.path, record.name, layer.path),
        "If nothing wrote to that image and to those below it since, shut the domain off and put it back as the disk's "
        "source ('virsh edit'); a merge has written to them",
    )


def journal_after(
    before: Journal, at_snapshot: Journal, view: DomainView, records: frozenset[str] = frozenset()
) -> Journal:
    """The journal that is true after a revert.

    libvirt restores the definition of the snapshot's moment, and the journal in it: what was under way then is over,
    and what was kept since may be unknown to it. `view` is the domain after the revert. Only snapshots whose layers are
    in its chains stay. One of the snapshot's moment may have been deleted since: it stays where it is among `records`,
    or where the very layer that it added is there.
    """
    past = [op for op in at_snapshot.operations if op.name in records or _is_there(op, view)]
    known = {op.id: op for op in (*past, *before.operations) if not op.open}
    found = (_rejoined(op, view) for op in known.values())
    return Journal(tuple(op for op in found if op is not None), merged=before.merged)


def _rejoined(operation: Operation, view: DomainView) -> Operation | None:
    """The operation with the layers that stand on its bases now; None where there are none."""
    disks = tuple(disk for disk in (_rejoined_disk(disk, view) for disk in operation.disks) if disk is not None)
    return replace(operation, disks=disks) if disks else None


def _is_there(operation: Operation, view: DomainView) -> bool:
    return any(is_in_chain(view, disk.target, disk.overlay) for disk in operation.disks)


def _rejoined_disk(disk: JournalDisk, view: DomainView) -> JournalDisk | None:
    found = view.disk(disk.target)
    below = None if found is None else found.below(disk.overlay)
    if below is not None and below.path != disk.base:  # what it stood on was merged since
        return replace(disk, base=below.path, base_format=below.format, identity=None)
    if is_in_chain(view, disk.target, disk.overlay):
        return disk
    depth = None if found is None else found.index_of(disk.base)
    if found is None or not depth:  # not in the chain, or nothing stands on it
        return None
    return replace(disk, overlay=found.chain[depth - 1].path)
