# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: what an external snapshot has to do, decided without any effect."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace

from .errors import VirtopsError
from .journal import COMMITTING, CREATED, KEPT, PREPARED, Journal, JournalDisk, Operation
from .model import Disk, DomainView, Layer, SnapshotDisk, SnapshotRecord, is_local
from .names import check_record_name
from .refusals import checked_path, marked_words, operation_open, refuse_jobs, refuse_open, require_disk, why_no_image

#: What <disk snapshot=''> may say against external snapshots.
_NOT_EXTERNAL = ("no", "internal", "manual")

#: Seconds. Long enough for the hooks of databases, which the agent runs before it freezes.
FREEZE_SECONDS = 60
#: An agent that is well answers a question at once.
PING_SECONDS = 10
#: A thaw waits for the rest of the freeze's hook where that ran out of time, and then for a hook of its own.
THAW_SECONDS = 120

#: NAME_MAX of every Linux file system that keeps images.
NAME_MAX = 255


@dataclass(frozen=True)
class DiskOptions:
    """What the user said of one disk: `snapshot` is external or no, `file` the overlay's path."""

    target: str
    snapshot: str = "external"
    file: str | None = None


@dataclass(frozen=True)
class SnapshotOptions:
    """What the user asked for. `freeze_timeout` is in seconds; `kind` is the workflow's name.

    `memory` is the file that the guest's memory is saved to, `live` while it runs on. `halt`: it is off afterwards.
    `reuse`: the overlays are there already. `timeout`: seconds for an earlier request that libvirt still works at.
    """

    name: str
    description: str | None = None
    disks: tuple[DiskOptions, ...] = ()
    overlay_dir: str | None = None
    quiesce: str = "never"
    freeze_timeout: int = FREEZE_SECONDS
    metadata: bool = True
    kind: str = KEPT
    memory: str | None = None
    live: bool = False
    halt: bool = False
    reuse: bool = False
    timeout: float = 3600

    @property
    def ping_timeout(self) -> int:
        """Seconds for an answer to a question, before the freeze."""
        return min(self.freeze_timeout, PING_SECONDS)

    @property
    def thaw_timeout(self) -> int:
        """Seconds for a thaw: nothing is gained by giving up earlier, as the guest cannot write before it."""
        return max(2 * self.freeze_timeout, THAW_SECONDS)

    def disk(self, target: str) -> DiskOptions | None:
        return next((options for options in self.disks if options.target == target), None)


@dataclass(frozen=True)
class PlannedDisk:
    """A disk that will write to `overlay` from the snapshot on; `base` then stays as it is.

    `block`: the overlay is on a block device.
    """

    target: str
    base: Layer
    overlay: str
    block: bool = False


@dataclass(frozen=True)
class SkippedDisk:
    """A disk that the snapshot leaves alone, and why. `holds`: it has data that nobody asked to leave out."""

    target: str
    reason: str
    holds: bool = False


@dataclass(frozen=True)
class SnapshotPlan:
    """Every disk of the domain is in `disks` or in `skipped`.

    `found` is where the snapshot stands already: None (it does not exist), PREPARED (an interrupted
    run intended it, no disk was switched) or CREATED (it is there, only our note of it may lack).
    """

    disks: tuple[PlannedDisk, ...]
    skipped: tuple[SkippedDisk, ...]
    found: str | None = None

    @property
    def remote(self) -> bool:
        """Is there a base on the network? Only libvirt knows how to name it in an overlay, so it creates them all."""
        return any(not is_local(disk.base.path) for disk in self.disks)


