# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the flow of an external, disk-only, atomic snapshot.

observe -> plan -> (check mode stops here) -> journal PREPARED -> overlays -> freeze -> switch -> thaw
-> journal CREATED. A death at any point leaves a journal from which the next run goes on, or goes back.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from typing import Any, Callable

from .._core import xml
from .._core.errors import VirtopsError
from .._core.journal import CREATED, PREPARED, Journal, Operation
from .._core.model import DomainView, Hold, Outcome
from .._core.ports import WATCHDOG_GRACE, Clock, ImagePort, SnapshotPort, Watchdog
from .._core.snapshot import (
    PlannedDisk,
    SnapshotPlan,
    SnapshotWish,
    guest_paused,
    is_in_chain,
    journal_disks,
    plan_snapshot,
    snapshot_disks,
)
from .observe import chains, observe
from .overlays import is_unused, refuse_data, require_place


@dataclass(frozen=True)
class _Taken:
    """What was really obtained: consistency is filesystem, crash or offline."""

    consistency: str
    freeze_ms: int = 0
    warnings: tuple[str, ...] = ()


#: A caller's own look at what is going to be snapshotted; it raises VirtopsError to refuse it.
Refusal = Callable[[DomainView, SnapshotPlan], None]


def _refuse_nothing(_view: DomainView, _plan: SnapshotPlan) -> None:
    """A snapshot that nothing follows."""


