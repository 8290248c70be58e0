# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the flow that deletes external snapshots; the guest keeps all its data.

observe -> plan -> (check mode stops here) -> the whole plan into the journal -> merges of the guest's chain -> merges
in other branches -> the records that stay -> images -> records -> journal, last. Each step may be made again.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .._core import xml
from .._core.convergence import Deadline
from .._core.deletion import (
    Forest,
    ImagePlan,
    Merging,
    Point,
    Way,
    begun,
    goal_of,
    memory_files,
    moved_by,
    operation_of,
    plan_images,
    plan_of,
    settled,
    stranded,
    way_of,
)
from .._core.errors import VirtopsError
from .._core.images import Named, Place, Use
from .._core.journal import JOURNAL_URI, Journal, Operation
from .._core.merge import MergeGoal
from .._core.model import DomainView, Layer, Outcome, SnapshotRecord, is_local
from .._core.ports import DeletePort
from .._core.refusals import refuse_jobs, refuse_open
from .._core.snapshot import unknown_words
from .._core.snapshot_tree import doomed_by
from .._core.text import command
from .away import require_here
from .forest import (
    RecordWrite,
    current_of,
    forest_of,
    keep_times,
    kept_operations,
    points_of,
    record_writes,
    records_in,
    rewrite_records,
    texts_of,
    with_bases,
)
from .guest import Guest
from .jobs import cancel_jobs
from .merge import Merge
from .merge_plan import MergeWish
from .observe import chains, every_image, observe
from .ours import Ours, kept_words, noted
from .overlays import LATER, Kept, held_layers, remove_layer, unsure_words, with_kept
from .sound import require_sound_chain


@dataclass(frozen=True)
class _Plan:
    """`goals` are the merges of the guest's own chains, `aside` those of other branches, `rebases` what stands on a
    merged layer there. `gone` are the names that are no snapshots afterwards, `by_libvirt` the overlays
    that it takes away. `not_ours` are files that are named here and stay, and why."""

    way: Way
    operation: Operation
    images: ImagePlan
    goals: tuple[MergeGoal, ...]
    aside: tuple[Merging, ...]
    rebases: tuple[tuple[str, Layer], ...]
    writes: tuple[RecordWrite, ...]
    removals: tuple[str, ...]
    memory: tuple[str, ...]
    records: tuple[str, ...]
    gone: frozenset[str]
    by_libvirt: frozenset[str]
    not_ours: dict[str, str]
    steps: tuple[str, ...]

    @property
    def moved(self) -> dict[str, Layer]:
        return moved_by(self.images.merges)


