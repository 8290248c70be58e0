# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Private to virtops.libvirt: what an internal snapshot has to do, decided without any effect.

Its data lie inside of the qcow2 images that the guest writes to. libvirt takes all disks or none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .errors import VirtopsError
from .journal import Journal
from .model import Disk, DomainView, SnapshotDisk, SnapshotRecord, is_local
from .names import check_job_name, check_record_name
from .refusals import marked_words, refuse_jobs, refuse_open, why_no_image

#: The libvirt that takes an internal snapshot of a guest with its firmware in flash (virConnectGetLibVersion).
_PFLASH_SINCE = 10_009_000

#: The names of the snapshots inside of an image, by its path.
Inside = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class InternalOptions:
    """What the user asked for. `halt`: the guest is off when the snapshot was taken."""

    name: str
    description: str | None = None
    halt: bool = False


@dataclass(frozen=True)
class InternalPlan:
    """`found`: it is there already. `disks` has every disk of the domain, as the request names them."""

    disks: tuple[SnapshotDisk, ...]
    memory: bool
    halt: bool
    found: bool = False


def plan_internal(
    options: InternalOptions,
    view: DomainView,
    record: SnapshotRecord | None,
    journal: Journal,
    inside: Inside,
    libvirt_version: int,
) -> InternalPlan:
    """Decide what to do, or refuse."""
    refuse_open(view, journal)
    if record is not None:
        return _plan_found(options, view, record, inside)
    check_record_name(options.name)
    if view.active:
        check_job_name(options.name, libvirt_version)
    plan = InternalPlan(_every_disk(view), view.active, options.halt and view.active)
    refuse_jobs(view)
    if plan.halt and not view.persistent:
        raise VirtopsError(
            "transient_domain",
            "Domain %s is transient: turned off, it would be gone, and its snapshot with it." % view.name,
            "Make it persistent ('virsh define'), or leave out halt",
        )
    _refuse_flash(view, libvirt_version)
    taken = leftovers(options.name, view, inside)
    if taken:
        raise VirtopsError(
            "snapshot_data_exists",
            "The image %s has a snapshot %r inside that libvirt has no record of." % (taken[0], options.name),
            "Choose another name; or delete those data with virtops.libvirt.snapshot_internal and state: absent",
        )
    return plan


def _plan_found(options: InternalOptions, view: DomainView, record: SnapshotRecord, inside: Inside) -> InternalPlan:
    made = {disk.target for disk in record.disks if disk.mode == "internal"}
    wanted = {disk.target for disk in view.disks if not has_no_state(disk)}
    if record.external:
        raise VirtopsError(
            "snapshot_differs",
            "Domain %s has a snapshot %r already, and it is external (memory: %s, disks: %s)."
            % (view.name, record.name, record.memory, ", ".join("%s %s" % (d.target, d.mode) for d in record.disks)),
            "Choose another name, or delete that one with virtops.libvirt.snapshot_external and state: absent",
        )
    if wanted != made:
        raise VirtopsError(
            "snapshot_differs",
            "Snapshot %r exists with the disks %s, but domain %s has %s."
            % (record.name, _words(made), view.name, _words(wanted)),
            "Choose another name, or delete that snapshot first",
        )
    _refuse_lost(view, record, inside)
    if options.halt and view.active:
        raise VirtopsError(
            "guest_running",
            "Snapshot %r exists already, and domain %s is %s: it went on or was started after that."
            % (record.name, view.name, view.state),
            "Shut it down (its present memory is in no snapshot), leave out halt, or choose another name",
        )
    return InternalPlan(record.disks, record.memory != "no", False, found=True)


def _refuse_lost(view: DomainView, record: SnapshotRecord, inside: Inside) -> None:
    """A record whose data went with an older image, put back by hand, is no way back. Of an image that is not on this
    host nothing is known."""
    for disk in view.disks:
        known = not has_no_state(disk) and all(is_local(layer.path) for layer in disk.chain)
        if known and disk.chain and not any(record.name in inside.get(layer.path, ()) for layer in disk.chain):
            raise VirtopsError(
                "snapshot_stale",
                "Snapshot %r is on record, but no image of disk %s of domain %s has it inside (%s)."
                % (record.name, disk.target, view.name, ", ".join(layer.path for layer in disk.chain)),
                "Bring back the image that has it; or delete the record with virtops.libvirt.snapshot_metadata and "
                "state: absent, then run the task again",
            )


