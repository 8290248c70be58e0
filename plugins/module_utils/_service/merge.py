# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the flow of a merge, of a running guest's layers or of one that is off.

observe -> goals -> (check mode stops here) -> journal COMMITTING -> loop: observe, decide, act, wait
-> overlays deleted -> snapshot record deleted -> journal removed, last. Each run goes on from what it sees.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from typing import Any

from .._core import xml
from .._core.errors import VirtopsError
from .._core.journal import COMMIT, COMMITTING, PULL, Journal, JournalDisk, Operation
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
from .._core.model import BlockJob, DomainView, Layer, Outcome, SnapshotRecord
from .._core.ports import Clock, ImagePort, MergePort
from .._core.snapshot import is_in_chain, operation_open, require_disk
from .observe import chains, observe

#: Seconds between two looks while no event comes: libvirtd's restart loses events.
POLL = 0.25
#: Seconds that a job may be gone with the chain unchanged before it counts as failed: QEMU forgets a job that ended
#: before libvirt has written the new chain.
GONE_SECONDS = 5.0
#: Pivots that are refused as "not ready" before the disk counts as failed: guest writes race with it.
PIVOT_TRIES = 20


@dataclass(frozen=True)
class MergeWish:
    """What the user asked for; `bandwidth` in MiB/s (0: no limit), `timeout` in seconds."""

    disks: tuple[str, ...] = ()
    snapshot: str | None = None
    base: str | None = None
    top: str | None = None
    bandwidth: int = 0
    wait: bool = True
    timeout: int = 3600
    pivot: bool = True
    delete_merged: bool = False
    pull: bool = False

    @property
    def pivots(self) -> bool:
        """Without waiting nobody may pivot, not even a job that is ready by chance: check mode could not foresee it."""
        return self.pivot and self.wait


@dataclass
class _Progress:
    """What this run did to one disk."""

    goal: MergeGoal
    started: bool = False
    gone_since: float | None = None
    pivots: int = 0
    error: VirtopsError | None = None
    done: bool = False


@dataclass(frozen=True)
class _Plan:
    """What stands between the observation and the goal."""

    goals: tuple[MergeGoal, ...]
    operation: Operation | None
    record: SnapshotRecord | None
    stale_config: dict[str, Layer]
    unsure: frozenset[str]
    deletions: tuple[str, ...]
    steps: tuple[str, ...]
    whole: bool