class SnapshotDeletion:
    """Delete one external snapshot, and its descendants as `children` says (keep, delete or only)."""

    def __init__(
        self,
        name: str,
        children: str,
        deadline: Deadline,
        guest: Guest[DeletePort],
    ) -> None:
        self._name = name
        self._children = children
        self._deadline = deadline
        self._guest = guest
        self._domain = guest.domain
        self._images = guest.images
        self._clock = guest.clock

    def run(self, check: bool) -> Outcome:
        """Plan, and where not `check`, apply. Raises VirtopsError; the journal then tells the next run to go on."""
        view = observe(self._domain, self._images)
        journal = view.journal
        own = journal.of_snapshot(self._name)
        if own is not None and own.open and self._children == "keep":
            return self._finish_merge(check)
        interrupted = begun(self._name, self._children, journal)
        texts = texts_of(self._domain)
        doomed = self._doomed(texts, journal)
        if not doomed and interrupted is None:
            unknown = self._name not in texts and own is None
            warnings = unknown_words(self._name, view) if unknown else ()
            return self._outcome((), view, chains(view), texts, frozenset(), (), warnings)
        require_here(view, self._images)
        refuse_open(view, journal, None if interrupted is None else interrupted.id)
        if interrupted is None:
            refuse_jobs(view)
        plan = self._plan(view, journal, texts, doomed, interrupted)
        if check:
            foreseen = _after(view, plan)
            return self._outcome(plan.steps, view, foreseen, texts, plan.gone, plan.images.merges, _kept(plan))
        warnings = self._by_libvirt(plan, view, journal) if plan.way.by_libvirt else self._apply(plan, journal)
        after = chains(observe(self._domain, self._images))
        return self._outcome(plan.steps, view, after, texts, plan.gone, plan.images.merges, warnings + _kept(plan))

    def _finish_merge(self, check: bool) -> Outcome:
        """A workflow's snapshot, or one whose merge another task began: the merge by its name ends both."""
        wish = MergeWish(snapshot=self._name, deadline=self._deadline, delete_merged=True)
        outcome = Merge(wish, self._guest).run(check)
        return replace(outcome, values={"snapshot": self._told(), **outcome.values})

    # -- plan

    def _doomed(self, texts: dict[str, str], journal: Journal) -> tuple[SnapshotRecord, ...]:
        """Of a snapshot that was taken without a record, the journal knows."""
        records = records_in(texts)
        doomed = doomed_by(self._name, self._children, records)
        kept = next((op for op in kept_operations(journal) if op.name == self._name), None)
        if kept is not None and self._name not in texts and self._children != "only":
            memory = "no" if kept.memory is None else "external"
            doomed = (
                SnapshotRecord(self._name, "disk-snapshot", 0, memory=memory, memory_file=kept.memory, metadata=False),
            )
        for record in doomed:
            if record.metadata and not record.external:
                raise VirtopsError(
                    "not_external",
                    "Snapshot %r is internal%s."
                    % (record.name, "" if record.name == self._name else ", and descends from %r" % self._name),
                    "Delete it with virtops.libvirt.snapshot_internal and state: absent",
                )
        return doomed

    def _plan(
        self,
        view: DomainView,
        journal: Journal,
        texts: dict[str, str],
        doomed: tuple[SnapshotRecord, ...],
        interrupted: Operation | None,
    ) -> _Plan:
        names = frozenset(record.name for record in doomed)
        points = points_of(texts, journal)
        others = every_image(self._domain.other_images(), self._images)
        forest = forest_of(points, view, self._images, others)
        points = with_bases(points, forest.below)
        way = way_of(points, forest, names, self._children, self._domain.libvirt_version())
        if way.by_libvirt:
            _require_record(self._name, texts, interrupted)
            images = ImagePlan()
        elif interrupted is not None:
            images = plan_of(interrupted)
        else:
            images = self._plan_images(points, names, forest)
        ours = Ours(view, records_in(texts), self._images)
        if interrupted is None:
            operation = operation_of(images, self._name, self._children, str(uuid.uuid4()), self._clock.utcnow())
            operation = replace(noted(operation, self._images), boot=self._clock.boot())
        else:
            operation = interrupted
            _require_own(images, ours, view)
        own = {layer.path for disk in view.disks for layer in disk.chain}
        goals = {merge: goal_of(merge, view) for merge in images.merges}
        aside = tuple(merge for merge, goal in goals.items() if goal is None and self._images.exists(merge.top))
        paths = [path for merge in images.merges for path in merge.merged]
        paths += [path for _target, path in images.unused]
        not_ours = {path: why for path in paths for why in [ours.why_not(path, operation.disks)] if why is not None}
        removals = tuple(path for path in paths if self._is_file(path) and path not in not_ours)
        self._check_aside(aside, texts, view)
        rebases = tuple(found for found in stranded(images.merges, forest, own) if found[0] not in removals)
        kept = [record for record in records_in(texts) if record.name not in names]
        memory = tuple(path for path in memory_files(doomed, kept) if self._images.exists(path))
        not_ours |= {path: why for path in memory for why in [ours.why_not_memory(path)] if why is not None}
        memory = tuple(path for path in memory if path not in not_ours)
        plan = _Plan(
            way=way,
            operation=operation,
            images=images,
            goals=tuple(goal for goal in goals.values() if goal is not None),
            aside=aside,
            rebases=rebases,
            writes=record_writes(texts, moved_by(images.merges), names, current_of(self._domain, texts)),
            removals=removals,
            memory=memory,
            records=tuple(record.name for record in reversed(doomed) if record.metadata),
            gone=names,
            by_libvirt=frozenset(
                point.overlay for point in points if way.by_libvirt and point.overlay and point.snapshot in names
            ),
            not_ours=not_ours,
            steps=(),
        )
        return replace(plan, steps=self._words(plan, interrupted is not None))

    def _plan_images(self, points: Sequence[Point], doomed: frozenset[str], forest: Forest) -> ImagePlan:
        """Planned twice where it finds a layer with an internal snapshot inside: only the images know of that."""
        plan = plan_images(points, doomed, forest)
        layers = [path for merge in plan.merges for path in merge.merged] + [path for _target, path in plan.unused]
        inside = frozenset(path for path in layers if self._images.info(path, "qcow2").internal_snapshots)
        return plan_images(points, doomed, replace(forest, inside=inside)) if inside else plan

    def _check_aside(self, aside: Sequence[Merging], texts: dict[str, str], view: DomainView) -> None:
        """qemu-img writes into them: the records' definitions tell what they are besides what their headers say."""
        told = tuple(
            layer
            for text in texts.values()
            for disks in xml.snapshot_definitions(text)
            for disk in disks
            for layer in disk.chain
        )
        for merge in aside:
            place = Place(merge.target, view.name)
            require_sound_chain(Layer(merge.top, "qcow2"), Named(told), Use.MERGE, place, self._images)

    def _is_file(self, path: str) -> bool:
        """A device that held a layer is the user's."""
        return self._images.exists(path) and self._images.kind(path) != "block"

    def _words(self, plan: _Plan, interrupted: bool) -> tuple[str, ...]:
        steps = ["delete snapshot %s %s" % (name, plan.way.why) for name in reversed(plan.records)]
        steps += ["delete snapshot %s %s" % (name, plan.way.why) for name in sorted(plan.gone - set(plan.records))]
        if not steps:
            steps = ["finish what %s began" % plan.operation.name]
        if plan.way.by_libvirt:
            if interrupted:
                steps.insert(0, "end the block jobs of the deletion that was interrupted")
            return tuple(steps)
        if plan.goals:
            steps += self._merge(plan).run(check=True).steps
        steps += ["commit %s into %s, which no guest uses (%s)" % (m.top, m.into.path, m.target) for m in plan.aside]
        steps += ["rebase %s onto %s" % (path, layer.path) for path, layer in plan.rebases]
        steps += [write.words for write in plan.writes]
        merged = plan.moved
        steps += [
            "delete %s, %s" % (path, "which was merged" if path in merged else "which nothing needs any more")
            for path in plan.removals
        ]
        steps += ["delete the memory of a snapshot, %s" % path for path in plan.memory]
        return (*steps, *("delete the record of snapshot %s" % name for name in plan.records))

    def _merge(self, plan: _Plan) -> Merge:
        wish = MergeWish(goals=plan.goals, within=plan.operation.id, deadline=self._deadline)
        return Merge(wish, self._guest)

    # -- effects

    def _apply(self, plan: _Plan, journal: Journal) -> tuple[str, ...]:
        if plan.operation not in journal.operations:
            self._domain.write_journal(journal.put(plan.operation))
        unsure: frozenset[str] = frozenset()
        warnings: tuple[str, ...] = ()
        if plan.goals:
            merge = self._merge(plan)
            warnings = merge.run(check=False).warnings
            unsure = merge.unsure
        for one in plan.aside:
            self._images.commit(Layer(one.top, "qcow2"), one.into)
        for path, layer in plan.rebases:
            self._images.rebase_unsafe(path, layer)
        view = observe(self._domain, self._images)
        keep_times(plan.moved.items(), view, self._images)
        if plan.writes:
            rewrite_records(self._domain, plan.moved, plan.gone)
        kept = self._remove(plan, view, unsure)
        for name in plan.records:
            self._domain.delete_snapshot_record(name)
        after = self._close(plan, kept)
        warnings += tuple(
            "%s %s" % (layer.why, LATER) if after.merged_as(layer.path) is not None else layer.why for layer in kept
        )
        return warnings + tuple(unsure_words(path) for path in (*plan.images.kept, *sorted(unsure)))

    def _remove(self, plan: _Plan, view: DomainView, unsure: frozenset[str]) -> tuple[Kept, ...]:
        """Each was journalled, is in no chain here and open to nobody; else it stays, and a warning tells why."""
        others = functools.cache(lambda: every_image(self._domain.other_images(), self._images))
        paths = [path for path in (*plan.removals, *plan.memory) if path not in unsure]
        kept = [remove_layer(path, view, others, self._images, self._clock) for path in paths]
        return tuple(layer for layer in kept if layer is not None)

    def _close(self, plan: _Plan, kept: Sequence[Kept] = ()) -> Journal:
        """With what is held the operation stays open: the next run goes on by it. The journal as it is then."""
        journal = self._domain.view().journal
        bases = {layer.path for layer in plan.moved.values() if self._images.exists(layer.path)}
        identities = {path: self._images.identity(path) for path in bases}
        after = settled(journal, plan.operation, plan.gone, identities)
        after = with_kept(after, plan.operation, kept, self._images)
        after = after.put(plan.operation) if held_layers(kept) else after
        self._write(after, journal)
        return after

    def _by_libvirt(self, plan: _Plan, view: DomainView, journal: Journal) -> tuple[str, ...]:
        """libvirt keeps images and records in step.

        Where it was killed meanwhile, it ends its job when it starts again, 9.0 at once, 11.3 some seconds later, and
        until then takes no order to delete ("there is another active block job"): the journal tells whose job that is.
        """
        if plan.operation in journal.operations:
            ours = ("commit", "active-commit")
            left = [disk for disk in view.disks if disk.job is not None and disk.job.kind in ours]
            cancel_jobs(self._domain, [disk.target for disk in left], self._clock)
        else:
            self._domain.write_journal(journal.put(plan.operation))
        if plan.records:
            self._domain.delete_snapshot(self._name, "keep")
        self._close(plan)
        return ()

    def _write(self, journal: Journal, before: Journal) -> None:
        if journal != before:
            self._domain.write_journal(journal)

    # -- words

    def _told(self) -> dict[str, str]:
        return {"name": self._name, "kind": "external"}

    def _outcome(
        self,
        steps: tuple[str, ...],
        view: DomainView,
        after: dict[str, list[str]],
        texts: dict[str, str],
        gone: frozenset[str],
        merges: Sequence[Merging],
        warnings: tuple[str, ...] = (),
    ) -> Outcome:
        before = chains(view)
        return Outcome(
            steps=steps,
            before={"disks": before, "snapshots": sorted(texts)},
            after={"disks": after, "snapshots": sorted(set(texts) - gone)},
            values={"snapshot": self._told(), "disks": _disks(before, after, merges)},
            warnings=warnings,
        )


