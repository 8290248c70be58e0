# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: finish, or undo, what interrupted runs left on one domain.

The journal says what was intended, the chains and jobs say how far it came. An operation that is at rest (a snapshot
that the user keeps) is nothing to recover. Running this on a healthy domain changes nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from .._core.convergence import Deadline
from .._core.errors import VirtopsError
from .._core.journal import (
    COMMIT,
    CONVERT,
    CREATED,
    DELETE,
    KEPT,
    PREPARED,
    PULL,
    REVERT,
    Journal,
    JournalDisk,
    Operation,
)
from .._core.model import DomainView, Outcome, is_local
from .._core.ports import DeletePort, ReaperPort
from .._core.refusals import operation_open
from .._core.snapshot import is_in_chain
from .away import require_here
from .brake import held_words, let_go
from .convert import finished
from .guest import Guest
from .interrupted import awake, undo, unswitched
from .merge import Merge
from .merge_plan import MergeWish
from .observe import OtherFiles, chains, every_image, observe
from .ours import Ours, foreign_journal
from .overlays import is_unused, plan_sweep, refuse_data, removable
from .snapshot import noted_created
from .snapshot_delete import SnapshotDeletion
from .strays import left_behind, lost_files, lost_operations

#: Finishes the backup of the snapshot of this name, in check mode only in words.
Backup = Callable[[str], Outcome]


@dataclass(frozen=True)
class RecoverWish:
    """`operations`: the kinds of operation to recover (none given: all)."""

    operations: tuple[str, ...] = ()
    deadline: Deadline = field(default_factory=Deadline)


