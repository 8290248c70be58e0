# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: finish, or undo, what interrupted runs left on one domain.

The journal says what was intended, the chains and jobs say how far it came. An operation that is at rest (a snapshot
that the user keeps) is nothing to recover. Running this on a healthy domain changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from .._core.convergence import Deadline
from .._core.errors import VirtopsError
from .._core.job_state import UnderWay, job_words
from .._core.journal import (
    COMMIT,
    CONVERT,
    CREATED,
    DELETE,
    KEPT,
    PREPARED,
    PULL,
    RESTORE,
    RESTORE_DISKS,
    REVERT,
    Journal,
    JournalDisk,
    Operation,
)
from .._core.model import DomainView, Outcome, is_local
from .._core.plan import Step, nothing
from .._core.ports import DeletePort, ReaperPort
from .._core.refusals import operation_open
from .._core.snapshot import is_in_chain
from .away import require_here
from .brake import letting_go
from .clean_up import sweeping
from .convert import finished
from .guest import Guest
from .interrupted import awake, ending, undoing, unswitched
from .merge import Merge
from .merge_plan import MergeOptions
from .observe import chains
from .ours import foreign_journal
from .overlays import is_unused, refuse_data, removable
from .restore_end import RestoreEnd
from .run import Run
from .snapshot import noted_created
from .snapshot_delete import SnapshotDeletion
from .strays import left_behind, lost_files, lost_operations

#: Finishes the backup of the snapshot of this name, in check mode only in words.
Backup = Callable[[str], Outcome]


@dataclass(frozen=True)
class RecoverOptions:
    """`operations`: the kinds of operation to recover (none given: all). `bandwidth` is each merge's, in MiB/s (0: no
    limit)."""

    operations: tuple[str, ...] = ()
    deadline: Deadline = field(default_factory=Deadline)
    bandwidth: int = 0


