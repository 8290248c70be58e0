# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: what a backup copies and how, decided from values alone.

Only a base that stands still is copied: its disk writes to an overlay above it, no commit into it was ever attempted,
and it is byte for byte the file that the snapshot left behind, as far as the file system can tell.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from .errors import VirtopsError
from .journal import COMMITTING, PREPARED, Journal, Operation, stamp_of
from .model import DomainView, FileIdentity, ImageInfo, Layer, is_local
from .ports import ImagePort

MANIFEST = "manifest.json"
DOMAIN_XML = "domain.xml"
#: For sha256sum(1), of all other files of a set.
SUMS = "SHA256SUMS"
#: What the copies of a partial set have to have on the disk: it is copied, and awaits its verification.
DIGESTS = "digests.json"

SAME = "same"
AUTO, REFLINK, COPY, CONVERT = "auto", "reflink", "copy", "convert"

#: What a backup of overlays that no journal knows calls its consistency.
UNKNOWN = "unknown"


@dataclass(frozen=True)
class BackupOptions:
    """What the user asked for: `snapshot` or `overlays`. `rate_limit` is MiB/s of each copy, 0: no limit.

    `keep_free` is in MiB: the copy gives way to the overlays where they have less. `stall_timeout` is in seconds: how
    long nothing may go on.
    """

    dest: str
    snapshot: str | None = None
    overlays: tuple[str, ...] = ()
    format: str = SAME
    compress: bool = False
    method: str = AUTO
    verify: bool = True
    rate_limit: int = 0
    keep_backing: bool = False
    parallel: int = 4
    keep_free: int = 256
    stall_timeout: int = 300


@dataclass(frozen=True)
class Source:
    """The base of one disk. `identity` is what the journal says of it, or what it was when we first looked."""

    target: str
    base: Layer
    overlay: str
    identity: FileIdentity | None = None


@dataclass(frozen=True)
class Selection:
    """The point in time that a set holds. `started` is its UTC time, 20261120T120000Z."""

    operation: str
    snapshot: str | None
    started: str
    consistency: str
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class SourceFacts:
    """What the host says of a source. `allocation` counts each layer that a standalone copy reads, in bytes."""

    source: Source
    info: ImageInfo
    layers: tuple[Layer, ...]
    allocation: int
    regular: bool


@dataclass(frozen=True)
class CopyOrder:
    """One image to write. The first of `methods` that the file systems can do is taken.

    `backing` is the reference that the copy keeps; None: it stands alone. `needs` is the space that it may take; where
    it is `unsure`, as of a thin volume, only the copy itself tells how much of that it is.
    """

    target: str
    source: Layer
    file: str
    format: str
    methods: tuple[str, ...]
    virtual_size: int
    needs: int
    backing: Layer | None = None
    compress: bool = False
    verify: bool = True
    rate_limit: int = 0
    unsure: bool = False


#: Bytes of a file that are compared as one: from, up to, and their SHA-256.
Run = tuple[int, int, str]


@dataclass(frozen=True)
class Copied:
    """What came of an order; sizes in bytes.

    `runs`: what was written, hashed as it passed, so that what lies on the disk can be compared with it. All else is
    zeros. None: there is nothing to compare, as of blocks that are shared with the source.
    """

    method: str
    bytes: int
    allocated: int
    runs: tuple[Run, ...] | None = None


#: Called with a disk's target, the bytes done and those in all.
Told = Callable[[str, int, int], None]


@dataclass(frozen=True)
class VerifyOrder:
    """One file of a set to be read back: with `from_disk` past the page cache. `format` is that of an image whose own
    tables are checked; a file without `target` is none that progress is told of. `virtual_size`: the image must have
    it, and stand alone but for `backing`. `rate_limit` is bytes/s, 0: no limit."""

    file: str
    bytes: int | None = None
    target: str = ""
    format: str = ""
    runs: tuple[Run, ...] | None = None
    sha256: str | None = None
    from_disk: bool = True
    virtual_size: int | None = None
    backing: Layer | None = None
    rate_limit: int = 0


@dataclass(frozen=True)
class Verified:
    """What was read; not `from_disk` where the file system's cache cannot be passed by. `problem`: see `check_all`."""

    sha256: str
    from_disk: bool = True
    problem: str = ""


@dataclass(frozen=True)
class PlainFile:
    """A file beside the images, as the NVRAM. `taken` is the UTC time of its copy, 20261120T120000Z."""

    source: str
    file: str
    kind: str = "NVRAM"
    bytes: int | None = None
    sha256: str | None = None
    taken: str | None = None