def plan_snapshot(
    options: SnapshotOptions, view: DomainView, record: SnapshotRecord | None, journal: Journal
) -> SnapshotPlan:
    """Decide what to do, or refuse; the caller has looked at nothing but libvirt so far."""
    _check_options(options)
    require_disks(options, view)
    ours = journal.of_snapshot(options.name)
    refuse_open(view, journal, None if ours is None else ours.id)
    if ours is not None and ours.phase == COMMITTING:
        raise operation_open(view.name, ours)
    made = {disk.target for disk in ours.disks} if ours is not None else set()
    made |= {disk.target for disk in record.disks if disk.mode == "external"} if record is not None else set()
    skipped = skipped_disks(options, view, frozenset(made))
    chosen = chosen_disks(options, view, skipped)
    if ours is not None and ours.phase == CREATED:
        _check_same_memory(options, view.name, ours.memory)
        _check_same_disks(options, chosen, {disk.target: disk.overlay for disk in ours.disks})
        _check_still_there(options.name, view, ours)
        return SnapshotPlan(_as_planned(ours), skipped, CREATED)
    if ours is not None and ours.phase == PREPARED:
        return _plan_interrupted(options, view, ours, chosen, skipped)
    if record is not None:
        return _plan_recorded(options, view, record, chosen, skipped)
    return _plan_new(options, view, chosen, skipped)


def skipped_disks(
    options: SnapshotOptions, view: DomainView, made: frozenset[str] = frozenset()
) -> tuple[SkippedDisk, ...]:
    """The disks that a snapshot leaves alone: by the user's word in the task or in the definition, or because they
    cannot change. `made` are those that the same snapshot has already."""
    skipped = []
    for disk in view.disks:
        asked = options.disk(disk.target)
        reason = why_not_snapshotable(disk)
        if asked is not None and asked.snapshot == "no":
            skipped.append(SkippedDisk(disk.target, "excluded by the request"))
        elif reason is not None and asked is not None:
            raise VirtopsError(
                "disk_unsuitable",
                "Disk %s of domain %s cannot be snapshotted: %s." % (disk.target, view.name, reason),
                "Leave it out of disks, or give it snapshot: no",
            )
        elif reason is not None:
            skipped.append(SkippedDisk(disk.target, reason, holds=not disk.empty))
        elif asked is None and disk.snapshot in _NOT_EXTERNAL and disk.target not in made:
            words = "%s; name it in disks to include it" % marked_words(disk)
            skipped.append(SkippedDisk(disk.target, words, holds=True))
    return tuple(skipped)


def why_not_snapshotable(disk: Disk) -> str | None:
    """The reason why a disk has no state that an overlay could keep, None where it has one."""
    if disk.device in ("cdrom", "floppy"):
        return "it is a %s drive" % disk.device
    if disk.device == "lun":
        return "it is a LUN passed through to the guest"
    if disk.source_type == "vhostuser":
        return "it is served over vhost-user"
    if disk.transient:
        return "it is transient"
    if disk.readonly:
        return "it is read-only"
    if disk.shareable:
        return "it is shareable"
    if disk.empty:
        return "it is an empty drive"
    return None


def overlay_path(directory: str, domain: str, target: str, snapshot: str) -> str:
    """DIRECTORY/<domain>.<disk>.<snapshot>.qcow2, shortened by a digest where the name is too long.

    The suffix matters: AppArmor's virt-aa-helper may reject image names without an extension.
    """
    stem = "%s.%s.%s" % (domain, target, snapshot)
    name = stem + ".qcow2"
    if len(os.fsencode(name)) > NAME_MAX:
        digest = hashlib.sha256(os.fsencode(stem)).hexdigest()[:16]
        room = NAME_MAX - len(digest) - len(".") - len(".qcow2")
        name = "%s.%s.qcow2" % (os.fsencode(stem)[:room].decode("utf-8", "ignore"), digest)
    return os.path.join(directory, name)


def is_overlay_name(name: str, domain: str, target: str) -> bool:
    """May `overlay_path` have made this name for this disk, for whichever snapshot?"""
    return name.startswith("%s.%s." % (domain, target)) and name.endswith(".qcow2")