class Merge:
    """Merge layers of one domain's disks."""

    def __init__(self, wish: MergeWish, domain: MergePort, images: ImagePort, clock: Clock) -> None:
        self._wish = wish
        self._domain = domain
        self._images = images
        self._clock = clock

    def run(self, check: bool) -> Outcome:
        """Plan, and where not `check`, apply. Raises VirtopsError with what was done per disk."""
        view = observe(self._domain, self._images)
        journal = xml.parse_journal(view.journal_xml)
        plan = self._plan(view, journal)
        if check or not plan.steps:
            return self._outcome(plan, view, self._foreseen(plan, view), plan.steps)
        if plan.goals:
            plan = replace(plan, operation=self._write_intent(plan, journal))
        progress = self._merge(plan, view)
        after = observe(self._domain, self._images)
        for error in (item.error for item in progress if item.error is not None):
            error.partial = self._results(plan, view, after)
            raise error
        warnings = self._clean(plan, after) + self._stale_records(plan)
        return self._outcome(plan, view, chains(after), plan.steps, warnings, after)

    # -- plan

    def _plan(self, view: DomainView, journal: Journal) -> _Plan:
        wish = self._wish
        record = self._domain.snapshot(wish.snapshot) if wish.snapshot else None
        operation = journal.find(wish.snapshot) if wish.snapshot else None
        goals = self._goals(view, operation, record)
        if wish.snapshot is None:
            operation = _interrupted_merge(journal, goals)
        foreign = journal.foreign_to(operation.name if operation else wish.snapshot)
        if foreign is not None:
            raise operation_open(view.name, foreign)
        for goal in goals:
            self._check_goal(goal, view)
        self._check_unshared(goals, view)
        whole = self._ends_whole(goals, view, operation, record)
        goals = tuple(goal for goal in goals if self._is_left(goal, view))
        unsure = _unsure(view, operation)
        deletions = self._deletions(goals, operation, view, journal) if wish.delete_merged and whole else ()
        deletions = tuple(path for path in deletions if path not in unsure)
        stale = _stale_config(view, operation)
        steps = [text for goal in goals for text in self._words(goal, view)]
        steps += [_config_words(target, layer) for target, layer in stale.items()]
        steps += ["delete the merged overlay %s" % path for path in deletions]
        if whole and wish.snapshot is not None and record is not None:
            steps.append("delete the record of snapshot %s" % record.name)
        if whole and operation is not None:
            steps.append("remove operation %s from the journal" % operation.name)
        return _Plan(goals, operation, record if whole else None, stale, unsure, deletions, tuple(steps), whole)

    def _goals(
        self, view: DomainView, operation: Operation | None, record: SnapshotRecord | None
    ) -> tuple[MergeGoal, ...]:
        wish = self._wish
        for target in wish.disks:
            require_disk(view, target)
        if wish.snapshot is not None:
            return self._goals_of_snapshot(view, operation, record)
        disks = [disk for disk in view.disks if disk.target in wish.disks] if wish.disks else list(view.disks)
        if not wish.disks and wish.base is not None:
            disks = [disk for disk in disks if disk.index_of(wish.base) is not None] or disks[:1]
        elif not wish.disks:
            disks = [disk for disk in disks if disk.chain]
        if wish.pull:
            found = [goal_to_pull(disk, wish.base, view.name) for disk in disks]
        else:
            found = [goal_to_base(disk, wish.base or "", wish.top, view.name) for disk in disks]
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
            if self._wish.disks and target not in self._wish.disks:
                continue
            disk = view.disk(target)
            if disk is None:
                raise VirtopsError(
                    "chain_changed",
                    "Disk %s, which snapshot %r gave the overlay %s, is attached to domain %s no more."
                    % (target, self._wish.snapshot, overlay, view.name),
                    "Attach it again, or name the other disks in disks",
                )
            goal = goal_of_layer(disk, overlay, base, view.name)
            if goal is not None:
                goals.append(goal)
        return tuple(goals)

    def _check_goal(self, goal: MergeGoal, view: DomainView) -> None:
        phase = phase_of(goal, view)
        if next_step(phase, self._wish.pivots) is not Next.REFUSE:
            return
        disk = view.disk(goal.target)
        if phase is Phase.FOREIGN_JOB and disk is not None and disk.job is not None:
            raise VirtopsError(
                "job_running",
                "A %s job that is not this merge runs on disk %s of domain %s."
                % (disk.job.kind, goal.target, view.name),
                "Wait for its end, or end it with 'virsh blockjob %s %s --abort'" % (view.name, goal.target),
            )
        raise VirtopsError(
            "chain_changed",
            "The image %s is no longer in the chain of disk %s of domain %s."
            % (goal.into.path, goal.target, view.name),
            "Look at the chain with virtops.libvirt.block_info before anything else is done to this guest",
        )

    def _check_unshared(self, goals: tuple[MergeGoal, ...], view: DomainView) -> None:
        """Writing into an image that another guest stands on would change that guest's disk."""
        goals = tuple(goal for goal in goals if goal.kind != PULL)
        shared = self._images_of_others() if goals else frozenset()
        for goal in goals:
            if goal.into.path in shared or any(layer.path in shared for layer in goal.merged):
                path = goal.into.path if goal.into.path in shared else goal.top.path
                raise VirtopsError(
                    "base_shared",
                    "The image %s of disk %s of domain %s also belongs to another domain of this host."
                    % (path, goal.target, view.name),
                    "Merge only down to a layer that no other domain stands on",
                )

    def _images_of_others(self) -> frozenset[str]:
        """Every image in a chain of another domain; of those that are off, the images know the chain."""
        others = self._domain.other_images()
        found = set(others.known)
        for tip in others.tips:
            if self._images.exists(tip.path):
                found.update(layer.path for layer in self._images.chain(tip.path, tip.format))
        return frozenset(found)

    def _is_left(self, goal: MergeGoal, view: DomainView) -> bool:
        """Does this run still have something to do for the goal?"""
        phase = phase_of(goal, view)
        step = next_step(phase, self._wish.pivots)
        if step is Next.WAIT and not self._wish.wait:
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
        if goals and not (self._wish.wait and (self._wish.pivot or not any(goal.pivots for goal in goals))):
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

    def _words(self, goal: MergeGoal, view: DomainView) -> list[str]:
        phase = phase_of(goal, view)
        merged = ", ".join(layer.path for layer in goal.merged)
        doing = "%s %s into %s" % (goal.kind, merged, goal.into.path)
        config = _config_words(goal.target, config_layer(goal, view))
        if phase is Phase.OFFLINE:
            words = ["%s offline (%s)" % (doing, goal.target)]
            if goal.kind != PULL:
                words.append(config if goal.pivots else "rebase %s onto %s" % (goal.above, goal.into.path))
            return words
        if phase is Phase.CONFIG_STALE:
            return [config]
        words = []
        if phase is Phase.IDLE:
            words.append("%s (%s)" % (doing, goal.target))
        elif phase is Phase.COPYING:
            words.append("wait for the %s into %s that runs already (%s)" % (goal.kind, goal.into.path, goal.target))
        if goal.pivots and self._wish.pivots:
            words.append("pivot %s to %s" % (goal.target, goal.into.path))
        return words

    # -- effects

    def _merge(self, plan: _Plan, view: DomainView) -> list[_Progress]:
        progress = [_Progress(goal) for goal in plan.goals]
        deadline = self._clock.monotonic() + self._wish.timeout
        while True:
            waiting = [item for item in progress if not item.done and item.error is None and not self._act(item, view)]
            if not any(not item.done and item.error is None for item in progress):
                return progress
            if self._clock.monotonic() >= deadline:
                self._give_up([item for item in progress if not item.done and item.error is None])
                return progress
            if waiting:
                self._domain.wait_event(POLL)
            view = observe(self._domain, self._images)

    def _write_intent(self, plan: _Plan, journal: Journal) -> Operation:
        """From here on the bases are nobody's point in time any more; say so before it is true."""
        operation = plan.operation or self._new_operation(plan.goals)
        if operation.phase != COMMITTING or plan.operation is None:
            operation = operation.at(COMMITTING)
            self._domain.write_journal(xml.build_journal(journal.put(operation)))
        return operation

    def _new_operation(self, goals: tuple[MergeGoal, ...]) -> Operation:
        return Operation(
            id=str(uuid.uuid4()),
            kind=PULL if self._wish.pull else COMMIT,
            name=self._wish.snapshot or "%s into %s" % (goals[0].kind, goals[0].into.path),
            phase=COMMITTING,
            started=self._clock.utcnow(),
            disks=tuple(_journalled(goal, layer) for goal in goals for layer in goal.merged),
        )

    def _act(self, item: _Progress, view: DomainView) -> bool:
        """One step for one disk. True where the next observation may differ at once."""
        phase = phase_of(item.goal, view)
        step = next_step(phase, self._wish.pivots)
        try:
            if step is Next.START:
                item.done = not self._wish.wait and not item.started
                return self._start(item)
            if step is Next.WAIT:
                item.done = not self._wish.wait
                return item.done
            if step is Next.PIVOT:
                return self._pivot(item)
            if step is Next.COMMIT_OFFLINE:
                self._merge_offline(item.goal, view)
                return True
            if step is Next.UPDATE_CONFIG:
                self._domain.set_config_disks({item.goal.target: config_layer(item.goal, view)})
                return False  # where it does not help, the deadline ends it
            if step is Next.REFUSE:
                self._check_goal(item.goal, view)
            item.done = True
        except VirtopsError as error:
            if error.code == "connection_lost":
                raise
            item.error = error
        return True

    def _start(self, item: _Progress) -> bool:
        """Start the job, once. True where the next observation may differ at once."""
        if item.started:
            return self._wait_for_trace(item)
        item.started = True
        goal = item.goal
        bandwidth = self._wish.bandwidth * 1024 * 1024
        relative = goal.above is not None and self._images.info(goal.above).backing_is_relative
        if goal.kind == PULL:
            below = goal.below.path if goal.below else None
            self._domain.start_pull(goal.target, below, bandwidth, relative and below is not None)
        else:
            self._domain.start_commit(goal.target, goal.into.path, goal.top.path, goal.pivots, bandwidth, relative)
        return True

    def _wait_for_trace(self, item: _Progress) -> bool:
        """Our job is gone, and the chain is as before: libvirt is about to change it, or the job failed."""
        now = self._clock.monotonic()
        item.gone_since = now if item.gone_since is None else item.gone_since
        if now - item.gone_since < GONE_SECONDS:
            return False
        raise VirtopsError(
            "commit_failed",
            "The %s of %s into %s ended without merging it (disk %s)."
            % (item.goal.kind, item.goal.top.path, item.goal.into.path, item.goal.target),
            "Look for the cause in the domain's QEMU log (most often no space for the image), mend it, and run "
            "the play again; the guest goes on, on its overlay",
        )

    def _pivot(self, item: _Progress) -> bool:
        try:
            self._domain.pivot(item.goal.target)
        except VirtopsError as error:
            item.pivots += 1
            if error.code != "not_ready" or item.pivots >= PIVOT_TRIES:
                raise
            return False
        return True

    def _merge_offline(self, goal: MergeGoal, view: DomainView) -> None:
        """Where the active layer stays, the persistent XML drops first what it says of the layers below."""
        if not goal.pivots:
            self._domain.set_config_disks({goal.target: config_layer(goal, view)})
        if goal.kind == PULL:
            self._images.rebase(goal.into.path, goal.below)
            return
        self._images.commit(goal.top, goal.into)
        if goal.above is not None:
            self._images.rebase_unsafe(goal.above, goal.into)
        else:
            self._domain.set_config_disks({goal.target: goal.into})

    def _give_up(self, items: list[_Progress]) -> None:
        """The deadline: end our jobs as `virsh blockcommit --timeout` does. The guest stays on its overlay."""
        for item in items:
            if self._domain_has_job(item.goal.target):
                self._domain.cancel_job(item.goal.target)
            item.error = VirtopsError(
                "timeout",
                "The merge of %s into %s did not end within %d seconds (disk %s)."
                % (item.goal.top.path, item.goal.into.path, self._wish.timeout, item.goal.target),
                "The guest goes on, on its overlay: run the play again with a longer timeout or more bandwidth",
            )

    def _domain_has_job(self, target: str) -> bool:
        disk = self._domain.view().disk(target)
        return disk is not None and disk.job is not None

    # -- after the merge

    def _clean(self, plan: _Plan, view: DomainView) -> tuple[str, ...]:
        """Overlays, then the record, then the journal: what is left tells the next run to go on here."""
        if plan.stale_config:
            self._domain.set_config_disks(plan.stale_config)
            view = observe(self._domain, self._images)
        if not plan.whole:
            return ()
        warnings = tuple(text for path in plan.deletions for text in self._delete_overlay(path, view))
        if plan.record is not None and self._domain.snapshot(plan.record.name) is not None:
            self._domain.delete_snapshot_record(plan.record.name)
        self._close(plan)
        return warnings + tuple(
            "The overlay %s was kept: the domain was defined on it, but ran without it. Before you delete it, make "
            "sure that the domain was not started from another definition (qemu-img compare tells the difference)."
            % path
            for path in sorted(plan.unsure)
        )

    def _stale_records(self, plan: _Plan) -> tuple[str, ...]:
        """A merge by path leaves libvirt's records as they are, as virsh does; they no longer say what is."""
        if self._wish.snapshot is not None:
            return ()
        merged = {layer.path for goal in plan.goals for layer in goal.merged}
        return tuple(
            "The record of snapshot %s names a layer that was merged: remove it with "
            "virtops.libvirt.snapshot_metadata and state: absent." % record.name
            for record in (self._domain.snapshots() if merged else ())
            if any(disk.file in merged for disk in record.disks)
        )

    def _delete_overlay(self, path: str, view: DomainView) -> tuple[str, ...]:
        """Delete it where nothing can need it any more; else say what keeps it."""
        own = {layer.path for disk in view.disks + view.config_disks for layer in disk.chain}
        if path in own:
            reason = "it is still in a chain of this domain"
        elif path in self._images_of_others():
            reason = "another domain of this host stands on it"
        elif self._images.holders(path):
            reason = "a process has it open (PID %s)" % ", ".join(str(pid) for pid in self._images.holders(path))
        else:
            self._images.remove(path)
            return ()
        return ("The merged overlay %s was kept: %s." % (path, reason),)

    def _close(self, plan: _Plan) -> None:
        """Remove our operation, and bring the snapshots that are kept above the merge up to date."""
        journal = xml.parse_journal(self._domain.view().journal_xml)
        merged = {disk.overlay: disk for disk in plan.operation.disks} if plan.operation else {}
        operations = []
        for op in journal.operations:
            disks = tuple(_after_merge(disk, merged) for disk in op.disks if disk.overlay not in merged)
            left = tuple(disk for disk in disks if disk is not None)
            if left and (plan.operation is None or op.id != plan.operation.id):
                operations.append(replace(op, disks=left))
        self._domain.write_journal(xml.build_journal(Journal(tuple(operations))))

    # -- words

    def _foreseen(self, plan: _Plan, view: DomainView) -> dict[str, list[str]]:
        """The chains as they will be."""
        after = chains(view)
        for goal in plan.goals:
            if not goal.pivots or self._wish.pivots:
                merged = {layer.path for layer in goal.merged}
                after[goal.target] = [path for path in after[goal.target] if path not in merged]
        return after

    def _outcome(
        self,
        plan: _Plan,
        view: DomainView,
        after: dict[str, list[str]],
        steps: tuple[str, ...],
        warnings: tuple[str, ...] = (),
        seen: DomainView | None = None,
    ) -> Outcome:
        values: dict[str, object] = {"disks": self._results(plan, view, seen, after)}
        return Outcome(steps, {"disks": chains(view)}, {"disks": after}, values, warnings)

    def _results(
        self, plan: _Plan, view: DomainView, seen: DomainView | None, after: dict[str, list[str]] | None = None
    ) -> list[dict[str, Any]]:
        """Per disk that the wish names: the chain before and after, what was merged, the job that runs."""
        before = chains(view)
        after = after if after is not None else chains(seen or view)
        merged = {goal.target: [layer.path for layer in goal.merged] for goal in plan.goals}
        targets = self._wish.disks or tuple(merged) or tuple(before)
        results = []
        for target in targets:
            left = after.get(target, [])
            results.append(
                {
                    "disk": target,
                    "before": before.get(target, []),
                    "after": left,
                    "merged": [path for path in merged.get(target, []) if path not in left],
                    "job": _job(seen or view, target),
                }
            )
        return results


