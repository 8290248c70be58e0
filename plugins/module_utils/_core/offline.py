# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the backup of a guest that is off, decided from values alone.

It needs no snapshot: nothing writes to the images. QEMU's lock keeps a file so, but not a block device, of which each
QEMU has a node of its own: such a copy counts only where the guest was off from its begin to its end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .backup import Selection, Source
from .errors import VirtopsError
from .journal import Journal
from .model import Disk, DomainView, FileIdentity
from .refusals import refuse_open
from .snapshot import SkippedDisk, SnapshotOptions, chosen_disks, require_disks, skipped_disks

#: What the manifest says of the consistency of such a set.
OFFLINE = "offline"


@dataclass(frozen=True)
class OfflinePlan:
    """Every disk of the domain is in `disks` or in `skipped`: those that a snapshot would have, and not."""

    disks: tuple[Disk, ...]
    skipped: tuple[SkippedDisk, ...]


def plan_offline(options: SnapshotOptions, view: DomainView, journal: Journal) -> OfflinePlan:
    """Which images are copied, or the refusal."""
    require_disks(options, view)
    refuse_open(view, journal)
    skipped = skipped_disks(options, view)
    return OfflinePlan(chosen_disks(options, view, skipped), skipped)


def select_offline(
    plan: OfflinePlan, operation: str, stamp: str, identity_of: Callable[[str], FileIdentity]
) -> Selection:
    """The images as they are now."""
    sources = tuple(
        Source(disk.target, disk.active, "", identity_of(disk.active.path))
        for disk in plan.disks
        if disk.active is not None  # chosen_disks refused those without
    )
    return Selection(operation, None, stamp, OFFLINE, sources)


def require_unmoved(selection: Selection, view: DomainView) -> None:
    """Refuse to go on where the guest was started, or stands on other images by now."""
    if view.active:
        raise guest_started(view.name, "It is %s now" % view.state)
    for source in selection.sources:
        disk = view.disk(source.target)
        if disk is None or disk.active is None or disk.active.path != source.base.path:
            raise VirtopsError(
                "chain_changed",
                "Disk %s of domain %s no longer stands on %s" % (source.target, view.name, source.base.path),
                "Find out who changes the domain's definition, then run the same task again",
            )


def require_unwritten(selection: Selection, identity_of: Callable[[str], FileIdentity]) -> None:
    """Refuse a file that something wrote to since we first looked. Of a block device nothing tells it."""
    for source in selection.sources:
        if source.identity is not None and identity_of(source.base.path) != source.identity:
            raise VirtopsError(
                "base_modified",
                "The image %s of disk %s was written to while it was copied: its inode, size or time of change is "
                "another one" % (source.base.path, source.target),
                "Find out what writes to it while the guest is off, then run the same task again",
            )


def guest_started(name: str, why: str) -> VirtopsError:
    """The error for a copy that may hold some blocks from before a start of the guest, and others from after it."""
    return VirtopsError(
        "guest_started",
        "Domain %s was off when its backup began, and may have run since. %s" % (name, why),
        "Run the same task again: a guest that runs is backed up with a snapshot",
    )