class ExternalSnapshot:
    """Create one external snapshot, or find that it is there."""

    def __init__(
        self,
        wish: SnapshotWish,
        domain: SnapshotPort,
        images: ImagePort,
        watchdog: Watchdog,
        clock: Clock,
        refuse: Refusal = _refuse_nothing,
    ) -> None:
        self._wish = wish
        self._refuse = refuse
        self._domain = domain
        self._images = images
        self._watchdog = watchdog
        self._clock = clock

    def run(self, check: bool) -> Outcome:
        """Plan, and where not `check`, apply. Raises VirtopsError; the guest is then as before."""
        view = observe(self._domain, self._images)
        journal = xml.parse_journal(view.journal_xml)
        plan = plan_snapshot(self._wish, view, self._domain.snapshot(self._wish.name), journal)
        if plan.found == CREATED:
            return self._present(view, journal, plan, check)
        self._check_host(plan)
        self._refuse(view, plan)
        quiesce, warnings = self._quiesce_mode(view)
        steps = self._steps(plan, view, quiesce)
        planned = _Taken("filesystem" if quiesce else ("crash" if view.active else "offline"), 0, warnings)
        if check:
            return self._outcome(view, plan, planned, steps, None)
        operation, taken = self._apply(plan, view, journal, quiesce)
        taken = replace(taken, warnings=warnings + taken.warnings)
        return self._outcome(view, plan, taken, steps, operation)

    def _present(self, view: DomainView, journal: Journal, plan: SnapshotPlan, check: bool) -> Outcome:
        """The snapshot is there. An interrupted run may not have noted so: note it, nothing else."""
        operation = journal.find(self._wish.name)
        steps: tuple[str, ...] = ()
        if operation is not None and operation.phase == PREPARED:
            steps = ("note in the journal that snapshot %s was taken" % self._wish.name,)
            operation = replace(operation, consistency="crash")
            if not check:
                operation = self._note_created(operation)
        taken = _Taken(operation.consistency if operation else "crash")
        return self._outcome(view, plan, taken, steps, operation)

    # -- refusals that need a look at the host or at the agent

    def _check_host(self, plan: SnapshotPlan) -> None:
        for disk in plan.disks:
            require_place(disk, self._images, plan.stale_overlays)

    def _quiesce_mode(self, view: DomainView) -> tuple[bool, tuple[str, ...]]:
        """Will the guest be frozen? With `preferred`, why not, as a warning."""
        if self._wish.quiesce == "never" or not view.active:
            return False, ()
        try:
            if view.state != "running":
                raise guest_paused(view)
            self._domain.agent_ping(self._wish.freeze_timeout)
        except VirtopsError as error:
            if self._wish.quiesce == "required" or error.code == "connection_lost":
                raise
            return False, (_not_quiesced(error),)
        return True, ()

    # -- effects

    def _apply(self, plan: SnapshotPlan, view: DomainView, journal: Journal, quiesce: bool) -> tuple[Operation, _Taken]:
        self._remove_stale(plan, view)
        operation = Operation(
            id=str(uuid.uuid4()),
            kind=self._wish.kind,
            name=self._wish.name,
            phase=PREPARED,
            started=self._clock.utcnow(),
            disks=journal_disks(plan),
        )
        interrupted = journal.find(self._wish.name)
        if interrupted is not None:
            journal = journal.drop(interrupted)
        self._write(journal.put(operation))
        made: list[PlannedDisk] = []
        try:
            for disk in plan.disks:
                size = self._images.info(disk.base.path, disk.base.format).virtual_size
                self._images.create_overlay(disk.overlay, disk.base, size)
                made.append(disk)
            taken = self._switch(plan, view, quiesce)
        except VirtopsError as error:
            self._undo(operation, made, error)
            raise
        operation = self._note_created(replace(operation, consistency=taken.consistency))
        if self._wish.quiesce == "required" and view.active and taken.consistency != "filesystem":
            raise VirtopsError(
                "freeze_lost",
                "Snapshot %r was taken, but the guest did not stay frozen until then (%s)."
                % (self._wish.name, "; ".join(taken.warnings)),
                "Merge it with virtops.libvirt.block_commit and snapshot: %r, then try again with a longer "
                "freeze_timeout" % self._wish.name,
            )
        return operation, taken

    def _remove_stale(self, plan: SnapshotPlan, view: DomainView) -> None:
        """Overlays that an interrupted run of ours made, and that no disk was switched to."""
        for path in plan.stale_overlays:
            if is_unused(path, view, self._images):
                self._images.remove(path)
            elif self._images.exists(path):
                raise refuse_data(path, view)

    def _switch(self, plan: SnapshotPlan, view: DomainView, quiesce: bool) -> _Taken:
        request = xml.build_snapshot(self._wish.name, self._wish.description, snapshot_disks(plan))
        if not quiesce:
            self._domain.create_snapshot(request, self._wish.metadata)
            return _Taken("crash" if view.active else "offline")
        limit = self._wish.freeze_timeout
        self._watchdog.arm(view.uuid, limit + WATCHDOG_GRACE, Hold(frozen=True))
        began = self._clock.monotonic()
        frozen, warnings = self._freeze(limit)
        thawed = 0
        try:
            self._domain.create_snapshot(request, self._wish.metadata)
        finally:
            if frozen:
                thawed = self._domain.thaw(limit)
            freeze_ms = int((self._clock.monotonic() - began) * 1000)
            self._watchdog.disarm()  # only after a thaw that succeeded: it thaws where we could not
        if not frozen:
            return _Taken("crash", 0, warnings)
        if not thawed:
            return _Taken("crash", freeze_ms, ("something else thawed the guest within %d ms" % freeze_ms,))
        return _Taken("filesystem", freeze_ms)

    def _freeze(self, seconds: int) -> tuple[int, tuple[str, ...]]:
        """The number of file systems frozen; 0 and the reason where `preferred` goes on without."""
        try:
            frozen = self._domain.freeze(seconds)
            if frozen == 0:
                raise VirtopsError(
                    "nothing_frozen",
                    "The guest agent found no file system to freeze.",
                    "Mount the guest's file systems, or ask for quiesce: preferred or never",
                )
        except VirtopsError as error:
            self._domain.thaw(seconds)  # an agent that answers too late has frozen all the same
            self._watchdog.disarm()
            if self._wish.quiesce == "required" or error.code == "connection_lost":
                raise
            return 0, (_not_quiesced(error),)
        return frozen, ()

    def _note_created(self, operation: Operation) -> Operation:
        """Write down what the bases are now: from here on nothing may change them but our merge."""
        view = self._domain.view()
        missing = [
            disk.target for disk in operation.disks if view.active and not is_in_chain(view, disk.target, disk.overlay)
        ]
        if missing:
            raise VirtopsError(
                "snapshot_unverified",
                "libvirt reported success, but %s of domain %s did not switch to the overlays."
                % (", ".join(missing), view.name),
                "Run the play again: the journal tells it what was intended",
            )
        disks = tuple(replace(disk, identity=self._images.identity(disk.base)) for disk in operation.disks)
        operation = replace(operation, phase=CREATED, disks=disks)
        self._write(xml.parse_journal(view.journal_xml).put(operation))
        return operation

    def _undo(self, operation: Operation, made: list[PlannedDisk], cause: VirtopsError) -> None:
        """After a failure: where no disk was switched, nothing is left behind; else the journal stays.

        A failure in here must not hide the first one: then everything stays for the next run, which
        finds it by the journal.
        """
        try:
            view = self._domain.view()
            kept = [disk for disk in made if not is_unused(disk.overlay, view, self._images)]
            if kept:
                cause.partial = [{"disk": disk.target, "overlay": disk.overlay} for disk in kept]
                return
            for disk in made:
                self._images.remove(disk.overlay)
            self._write(xml.parse_journal(view.journal_xml).drop(operation))
        except VirtopsError as second:
            cause.cause += " Undoing it failed too: %s" % second.cause

    def _write(self, journal: Journal) -> None:
        self._domain.write_journal(xml.build_journal(journal))

    # -- words

    def _steps(self, plan: SnapshotPlan, view: DomainView, quiesce: bool) -> tuple[str, ...]:
        steps = ["remove the stale overlay %s" % path for path in plan.stale_overlays if self._images.exists(path)]
        steps += ["create the overlay %s on %s (%s)" % (d.overlay, d.base.path, d.target) for d in plan.disks]
        if quiesce:
            steps.append("freeze the file systems of %s" % view.name)
        steps.append("take the external snapshot %s of %s" % (self._wish.name, ", ".join(d.target for d in plan.disks)))
        if quiesce:
            steps.append("thaw the file systems of %s" % view.name)
        return tuple(steps)

    def _outcome(
        self, view: DomainView, plan: SnapshotPlan, taken: _Taken, steps: tuple[str, ...], operation: Operation | None
    ) -> Outcome:
        before = chains(view)
        after = dict(before)
        if plan.found != CREATED:
            for disk in plan.disks:
                after[disk.target] = [disk.overlay] + before[disk.target]
        values: dict[str, Any] = {
            "snapshot": {
                "name": self._wish.name,
                "kind": "external",
                "metadata": self._wish.metadata,
                "operation": operation.id if operation else None,
                "xml": xml.build_snapshot(self._wish.name, self._wish.description, snapshot_disks(plan)),
            },
            "overlays": [
                {"disk": d.target, "base": d.base.path, "base_format": d.base.format, "overlay": d.overlay}
                for d in plan.disks
            ],
            "skipped_disks": [{"disk": d.target, "reason": d.reason} for d in plan.skipped],
            "consistency": taken.consistency,
            "freeze_ms": taken.freeze_ms,
        }
        shown: dict[str, object] = {"disks": after}
        if steps and plan.found != CREATED:
            shown["snapshot"] = values["snapshot"]["xml"]
        return Outcome(steps, {"disks": before}, shown, values, taken.warnings)


def _not_quiesced(error: VirtopsError) -> str:
    return "The guest was not frozen, so the snapshot is crash-consistent: %s" % error.cause