class Recovery:
    """Bring one domain to rest: no open operation, no overlay of one, no frozen file system."""

    def __init__(
        self,
        options: RecoverOptions,
        guest: Guest[DeletePort],
        backup: Backup | None = None,
        reaper: ReaperPort | None = None,
        restores: RestoreEnd | None = None,
    ) -> None:
        self._options = options
        self._guest = guest
        self._domain = guest.domain
        self._images = guest.images
        self._backup = backup
        self._reaper = reaper
        self._restores = restores
        #: The chains that are not as they were, and the backup that was finished.
        self._after: dict[str, object] = {}
        self._made: object = None

    def run(self, check: bool) -> Outcome:
        """Raises VirtopsError where a human has to decide; what was recovered before that stays recovered."""
        with self._guest.run(check) as run:
            return self._run(run)

    def _run(self, run: Run) -> Outcome:
        view = self._guest.observe()
        before = chains(view)
        journal = view.journal
        found = [op for op in journal.operations if op.open]
        lost = lost_operations(view, journal, self._domain.snapshots)
        self._refuse_lost(view)
        foreign = [op for op in (*found, *lost) if self._options.operations and op.kind not in self._options.operations]
        if foreign:
            raise operation_open(view.name, foreign[0])
        if found or lost:
            require_here(view, self._images)
        run.apply(*self._reaping(view))
        run.warnings += [] if view.journal_of is None else [foreign_journal(view)]
        for operation in found:
            # Before the merge is planned, which may refuse; in check mode the merge's plan has the same step
            if operation.hold is not None and not operation.frozen and not run.check:
                run.apply(letting_go(operation, operation.hold, view, self._guest))
            self._recover(operation, view, run)
        for operation in lost:
            self._adopt(operation, run)
        self._sweep(journal, run)
        self._refuse_left(self._guest.observe())
        values: dict[str, object] = {
            "operations": [
                {"name": op.name, "kind": op.kind, "phase": op.phase, "started": op.started} for op in (*found, *lost)
            ],
            "backup": self._made,
        }
        return run.outcome({"disks": before}, {"disks": {**before, **self._after}}, values)

    def _adopt(self, operation: Operation, run: Run) -> None:
        """A live backup whose journal is gone: merged as if it was there. Nothing tells what its bases were, so none of
        them is backed up."""
        self._refuse_fork(operation, self._guest.observe())
        words = "take up %s: its layers or its record are there, and its journal is gone" % operation.name
        run.apply(Step((words,), nothing))
        run.warnings.append("The backup of %s cannot be finished: its journal is gone." % operation.name)
        self._merge(operation, run, operation)

    def _sweep(self, journal: Journal, run: Run) -> None:
        """Overlays that earlier runs, by this journal, merged and kept. A guest that goes on elsewhere, or on saved
        memory, is left alone."""
        if not journal.merged:
            return
        view = self._guest.observe()
        noted = {disk.overlay for op in journal.merged for disk in op.disks}
        new = [disk.overlay for op in view.journal.merged for disk in op.disks if disk.overlay not in noted]
        try:
            require_here(view, self._images)
        except VirtopsError as error:
            if error.code not in ("guest_moved", "memory_saved"):
                raise
            return
        steps, kept = sweeping(view, view.journal.without_merged(new), self._guest)
        run.apply(*steps)
        run.warnings += kept

    def _refuse_left(self, view: DomainView) -> None:
        """The guest may have been started from an older definition, and its newest data be in this file."""
        journal = view.journal
        for operation in lost_files(view, journal, self._images, self._guest.others):
            raise left_behind(operation, view)

    def _refuse_lost(self, view: DomainView) -> None:
        """libvirt 9.0 that is killed while it ends a pivot leaves a status file (a <mirror> with an empty job) that it
        cannot read again: then it shows the domain as shut off, on images that its QEMU may have left since."""
        images = {layer.path for disk in view.disks + view.config_disks for layer in disk.chain if is_local(layer.path)}
        running = () if view.active or self._reaper is None else self._reaper.emulators(view.uuid, sorted(images))
        if running:
            raise VirtopsError(
                "guest_lost",
                "libvirt says that the domain %s is %s, but its QEMU, process %d, still runs: libvirt's daemon lost it "
                "when it was restarted" % (view.name, view.state, running[0]),
                "Do not start the domain, do not end that process, and do not merge before you have asked QEMU which "
                "images it uses: see the recovery guide, 'A guest that libvirt has lost'",
            )

    def _reaping(self, view: DomainView) -> list[Step]:
        """A copier that outlived its module holds QEMU's lock on a base: no merge into it could succeed."""
        if self._reaper is None:
            return []
        words = "end process %d, a copy that an interrupted run left"
        reap = self._reaper.reap
        return [Step((words % pid,), partial(reap, view.uuid, pid)) for pid in self._reaper.orphans(view.uuid)]

    def _recover(self, operation: Operation, view: DomainView, run: Run) -> None:
        """In the order of the phases; each of them is safe to enter again."""
        if operation.kind == CONVERT:
            steps, kept = finished(operation, view, self._guest.others(), self._guest)
            run.apply(*steps)
            run.warnings += kept
        elif operation.kind in (RESTORE, RESTORE_DISKS):
            if self._restores is None:
                raise operation_open(view.name, operation)
            run.apply(*self._restores.steps(view, operation))
        elif operation.phase == PREPARED:
            self._recover_prepared(operation, run)
        elif operation.kind == REVERT:
            paths, kept = removable(operation, view, self._guest)
            run.apply(*ending(operation, paths, "remove %s, which an interrupted revert left", self._guest))
            run.warnings += kept
        elif operation.kind == DELETE:
            flow = SnapshotDeletion(operation.name, operation.children, self._options.deadline, self._guest)
            self._after.update(_changed_chains(run.include(flow.run(run.check))))
        else:
            if operation.phase == CREATED:
                self._refuse_fork(operation, view)
            self._finish_backup(operation, run)
            self._merge(operation, run)

    # -- prepared: the switch to the overlays may or may not have come

    def _recover_prepared(self, operation: Operation, run: Run) -> None:
        done = len(run.actions)
        view = awake(operation, self._guest, self._options.deadline.timeout, run)
        operation = operation.held(None)
        left = unswitched(operation, view, self._guest)
        if len(left) == len(operation.disks):
            undone = undoing(operation, view, self._guest)
            run.apply(*undone.steps)
            run.warnings += undone.warnings
        elif operation.kind == KEPT and not left:
            taken = replace(noted_created(operation, self._images), consistency="crash")
            words = "note in the journal that snapshot %s was taken" % operation.name
            run.apply(Step((words,), partial(self._guest.put, taken)))
        else:
            if run.check:  # the merge's plan has the step of the awakening as well
                del run.actions[done:]
            self._merge(operation, run)

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

    def _finish_backup(self, operation: Operation, run: Run) -> None:
        """Once a commit into a base was attempted, by us or by somebody else, only a complete set counts."""
        if self._backup is None or operation.kind in (COMMIT, PULL):
            return
        device = next((disk.base for disk in operation.disks if self._images.kind(disk.base) == "block"), None)
        if device is not None:  # nothing tells whether anybody wrote to it since the snapshot
            words = "The interrupted backup is not finished, because %s is a block device: a new one must be made."
            run.warnings.append(words % device)
            return
        try:
            outcome = run.include(self._backup(operation.name))
            self._made = outcome.values.get("backup", self._made)
        except VirtopsError as error:
            if error.code not in ("base_modified", "chain_changed"):
                raise
            run.warnings.append("The interrupted backup cannot be finished any more: %s" % error.cause)

    def _merge(self, operation: Operation, run: Run, adopted: Operation | None = None) -> None:
        """The merge by the operation's own goal; a commit that runs is adopted, one that vanished begins anew."""
        self._guest.progress.phase("merge")
        for options in self._wishes(operation):
            outcome = Merge(replace(options, adopted=adopted), self._guest).run(run.check)
            self._after.update(_changed_chains(run.include(outcome)))

    def _wishes(self, operation: Operation) -> list[MergeOptions]:
        if operation.kind not in (COMMIT, PULL) or self._domain.snapshot(operation.name) is not None:
            return [
                MergeOptions(
                    snapshot=operation.name,
                    bandwidth=self._options.bandwidth,
                    deadline=self._options.deadline,
                    delete_merged=True,
                )
            ]
        pull = operation.kind == PULL
        tops: dict[str, JournalDisk] = {}
        for disk in operation.disks:
            tops.setdefault(disk.target, disk)  # the topmost of each disk's layers is the first
        return [
            MergeOptions(
                disks=(target,),
                base=top.base or None,
                top=None if pull else top.overlay,
                bandwidth=self._options.bandwidth,
                deadline=self._options.deadline,
                pull=pull,
            )
            for target, top in tops.items()
        ]


def foreseen(found: UnderWay) -> Outcome:
    """In check mode, while a job works on the guest: what is open is its work, and nothing that was interrupted."""
    words = "wait for the end of the %s, and see whether it left anything" % job_words(found.state)
    return Outcome((words,), values={"operations": [], "backup": None})


def _changed_chains(outcome: Outcome) -> dict[str, object]:
    """Of a merge: the chains that are not as they were."""
    before, after = outcome.before["disks"], outcome.after["disks"]
    return {target: chain for target, chain in after.items() if chain != before.get(target)}
