# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the flow that deletes external snapshots; the guest keeps all its data.

observe -> plan -> (check mode stops here) -> the whole plan into the journal -> merges of the guest's chain -> merges
in other branches -> the records that stay -> images -> records -> journal, last. Each step may be made again.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

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
    stranded,
    way_of,
)
from .._core.errors import VirtopsError
from .._core.images import Named, Place, Use
from .._core.journal import JOURNAL_URI, Journal, Operation
from .._core.model import DomainView, Layer, Outcome, SnapshotRecord, is_local
from .._core.plan import Step, nothing
from .._core.ports import DeletePort
from .._core.refusals import refuse_jobs, refuse_open
from .._core.snapshot import unknown_words
from .._core.snapshot_tree import doomed_by
from .._core.text import command
from .away import require_here
from .block_jobs import cancel_jobs, describe_disks
from .clean_up import CleanUp, Clearance, clearance
from .forest import (
    current_of,
    forest_of,
    kept_operations,
    points_of,
    record_writes,
    records_in,
    texts_of,
    with_bases,
)
from .guest import Guest
from .merge import Merge
from .merge_loop import MergeLoop
from .merge_plan import Layers, MergeOptions, MergePlanner
from .observe import chains
from .ours import Ours, noted
from .run import Run
from .sound import require_sound_chain


@dataclass(frozen=True)
class _Plan:
    """`layers` are the merges of the guest's own chains, `aside` those of other branches, `rebases` what stands on a
    merged layer there. `by_libvirt` are the overlays that it takes away."""

    way: Way
    operation: Operation
    images: ImagePlan
    layers: Layers
    aside: tuple[Merging, ...]
    rebases: tuple[tuple[str, Layer], ...]
    clearance: Clearance
    by_libvirt: frozenset[str]


