# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: what deleting external snapshots does to the images, decided without any effect.

A snapshot's moment is the image below the overlay that it added. Where the moment is given up, the image that stands on
it may go into it, and what nobody can want any more may go. Snapshots, their images and the guest's chains make a tree:
after a revert several images may stand on one.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from .errors import VirtopsError
from .internal import version_words
from .journal import COMMITTING, DELETE, Journal, JournalDisk, Operation
from .merge import MergeGoal
from .model import DomainView, FileIdentity, Layer, SnapshotRecord, is_local
from .refusals import image_shared

#: The libvirt that deletes an external snapshot itself (virConnectGetLibVersion).
_LIBVIRT_SINCE = 9_000_000


@dataclass(frozen=True)
class Point:
    """A snapshot's moment on one disk: `base` holds it, `overlay` is the image that the snapshot added (an internal one
    added none). `base` is None where it is no image of this host."""

    snapshot: str
    target: str
    base: Layer | None
    overlay: str | None = None


@dataclass(frozen=True)
class Forest:
    """The images that exist: what each stands on, and who else needs them.

    `below` has every image; `active` are those that the guest writes to, or would after a start; `others` those of the
    host's other domains, `inside` those with an internal snapshot in them, `written` the overlays that hold data.
    """

    below: Mapping[str, Layer | None]
    active: frozenset[str]
    others: Container[str] = frozenset()
    inside: frozenset[str] = frozenset()
    written: frozenset[str] = frozenset()

    def chain(self, path: str) -> tuple[str, ...]:
        """An image and all that it stands on; () where there is no such image."""
        found: list[str] = []
        while path in self.below and path not in found:
            found.append(path)
            layer = self.below[path]
            if layer is None:
                break
            path = layer.path
        return tuple(found)


@dataclass(frozen=True)
class Merging:
    """The layers `merged` (top first) of disk `target` go into the image below them."""

    target: str
    into: Layer
    merged: tuple[str, ...]

    @property
    def top(self) -> str:
        return self.merged[0]


@dataclass(frozen=True)
class ImagePlan:
    """`unused` are images (disk, path) that nothing needs any more; `kept` such ones that may hold the only copy of
    data: the guest writes below them, so it was started from an old definition, or somebody merged by hand."""

    merges: tuple[Merging, ...] = ()
    unused: tuple[tuple[str, str], ...] = ()
    kept: tuple[str, ...] = ()


@dataclass(frozen=True)
class Way:
    """Who deletes, and the reason, as `actions` shows it."""

    by_libvirt: bool
    why: str


OURS = Way(False, "by merges of this collection, which a later run can finish")


def way_of(points: Iterable[Point], forest: Forest, doomed: frozenset[str], children: str, version: int) -> Way:
    """Our own merges wherever they can: libvirt's deletion keeps no note of what it was about to do.

    Seen with libvirt 9.0 and 11.3: it takes no `children`, needs the guest's QEMU for a domain that is off, and is
    refused where several snapshots stand on the one. It alone can merge into an image that is not on this host.
    Where the guest has left the overlay, as after 'virsh blockcommit', there is nothing to merge.
    """
    in_use = closure(forest.active, forest)
    bound = (point for point in points if point.snapshot in doomed and point.overlay in in_use)
    remote = next((p for p in bound if base_of(p, forest.below) and is_out_of_sight(p, forest.below)), None)
    if remote is None:
        return OURS
    if version < _LIBVIRT_SINCE or children != "keep":
        raise VirtopsError(
            "unsupported",
            "Disk %s of snapshot %r stands on an image that is not on this host, and %s."
            % (
                remote.target,
                remote.snapshot,
                "libvirt deletes no descendants with it"
                if children != "keep"
                else "libvirt %s deletes no external snapshot (9.0.0 does)" % version_words(version),
            ),
            "Delete the descendants one by one, the last first"
            if children != "keep"
            else "Merge it with 'virsh blockcommit', then delete the record with virtops.libvirt.snapshot_metadata",
        )
    return Way(True, "by libvirt, as disk %s stands on an image that is not on this host" % remote.target)


def plan_images(points: Sequence[Point], doomed: frozenset[str], forest: Forest) -> ImagePlan:
    """What becomes of the images when these snapshots go. Raises VirtopsError for what cannot be done safely."""
    kept_points = [point for point in points if point.snapshot not in doomed]
    wanted = forest.active | {point.base.path for point in kept_points if point.base is not None}
    needed = closure(wanted, forest)
    given_up = {p.base.path: p for p in points if p.snapshot in doomed and p.base is not None} if doomed else {}
    # What is inside of an image, as an internal snapshot, stays as it is when the image is written to
    held = forest.active | {point.base.path for point in kept_points if point.base is not None and point.overlay}
    given_up = {path: point for path, point in given_up.items() if path not in held}
    strays = {
        point.overlay
        for point in kept_points
        if point.overlay is not None and point.overlay not in given_up and point.overlay not in needed
    }
    alive = needed | closure(strays, forest)
    stands_on: dict[str, list[str]] = {}
    for path in sorted(alive):
        layer = forest.below[path]
        if layer is not None:
            stands_on.setdefault(layer.path, []).append(path)
    joined = {
        path: _only_one(path, stands_on[path], point)
        for path, point in given_up.items()
        if path in needed and path in stands_on
    }
    merges = _runs(joined, given_up, forest)
    for merge in merges:
        _refuse_merge(merge, kept_points, forest)
    return ImagePlan(merges, *_unused(points, doomed, alive, forest))