def unknown_words(name: str, view: DomainView) -> tuple[str, ...]:
    """The warning where a snapshot is to go that neither libvirt nor the journal knows: it may never have been there,
    as where its name is misspelt."""
    bearing = [
        layer.path for disk in view.disks for layer in disk.chain if ".%s." % name in os.path.basename(layer.path)
    ]
    if bearing:
        return (
            "Neither libvirt nor the journal of domain %s knows a snapshot %r, so nothing was done; but %s bears that "
            "name. Look with virtops.libvirt.block_info, and merge it by the path of its base (block_commit, base)."
            % (view.name, name, ", ".join(bearing)),
        )
    return (
        "Neither libvirt, nor the journal, nor a chain of domain %s knows a snapshot %r, so nothing was done. If you "
        "expected this snapshot, check the name." % (view.name, name),
    )


def snapshot_disks(plan: SnapshotPlan) -> tuple[SnapshotDisk, ...]:
    """Every disk, named: libvirt would snapshot those that the request omits."""
    made = [SnapshotDisk(disk.target, "external", disk.overlay, "qcow2", disk.block) for disk in plan.disks]
    return tuple(made + [SnapshotDisk(disk.target, "no") for disk in plan.skipped])


def journal_disks(options: SnapshotOptions, plan: SnapshotPlan) -> tuple[JournalDisk, ...]:
    return tuple(
        JournalDisk(disk.target, disk.base.path, disk.base.format, disk.overlay, reused=options.reuse)
        for disk in plan.disks
    )


def _check_options(options: SnapshotOptions) -> None:
    """What no domain could make fit together."""
    if options.live and options.memory is None:
        raise VirtopsError(
            "bad_option",
            "live says how the guest's memory is saved, but memory is not set.",
            "Set memory to the path of a file, or leave out live",
        )
    if options.memory is not None and options.quiesce == "required":
        raise VirtopsError(
            "bad_option",
            "libvirt does not freeze file systems for a snapshot with memory: what they have not written yet is in "
            "the memory.",
            "Leave out quiesce, or memory",
        )
    if options.memory is not None:
        checked_path(options.memory)


def _check_state(options: SnapshotOptions, view: DomainView) -> None:
    """What this domain, as it is now, cannot do."""
    if options.memory is not None and not view.active:
        raise VirtopsError(
            "memory_off",
            "Domain %s is %s: it has no memory that could be saved." % (view.name, view.state),
            "Start it first, or leave out memory for a snapshot of the disks only",
        )
    if options.halt and view.active and not view.persistent:
        raise VirtopsError(
            "halt_transient",
            "Domain %s is transient: halt would lose its definition, and with it the knowledge of which images it uses."
            % view.name,
            "Make it persistent (virsh define), or leave out halt",
        )


def require_disks(options: SnapshotOptions, view: DomainView) -> None:
    """Refuse a word about a disk that the domain does not have."""
    for asked in options.disks:
        require_disk(view, asked.target)


def chosen_disks(options: SnapshotOptions, view: DomainView, skipped: tuple[SkippedDisk, ...]) -> tuple[Disk, ...]:
    """All others, each with its image; refuses one that has none that could be snapshotted, and to choose none."""
    left_out = {disk.target for disk in skipped}
    chosen = tuple(disk for disk in view.disks if disk.target not in left_out)
    for disk in chosen:
        if disk.remote is not None and not disk.chain:
            _check_remote(options, view, disk.target, disk.remote.path)
            continue
        if disk.source_type not in ("file", "block", "volume") or disk.active is None:
            exclude = "xclude it with disks: [{name: %s, snapshot: no}]" % disk.target
            raise VirtopsError(
                "disk_unsuitable",
                "Disk %s of domain %s cannot be snapshotted: %s." % (disk.target, view.name, why_no_image(disk)),
                "E" + exclude if disk.volume is None else "Start the pool with 'virsh pool-start', or e" + exclude,
            )
    if not chosen:
        raise VirtopsError(
            "nothing_to_snapshot",
            "Domain %s has no disk that a snapshot could hold." % view.name,
            "See skipped: %s" % "; ".join("%s: %s" % (disk.target, disk.reason) for disk in skipped),
        )
    return chosen