def _interrupted_merge(journal: Journal, goals: tuple[MergeGoal, ...]) -> Operation | None:
    """The merge by path that an earlier run began, where these goals are what is left of it."""
    left = {(goal.target, layer.path, _journalled(goal, layer).base) for goal in goals for layer in goal.merged}
    for op in journal.operations:
        if op.kind in (COMMIT, PULL) and left <= {(disk.target, disk.overlay, disk.base) for disk in op.disks}:
            return op
    return None


def _journalled(goal: MergeGoal, layer: Layer) -> JournalDisk:
    """A merged layer, and what stands in its place in the chain afterwards ("" for nothing)."""
    base = goal.below if goal.kind == PULL else goal.into
    return JournalDisk(goal.target, base.path if base else "", base.format if base else "", layer.path)


def _after_merge(disk: JournalDisk, merged: dict[str, JournalDisk]) -> JournalDisk | None:
    """What a kept snapshot's overlay stands on now; None where it stands on nothing any more."""
    if disk.base not in merged:
        return disk
    layer = merged[disk.base]
    return replace(disk, base=layer.base, base_format=layer.base_format, identity=None) if layer.base else None


def _config_words(target: str, layer: Layer) -> str:
    return "write %s as disk %s into the persistent XML" % (layer.path, target)