def chained(points: Sequence[Point], doomed: Sequence[SnapshotRecord]) -> tuple[tuple[str, ...], ...]:
    """The snapshots that go, in groups whose layers stand on each other, so that each disk has one merge in a group.

    Where disks were left out of some of them a group would need several merges of one disk: then each goes by itself.
    """
    names = [record.name for record in doomed]
    parents = {record.name: record.parent for record in doomed}
    own = [point for point in points if point.snapshot in parents]
    made = {(point.target, point.overlay): point.snapshot for point in own if point.overlay is not None}
    group = {name: {name} for name in names}
    starts: dict[tuple[str, str], int] = {}

    def below(point: Point) -> str | None:
        """The snapshot of these whose overlay this moment is in."""
        if point.base is None:
            return next(
                (p.snapshot for p in own if (p.snapshot, p.target) == (parents[point.snapshot], point.target)), None
            )
        return made.get((point.target, point.base.path))

    for name, other in [*parents.items(), *((point.snapshot, below(point)) for point in own)]:
        if other in group and group[other] is not group[name]:
            joined = group[name] | group[other]
            group.update(dict.fromkeys(joined, joined))
    for point in own:
        if below(point) is None:
            key = min(group[point.snapshot]), point.target
            starts[key] = starts.get(key, 0) + 1
    split = {name for name in names if any(key[0] == min(group[name]) and count > 1 for key, count in starts.items())}
    found: list[tuple[str, ...]] = []
    for name in names:
        if name in split:
            found.append((name,))
        elif not any(name in one for one in found):
            found.append(tuple(other for other in names if other in group[name]))
    return tuple(found)


def closure(paths: Iterable[str], forest: Forest) -> frozenset[str]:
    """These images, where they exist, and all that they stand on."""
    return frozenset(found for path in paths for found in forest.chain(path))


def _only_one(path: str, standing: list[str], point: Point) -> str:
    if len(standing) == 1:
        return standing[0]
    raise branches_above(path, point.target, standing)


def branches_above(path: str, target: str, standing: Sequence[str]) -> VirtopsError:
    """The refusal of each merge that would change an image under another branch."""
    return VirtopsError(
        "branches_above",
        "The image %s of disk %s has other branches of snapshots above it (%s), which a merge would change."
        % (path, target, ", ".join(standing)),
        "First delete the snapshots of the other branches, with virtops.libvirt.snapshot_external and state: absent; "
        "the branch that the guest uses cannot be deleted",
    )


def _runs(joined: Mapping[str, str], given_up: Mapping[str, Point], forest: Forest) -> tuple[Merging, ...]:
    """What stands on each other becomes one merge into the lowest image."""
    tops = set(joined.values())
    found = []
    for bottom, point in given_up.items():
        if bottom not in joined or bottom in tops:
            continue
        merged: list[str] = []
        path = bottom
        while path in joined:
            path = joined[path]
            merged.insert(0, path)
        into = forest.below[merged[-1]]
        if into is not None:
            found.append(Merging(point.target, into, tuple(merged)))
    return tuple(sorted(found, key=lambda merge: (merge.target, merge.into.path)))


def _refuse_merge(merge: Merging, kept: Sequence[Point], forest: Forest) -> None:
    shared = next((path for path in (merge.into.path, *merge.merged) if path in forest.others), None)
    if shared is not None:
        raise image_shared(shared, merge.target)
    internal = {point.base.path for point in kept if point.overlay is None and point.base is not None}
    inside = next((path for path in merge.merged if path in forest.inside or path in internal), None)
    if inside is not None:
        raise VirtopsError(
            "internal_inside",
            "The layer %s of disk %s has an internal snapshot inside, which would be lost with it."
            % (inside, merge.target),
            "Delete that one first, with virtops.libvirt.snapshot_internal and state: absent",
        )


def _unused(
    points: Sequence[Point], doomed: frozenset[str], alive: frozenset[str], forest: Forest
) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    """Those that only the snapshots that go had use for; top first. Never an image that was there before them all."""
    bases = {point.base.path for point in points if point.base is not None}
    overlays = {point.overlay for point in points if point.overlay is not None}
    unseen = {point.overlay for point in points if is_out_of_sight(point, forest.below)}
    found: dict[str, str] = {}
    kept: dict[str, str] = {}
    for point in points:
        if point.snapshot not in doomed:
            continue
        tips = [path for path in (point.overlay, point.base.path if point.base else None) if path is not None]
        for path in (layer for tip in tips for layer in forest.chain(tip)):
            added = path in overlays or bool(bases & set(forest.chain(path)[1:]))
            if path in alive or not added or path in forest.others or path in forest.inside:
                continue
            forked = path in forest.written and (path in unseen or bool(forest.active & set(forest.chain(path)[1:])))
            (kept if forked else found)[path] = point.target
    depth = {path: len(forest.chain(path)) for path in found}
    return tuple((found[path], path) for path in sorted(found, key=lambda path: (-depth[path], path))), tuple(kept)