def _check_remote(options: SnapshotOptions, view: DomainView, target: str, source: str) -> None:
    """A disk on the network takes a local overlay, in a place that only the user can know."""
    asked = options.disk(target)
    where = "Disk %s of domain %s is on the network (%s)" % (target, view.name, source)
    exclude = "exclude it with disks: [{name: %s, snapshot: no}]" % target
    if options.kind != KEPT:
        raise VirtopsError(
            "disk_unsuitable",
            "%s, where no image can be backed up or merged into." % where,
            "Exclude it with disks: [{name: %s, snapshot: no}]" % target,
        )
    if options.reuse:
        raise VirtopsError(
            "disk_unsuitable",
            "%s, so nothing tells whether an overlay that exists stands on it." % where,
            "Leave out reuse_external, or %s" % exclude,
        )
    if not view.active:
        raise VirtopsError(
            "disk_unsuitable",
            "%s, of which libvirt takes no snapshot while the domain is %s." % (where, view.state),
            "Start the domain first, or %s" % exclude,
        )
    if asked is None or asked.file is None:
        raise VirtopsError(
            "overlay_needed",
            "%s, beside which no overlay can be made." % where,
            "Give a file on this host for this disk in disks, or %s" % exclude,
        )


def _plan_new(
    options: SnapshotOptions, view: DomainView, chosen: tuple[Disk, ...], skipped: tuple[SkippedDisk, ...]
) -> SnapshotPlan:
    check_record_name(options.name, options.metadata)
    refuse_jobs(view)
    _check_state(options, view)
    planned = tuple(PlannedDisk(disk.target, _active(disk), _overlay_of(options, view, disk)) for disk in chosen)
    paths = [disk.overlay for disk in planned]
    if options.memory in paths:
        raise VirtopsError(
            "memory_exists",
            "The file %s was given for the memory of domain %s and for an overlay." % (options.memory, view.name),
            "Give the memory a file of its own",
        )
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        raise VirtopsError(
            "overlay_exists",
            "Two disks of domain %s were given the same overlay, %s." % (view.name, twice),
            "Give each disk a file of its own",
        )
    return SnapshotPlan(planned, skipped)


def _overlay_of(options: SnapshotOptions, view: DomainView, disk: Disk) -> str:
    asked = options.disk(disk.target)
    if asked is not None and asked.file is not None:
        return checked_path(asked.file)
    if options.overlay_dir is None and disk.on_device:
        raise VirtopsError(
            "overlay_needed",
            "Disk %s of domain %s stands on the block device %s, beside which no overlay can be made."
            % (disk.target, view.name, _active(disk).path),
            "Give overlay_dir, or a file for this disk in disks",
        )
    directory = checked_path(options.overlay_dir) if options.overlay_dir else os.path.dirname(_active(disk).path)
    return overlay_path(directory, view.name, disk.target, options.name)


def _plan_interrupted(
    options: SnapshotOptions,
    view: DomainView,
    ours: Operation,
    chosen: tuple[Disk, ...],
    skipped: tuple[SkippedDisk, ...],
) -> SnapshotPlan:
    """An earlier run died after it wrote PREPARED: the chain tells on which side of the switch."""
    switched = [disk.target for disk in ours.disks if is_in_chain(view, disk.target, disk.overlay)]
    if len(switched) == len(ours.disks):
        _check_same_memory(options, view.name, ours.memory)
        _check_same_disks(options, chosen, {disk.target: disk.overlay for disk in ours.disks})
        return SnapshotPlan(_as_planned(ours), skipped, CREATED)
    if switched:
        raise VirtopsError(
            "snapshot_partial",
            "Only %s of domain %s stand on the overlays of snapshot %r." % (", ".join(switched), view.name, ours.name),
            "Merge them with virtops.libvirt.block_commit and snapshot: %r, then run the play again" % ours.name,
        )
    return replace(_plan_new(options, view, chosen, skipped), found=PREPARED)