def _kept(plan: _Plan) -> tuple[str, ...]:
    return tuple(kept_words(path, why) for path, why in plan.not_ours.items())


def _require_own(images: ImagePlan, ours: Ours, view: DomainView) -> None:
    """What an interrupted run was going to merge is known by the journal alone, which others may write to."""
    for merge in images.merges:
        for path in (merge.into.path, *merge.merged):
            if not ours.is_image(path):
                raise VirtopsError(
                    "not_ours",
                    "The journal of domain %s has a deletion merge %s, which is no image of the domain, and which does "
                    "not lie beside one." % (view.name, path),
                    "See who wrote that journal (%s); if it was not this collection, remove it with --live --config "
                    "--remove" % command("virsh", "metadata", view.name, "--uri", JOURNAL_URI),
                )


def _require_record(name: str, texts: dict[str, str], interrupted: Operation | None) -> None:
    if name not in texts and interrupted is None:
        raise VirtopsError(
            "unsupported",
            "Snapshot %r was taken without a record, on an image that is not on this host, and libvirt deletes none "
            "that it does not know." % name,
            "Merge its overlays with 'virsh blockcommit', then run the task again",
        )


def _after(view: DomainView, plan: _Plan) -> dict[str, list[str]]:
    """The chains as they will be; none is shown of a disk whose active layer is not on this host."""
    left = {
        target: [path for path in chain if path not in plan.moved and path not in plan.by_libvirt]
        for target, chain in chains(view).items()
    }
    return {target: chain for target, chain in left.items() if chain and is_local(chain[0])}


def _disks(
    before: dict[str, list[str]], after: dict[str, list[str]], merges: Iterable[Merging]
) -> list[dict[str, Any]]:
    """As block_commit tells it, of the disks that are merged; where none is, of all."""
    merged: dict[str, list[str]] = {}
    for merge in merges:
        merged.setdefault(merge.target, []).extend(merge.merged)
    return [
        {
            "disk": target,
            "before": before.get(target, []),
            "after": after.get(target, []),
            "merged": merged.get(target, []),
            "job": None,
        }
        for target in (merged or before)
    ]