def plan_deletion(
    name: str,
    doomed: Sequence[SnapshotRecord],
    record: SnapshotRecord | None,
    view: DomainView,
    inside: Inside,
    libvirt_version: int,
) -> None:
    """Refuse what libvirt would refuse, or would do by half. Without a record, data of that name are what is doomed."""
    for found in {one.name: one for one in (record, *doomed) if one is not None}.values():
        if found.external:
            raise VirtopsError(
                "not_internal",
                "Snapshot %r of domain %s is external%s."
                % (found.name, view.name, "" if found.name == name else ", and descends from %r" % name),
                "Delete it with virtops.libvirt.snapshot_external and state: absent",
            )
    for found in doomed:
        buried = _buried(found, view, inside)
        if buried is not None:
            raise VirtopsError(
                "layers_above",
                "The data of snapshot %r are in %s, and disk %s of domain %s has layers above that image."
                % (found.name, buried[1], buried[0], view.name),
                "Merge those layers first, with virtops.libvirt.snapshot_external and state: absent, or "
                "virtops.libvirt.block_commit",
            )
    for gone in [found.name for found in doomed] if record is not None else [name]:
        if view.active:
            check_job_name(gone, libvirt_version, "Shut the domain off, then delete the snapshot")
    refuse_jobs(view)


def leftovers(name: str, view: DomainView, inside: Inside) -> tuple[str, ...]:
    """The images that the guest writes to and that have a snapshot of that name inside."""
    active = [disk.active.path for disk in view.disks if disk.active is not None and not has_no_state(disk)]
    return tuple(path for path in active if name in inside.get(path, ()))


def _buried(record: SnapshotRecord, view: DomainView, inside: Inside) -> tuple[str, str] | None:
    """Disk and image where the data lie below the layer in which libvirt looks for them."""
    for saved in record.disks:
        disk = view.disk(saved.target)
        if saved.mode != "internal" or disk is None:
            continue
        holding = [depth for depth, layer in enumerate(disk.chain) if record.name in inside.get(layer.path, ())]
        if holding and holding[0] > 0:
            return disk.target, disk.chain[holding[0]].path
    return None


def _every_disk(view: DomainView) -> tuple[SnapshotDisk, ...]:
    """libvirt refuses internal snapshots with a disk left out, unless the guest cannot write to it."""
    listed = []
    for disk in view.disks:
        if has_no_state(disk):
            listed.append(SnapshotDisk(disk.target, "no"))
            continue
        _refuse_unsuitable(disk, view)
        listed.append(SnapshotDisk(disk.target, "internal"))
    if not any(disk.mode == "internal" for disk in listed):
        raise VirtopsError(
            "nothing_to_snapshot",
            "Domain %s has no disk that a snapshot could hold." % view.name,
            "Give it a disk with a qcow2 image, which also keeps the memory of a running guest",
        )
    return tuple(listed)


def has_no_state(disk: Disk) -> bool:
    """A drive that the guest cannot write to: the only kind that libvirt lets an internal snapshot leave out."""
    return disk.readonly or (not disk.chain and disk.source_type in ("file", "block"))


def _refuse_unsuitable(disk: Disk, view: DomainView) -> None:
    why = None
    if disk.device not in ("disk", "floppy", "cdrom"):
        why = "it is a LUN passed through to the guest"
    elif disk.transient:
        why = "it is transient"
    elif disk.shareable:
        why = "it is shareable"
    elif disk.snapshot in ("no", "manual"):
        why = marked_words(disk)
    elif disk.source_type not in ("file", "block", "volume") or disk.active is None:
        why = why_no_image(disk)
    if why is not None:
        raise VirtopsError(
            "disk_unsuitable",
            "Disk %s of domain %s cannot have an internal snapshot, and such a snapshot cannot leave a disk out: %s."
            % (disk.target, view.name, why),
            "Take an external snapshot of the other disks, with virtops.libvirt.snapshot_external",
        )
    if disk.active is not None and disk.active.format != "qcow2":
        raise VirtopsError(
            "disk_needs_qcow2",
            "Disk %s of domain %s can have no internal snapshot: its image %s is %s, and only qcow2 has room for one."
            % (disk.target, view.name, disk.active.path, disk.active.format),
            "Take an external snapshot with virtops.libvirt.snapshot_external; or shut the domain off, and put it on "
            "qcow2 images with virtops.libvirt.image_convert",
        )


def _refuse_flash(view: DomainView, libvirt_version: int) -> None:
    if not view.pflash:
        return
    if libvirt_version < _PFLASH_SINCE:
        raise VirtopsError(
            "uefi_unsupported",
            "Domain %s has UEFI firmware, and libvirt %s takes no internal snapshot of such a guest (10.9.0 does)."
            % (view.name, version_words(libvirt_version)),
            "Take an external snapshot with virtops.libvirt.snapshot_external",
        )
    if view.nvram is not None and view.nvram_format != "qcow2":
        raise VirtopsError(
            "uefi_unsupported",
            "Domain %s keeps its UEFI variables in %s, which is %s, and only qcow2 has room for a snapshot."
            % (view.name, view.nvram, view.nvram_format),
            "Take an external snapshot with virtops.libvirt.snapshot_external; or convert that image while the domain "
            "is off, and say so in its definition (<nvram format='qcow2'>)",
        )


def version_words(number: int) -> str:
    return "%d.%d.%d" % (number // 1_000_000, number // 1_000 % 1_000, number % 1_000)


def _words(targets: set[str]) -> str:
    return ", ".join(sorted(targets)) or "none"
