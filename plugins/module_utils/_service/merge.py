# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the flow of a merge, of a running guest's layers or of one that is off.

observe -> plan -> (check mode stops here) -> journal COMMITTING -> the jobs of all disks -> overlays deleted -> record
deleted -> journal removed, last. Each run goes on from what it sees.
"""

from __future__ import annotations

import uuid

from .._core.journal import COMMIT, COMMITTING, PREPARED, PULL, RESERVED, Journal, Operation
from .._core.merge import MergeGoal
from .._core.model import DomainView, Outcome
from .._core.plan import Step
from .._core.ports import MergePort
from .away import require_here
from .block_jobs import describe_disks
from .brake import letting_go
from .clean_up import CleanUp, Clearance
from .guest import Guest
from .interrupted import awake, undoing, unswitched
from .merge_loop import MergeLoop
from .merge_plan import Layers, MergeOptions, MergePlanner, journalled, merged_by
from .observe import chains
from .ours import noted
from .run import Run


class Merge:
    """Merge layers of one domain's disks."""

    def __init__(self, options: MergeOptions, guest: Guest[MergePort]) -> None:
        self._options = options
        self._guest = guest
        self._planner = MergePlanner(options, guest)
        self._loop = MergeLoop(options, self._planner, guest)

    def run(self, check: bool) -> Outcome:
        """Plan, and where not `check`, apply. Raises VirtopsError with what was done per disk."""
        with self._guest.run(check) as run:
            view = self._guest.observe()
            journal = view.journal
            if self._options.adopted is not None:
                journal = journal.put(self._options.adopted)
            prepared = self._prepared(journal)
            if prepared is not None:
                require_here(view, self._guest.images)
                view = awake(prepared, self._guest, self._options.deadline.timeout, run)
                journal = view.journal
                if len(unswitched(prepared, view, self._guest)) == len(prepared.disks):
                    undone = undoing(prepared, view, self._guest)
                    run.apply(*undone.steps)
                    run.warnings += undone.warnings
                    return self._outcome(run, view)
            layers, clearance = self._planner.plan(view, journal)
            steps = self._steps(layers, clearance, view)
            run.apply(*steps)
            run.warnings += self._stale_records(layers)
            run.warnings += () if clearance is None else clearance.warnings
            return self._outcome(run, view, layers.goals, applied=bool(steps))

    def run_goals(self, goals: tuple[MergeGoal, ...], operation: Operation, check: bool) -> Outcome:
        """Reach these goals of another flow's operation, which that flow ends."""
        with self._guest.run(check) as run:
            view = self._guest.observe()
            require_here(view, self._guest.images)
            layers = self._planner.layers(goals, operation, view)
            steps = self._loop.steps(layers, operation)
            run.apply(*steps)
            return self._outcome(run, view, layers.goals, applied=bool(steps))

    def _prepared(self, journal: Journal) -> Operation | None:
        """The snapshot whose creation was interrupted: its disks may or may not stand on the overlays."""
        found = journal.of_snapshot(self._options.snapshot) if self._options.snapshot is not None else None
        return found if found is not None and found.phase == PREPARED and found.kind not in RESERVED else None

    def _steps(self, layers: Layers, clearance: Clearance | None, view: DomainView) -> tuple[Step, ...]:
        operation = layers.operation
        steps: tuple[Step, ...] = ()
        if operation is not None and operation.hold is not None:
            steps = (letting_go(operation, operation.hold, view, self._guest),)
            operation = operation.held(None)
        if operation is None and layers.goals:
            operation = self._new_operation(layers.goals)
        steps += self._loop.steps(layers, operation)
        if clearance is not None:
            committing = None if operation is None else operation.at(COMMITTING)
            steps += CleanUp(self._guest, clearance).steps(committing, lambda: self._loop.unsure(layers))
        return steps if layers.goals or any(step.words for step in steps) else ()

    def _new_operation(self, goals: tuple[MergeGoal, ...]) -> Operation:
        operation = Operation(
            id=str(uuid.uuid4()),
            kind=PULL if self._options.pull else COMMIT,
            name=self._options.snapshot or "%s into %s" % (goals[0].kind, goals[0].into.path),
            phase=COMMITTING,
            started=self._guest.clock.utcnow(),
            boot=self._guest.clock.boot(),
            disks=tuple(journalled(goal, layer) for goal in goals for layer in goal.merged),
        )
        return noted(operation, self._guest.images)

    def _stale_records(self, layers: Layers) -> tuple[str, ...]:
        """A merge by path leaves libvirt's records as they are, as virsh does; they no longer say what is."""
        if self._options.snapshot is not None:
            return ()
        merged = {layer.path for goal in layers.goals for layer in goal.merged}
        return tuple(
            "The record of snapshot %s names a layer that was merged: remove it with "
            "virtops.libvirt.snapshot_metadata and state: absent." % record.name
            for record in (self._guest.domain.snapshots() if merged else ())
            if any(disk.file in merged for disk in record.disks)
        )

    def _outcome(self, run: Run, view: DomainView, goals: tuple[MergeGoal, ...] = (), applied: bool = False) -> Outcome:
        """The chains as they are; in check mode as they will be."""
        merged = merged_by(goals)
        foreseen = {layer.path for goal in goals if not goal.pivots or self._options.pivots for layer in goal.merged}
        seen = self._guest.observe() if applied and not run.check else view
        before, after = chains(view), chains(seen)
        if run.check:
            after = {target: [path for path in chain if path not in foreseen] for target, chain in after.items()}
        values: dict[str, object] = {"disks": describe_disks(self._options.disks, before, after, merged, seen)}
        if self._options.deadline.brakes:
            values["held_seconds"] = round(self._loop.brake.held_seconds, 1)
            values["suspended_seconds"] = round(self._loop.brake.suspended_seconds, 1)
        return run.outcome({"disks": before}, {"disks": after}, values)
