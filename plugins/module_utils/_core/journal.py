# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the journal, our intentions written into the domain's own metadata.

It travels with the domain (virDomainSetMetadata, LIVE and CONFIG) and says only what we *intended*.
Where an operation really stands is read from the live chain and jobs each time (`merge.phase_of`).
"""

from __future__ import annotations

import calendar
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # model has a field for the journal
    from .model import FileIdentity, Hold

#: The namespace of the journal element in the domain's metadata, and the prefix libvirt gives it.
JOURNAL_URI = "https://virtops.github.io/xmlns/libvirt/journal/1"
JOURNAL_PREFIX = "virtops"

#: The overlays are going to be created; nothing of the guest has been switched yet.
PREPARED = "prepared"
#: The guest writes to the overlays; the bases are the snapshot's point in time.
CREATED = "created"
#: A commit into the bases may have begun: they are no longer anybody's point in time.
COMMITTING = "committing"

#: The operation is a snapshot that the user keeps: at rest once it is CREATED.
KEPT = "snapshot"
#: A merge of layers that no snapshot of ours added: down into the base below them, ...
COMMIT = "commit"
#: ... or up into the layer that the guest writes to.
PULL = "pull"
#: A return to an external snapshot that libvirt cannot make.
REVERT = "revert"
#: The end of external snapshots: merges, images that go, records.
DELETE = "delete"
#: Raw images that go once the domain is defined on the converted ones: PREPARED until then.
CONVERT = "convert"
#: A domain that is defined on the images of a backup set, whose files are not yet at their places. Its `name` is the
#: set's: DOMAIN/TIME. No disk is noted: the definition itself tells what is to be done (see `_core.restore`).
RESTORE = "restore"
#: The same for single disks of a set, which leaves the domain as no set describes it.
RESTORE_DISKS = "restore disks"
#: What no workflow of a role may be named.
RESERVED = (COMMIT, PULL, REVERT, DELETE, CONVERT, RESTORE, RESTORE_DISKS)

_STAMP = "%Y%m%dT%H%M%SZ"


def stamp_of(seconds: float) -> str:
    """Seconds since 1970 as a UTC time as 20261120T120000Z."""
    return time.strftime(_STAMP, time.gmtime(seconds))


def epoch(stamp: str) -> int:
    """Seconds since 1970 of a UTC time as 20261120T120000Z."""
    return calendar.timegm(time.strptime(stamp, _STAMP))


@dataclass(frozen=True)
class JournalDisk:
    """What the operation does to one disk. `identity` is the base's right after the switch.

    `pivoting`: libvirt was asked to pivot it. If the guest ends before libvirt has noted that QEMU did so, the
    persistent XML names the overlay and the newest data are in the base. `reused`: the overlay is a file of the user's,
    which was there before: undoing the operation leaves it. `made` is the inode of the overlay's file when we noted it
    last; None on a block device, and in a journal of an older release.
    """

    target: str
    base: str
    base_format: str
    overlay: str
    identity: FileIdentity | None = None
    pivoting: bool = False
    reused: bool = False
    made: int | None = None


@dataclass(frozen=True)
class Operation:
    """One operation on a domain.

    `kind` says which workflow it belongs to: KEPT, one of RESERVED, or the name that a role gave (live_backup). `name`
    is the snapshot's name, also where that is deleted, or gone back to; a COMMIT or PULL by path has a name of ours.
    `children` is what a DELETE does with the snapshot's descendants: keep, delete or only; `also` are the snapshots
    that it deletes with it.
    `started` is a UTC time as 20261120T120000Z; `consistency` is filesystem, crash or offline. `hold` is what the
    merge slows or stops the guest by at this moment, or that the snapshot may have frozen it. `memory` is the file that
    libvirt saves the guest's memory to, which was not there before; None for a snapshot of the disks only. `boot` is
    the ID of the host's boot in which it was begun; older releases noted none.
    """

    id: str
    kind: str
    name: str
    phase: str
    started: str
    disks: tuple[JournalDisk, ...]
    consistency: str = ""
    hold: Hold | None = None
    memory: str | None = None
    boot: str = ""
    children: str = ""
    also: tuple[str, ...] = ()

    @property
    def frozen(self) -> bool:
        """May the guest be frozen by it?"""
        return self.hold is not None and self.hold.frozen

    @property
    def open(self) -> bool:
        """Is it under way, so that no other operation may start on this domain?"""
        return not (self.kind == KEPT and self.phase == CREATED)

    def is_of_earlier_boot(self, boot: str, booted: str, now: str) -> bool:
        """Was it begun before the boot with this ID, which began at `booted`? Clocks count only for what has no ID: UTC
        times of one form compare as text. One that is to come was told by a clock that was set since."""
        return self.boot != boot if self.boot else self.started < booted or self.started > now

    def at(self, phase: str) -> Operation:
        return replace(self, phase=phase)

    def held(self, hold: Hold | None) -> Operation:
        return replace(self, hold=hold)

    def pivoting(self, target: str, overlay: str, asked: bool) -> Operation:
        disks = tuple(
            replace(disk, pivoting=asked) if (disk.target, disk.overlay) == (target, overlay) else disk
            for disk in self.disks
        )
        return replace(self, disks=disks)

    def disk(self, target: str) -> JournalDisk | None:
        return next((disk for disk in self.disks if disk.target == target), None)


@dataclass(frozen=True)
class Reverted:
    """The last revert, of a domain that it left off, or the last restore: so that the next one sees that nothing
    happened since. `name` is the snapshot's, or the set's (DOMAIN/TIME).

    `definition` is the digest of the persistent definition without this journal, `images` what the disks then wrote to.
    """

    name: str
    definition: str
    images: tuple[tuple[str, FileIdentity], ...]


@dataclass(frozen=True)
class Journal:
    """All operations that a domain knows of: those under way, and the snapshots kept.

    `merged` are operations that have ended, with those of their overlays that are there still: all data of these are in
    their bases, and another domain may stand on them. The `identity` of such a disk is the overlay's own. Older
    releases do not read them.
    """

    operations: tuple[Operation, ...] = ()
    reverted: Reverted | None = None
    merged: tuple[Operation, ...] = ()
    restored: Reverted | None = None

    def find(self, kind: str, name: str) -> Operation | None:
        return next((op for op in self.operations if (op.kind, op.name) == (kind, name)), None)

    def of_snapshot(self, name: str) -> Operation | None:
        """The operation that takes, has taken, or merges this snapshot, whosever workflow it is."""
        others = (REVERT, DELETE, CONVERT, RESTORE, RESTORE_DISKS)
        return next((op for op in self.operations if op.name == name and op.kind not in others), None)

    def put(self, operation: Operation) -> Journal:
        """Add the operation, or replace the one with its id."""
        kept = tuple(op for op in self.operations if op.id != operation.id)
        return replace(self, operations=(*kept, operation))

    def drop(self, operation: Operation) -> Journal:
        return replace(self, operations=tuple(op for op in self.operations if op.id != operation.id))

    def made_at(self, overlay: str) -> int | None:
        """Seconds since 1970 when the operation began that made this overlay; None where none here did."""
        making = (op for op in (*self.operations, *self.merged) if op.kind not in RESERVED)
        return next((epoch(op.started) for op in making for disk in op.disks if disk.overlay == overlay), None)

    def overlays(self) -> frozenset[str]:
        return frozenset(disk.overlay for op in self.operations for disk in op.disks)

    def merged_as(self, overlay: str) -> FileIdentity | None:
        """What the overlay was when it was kept, with all its data merged; None of one that was not."""
        return next((disk.identity for op in self.merged for disk in op.disks if disk.overlay == overlay), None)

    def with_merged(self, operation: Operation, disks: Iterable[JournalDisk]) -> Journal:
        """The journal that knows these overlays of the operation as merged and kept."""
        new = tuple(disks)
        if not new:
            return self
        cleared = self.without_merged(disk.overlay for disk in new)
        old = next((op.disks for op in cleared.merged if op.id == operation.id), ())
        ended = replace(operation, phase=COMMITTING, hold=None, memory=None, disks=(*old, *new))
        rest = tuple(op for op in cleared.merged if op.id != operation.id)
        return replace(cleared, merged=(*rest, ended))

    def without_merged(self, overlays: Iterable[str]) -> Journal:
        """The journal once these are gone."""
        gone = frozenset(overlays)
        left = (replace(op, disks=tuple(disk for disk in op.disks if disk.overlay not in gone)) for op in self.merged)
        return replace(self, merged=tuple(op for op in left if op.disks))