@dataclass(frozen=True)
class SetPaths:
    """Where a set lies: `final` once it is complete, `partial` until then. Both in `parent`."""

    parent: str
    final: str
    partial: str


@dataclass(frozen=True)
class Unfinished:
    """A set under way, or one that a death left. `owner` is the UUID of its domain, None: it does not say.

    `ours`: this host began it. `age`: seconds since something in it was changed, or its lease renewed. `copied`: it is
    whole, but for its verification.
    """

    path: str
    owner: str | None
    allocated: int
    ours: bool = True
    age: float = 0
    copied: bool = False


class CopyPort(Protocol):
    """Copying images on the host, and reading the copies back. Raises `copy_stalled` where the target does not answer;
    then it is not to be touched."""

    def hold(self, paths: tuple[str, ...]) -> AbstractContextManager[object]:
        """QEMU's image lock on each: nothing may write to them; `image_locked` where something does."""

    def copy_all(
        self, orders: tuple[CopyOrder, ...], directory: str, parallel: int, watch: Callable[[], None], told: Told
    ) -> dict[str, Copied]:
        """Write each into `directory`, and bring it to the disk; by target. The first failure stops the others.

        `watch` is called now and then; it raises to stop them all.
        """

    def verify_all(
        self, orders: tuple[VerifyOrder, ...], directory: str, parallel: int, watch: Callable[[], None], told: Told
    ) -> dict[str, Verified]:
        """Read each back, and compare it with what is known of it; by file. `verify_failed` where it is not so."""


class StorePort(Protocol):
    """The backup's target directory and what lies in it."""

    def check_destination(self, dest: str) -> None:
        """Refuse one that is no plain, writable directory."""

    def hostname(self) -> str:
        """The hypervisor's name, as it knows itself."""

    def machine(self) -> str:
        """What tells this host from all others that may write to the same directory: hexadecimal digits."""

    def free_bytes(self, dest: str) -> int:
        """statvfs(3): what may still be written there."""

    def is_regular(self, path: str) -> bool:
        """stat(2): a regular file, and no block device."""

    def manifest(self, directory: str) -> dict[str, Any] | None:
        """manifest.json of a complete set; None where there is no such set. `set_damaged` where it cannot be read, or
        has not the form of one."""

    def owners(self, parent: str) -> dict[str, str]:
        """The complete sets in it: the path of each, and the UUID of its domain."""

    def file_sizes(self, directory: str) -> dict[str, int]:
        """The bytes of each file in it."""

    def unfinished(self, parent: str) -> tuple[Unfinished, ...]:
        """The partial sets in it; `dest_not_writable` where no other could be made there."""

    def begin(self, paths: SetPaths, manifest: str) -> str:
        """Make the partial set with its manifest, mode 0700, and what is missing above it; `set_under_way` where
        somebody else has made it. Returns the directory to write it by, which no rename leads elsewhere."""

    def resume(self, paths: SetPaths) -> str:
        """Take up the partial set that is there, as `begin` makes one."""

    def require_in_place(self, paths: SetPaths) -> None:
        """Refuse to go on where the partial set that we write is no longer what is found by its name."""

    def digests(self, directory: str) -> dict[str, tuple[Run, ...] | None] | None:
        """What the copies of a partial set have to have on the disk, by file; None where nothing usable tells it."""

    def write(self, directory: str, name: str, text: str) -> None:
        """Write a file, mode 0600, and sync it."""

    def tpm_root(self) -> str:
        """Where libvirt keeps the state of emulated TPMs."""

    def copy_plain(self, source: str, directory: str, name: str) -> tuple[int, str, bool]:
        """Copy a small file, mode 0600, and sync it: its bytes, its SHA-256, and whether nothing wrote to it then."""

    def finish(self, paths: SetPaths) -> None:
        """Remove the digests, sync the directory and give the set its final name."""

    def remove(self, directory: str, lease: float = 0) -> None:
        """Remove a partial set; with `lease`, only one that nobody changed for so many seconds, by the clock of the
        file system that it lies on."""


# Which bases


def select(options: BackupOptions, view: DomainView, journal: Journal, images: ImagePort) -> Selection:
    """The operation that the options name and its bases; they may have been merged meanwhile (see `require_still`)."""
    if options.snapshot is not None:
        operation = journal.of_snapshot(options.snapshot)
        if operation is None:
            raise VirtopsError(
                "no_such_snapshot",
                "The journal of domain %s has no snapshot %r" % (view.name, options.snapshot),
                "Take it with virtops.libvirt.snapshot_external; for one that another tool took, use overlays",
            )
        return _of_operation(operation)
    operation = _operation_of_overlays(options.overlays, journal)
    if operation is not None:
        return _of_operation(operation)
    return _of_overlays(options, view, images)