class Recovery:
    """Bring one domain to rest: no open operation, no overlay of one, no frozen file system."""

    def __init__(
        self,
        wish: RecoverWish,
        guest: Guest[DeletePort],
        backup: Backup | None = None,
        reaper: ReaperPort | None = None,
    ) -> None:
        self._wish = wish
        self._guest = guest
        self._domain = guest.domain
        self._images = guest.images
        self._clock = guest.clock
        self._backup = backup
        self._reaper = reaper

    def run(self, check: bool) -> Outcome:
        """Raises VirtopsError where a human has to decide; what was recovered before that stays recovered."""
        view = observe(self._domain, self._images)
        before = chains(view)
        journal = view.journal
        found = [op for op in journal.operations if op.open]
        lost = lost_operations(view, journal, self._domain.snapshots)
        self._refuse_lost(view)
        foreign = [op for op in (*found, *lost) if self._wish.operations and op.kind not in self._wish.operations]
        if foreign:
            raise operation_open(view.name, foreign[0])
        if found or lost:
            require_here(view, self._images)
        steps = self._reap(view, check)
        warnings = [] if view.journal_of is None else [foreign_journal(view)]
        after: dict[str, object] = dict(before)
        backup = None
        for operation in found:
            for outcome in [*self._let_go(operation, view, check), *self._recover(operation, view, check)]:
                steps += outcome.steps
                warnings += outcome.warnings
                after.update(outcome.after)
                backup = outcome.values.get("backup", backup)
        for operation in lost:
            outcome = self._adopt(operation, check)
            steps += outcome.steps
            warnings += outcome.warnings
            after.update(outcome.after)
        swept = self._sweep(journal, check)
        steps += swept.steps
        warnings += swept.warnings
        self._refuse_left(observe(self._domain, self._images))
        values: dict[str, object] = {
            "operations": [
                {"name": op.name, "kind": op.kind, "phase": op.phase, "started": op.started} for op in (*found, *lost)
            ],
            "backup": backup,
        }
        return Outcome(tuple(steps), {"disks": before}, {"disks": after}, values, tuple(warnings))

    def _adopt(self, operation: Operation, check: bool) -> Outcome:
        """A live backup whose journal is gone: merged as if it was there. Nothing tells what its bases were, so none of
        them is backed up."""
        view = observe(self._domain, self._images)
        self._refuse_fork(operation, view)
        outcome = self._merge(operation, check, operation)
        words = "take up %s: its layers or its record are there, and its journal is gone" % operation.name
        told = "The backup of %s cannot be finished: its journal is gone." % operation.name
        return replace(outcome, steps=(words, *outcome.steps), warnings=(told, *outcome.warnings))

    def _sweep(self, journal: Journal, check: bool) -> Outcome:
        """Overlays that earlier runs, by this journal, merged and kept. A guest that goes on elsewhere, or on saved
        memory, is left alone."""
        if not journal.merged:
            return Outcome()
        view = observe(self._domain, self._images)
        now = view.journal
        noted = {disk.overlay for op in journal.merged for disk in op.disks}
        new = [disk.overlay for op in now.merged for disk in op.disks if disk.overlay not in noted]
        ours = Ours(view, self._domain.snapshots(), self._images)
        try:
            require_here(view, self._images)
        except VirtopsError as error:
            if error.code not in ("guest_moved", "memory_saved"):
                raise
            return Outcome()
        others = functools.cache(self._others)
        sweep = plan_sweep(view, now.without_merged(new), others, self._images, ours)
        if not check and sweep.steps:
            for path in sweep.gone:
                self._images.remove(path)
            now = self._domain.view().journal
            after = now.without_merged((*sweep.gone, *sweep.forgotten))
            self._domain.write_journal(after)
        return Outcome(sweep.steps, warnings=sweep.warnings)

    def _refuse_left(self, view: DomainView) -> None:
        """The guest may have been started from an older definition, and its newest data be in this file."""
        journal = view.journal
        for operation in lost_files(view, journal, self._images, self._others):
            raise left_behind(operation, view)

    def _others(self) -> OtherFiles:
        return every_image(self._domain.other_images(), self._images)

    def _let_go(self, operation: Operation, view: DomainView, check: bool) -> list[Outcome]:
        """A merge that held the guest's writes back died, and its watchdog with it. Done before the merge is planned,
        which may refuse; in check mode the merge's plan has the same step."""
        if operation.hold is None or operation.frozen or check:
            return []
        let_go(self._domain, operation.hold)
        self._write(operation, operation.held(None))
        return [Outcome((held_words(view, operation.hold),))]

    def _refuse_lost(self, view: DomainView) -> None:
        """libvirt 9.0 that is killed while it ends a pivot leaves a status file (a <mirror> with an empty job) that it
        cannot read again: then it shows the domain as shut off, on images that its QEMU may have left since."""
        images = {layer.path for disk in view.disks + view.config_disks for layer in disk.chain if is_local(layer.path)}
        running = () if view.active or self._reaper is None else self._reaper.emulators(view.uuid, sorted(images))
        if running:
            raise VirtopsError(
                "guest_lost",
                "libvirt takes the domain %s for %s, but its QEMU, process %d, runs on: libvirt's daemon lost it when "
                "it was restarted" % (view.name, view.state, running[0]),
                "Do not start the domain, do not end that process, and merge nothing before QEMU has told which "
                "images it uses: see the recovery guide, 'A guest that libvirt has lost'",
            )

    def _reap(self, view: DomainView, check: bool) -> list[str]:
        """A copier that outlived its module holds QEMU's lock on a base: no merge into it could succeed."""
        orphans = () if self._reaper is None else self._reaper.orphans(view.uuid)
        for pid in orphans:
            if not check and self._reaper is not None:
                self._reaper.reap(view.uuid, pid)
        return ["end process %d, a copy that an interrupted run left" % pid for pid in orphans]

    def _recover(self, operation: Operation, view: DomainView, check: bool) -> list[Outcome]:
        """In the order of the phases; each of them is safe to enter again."""
        if operation.kind == CONVERT:
            return [self._finish_conversion(operation, view, check)]
        if operation.phase == PREPARED:
            return self._recover_prepared(operation, check)
        if operation.kind == REVERT:
            return [self._finish_revert(operation, view, check)]
        if operation.kind == DELETE:
            return [self._finish_deletion(operation, check)]
        if operation.phase == CREATED:
            self._refuse_fork(operation, view)
        return [*self._finish_backup(operation), self._merge(operation, check)]

    # -- prepared: the switch to the overlays may or may not have come

    def _recover_prepared(self, operation: Operation, check: bool) -> list[Outcome]:
        """In check mode the merge's plan has the step of the awakening as well."""
        seconds = self._wish.deadline.timeout
        view, steps = awake(operation, self._domain, self._images, self._clock, seconds, check)
        operation = operation.held(None)
        left = unswitched(operation, view, self._domain, self._images)
        if len(left) == len(operation.disks):
            return [Outcome(steps), undo(operation, view, self._domain, self._images, check)]
        if operation.kind == KEPT and not left:
            return [Outcome(steps), self._keep(operation, check)]
        return [Outcome(() if check else steps), self._merge(operation, check)]

    def _keep(self, operation: Operation, check: bool) -> Outcome:
        if not check:
            self._write(operation, replace(noted_created(operation, self._images), consistency="crash"))
        return Outcome(("note in the journal that snapshot %s was taken" % operation.name,))

    # -- a revert: the definition is switched, and the old layers may be left

    def _finish_revert(self, operation: Operation, view: DomainView, check: bool) -> Outcome:
        ours = Ours(view, self._domain.snapshots(), self._images)
        paths, kept = removable(operation, view, self._domain.other_images(), self._images, ours)
        if not check:
            for path in paths:
                self._images.remove(path)
            self._write(operation, None)
        return Outcome(
            (
                *("remove %s, which an interrupted revert left" % path for path in paths),
                "remove operation %s from the journal" % operation.name,
            ),
            warnings=kept,
        )

    # -- a conversion: the definition may be switched, and the raw images are left

    def _finish_conversion(self, operation: Operation, view: DomainView, check: bool) -> Outcome:
        others = every_image(self._domain.other_images(), self._images)
        ours = Ours(view, self._domain.snapshots(), self._images)
        gone, outcome = finished(operation, view, others, self._images, ours)
        if not check:
            for path in gone:
                self._images.remove(path)
            self._write(operation, None)
        return outcome

    # -- a deletion: the journal has its whole plan

    def _finish_deletion(self, operation: Operation, check: bool) -> Outcome:
        flow = SnapshotDeletion(operation.name, operation.children, self._wish.deadline, self._guest)
        outcome = flow.run(check)
        return replace(outcome, before={}, after=_changed_chains(outcome))

    # -- created or committing: the guest is on the overlays, or was

    def _refuse_fork(self, operation: Operation, view: DomainView) -> None:
        """No commit was attempted, yet the guest does not stand on an overlay that has data: it was started from an
        older definition, as a transient domain is. Or somebody merged by hand: nothing here tells the one from the
        other."""
        for disk in operation.disks:
            path = disk.overlay
            if is_in_chain(view, disk.target, path) or not self._images.exists(path):
                continue
            if not is_unused(path, view, self._images):
                raise refuse_data(path, view)

    def _finish_backup(self, operation: Operation) -> list[Outcome]:
        """Once a commit into a base was attempted, by us or by somebody else, only a complete set counts."""
        if self._backup is None or operation.kind in (COMMIT, PULL):
            return []
        device = next((disk.base for disk in operation.disks if self._images.kind(disk.base) == "block"), None)
        if device is not None:  # nothing tells whether anybody wrote to it since the snapshot
            words = "The interrupted backup is not finished, as %s is a block device: it has to be made anew."
            return [Outcome(warnings=(words % device,))]
        try:
            return [_without_diff(self._backup(operation.name))]
        except VirtopsError as error:
            if error.code not in ("base_modified", "chain_changed"):
                raise
            return [Outcome(warnings=("The interrupted backup cannot be finished any more: %s" % error.cause,))]

    def _merge(self, operation: Operation, check: bool, adopted: Operation | None = None) -> Outcome:
        """The merge by the operation's own goal; a commit that runs is adopted, one that vanished begins anew."""
        outcomes = [
            Merge(wish, self._guest).run(check)
            for wish in (replace(wish, adopted=adopted) for wish in self._wishes(operation))
        ]
        return Outcome(
            steps=tuple(step for outcome in outcomes for step in outcome.steps),
            after={target: chain for outcome in outcomes for target, chain in _changed_chains(outcome).items()},
            warnings=tuple(text for outcome in outcomes for text in outcome.warnings),
        )

    def _wishes(self, operation: Operation) -> list[MergeWish]:
        if operation.kind not in (COMMIT, PULL) or self._domain.snapshot(operation.name) is not None:
            return [MergeWish(snapshot=operation.name, deadline=self._wish.deadline, delete_merged=True)]
        pull = operation.kind == PULL
        tops: dict[str, JournalDisk] = {}
        for disk in operation.disks:
            tops.setdefault(disk.target, disk)  # the topmost of each disk's layers is the first
        return [
            MergeWish(
                disks=(target,),
                base=top.base or None,
                top=None if pull else top.overlay,
                deadline=self._wish.deadline,
                pull=pull,
            )
            for target, top in tops.items()
        ]

    def _write(self, operation: Operation, instead: Operation | None) -> None:
        journal = self._domain.view().journal.drop(operation)
        self._domain.write_journal(journal if instead is None else journal.put(instead))


def _changed_chains(outcome: Outcome) -> dict[str, object]:
    """Of a merge: the chains that are not as they were."""
    before, after = outcome.before["disks"], outcome.after["disks"]
    if not isinstance(before, dict) or not isinstance(after, dict):
        raise AssertionError("a merge shows its chains by disk")
    return {target: chain for target, chain in after.items() if chain != before.get(target)}


def _without_diff(outcome: Outcome) -> Outcome:
    return replace(outcome, before={}, after={})
