# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: what a merge has to do, from one reading of the domain. Nothing is changed here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from .._core.convergence import MIB, Deadline
from .._core.deletion import branches_above, closure
from .._core.errors import VirtopsError
from .._core.images import Use
from .._core.journal import COMMIT, CREATED, PULL, Journal, JournalDisk, Operation
from .._core.merge import (
    MergeGoal,
    Next,
    Phase,
    config_layer,
    goal_of_layer,
    goal_to_base,
    goal_to_pull,
    next_step,
    phase_of,
)
from .._core.model import IO_ERROR, BlockJob, DomainView, Layer, SnapshotRecord, is_local
from .._core.ports import MergePort
from .._core.refusals import image_shared, refuse_open, require_disk
from .._core.snapshot import is_in_chain, unknown_words
from .._core.text import command
from .away import require_here
from .clean_up import Clearance, clearance, sweeping
from .forest import RecordWrite, current_of, forest_of, points_of, record_writes, texts_of, with_bases
from .guest import Guest
from .sound import require_sound

#: Nanoseconds that a base has to be newer than its overlay to be the guest's image for certain, besides those for each
#: byte of the overlay: until the pivot QEMU copies its writes into the base a little later, at 1 MiB/s at the slowest.
PIVOT_DOUBT_NS = 10 * 10**9
LAG_NS_PER_BYTE = 10**9 / 1024**2


@dataclass(frozen=True)
class MergeOptions:
    """What the user asked for; `bandwidth` in MiB/s (0: no limit; None: none for a new job, and that of a running one
    stays).

    `adopted` is an operation as the journal should have it, and has not.
    """

    disks: tuple[str, ...] = ()
    snapshot: str | None = None
    base: str | None = None
    top: str | None = None
    bandwidth: int | None = 0
    wait: bool = True
    deadline: Deadline = field(default_factory=Deadline)
    pivot: bool = True
    delete_merged: bool = False
    pull: bool = False
    adopted: Operation | None = None

    @property
    def pivots(self) -> bool:
        """Without waiting nobody may pivot, not even a job that is ready by chance: check mode could not foresee it."""
        return self.pivot and self.wait

    def new_speed(self, job: BlockJob) -> int | None:
        """What a job of an earlier run is to be limited to, in bytes/s (0: no limit); None where it is so already. The
        earlier run may have been killed because its limit kept the job from ever ending."""
        wanted = None if self.bandwidth is None else self.bandwidth * MIB
        return None if job.bandwidth == wanted else wanted


@dataclass(frozen=True)
class Layers:
    """What stands between the observation and the goals, in the chains of `domain`.

    `operation` is what the journal has of it already. `stale_config`: what the persistent XML is to name, by disk.
    `pivoted`: disks of a domain that is off whose base already has all that the overlay has, and newer data. `unsure`:
    overlays that may hold data nobody merged. `resumes`: QEMU paused the guest at a write that failed, as on a full
    file system, and the merge gives it another image to write to. `words` are what `actions` shows of each goal,
    by its disk and topmost layer.
    """

    domain: str
    goals: tuple[MergeGoal, ...]
    operation: Operation | None
    stale_config: dict[str, Layer]
    pivoted: frozenset[str]
    unsure: frozenset[str]
    resumes: bool
    words: dict[tuple[str, str], tuple[str, ...]]


