# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the flow of an external, atomic snapshot, of the disks or with the guest's memory.

observe -> plan -> (check mode stops here) -> journal PREPARED -> overlays -> freeze -> switch -> thaw
-> journal CREATED. A death at any point leaves a journal from which the next run goes on, or goes back.
"""

from __future__ import annotations

import uuid
from collections.abc import Container
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Callable

from .._core import xml
from .._core.errors import VirtopsError
from .._core.images import Use
from .._core.journal import CREATED, KEPT, PREPARED, Journal, Operation
from .._core.model import Creation, DomainView, Hold, Outcome, is_local
from .._core.plan import Done, Step
from .._core.ports import WATCHDOG_GRACE, ImagePort, SnapshotPort
from .._core.refusals import guest_paused, operation_open
from .._core.snapshot import (
    PlannedDisk,
    SnapshotOptions,
    SnapshotPlan,
    is_in_chain,
    journal_disks,
    plan_snapshot,
    snapshot_disks,
)
from .away import require_here
from .guest import Guest
from .interrupted import Undoing, awake, is_left_paused, take_back, undoing
from .observe import chains
from .ours import noted
from .overlays import require_memory_place, require_place, require_reusable
from .run import Run
from .sound import require_sound
from .strays import left_behind, lost_files, lost_operations

#: Where going on without a freeze makes no sense: there is nobody to ask, or nothing to freeze.
_NO_GUEST = ("connection_lost", "guest_ended")


@dataclass(frozen=True)
class _Taken:
    """What was really obtained: consistency is filesystem, crash or offline."""

    consistency: str
    freeze_ms: int = 0
    warnings: tuple[str, ...] = ()


#: A caller's own look at what is going to be snapshotted; it raises VirtopsError to refuse it.
Refusal = Callable[[DomainView, SnapshotPlan], None]


class ExternalSnapshot:
    """Create one external snapshot, or find that it is there."""

    def __init__(self, options: SnapshotOptions, guest: Guest[SnapshotPort], refuse: Refusal | None = None) -> None:
        self._options = options
        self._refuse = refuse
        self._guest = guest
        self._domain = guest.domain
        self._images = guest.images
        self._watchdog = guest.watchdog
        self._clock = guest.clock
        #: Did we freeze the guest, or may have, and not thaw it yet?
        self._frozen = False
        self._taken: _Taken | None = None
        #: The journal's ID of the snapshot that is there, and the overlays that may have come to be in this run.
        self._noted: str | None = None
        self._made: set[str] = set()

    def run(self, check: bool) -> Outcome:
        """Plan, and where not `check`, apply. Raises VirtopsError; the guest is then as before."""
        with self._guest.run(check) as run:
            view = self._observe(run)
            interrupted = view.journal.of_snapshot(self._options.name)
            self._refuse_lost(view, view.journal)
            plan = plan_snapshot(self._options, view, self._domain.snapshot(self._options.name), view.journal)
            plan = replace(plan, disks=tuple(replace(disk, block=self._is_block(disk)) for disk in plan.disks))
            if plan.found == CREATED:
                return self._present(view, plan, run)
            left = Undoing()
            if interrupted is not None:
                keep = {disk.overlay for disk in plan.disks} if self._options.reuse else frozenset()
                left = undoing(interrupted, view, self._guest, keep)
            require_here(view, self._images)
            self._check_host(plan, view, left.files)
            if self._refuse is not None:
                self._refuse(view, plan)
            quiesce, warnings = self._quiesce_mode(view, thaws=check and bool(run.actions))
            run.warnings += warnings + left.warnings
            run.apply(*left.steps, *self._steps(plan, view, quiesce))
            if self._taken is None:
                self._taken = _Taken("filesystem" if quiesce else ("crash" if view.active else "offline"))
            return self._outcome(view, plan, self._taken, run)

    def _observe(self, run: Run) -> DomainView:
        """The domain once an interrupted request has come to its end, and its guest runs on."""
        view = self._guest.observe()
        interrupted = view.journal.of_snapshot(self._options.name)
        if interrupted is None or interrupted.phase != PREPARED:
            return view
        return awake(interrupted, self._guest, self._options.timeout, run)

    def _refuse_lost(self, view: DomainView, journal: Journal) -> None:
        """A live backup on top of one whose journal is gone would leave that one's layer in the chain for ever."""
        for operation in lost_operations(view, journal, self._domain.snapshots):
            if operation.name != self._options.name:
                raise operation_open(view.name, operation, lost=True)
        for operation in (
            lost_files(view, journal, self._images, self._guest.others) if self._options.kind != KEPT else ()
        ):
            raise left_behind(operation, view)

    def _is_block(self, disk: PlannedDisk) -> bool:
        return self._images.kind(disk.overlay) == "block"

    def _present(self, view: DomainView, plan: SnapshotPlan, run: Run) -> Outcome:
        """The snapshot is there. An interrupted run may not have noted so: note it, nothing else."""
        operation = view.journal.of_snapshot(self._options.name)
        self._noted = operation.id if operation else None
        if operation is not None and operation.phase == PREPARED:
            operation = replace(operation, consistency="crash")
            words = ("note in the journal that snapshot %s was taken" % self._options.name,)
            run.apply(Step(words, partial(self._note_created, operation)))
        if self._options.metadata and not self._is_recorded(plan):
            run.warnings.append(_unrecorded(self._options.name))
        return self._outcome(view, plan, _Taken(operation.consistency if operation else "crash"), run)

    def _is_recorded(self, plan: SnapshotPlan) -> bool:
        """Has libvirt a record of the snapshot, or is it to have one?"""
        return (
            self._options.metadata if plan.found != CREATED else self._domain.snapshot(self._options.name) is not None
        )

    # -- refusals that need a look at the host or at the agent

    def _check_host(self, plan: SnapshotPlan, view: DomainView, stale: Container[str]) -> None:
        if self._options.memory is not None:
            require_memory_place(self._options.memory, view, self._images, stale)
        others = self._domain.other_images() if self._options.reuse else None
        for disk in plan.disks:
            require_sound(view, disk.target, Use.SNAPSHOT, self._images)
            if others is None:
                require_place(disk, self._images, stale)
            else:
                require_reusable(disk, view, others, self._images)

    def _quiesce_mode(self, view: DomainView, thaws: bool) -> tuple[bool, tuple[str, ...]]:
        """Will the guest be frozen? With `preferred`, why not, as a warning. `thaws`: the run would have thawed it."""
        if self._options.memory is not None:
            return False, self._memory_warnings(view)
        if self._options.quiesce == "never" or not view.active:
            return False, ()
        try:
            if view.state != "running":
                raise guest_paused(view)
            self._domain.agent_ping(self._options.ping_timeout)
        except VirtopsError as error:
            if thaws and error.code == "already_frozen":
                return True, ()
            if self._options.quiesce == "required" or error.code in _NO_GUEST:
                raise
            return False, (_not_quiesced(error),)
        return True, ()

    def _memory_warnings(self, view: DomainView) -> tuple[str, ...]:
        warnings = []
        if self._options.quiesce == "preferred":
            warnings.append(
                "The guest was not frozen. A snapshot with memory does not need this: what its file systems have not "
                "written yet is in the memory. Without that memory the disks are crash-consistent"
            )
        if view.state == "paused" and not self._options.halt:
            warnings.append(
                "The guest was paused before. QEMU closed its images to save the memory, so nothing can be merged "
                "until the guest is resumed"
            )
        return tuple(warnings)

    # -- effects

    def _steps(self, plan: SnapshotPlan, view: DomainView, quiesce: bool) -> tuple[Step, ...]:
        """Each of them is taken back as a whole, by the one undo. From the freeze to the thaw is one step, in which
        nothing is logged: the log may lie on the guest's own storage."""
        operation = Operation(
            id=str(uuid.uuid4()),
            kind=self._options.kind,
            name=self._options.name,
            phase=PREPARED,
            started=self._clock.utcnow(),
            disks=journal_disks(self._options, plan),
            memory=self._options.memory,
            boot=self._clock.boot(),
        )
        undo = partial(self._undo, operation)
        steps = [Step((), partial(self._guest.put, operation), undo)]
        verb = "reuse" if self._options.reuse else "create"
        words = ["%s the overlay %s on %s (%s)" % (verb, d.overlay, d.base.path, d.target) for d in plan.disks]
        if self._creates(plan):
            for disk, text in zip(plan.disks, words):
                steps.append(Step((text,), partial(self._create_overlay, disk, view), undo))
            words = []
        words += self._words(plan, view, quiesce)
        return (
            *steps,
            Step(tuple(words), lambda: self._take(operation, plan, view, quiesce)),
            Step((), lambda: self._note_taken(operation, view), final=True),
        )

    def _create_overlay(self, disk: PlannedDisk, view: DomainView) -> None:
        size = self._images.info(disk.base.path, disk.base.format).virtual_size
        self._images.create_overlay(disk.overlay, disk.base, size, view.qemu_user)
        self._made.add(disk.overlay)

    def _take(self, operation: Operation, plan: SnapshotPlan, view: DomainView, quiesce: bool) -> Done:
        self._made = {disk.overlay for disk in plan.disks}
        self._taken = self._switch(plan, view, operation.held(Hold(frozen=True)) if quiesce else None)
        return Done(warnings=self._taken.warnings)

    def _note_taken(self, operation: Operation, view: DomainView) -> None:
        taken = self._taken or _Taken("crash")
        self._note_created(replace(operation, consistency=taken.consistency))
        self._noted = operation.id
        if self._options.quiesce == "required" and view.active and taken.consistency != "filesystem":
            raise VirtopsError(
                "freeze_lost",
                "Snapshot %r was taken, but the guest did not stay frozen until then (%s)."
                % (self._options.name, "; ".join(taken.warnings)),
                "Merge it with virtops.libvirt.block_commit and snapshot: %r, then try again with a longer "
                "freeze_timeout" % self._options.name,
            )

    def _creates(self, plan: SnapshotPlan) -> bool:
        """Do we create the overlays, before the freeze? Not those that are there, nor any on a base on the network."""
        return not self._options.reuse and not plan.remote

    def _request(self, plan: SnapshotPlan) -> str:
        options = self._options
        memory = None if options.memory is None else "external"
        return xml.build_snapshot(options.name, options.description, snapshot_disks(plan), memory, options.memory)

    def _create(self, plan: SnapshotPlan) -> None:
        options = self._options
        memory, reuse = options.memory is not None, options.reuse or not plan.remote
        self._domain.create_snapshot(
            self._request(plan), Creation(options.metadata, reuse, memory, live=options.live, halt=options.halt)
        )

    def _switch(self, plan: SnapshotPlan, view: DomainView, frozen: Operation | None) -> _Taken:
        """`frozen` is how the journal has the operation from before the freeze until the note that the snapshot was
        taken, or the end of this QEMU; None for a guest that is not to be frozen."""
        if frozen is None:
            self._create(plan)
            return _Taken("crash" if view.active else "offline")
        limit = self._options.freeze_timeout
        self._domain.write_journal(self._guest.journal.put(frozen), lasting=False)
        self._watchdog.arm(view.uuid, limit + WATCHDOG_GRACE, Hold(frozen=True))
        began = self._clock.monotonic()
        count, warnings = self._freeze(limit)
        thawed, halted = 0, False
        failed: VirtopsError | None = None
        try:
            self._create(plan)
            halted = self._options.halt
        except VirtopsError as error:
            failed = error
            raise
        finally:
            if count and not halted:
                thawed = self._thaw_after(failed)
            freeze_ms = int((self._clock.monotonic() - began) * 1000)
            if halted or not self._frozen:
                self._watchdog.disarm()  # only after a thaw that succeeded: it thaws where we could not
        if not count:
            return _Taken("crash", warnings=warnings)
        if not thawed and not halted:
            return _Taken("crash", freeze_ms, ("something else thawed the guest within %d ms" % freeze_ms,))
        return _Taken("filesystem", freeze_ms)

    def _thaw_after(self, failed: VirtopsError | None) -> int:
        """Where the snapshot failed, that is what the user has to know, as when its QEMU died."""
        try:
            return self._thaw()
        except VirtopsError as error:
            if failed is None:
                raise
            failed.cause = "%s. Thawing the guest failed too: %s" % (failed.cause.rstrip("."), error.cause)
            return 0

    def _freeze(self, seconds: int) -> tuple[int, tuple[str, ...]]:
        """The number of file systems frozen; 0 and the reason where `preferred` goes on without."""
        self._frozen = True
        try:
            frozen = self._domain.freeze(seconds)
            if frozen == 0:
                raise VirtopsError(
                    "nothing_frozen",
                    "The guest agent found no file system to freeze.",
                    "Mount the guest's file systems, or ask for quiesce: preferred or never",
                )
        except VirtopsError as error:
            try:
                self._thaw()  # an agent that answers too late has frozen all the same
            except VirtopsError:
                if error.code != "agent_failed":
                    raise
                self._frozen = False  # it answered that it did not freeze, and may be kept from either
            self._watchdog.disarm()
            if self._options.quiesce == "required" or error.code in _NO_GUEST:
                raise
            return 0, (_not_quiesced(error),)
        return frozen, ()

    def _thaw(self) -> int:
        thawed = self._domain.thaw(self._options.thaw_timeout)
        self._frozen = False
        return thawed

    def _note_created(self, operation: Operation) -> None:
        """Write down what the bases are now: from here on nothing may change them but our merge."""
        view = self._domain.view()
        shown = view.active or self._options.halt
        missing = [
            disk.target for disk in operation.disks if shown and not is_in_chain(view, disk.target, disk.overlay)
        ]
        if missing:
            raise VirtopsError(
                "snapshot_unverified",
                "libvirt reported success, but %s of domain %s did not switch to the overlays."
                % (", ".join(missing), view.name),
                "Run the play again: the journal tells it what was intended",
            )
        self._guest.put(noted_created(operation, self._images))

    def _undo(self, operation: Operation, cause: VirtopsError) -> bool:
        """A guest that could not be thawed keeps its journal."""
        view = self._domain.view()
        busy = self._domain.has_job() or (self._frozen and view.active)
        if is_left_paused(operation, view) and not busy:
            self._domain.resume()
        return take_back(operation, self._made, self._guest, cause, busy)

    # -- words

    def _words(self, plan: SnapshotPlan, view: DomainView, quiesce: bool) -> list[str]:
        steps = []
        if quiesce:
            steps.append("freeze the file systems of %s" % view.name)
        if self._options.memory is not None:
            steps.append("save the memory of %s to %s" % (view.name, self._options.memory))
        steps.append(
            "take the external snapshot %s of %s" % (self._options.name, ", ".join(d.target for d in plan.disks))
        )
        if self._halts(view):
            steps.append("turn %s off at that moment" % view.name)
        elif quiesce:
            steps.append("thaw the file systems of %s" % view.name)
        return steps

    def _halts(self, view: DomainView) -> bool:
        return self._options.halt and view.active

    def _outcome(self, view: DomainView, plan: SnapshotPlan, taken: _Taken, run: Run) -> Outcome:
        before = chains(view)
        after = dict(before)
        if plan.found != CREATED:
            for disk in plan.disks:
                after[disk.target] = [disk.overlay, *before.get(disk.target, [disk.base.path])]
        values: dict[str, Any] = {
            "snapshot": {
                "name": self._options.name,
                "kind": "external",
                "metadata": self._is_recorded(plan),
                "memory": self._options.memory,
                "operation": self._noted,
                "xml": self._request(plan),
            },
            "overlays": [
                {"disk": d.target, "base": d.base.path, "base_format": d.base.format, "overlay": d.overlay}
                for d in plan.disks
            ],
            "skipped_disks": [{"disk": d.target, "reason": d.reason} for d in plan.skipped],
            "consistency": taken.consistency,
            "freeze_ms": taken.freeze_ms,
        }
        started: dict[str, object] = {"disks": before}
        shown: dict[str, object] = {"disks": after}
        if self._options.halt:
            started["state"] = shown["state"] = view.state
        if run.actions and plan.found != CREATED:
            shown["snapshot"] = values["snapshot"]["xml"]
            if self._halts(view):
                shown["state"] = "shut off"
        return run.outcome(started, shown, values)


def noted_created(operation: Operation, images: ImagePort) -> Operation:
    """The snapshot was taken: what each base is now, whose file is on this host."""
    disks = tuple(
        replace(disk, identity=images.identity(disk.base)) if is_local(disk.base) else disk for disk in operation.disks
    )
    return noted(replace(operation, phase=CREATED, disks=disks), images)


def _unrecorded(name: str) -> str:
    return (
        "libvirt has no record of snapshot %r, which only the journal knows: it can be listed, merged and deleted by "
        "its name, but you cannot revert to it. If you have the record's XML, write it again with "
        "virtops.libvirt.snapshot_metadata; otherwise delete the snapshot and take a new one" % name
    )


def _not_quiesced(error: VirtopsError) -> str:
    return "The guest was not frozen, so the snapshot is crash-consistent: %s" % error.cause