def base_of(point: Point, below: Mapping[str, Layer | None]) -> Layer | None:
    """What the snapshot's overlay stands on, on this host or not; None where nobody can tell."""
    return point.base if point.base is not None or point.overlay is None else below.get(point.overlay)


def is_out_of_sight(point: Point, below: Mapping[str, Layer | None]) -> bool:
    """May somebody have gone on writing below its overlay without our seeing it?"""
    base = base_of(point, below)
    return point.overlay is not None and (base is None or not is_local(base.path))


# The operation in the journal


def begun(name: str, children: str, journal: Journal) -> Operation | None:
    """What an interrupted run of the same task left."""
    found = journal.find(DELETE, name)
    return found if found is not None and found.children == children else None


def operation_of(plan: ImagePlan, name: str, children: str, identifier: str, started: str) -> Operation:
    """All of the plan, so that a later run goes on by it: half-way the records and images no longer tell it."""
    disks = [
        JournalDisk(merge.target, merge.into.path, merge.into.format, path)
        for merge in plan.merges
        for path in merge.merged
    ]
    disks += [JournalDisk(target, "", "", path) for target, path in plan.unused]
    return Operation(identifier, DELETE, name, COMMITTING, started, tuple(disks), children=children)


def plan_of(operation: Operation) -> ImagePlan:
    """The plan that `operation_of` wrote down."""
    merges: dict[tuple[str, str], Merging] = {}
    for disk in operation.disks:
        if not disk.base:
            continue
        known = merges.get((disk.target, disk.base))
        merged = (disk.overlay,) if known is None else (*known.merged, disk.overlay)
        merges[disk.target, disk.base] = Merging(disk.target, Layer(disk.base, disk.base_format), merged)
    unused = tuple((disk.target, disk.overlay) for disk in operation.disks if not disk.base)
    return ImagePlan(tuple(merges.values()), unused)


def moved_by(merges: Iterable[Merging]) -> dict[str, Layer]:
    """Where the data of each merged layer are afterwards."""
    return {path: merge.into for merge in merges for path in merge.merged}


def goal_of(merge: Merging, view: DomainView) -> MergeGoal | None:
    """The merge as one of the guest's own chain; None where its images are another branch's."""
    disk = view.disk(merge.target)
    depth = None if disk is None else disk.index_of(merge.into.path)
    if disk is None or depth is None:
        return None
    first = disk.index_of(merge.top)
    standing = depth if first is None else first
    above = disk.chain[standing - 1].path if standing else None
    return MergeGoal(merge.target, merge.into, tuple(Layer(path, "qcow2") for path in merge.merged), above)


def stranded(merges: Iterable[Merging], forest: Forest, chains: Iterable[str]) -> tuple[tuple[str, Layer], ...]:
    """The images in other branches that stand on a merged layer, and what they are to stand on instead.

    `chains` are the images of the guest's own chains, which the merge takes care of.
    """
    moved, own = moved_by(merges), frozenset(chains)
    found = []
    for path, layer in sorted(forest.below.items()):
        if layer is not None and layer.path in moved and path not in moved and path not in own:
            found.append((path, moved[layer.path]))
    return tuple(found)


def settled(
    journal: Journal,
    operation: Operation,
    gone: frozenset[str],
    identity: Callable[[str], FileIdentity | None],
) -> Journal:
    """The journal that is true once the operation has ended: without it and the snapshots that went. The moments of the
    others are in the images that their bases went into, as these are now; where that is none, they are nowhere."""
    moved = {disk.overlay: disk for disk in operation.disks}

    def after(disk: JournalDisk) -> JournalDisk | None:
        into = moved.get(disk.base)
        if into is None:
            return None if disk.overlay in moved else disk
        if disk.overlay in moved or not into.base:
            return None
        return replace(disk, base=into.base, base_format=into.base_format, identity=identity(into.base))

    left = []
    for op in journal.operations:
        disks = tuple(disk for disk in map(after, op.disks) if disk is not None)
        if disks and op.id != operation.id and (op.open or op.name not in gone):
            left.append(replace(op, disks=disks))
    return replace(journal, operations=tuple(left))


def memory_files(doomed: Iterable[SnapshotRecord], kept: Iterable[SnapshotRecord]) -> tuple[str, ...]:
    """The files that hold the memory of the snapshots that go, and of no other one."""
    others = {record.memory_file for record in kept}
    files = {record.memory_file: None for record in doomed if record.memory == "external"}
    return tuple(path for path in files if path is not None and path not in others)