def _of_operation(operation: Operation) -> Selection:
    if operation.phase == PREPARED:
        raise VirtopsError(
            "snapshot_unfinished",
            "Snapshot %r was prepared, but not noted as taken" % operation.name,
            "Run virtops.libvirt.snapshot_external with the same name first: it finishes or undoes that",
        )
    sources = tuple(
        Source(disk.target, Layer(disk.base, disk.base_format), disk.overlay, disk.identity) for disk in operation.disks
    )
    for source in sources:
        require_local(source.target, source.base)
    return Selection(operation.id, operation.name, operation.started, operation.consistency or UNKNOWN, sources)


def _operation_of_overlays(overlays: tuple[str, ...], journal: Journal) -> Operation | None:
    """The operation that made exactly these."""
    wanted = set(overlays)
    return next((op for op in journal.operations if {disk.overlay for disk in op.disks} == wanted), None)


def _of_overlays(options: BackupOptions, view: DomainView, images: ImagePort) -> Selection:
    """Without a journal the bases themselves say when: the last write to them is the point in time that they hold."""
    sources = tuple(_source_of_overlay(path, view, images) for path in options.overlays)
    targets = [source.target for source in sources]
    twice = next((target for target in targets if targets.count(target) > 1), None)
    if twice is not None:
        raise VirtopsError(
            "overlays_of_one_disk",
            "More than one of the overlays belongs to disk %s" % twice,
            "Name one overlay per disk",
        )
    identities = [source.identity for source in sources if source.identity is not None]
    newest = max(identity.mtime_ns for identity in identities) // 1_000_000_000
    # The same bases, untouched, give the same set: so a second run finds it.
    words = sorted(
        "%s %s %r" % (source.overlay, source.base.path, source.identity and source.identity.key) for source in sources
    )
    name = "overlays-" + hashlib.sha256("\n".join(words).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return Selection(name, None, stamp_of(newest), UNKNOWN, sources)


def _source_of_overlay(path: str, view: DomainView, images: ImagePort) -> Source:
    for disk in view.disks:
        base = disk.below(path)
        if base is not None:
            require_local(disk.target, base)
            return Source(disk.target, base, path, images.identity(base.path))
    raise VirtopsError(
        "overlay_not_in_chain",
        "No disk of domain %s has %s in its chain with an image below it" % (view.name, path),
        "Look at the chains with virtops.libvirt.block_info",
    )


def require_local(target: str, base: Layer) -> None:
    """Only an image of this host has an identity and a lock, and so can be copied as one point in time."""
    if not is_local(base.path):
        raise VirtopsError(
            "base_remote",
            "The base of disk %s is on the network (%s), not an image of this host" % (target, base.path),
            "Copy it where it is stored, or leave the disk out",
        )


def require_still(selection: Selection, view: DomainView, journal: Journal) -> None:
    """Refuse bases that something writes to, or ever tried to."""
    for source in selection.sources:
        _require_never_committed(source, journal)
        disk = view.disk(source.target)
        below = None if disk is None else disk.below(source.overlay)
        if disk is None or below is None or below.path != source.base.path:
            raise VirtopsError(
                "chain_changed",
                "Disk %s of domain %s no longer has %s right above %s"
                % (source.target, view.name, source.overlay, source.base.path),
                "This snapshot can no longer be backed up: merge what is left of it, and take a new snapshot",
            )
        if disk.job is not None:
            raise VirtopsError(
                "job_running",
                "A block job (%s) runs on disk %s of domain %s" % (disk.job.kind, source.target, view.name),
                "Wait for it or end it (virsh blockjob), then try again",
            )


def _require_never_committed(source: Source, journal: Journal) -> None:
    for operation in journal.operations:
        if operation.phase == COMMITTING and any(disk.base == source.base.path for disk in operation.disks):
            raise modified(source, "a commit into it was begun")


def require_identity(source: Source, found: FileIdentity) -> None:
    """Is it still the file that the snapshot left behind, untouched?"""
    if source.identity is not None and source.identity != found:
        raise modified(source, "its inode, size or time of change differs from the journal's")


def modified(source: Source, why: str) -> VirtopsError:
    """The error for a base that is no longer anybody's point in time."""
    return VirtopsError(
        "base_modified",
        "The base %s of disk %s is no longer what it was at the snapshot: %s" % (source.base.path, source.target, why),
        "This snapshot can no longer be backed up: merge the overlay (block_commit), and take a new snapshot",
    )