def _stale_config(view: DomainView, operation: Operation | None) -> dict[str, Layer]:
    """What the persistent XML is to name where an earlier run merged a layer and could not write that down."""
    found = {}
    for merged in operation.disks if operation is not None and view.persistent else ():
        config = view.config_disk(merged.target)
        if config is None or config.active is None or is_in_chain(view, merged.target, merged.overlay):
            continue
        if config.index_of(merged.overlay) is not None:
            gone = config.active.path == merged.overlay
            found[merged.target] = Layer(merged.base, merged.base_format) if gone else config.active
    return found


def _unsure(view: DomainView, operation: Operation | None) -> frozenset[str]:
    """Overlays that the persistent XML still starts the guest on while it runs without them.

    libvirt may have died between a pivot and the write of its XML. Or the guest was started from another XML, and this
    overlay has data that were never merged: nothing here tells the one from the other.
    """
    found = set()
    for disk in operation.disks if operation is not None else ():
        config = view.config_disk(disk.target)
        named = config is not None and config.active is not None and config.active.path == disk.overlay
        if named and not is_in_chain(view, disk.target, disk.overlay):
            found.add(disk.overlay)
    return frozenset(found)


def _job(view: DomainView, target: str) -> dict[str, object] | None:
    disk = view.disk(target)
    return told_job(disk.job if disk else None)


def told_job(job: BlockJob | None) -> dict[str, object] | None:
    """A job as results show it: bytes, bytes/s, percent."""
    if job is None:
        return None
    return {
        "type": job.kind,
        "cur": job.cur,
        "end": job.end,
        "bandwidth": job.bandwidth,
        "ready": job.ready,
        "progress": 100.0 if job.ready else (100.0 * job.cur / job.end if job.end else 0.0),
    }