def _plan_recorded(
    options: SnapshotOptions,
    view: DomainView,
    record: SnapshotRecord,
    chosen: tuple[Disk, ...],
    skipped: tuple[SkippedDisk, ...],
) -> SnapshotPlan:
    """libvirt has a snapshot of this name that our journal does not know."""
    if not record.external or record.memory == "internal":
        raise VirtopsError(
            "snapshot_differs",
            "Domain %s has a snapshot %r already, and it is not an external one (memory: %s, disks: %s)."
            % (view.name, record.name, record.memory, ", ".join("%s %s" % (d.target, d.mode) for d in record.disks)),
            "Choose another name, or delete that snapshot first",
        )
    _check_same_memory(options, view.name, record.memory_file)
    made = {disk.target: disk.file or "" for disk in record.disks if disk.mode == "external"}
    _check_same_disks(options, chosen, made)
    disks = []
    for target, overlay in sorted(made.items()):
        disk = view.disk(target)
        base = disk.below(overlay) if disk else None
        if base is None:
            raise _stale(view.name, options.name, target, overlay)
        disks.append(PlannedDisk(target, base, overlay))
    return SnapshotPlan(tuple(disks), skipped, CREATED)


def _check_same_memory(options: SnapshotOptions, domain: str, made: str | None) -> None:
    if options.memory == made:
        return
    raise VirtopsError(
        "snapshot_differs",
        "Snapshot %r of domain %s exists %s, but one %s was asked for."
        % (options.name, domain, _memory_words(made), _memory_words(options.memory)),
        "Ask for the same, or choose another name",
    )


def _memory_words(path: str | None) -> str:
    return "of the disks only" if path is None else "with the memory in %s" % path


def _check_same_disks(options: SnapshotOptions, chosen: tuple[Disk, ...], made: dict[str, str]) -> None:
    wanted = {disk.target for disk in chosen}
    if wanted != set(made):
        raise VirtopsError(
            "snapshot_differs",
            "Snapshot %r exists with the disks %s, but %s were asked for."
            % (options.name, ", ".join(sorted(made)), ", ".join(sorted(wanted))),
            "Ask for the same disks, or choose another name",
        )
    for asked in options.disks:
        if asked.file is not None and asked.target in made and asked.file != made[asked.target]:
            raise VirtopsError(
                "snapshot_differs",
                "Snapshot %r exists with the overlay %s for disk %s, but %s was asked for."
                % (options.name, made[asked.target], asked.target, asked.file),
                "Ask for the same file, or choose another name",
            )


def _check_still_there(name: str, view: DomainView, operation: Operation) -> None:
    for disk in operation.disks:
        if not is_in_chain(view, disk.target, disk.overlay):
            raise _stale(view.name, name, disk.target, disk.overlay)


def _stale(domain: str, name: str, target: str, overlay: str) -> VirtopsError:
    return VirtopsError(
        "snapshot_stale",
        "Snapshot %r of domain %s is on record, but disk %s no longer stands on its overlay %s."
        % (name, domain, target, overlay),
        "Its layer was merged or replaced by somebody else: remove the record with "
        "virtops.libvirt.block_commit and snapshot: %r, then run the play again" % name,
    )


def is_in_chain(view: DomainView, target: str, path: str) -> bool:
    disk = view.disk(target)
    return disk is not None and disk.index_of(path) is not None


def _as_planned(operation: Operation) -> tuple[PlannedDisk, ...]:
    return tuple(PlannedDisk(d.target, Layer(d.base, d.base_format), d.overlay) for d in operation.disks)


def _active(disk: Disk) -> Layer:
    if disk.active is None and disk.remote is not None:
        return disk.remote
    if disk.active is None:
        raise AssertionError("chosen_disks refused the disks without an image")
    return disk.active