class MergePlanner:
    """Plans the merge of one domain, or refuses it."""

    def __init__(self, options: MergeOptions, guest: Guest[MergePort]) -> None:
        self._options = options
        self._guest = guest
        self._domain = guest.domain
        self._images = guest.images

    def plan(self, view: DomainView, journal: Journal) -> tuple[Layers, Clearance | None]:
        """What is to be merged, and what is left to do where then no layer of the snapshot or operation is in a chain.
        Raises VirtopsError for what must not be merged."""
        options = self._options
        record = self._domain.snapshot(options.snapshot) if options.snapshot else None
        operation = journal.of_snapshot(options.snapshot) if options.snapshot else None
        goals = self._goals(view, operation, record)
        if options.snapshot is None:
            operation = _interrupted_merge(journal, goals)
        if goals or operation is not None:
            require_here(view, self._images)
        refuse_open(view, journal, operation.id if operation else None)
        whole = self._ends_whole(goals, view, operation, record)
        layers = self.layers(goals, operation, view, whole)
        texts = texts_of(self._domain)
        self._check_branches(goals, view, texts, journal)
        return layers, self._clearance(layers, operation, record, texts, view, journal) if whole else None

    def layers(
        self, goals: tuple[MergeGoal, ...], operation: Operation | None, view: DomainView, whole: bool = True
    ) -> Layers:
        """What is left to do for these goals. Raises VirtopsError for those that must not be reached."""
        for goal in goals:
            self.check_goal(goal, view)
            self.check_offline(goal, view)
        self._check_unshared(goals)
        goals = tuple(goal for goal in goals if self._is_left(goal, view))
        pivoted = frozenset(goal.target for goal in goals if self.has_pivoted(goal, view, operation))
        return Layers(
            view.name,
            goals,
            operation,
            _stale_config(view, operation),
            pivoted,
            self._unsure(view, operation) | {goal.top.path for goal in goals if goal.target in pivoted},
            view.paused_by == IO_ERROR and whole and bool(goals or operation),
            {(goal.target, goal.top.path): self._words(goal, view, pivoted) for goal in goals},
        )

    def _clearance(
        self,
        layers: Layers,
        operation: Operation | None,
        record: SnapshotRecord | None,
        texts: dict[str, str],
        view: DomainView,
        journal: Journal,
    ) -> Clearance:
        options = self._options
        deletes = options.delete_merged
        paths = self._deletions(layers.goals, operation, view, journal) if deletes else ()
        paths = tuple(path for path in paths if path not in layers.unsure)
        ends = deletes and bool(layers.goals or operation)
        sweep, kept = sweeping(view, journal, self._guest) if ends else ((), ())
        if options.snapshot is not None and operation is None and record is None:
            kept = unknown_words(options.snapshot, view)
        moved = {} if options.snapshot is None else moved_layers(layers.goals, operation, view)
        return clearance(
            {path: "delete the merged overlay %s" % path for path in paths},
            self._memory(record, operation) if deletes else (),
            () if operation is None else operation.disks,
            self._guest.ours(view),
            records=() if record is None else (record.name,),
            gone=frozenset(() if options.snapshot is None else (options.snapshot,)),
            writes=self._writes(moved, texts),
            moved=moved,
            sweep=sweep,
            kept=kept,
            ending=() if operation is None else ("remove operation %s from the journal" % operation.name,),
        )

    def _goals(
        self, view: DomainView, operation: Operation | None, record: SnapshotRecord | None
    ) -> tuple[MergeGoal, ...]:
        options = self._options
        for target in options.disks:
            require_disk(view, target)
        if options.snapshot is not None:
            return self._goals_of_snapshot(view, operation, record)
        disks = [disk for disk in view.disks if disk.target in options.disks] if options.disks else list(view.disks)
        if not options.disks and options.base is not None:
            disks = [disk for disk in disks if disk.index_of(options.base) is not None] or disks[:1]
        elif not options.disks:
            disks = [disk for disk in disks if disk.chain]
        if options.pull:
            found = [goal_to_pull(disk, options.base, view.name) for disk in disks]
        else:
            found = [goal_to_base(disk, options.base or "", options.top, view.name) for disk in disks]
        return tuple(goal for goal in found if goal is not None)

    def _goals_of_snapshot(
        self, view: DomainView, operation: Operation | None, record: SnapshotRecord | None
    ) -> tuple[MergeGoal, ...]:
        if record is not None and not record.external:
            raise VirtopsError(
                "not_external",
                "Snapshot %r of domain %s is internal: it added no layer that could be merged."
                % (record.name, view.name),
                "Delete an internal snapshot instead of merging it",
            )
        layers: dict[str, tuple[str, str | None]] = {}
        if record is not None:
            layers = {disk.target: (disk.file or "", None) for disk in record.disks if disk.mode == "external"}
        if operation is not None:
            layers.update({disk.target: (disk.overlay, disk.base) for disk in operation.disks})
        goals = []
        for target, (overlay, base) in sorted(layers.items()):
            if self._options.disks and target not in self._options.disks:
                continue
            disk = view.disk(target)
            if disk is None:
                raise VirtopsError(
                    "chain_changed",
                    "Disk %s, which snapshot %r gave the overlay %s, is no longer attached to domain %s."
                    % (target, self._options.snapshot, overlay, view.name),
                    "Attach it again, or name the other disks in disks",
                )
            if disk.active is not None and disk.active.path == overlay:
                self._require_layer(overlay, target, view)
            goal = goal_of_layer(disk, overlay, base, view.name)
            if goal is not None:
                goals.append(goal)
        return tuple(goals)

    def check_goal(self, goal: MergeGoal, view: DomainView) -> None:
        """Refuse a goal that a foreign job or a changed chain stands in the way of."""
        if goal.kind != PULL and not is_local(goal.into.path):
            raise VirtopsError(
                "base_remote",
                "The base of disk %s of domain %s is on the network (%s), not an image of this host."
                % (goal.target, view.name, goal.into.path),
                "Merge into it (%s), then run this again, which tidies up"
                % command("virsh", "blockcommit", view.name, goal.target, "--active", "--pivot"),
            )
        phase = phase_of(goal, view)
        for layer in goal.merged if phase is Phase.OFFLINE and goal.kind != PULL else ():
            self._require_layer(layer.path, goal.target, view)
        if next_step(phase, self._options.pivots) is not Next.REFUSE:
            return
        disk = view.disk(goal.target)
        if phase is Phase.FOREIGN_JOB and disk is not None and disk.job is not None:
            raise VirtopsError(
                "job_running",
                "A block job (%s) that is not this merge runs on disk %s of domain %s."
                % (disk.job.kind, goal.target, view.name),
                "Wait for its end, or end it: %s" % command("virsh", "blockjob", view.name, goal.target, "--abort"),
            )
        raise VirtopsError(
            "chain_changed",
            "The image %s is no longer in the chain of disk %s of domain %s."
            % (goal.into.path, goal.target, view.name),
            "Look at the chain with virtops.libvirt.block_info before anything else is done to this guest",
        )

    def _require_layer(self, path: str, target: str, view: DomainView) -> None:
        """Another host may have merged and deleted it, for a guest that went there."""
        if not view.active and is_local(path) and not self._images.exists(path):
            raise VirtopsError(
                "overlay_gone",
                "The overlay %s, which the definition of domain %s names for disk %s, is gone."
                % (path, view.name, target),
                "If the guest moved to another host, which merged and deleted the overlay, remove the definition here "
                "(%s), but no image. Otherwise mount or bring back the overlay before you start the domain: it has the "
                "guest's newest data" % command("virsh", "undefine", view.name),
            )

    def check_offline(self, goal: MergeGoal, view: DomainView) -> None:
        """What qemu-img is going to read and write, by the images' headers. Of a running guest, QEMU has them open."""
        if phase_of(goal, view) is not Phase.OFFLINE:
            return
        if goal.kind != PULL:
            require_sound(view, goal.target, Use.MERGE, self._images)
            return
        pulls = [op for op in view.journal.operations if op.kind == PULL]
        begun = frozenset(path for op in pulls for disk in op.disks for path in (disk.overlay, disk.base))
        require_sound(view, goal.target, Use.PULL, self._images, begun)

    def _check_unshared(self, goals: tuple[MergeGoal, ...]) -> None:
        """Writing into an image that another guest stands on would change that guest's disk."""
        goals = tuple(goal for goal in goals if goal.kind != PULL)
        if not goals:
            return
        shared = self._guest.others()
        for goal in goals:
            if goal.into.path in shared or any(layer.path in shared for layer in goal.merged):
                path = goal.into.path if goal.into.path in shared else goal.top.path
                raise image_shared(path, goal.target, "Merge only down to a layer that no other domain stands on")

    def _check_branches(
        self, goals: tuple[MergeGoal, ...], view: DomainView, texts: dict[str, str], journal: Journal
    ) -> None:
        """After a revert, another branch may stand on an image of the guest's chain, which must not change then."""
        if not texts or all(goal.kind == PULL for goal in goals):
            return
        points = [point for point in points_of(texts, journal) if point.snapshot != self._options.snapshot]
        forest = forest_of(points, view, self._images, frozenset())
        points = list(with_bases(points, forest.below))
        needed = closure((point.base.path for point in points if point.base is not None), forest)
        needed -= {layer.path for disk in view.disks for layer in disk.chain}
        for goal in goals:
            touched = {goal.into.path, *(layer.path for layer in goal.merged)} if goal.kind != PULL else set()
            for path in sorted(needed):
                layer = forest.below[path]
                if layer is not None and layer.path in touched:
                    raise branches_above(layer.path, goal.target, [path])

    def _writes(self, moved: dict[str, Layer], texts: dict[str, str]) -> tuple[RecordWrite, ...]:
        """A merge by path leaves the records as they are, as virsh does."""
        if self._options.snapshot is None or not texts:
            return ()
        return record_writes(texts, moved, frozenset({self._options.snapshot}), current_of(self._domain, texts))

    def _is_left(self, goal: MergeGoal, view: DomainView) -> bool:
        """Does this run still have something to do for the goal?"""
        phase = phase_of(goal, view)
        step = next_step(phase, self._options.pivots)
        if step is Next.WAIT and not self._options.wait:
            return False
        return step not in (Next.DONE, Next.HOLD)

    def _ends_whole(
        self,
        goals: tuple[MergeGoal, ...],
        view: DomainView,
        operation: Operation | None,
        record: SnapshotRecord | None,
    ) -> bool:
        """Will no layer of this snapshot or operation be in a chain when this run ends well?"""
        if goals and not (self._options.wait and (self._options.pivot or not any(goal.pivots for goal in goals))):
            return False
        layers = {(disk.target, disk.overlay) for disk in operation.disks} if operation else set()
        if record is not None:
            layers |= {(disk.target, disk.file or "") for disk in record.disks if disk.mode == "external"}
        covered = {(goal.target, layer.path) for goal in goals for layer in goal.merged}
        return not any(is_in_chain(view, target, path) for target, path in layers - covered)

    def _deletions(
        self, goals: tuple[MergeGoal, ...], operation: Operation | None, view: DomainView, journal: Journal
    ) -> tuple[str, ...]:
        """Layers whose data are elsewhere now. What a pull takes out of the chain may be the user's own original
        image, and still good: of those only the overlays that a snapshot of ours made."""
        ours = {disk.overlay for op in journal.operations if op.kind != PULL for disk in op.disks}
        paths = [layer.path for goal in goals for layer in goal.merged if goal.kind != PULL or layer.path in ours]
        left = {layer.path for disk in view.disks for layer in disk.chain} - set(paths)
        if operation is not None:
            paths += [disk.overlay for disk in operation.disks if disk.overlay in ours and disk.overlay not in paths]
        return tuple(path for path in paths if path not in left and self._images.exists(path))

    def _memory(self, record: SnapshotRecord | None, operation: Operation | None) -> tuple[str, ...]:
        """The file that the snapshot's memory is in, which nothing can go on from when its disks are no more."""
        if self._options.snapshot is None:
            return ()
        noted = operation.memory if operation is not None else None
        path = noted if record is None or record.memory != "external" else record.memory_file
        others = {found.memory_file for found in self._domain.snapshots() if found.name != self._options.snapshot}
        return () if path is None or path in others or not self._images.exists(path) else (path,)

    def has_pivoted(self, goal: MergeGoal, view: DomainView, operation: Operation | None) -> bool:
        """Of a domain that is off: did QEMU pivot this disk before it ended, without libvirt's noting it?

        The persistent XML then names the overlay, while the base has all that the overlay has, and what the guest wrote
        after the pivot: to commit the overlay would undo that. Until the pivot each write reaches the overlay first.
        Where the guest wrote nothing after it, both have the same, and a commit undoes nothing.
        """
        noted = operation.disk(goal.target) if operation is not None else None
        asked = noted is not None and noted.pivoting and noted.overlay == goal.top.path
        if not asked or phase_of(goal, view) is not Phase.OFFLINE:
            return False
        base, overlay = self._images.identity(goal.into.path), self._images.identity(goal.top.path)
        if not base.device and not overlay.device:  # a block device's times tell nothing
            if overlay.mtime_ns > base.mtime_ns:
                return False
            if base.mtime_ns - overlay.mtime_ns > PIVOT_DOUBT_NS + overlay.size * LAG_NS_PER_BYTE:
                return True
        if self._images.same_content(goal.top, goal.into):
            return False
        raise VirtopsError(
            "pivot_lost",
            "Domain %s ended while disk %s was pivoted, and it is not known whether its newest data are in %s or in %s."
            % (view.name, goal.target, goal.top.path, goal.into.path),
            "Keep copies of both images, and look at each with the other out of the way (guestfish, or a scratch "
            "domain); name the right one in 'virsh edit', start the domain, then run virtops.libvirt.recover",
        )

    def _unsure(self, view: DomainView, operation: Operation | None) -> frozenset[str]:
        """Overlays that the domain runs without, and that may hold data which nobody merged.

        libvirt may have died between a pivot and the write of its XML. Or the guest was started from another XML. Or
        no merge of ours was ever begun, and somebody else made one: nothing here tells the one from the other.
        """
        found = set()
        for disk in operation.disks if operation is not None else ():
            if is_in_chain(view, disk.target, disk.overlay):
                continue
            config = view.config_disk(disk.target)
            named = config is not None and config.active is not None and config.active.path == disk.overlay
            never_merged = operation is not None and operation.phase == CREATED
            if named or (never_merged and self._images.exists(disk.overlay) and self._images.holds_data(disk.overlay)):
                found.add(disk.overlay)
        return frozenset(found)

    def _words(self, goal: MergeGoal, view: DomainView, pivoted: frozenset[str]) -> tuple[str, ...]:
        phase = phase_of(goal, view)
        merged = ", ".join(layer.path for layer in goal.merged)
        doing = "%s %s into %s" % (goal.kind, merged, goal.into.path)
        config = config_words(goal.target, config_layer(goal, view))
        if phase is Phase.CONFIG_STALE or goal.target in pivoted:
            return (config,)
        if phase is Phase.OFFLINE:
            words = ["%s offline (%s)" % (doing, goal.target)]
            if goal.kind != PULL:
                words.append(config if goal.pivots else "rebase %s onto %s" % (goal.above, goal.into.path))
            return tuple(words)
        words = []
        if phase is Phase.IDLE:
            words.append("%s (%s)" % (doing, goal.target))
        elif phase is Phase.COPYING:
            words += self._speed_words(goal, view)
            words.append("wait for the %s into %s that runs already (%s)" % (goal.kind, goal.into.path, goal.target))
        if goal.pivots and self._options.pivots:
            words.append("pivot %s to %s" % (goal.target, goal.into.path))
        return tuple(words)

    def _speed_words(self, goal: MergeGoal, view: DomainView) -> tuple[str, ...]:
        disk = view.disk(goal.target)
        speed = None if disk is None or disk.job is None else self._options.new_speed(disk.job)
        if speed is None:
            return ()
        if speed == 0:
            return ("lift the limit of the %s of %s that runs already" % (goal.kind, goal.target),)
        words = "limit the %s of %s that runs already to %d MiB/s"
        return (words % (goal.kind, goal.target, speed // MIB),)


def _interrupted_merge(journal: Journal, goals: tuple[MergeGoal, ...]) -> Operation | None:
    """The merge by path that an earlier run began, where these goals are what is left of it."""
    left = {(goal.target, layer.path, journalled(goal, layer).base) for goal in goals for layer in goal.merged}
    for op in journal.operations:
        if op.kind in (COMMIT, PULL) and left <= {(disk.target, disk.overlay, disk.base) for disk in op.disks}:
            return op
    return None


def journalled(goal: MergeGoal, layer: Layer) -> JournalDisk:
    """A merged layer, and what stands in its place in the chain afterwards ("" for nothing)."""
    base = goal.below if goal.kind == PULL else goal.into
    return JournalDisk(goal.target, base.path if base else "", base.format if base else "", layer.path)


def merged_by(goals: Iterable[MergeGoal]) -> dict[str, list[str]]:
    """The layers that leave each disk's chain."""
    found: dict[str, list[str]] = {}
    for goal in goals:
        found.setdefault(goal.target, []).extend(layer.path for layer in goal.merged)
    return found


def moved_layers(goals: tuple[MergeGoal, ...], operation: Operation | None, view: DomainView) -> dict[str, Layer]:
    """Where the data of each merged layer are afterwards, also of those that an earlier run merged: in an image that
    libvirt shows in the disk's chain, whatever the journal says."""
    disks = operation.disks if operation is not None and operation.kind != PULL else ()
    moved = {
        disk.overlay: Layer(disk.base, disk.base_format) for disk in disks if is_in_chain(view, disk.target, disk.base)
    }
    moved.update({layer.path: goal.into for goal in goals if goal.kind != PULL for layer in goal.merged})
    return moved


def config_words(target: str, layer: Layer) -> str:
    return "write %s as disk %s into the persistent XML" % (layer.path, target)


def _stale_config(view: DomainView, operation: Operation | None) -> dict[str, Layer]:
    """What the persistent XML is to name where an earlier run merged a layer and could not write that down."""
    found = {}
    for merged in operation.disks if operation is not None and view.persistent else ():
        config = view.config_disk(merged.target)
        if config is None or config.active is None or is_in_chain(view, merged.target, merged.overlay):
            continue
        if config.index_of(merged.overlay) is None:
            continue
        if config.active.path != merged.overlay:
            found[merged.target] = config.active
        elif is_in_chain(
            view, merged.target, merged.base
        ):  # where the guest is by libvirt's word, not by the journal's
            found[merged.target] = Layer(merged.base, merged.base_format)
    return found