class SnapshotDeletion:
    """Delete one external snapshot, and its descendants as `children` says (keep, delete or only).

    Those of `also` go with it, in the same merges. An interrupted deletion takes along those that it has begun with.
    """

    def __init__(
        self,
        name: str,
        children: str,
        deadline: Deadline,
        guest: Guest[DeletePort],
        also: tuple[str, ...] = (),
    ) -> None:
        self._name = name
        self._children = children
        self._also = also
        self._options = MergeOptions(snapshot=name, deadline=deadline, delete_merged=True)
        self._guest = guest
        self._domain = guest.domain
        self._images = guest.images
        self._planner = MergePlanner(self._options, guest)

    def run(self, check: bool) -> Outcome:
        """Plan, and where not `check`, apply. Raises VirtopsError; the journal then tells the next run to go on."""
        with self._guest.run(check) as run:
            view = self._guest.observe()
            journal = view.journal
            own = journal.of_snapshot(self._name)
            if own is not None and own.open and self._children == "keep":
                return self._finish_merge(check)
            interrupted = begun(self._name, self._children, journal)
            if interrupted is not None:
                self._also = interrupted.also
            texts = texts_of(self._domain)
            doomed = self._doomed(texts, journal)
            if not doomed and interrupted is None:
                if self._name not in texts and own is None:
                    run.warnings += unknown_words(self._name, view)
                return self._outcome(run, view, texts, None)
            require_here(view, self._images)
            refuse_open(view, journal, None if interrupted is None else interrupted.id)
            if interrupted is None:
                refuse_jobs(view)
            plan = self._plan(view, journal, texts, doomed, interrupted)
            run.apply(*self._steps(plan, doomed, journal))
            run.warnings += plan.clearance.warnings
            return self._outcome(run, view, texts, plan)

    def _finish_merge(self, check: bool) -> Outcome:
        """A workflow's snapshot, or one whose merge another task began: the merge by its name ends both."""
        outcome = Merge(self._options, self._guest).run(check)
        return replace(outcome, values={"snapshot": self._told(), **outcome.values})

    # -- plan

    def _doomed(self, texts: dict[str, str], journal: Journal) -> tuple[SnapshotRecord, ...]:
        """Of a snapshot that was taken without a record, the journal knows."""
        records = records_in(texts)
        names = {record.name for record in doomed_by(self._name, self._children, records)} | set(self._also)
        doomed = [record for record in records if record.name in names]
        unrecorded = {*self._also, *((self._name,) if self._children != "only" else ())} - set(texts)
        for kept in (op for op in kept_operations(journal) if op.name in unrecorded):
            memory = "no" if kept.memory is None else "external"
            doomed.append(
                SnapshotRecord(kept.name, "disk-snapshot", 0, memory=memory, memory_file=kept.memory, metadata=False)
            )
        for record in doomed:
            if record.metadata and not record.external:
                raise VirtopsError(
                    "not_external",
                    "Snapshot %r is internal%s."
                    % (record.name, "" if record.name == self._name else ", and descends from %r" % self._name),
                    "Delete it with virtops.libvirt.snapshot_internal and state: absent",
                )
        return tuple(doomed)

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
        forest = forest_of(points, view, self._images, self._guest.others())
        points = with_bases(points, forest.below)
        way = way_of(points, forest, names, self._children, self._domain.libvirt_version())
        if way.by_libvirt:
            self._require_single(way)
            _require_record(self._name, texts, interrupted)
            images = ImagePlan()
        elif interrupted is not None:
            images = plan_of(interrupted)
        else:
            images = self._plan_images(points, names, forest)
        ours = Ours(view, records_in(texts), self._images)
        if interrupted is None:
            clock = self._guest.clock
            operation = operation_of(images, self._name, self._children, str(uuid.uuid4()), clock.utcnow())
            operation = replace(noted(operation, self._images), boot=clock.boot(), also=self._also)
        else:
            operation = interrupted
            _require_own(images, ours, view)
        goals = {merge: goal_of(merge, view) for merge in images.merges}
        aside = tuple(merge for merge, goal in goals.items() if goal is None and self._images.exists(merge.top))
        layers = self._planner.layers(tuple(goal for goal in goals.values() if goal is not None), operation, view)
        rest = self._clearance(images, operation, doomed, texts, ours)
        self._check_aside(aside, texts, view)
        own = {layer.path for disk in view.disks for layer in disk.chain}
        return _Plan(
            way,
            operation,
            images,
            layers,
            aside,
            tuple(found for found in stranded(images.merges, forest, own) if found[0] not in rest.layers),
            Clearance(gone=names) if way.by_libvirt else rest,
            frozenset(
                point.overlay for point in points if way.by_libvirt and point.overlay and point.snapshot in names
            ),
        )

    def _require_single(self, way: Way) -> None:
        if self._also:
            raise VirtopsError(
                "unsupported",
                "The snapshots %s go %s, and libvirt deletes only one at a time."
                % (", ".join(map(repr, (self._name, *self._also))), way.why),
                "Delete them one by one, with virtops.libvirt.snapshot_external and state: absent",
            )

    def _clearance(
        self,
        images: ImagePlan,
        operation: Operation,
        doomed: tuple[SnapshotRecord, ...],
        texts: dict[str, str],
        ours: Ours,
    ) -> Clearance:
        moved = moved_by(images.merges)
        words = dict.fromkeys(moved, "delete %s, which was merged")
        words.update((path, "delete %s, which nothing needs any more") for _target, path in images.unused)
        names = frozenset(record.name for record in doomed)
        kept = [record for record in records_in(texts) if record.name not in names]
        return clearance(
            {path: text % path for path, text in words.items() if self._is_file(path)},
            [path for path in memory_files(doomed, kept) if self._images.exists(path)],
            operation.disks,
            ours,
            records=tuple(record.name for record in reversed(doomed) if record.metadata),
            gone=names,
            writes=record_writes(texts, moved, names, current_of(self._domain, texts)),
            moved=moved,
        )

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

    # -- effects

    def _steps(self, plan: _Plan, doomed: tuple[SnapshotRecord, ...], journal: Journal) -> tuple[Step, ...]:
        """The whole plan comes into the journal first, and the operation goes last."""
        verb = "delete" if plan.way.by_libvirt else "begin to delete"
        words = tuple("%s snapshot %s %s" % (verb, record.name, plan.way.why) for record in reversed(doomed))
        words = words or ("finish what the deletion of %s began" % plan.operation.name,)
        begun = plan.operation in journal.operations
        begin = () if begun else (Step((), partial(self._guest.put, plan.operation)),)
        clean_up = CleanUp(self._guest, plan.clearance)
        if plan.way.by_libvirt:
            act = self._delete if any(record.metadata for record in doomed) else nothing
            if begun:
                begin = (Step(("end the block jobs of the deletion that was interrupted",), self._end_jobs),)
            return (*begin, Step(words, act), *clean_up.steps(plan.operation, frozenset))
        loop = MergeLoop(self._options, self._planner, self._guest)
        steps = [*begin, Step(words, nothing)]
        steps += loop.steps(plan.layers, plan.operation)
        for one in plan.aside:
            text = "commit %s into %s, which no guest uses (%s)" % (one.top, one.into.path, one.target)
            steps.append(Step((text,), partial(self._images.commit, Layer(one.top, "qcow2"), one.into), final=True))
        for path, layer in plan.rebases:
            text = "rebase %s onto %s" % (path, layer.path)
            steps.append(Step((text,), partial(self._images.rebase_unsafe, path, layer)))
        kept = frozenset(plan.images.kept)
        return (*steps, *clean_up.steps(plan.operation, lambda: loop.unsure(plan.layers) | kept))

    def _delete(self) -> None:
        """libvirt keeps images and records in step."""
        self._domain.delete_snapshot(self._name, "keep")

    def _end_jobs(self) -> None:
        """Where libvirt was killed meanwhile, it ends its job when it starts again, 9.0 at once, 11.3 some seconds
        later, and until then takes no order to delete ("there is another active block job"): the journal tells whose
        job that is."""
        jobs = {disk.target: disk.job for disk in self._guest.observe().disks if disk.job is not None}
        left = [target for target, job in jobs.items() if job.kind in ("commit", "active-commit")]
        cancel_jobs(self._domain, left, self._guest.clock)

    # -- words

    def _told(self) -> dict[str, str]:
        return {"name": self._name, "kind": "external"}

    def _outcome(self, run: Run, view: DomainView, texts: dict[str, str], plan: _Plan | None) -> Outcome:
        before = chains(view)
        after = before if plan is None else _after(view, plan) if run.check else chains(self._guest.observe())
        gone = frozenset() if plan is None else plan.clearance.gone
        merged: dict[str, list[str]] = {}
        for merge in () if plan is None else plan.images.merges:
            merged.setdefault(merge.target, []).extend(merge.merged)
        return run.outcome(
            {"disks": before, "snapshots": sorted(texts)},
            {"disks": after, "snapshots": sorted(set(texts) - gone)},
            {"snapshot": self._told(), "disks": describe_disks((), before, after, merged)},
        )


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
        target: [path for path in chain if path not in plan.clearance.moved and path not in plan.by_libvirt]
        for target, chain in chains(view).items()
    }
    return {target: chain for target, chain in left.items() if chain and is_local(chain[0])}
