# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the live backup of one guest, from the first look to the last pivot.

recovery (what an earlier run left) -> preflight -> verification of what it had copied -> snapshot -> copy -> merge ->
verification. Each is a flow of its own; this one hands the results on. Once there may be a snapshot, a failure is
reported only when the overlays are merged again. A guest that is off needs neither the snapshot nor the merge.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any, cast

from .._core.backup import BackupOptions, CopyPort, Source, StorePort
from .._core.backup_set import stamp_of_iso
from .._core.convergence import Deadline
from .._core.errors import VirtopsError
from .._core.job_state import UnderWay, job_words
from .._core.job_state import describe as describe_state
from .._core.journal import CREATED, JournalDisk, Operation, epoch
from .._core.model import DomainView, Outcome
from .._core.offline import OFFLINE
from .._core.ports import ImagePort, LiveBackupPort, ReaperPort
from .._core.preflight_facts import AGENT, FAILED, WARNING, HostPort, Limits
from .._core.refusals import require_going
from .._core.sets import SetsPort, newest_as_asked
from .._core.snapshot import SnapshotOptions, SnapshotPlan, skipped_disks
from . import users_copy
from .backup import Backup, Point, SnapshotPoint, refuse_early
from .foreseen import ForeseenDomain, ForeseenImages
from .guest import Guest
from .merge import Merge
from .merge_plan import MergeOptions
from .observe import chains
from .offline import OfflinePoint
from .preflight import Preflight, PreflightOptions
from .recover import RecoverOptions, Recovery
from .snapshot import ExternalSnapshot
from .users_copy import UsersCopy

#: The kind of the operation in the journal.
KIND = "live_backup"


@dataclass(frozen=True)
class LiveBackupOptions:
    """What the user asked for. The snapshot's name, where it is empty, is made of the time.

    `limits` are the preflight's, None for none. `bandwidth` is each merge's, in MiB/s. `resume_within` is in seconds:
    the backup of an interrupted run that is no older counts as this one. `users_copy`: for how many seconds the user's
    own tasks may copy; 0: the copy is ours.
    `max_age` is in seconds: a set that is no older, and that is what is asked for, counts as well; 0: none does.
    """

    snapshot: SnapshotOptions
    backup: BackupOptions
    limits: Limits | None
    bandwidth: int = 0
    deadline: Deadline = field(default_factory=Deadline)
    resume_within: int = 3600
    users_copy: int = 0
    max_age: int = 0


@dataclass(frozen=True)
class Tools:
    """What the flows need besides the guest. `apparmor` gives the rules of a domain by its UUID."""

    host: HostPort
    store: StorePort
    copier: CopyPort
    reaper: ReaperPort
    apparmor: Callable[[str], str]
    sets: SetsPort


class LiveBackup:
    """Back up one guest, and leave it as it was."""

    def __init__(self, options: LiveBackupOptions, guest: Guest[LiveBackupPort], tools: Tools) -> None:
        self._options = options
        self._guest = guest
        self._tools = tools
        self._phases: dict[str, float] = {}
        #: When the guest came to its overlays, and when it was back on its own images
        self._window: list[float] = []
        #: The steps of the flows that have ended
        self._done: list[str] = []
        #: What the snapshot gave to the result
        self._taken = Outcome()

    def run(self, check: bool) -> Outcome:
        """Plan, and where not `check`, apply. Raises VirtopsError; the guest is then on its own images, or the error
        says why not."""
        try:
            return self._run(check)
        except VirtopsError as error:
            error.actions = (*self._done, *(error.actions or ()))
            raise

    def _run(self, check: bool) -> Outcome:
        recovered = self._recover(check)
        operations = cast("list[dict[str, str]]", recovered.values["operations"])
        if operations and self._counts(operations[0]["started"], recovered):
            return self._resumed(recovered)
        present = self._present()
        if present is not None:
            return self._resumed(replace(recovered, values={**recovered.values, "backup": present}), is_present=True)
        if operations and check:
            return self._resumed(replace(recovered, steps=(*recovered.steps, "then back up the domain anew")))
        self._done += recovered.steps
        off = not self._guest.domain.view().active
        options = self._options if off else self._named()
        warnings = self._look(options)
        left = self._finish_left(options, check)
        backup = cast("dict[str, Any] | None", left.values["backup"])
        if backup is not None and self._is_young(stamp_of_iso(backup["times"]["snapshot"])):
            values = {**recovered.values, "backup": backup}
            return self._resumed(replace(recovered, steps=recovered.steps + left.steps, values=values))
        self._done += left.steps
        if not check:
            require_going(self._guest.progress)
        if off:
            made = self._back_up_offline(options, check)
        else:
            made = self._plan(options) if check else self._make(options)
        made = replace(
            made,
            steps=recovered.steps + left.steps + made.steps,
            warnings=recovered.warnings + warnings + left.warnings + made.warnings,
            values={**made.values, **self._measured(), "recovered": operations, "up_to_date": False},
        )
        # The chains as they were before an earlier run's overlays were merged
        return replace(made, before={**made.before, "disks": recovered.before["disks"]})

    # -- what an earlier run left

    def _recover(self, check: bool) -> Outcome:
        """If its backup cannot be finished, at least its overlays are merged."""
        with self._phase("recovery"):
            try:
                return self._recovery(self._finish(check), self._options.bandwidth).run(check)
            except VirtopsError as error:
                if check or error.code == "operation_open":
                    raise
                raise self._put_right(error) from error

    def _finish(self, check: bool) -> Callable[[str], Outcome] | None:
        if self._options.users_copy:  # nobody would copy what an interrupted run left: it is merged
            return None

        def finish(snapshot: str) -> Outcome:
            wish = replace(self._options.backup, snapshot=snapshot)
            return self._copy_flow(wish, self._guest).run(check)

        return finish

    def _recovery(self, finish: Callable[[str], Outcome] | None, bandwidth: int = 0) -> Recovery:
        """After a failure without a limit, which may be what failed."""
        wish = RecoverOptions((KIND,), self._options.deadline, bandwidth)
        return Recovery(wish, self._guest, finish, self._tools.reaper)

    def _counts(self, started: str, recovered: Outcome) -> bool:
        """Is what was recovered as good as the backup that is asked for?"""
        return recovered.values["backup"] is not None and self._is_young(started)

    def _is_young(self, started: str) -> bool:
        return epoch(self._guest.clock.utcnow()) - epoch(started) <= self._options.resume_within

    def _present(self) -> dict[str, Any] | None:
        """The manifest of a set that is young enough, and that is what this backup would be, with its path."""
        options, view = self._options, self._guest.domain.view()
        if not options.max_age or options.users_copy:
            return None
        targets = {disk.target for disk in view.disks} - {it.target for it in skipped_disks(options.snapshot, view)}
        sets = self._tools.sets.list(options.backup.dest, view.name)
        now, quiesce = self._guest.clock.utcnow(), options.snapshot.quiesce
        found = newest_as_asked(sets, view.uuid, targets, options.backup, quiesce, now, options.max_age)
        return None if found is None or found.manifest is None else {**found.manifest, "path": found.path}

    def _finish_left(self, options: LiveBackupOptions, check: bool) -> Outcome:
        """A phase of its own only where there is something. The user's own copy leaves nothing to finish."""
        if options.users_copy:
            return Outcome(values={"backup": None})
        flow = self._copy_flow(options.backup, self._guest)
        found = flow.left()
        with self._phase("verify") if found else nullcontext():
            return flow.finish_left(check, found)

    def _resumed(self, recovered: Outcome, is_present: bool = False) -> Outcome:
        backup = cast("dict[str, Any] | None", recovered.values["backup"])
        values: dict[str, object] = {
            "backup": backup,
            "consistency": None if backup is None else backup["consistency"],
            "freeze_ms": None,
            "overlays": [],
            "skipped_disks": [],
            **self._measured(),
            "recovered": recovered.values["operations"],
            "up_to_date": is_present,
        }
        return replace(recovered, values=values)

    # -- looking

    def _look(self, options: LiveBackupOptions) -> tuple[str, ...]:
        """What a human should weigh; refuses what would fail. That the agent is deaf the snapshot tells by itself."""
        if options.limits is None:
            return ()
        with self._phase("preflight"):
            tools = self._tools
            this = (self._guest.domain.view().uuid,)
            wish = PreflightOptions(options.backup, options.snapshot, options.limits, this, states=())
            told = Preflight(wish, tools.host, self._guest.images, tools.store, tools.apparmor).run()
        guests = cast("list[dict[str, Any]]", told.values["guests"])
        checks = [check for guest in guests for check in guest["checks"]]
        failed = [check for check in checks if check["status"] == FAILED]
        if failed:
            words = " ".join("%s. %s." % (_said(check), check["remedy"]) for check in failed[:-1])
            last = "The preflight found, and nothing was touched: %s" % " ".join(
                filter(None, (words, _said(failed[-1])))
            )
            raise VirtopsError(failed[0]["error_code"], last, failed[-1]["remedy"])
        warned = [check for check in checks if check["status"] == WARNING and check["check"] != AGENT]
        return tuple("%s. %s" % (_said(check), check["remedy"]) for check in warned)

    def _named(self) -> LiveBackupOptions:
        """The options with the snapshot's name. One that the user keeps is none that we may merge."""
        options = self._options
        name = options.snapshot.name or "live-backup-%s" % self._guest.clock.utcnow()
        if self._guest.domain.snapshot(name) is not None:
            raise VirtopsError(
                "snapshot_differs",
                "The domain has a snapshot %r already, which is not this backup's." % name,
                "Give this backup another name, or none",
            )
        return replace(
            options, snapshot=replace(options.snapshot, name=name), backup=replace(options.backup, snapshot=name)
        )

    # -- the backup

    def _make(self, options: LiveBackupOptions) -> Outcome:
        copied_by: Backup | UsersCopy | None = None  # while its copy is not looked at
        try:
            with self._phase("snapshot"):
                taken = self._snapshot_flow(options).run(False)
            self._done += taken.steps
            self._taken = taken
            self._window.append(self._guest.clock.monotonic())
            flow = self._copying(options, self._guest)
            with self._phase("copy"):
                copied = flow.copy(False)
            self._done += copied.steps
            copied_by = flow
            with self._phase("merge"):
                merged = self._merge_flow(options, self._guest).run(False)
            self._done += merged.steps
            self._window.append(self._guest.clock.monotonic())
            copied_by = None
            with self._phase("verify"):
                finished = flow.finish(False)
        except VirtopsError as error:
            told = self._put_right(error)
            raise told if copied_by is None else self._with_set(told, copied_by) from error
        except Exception:  # a bug: it stays one, and the guest does not stay on its overlays for it
            with suppress(VirtopsError):
                self._recovery(None).run(False)
            raise
        return _joined(taken, copied, merged, finished)

    def _with_set(self, error: VirtopsError, flow: Backup | UsersCopy) -> VirtopsError:
        """The error of a merge, after which the copy is as good as before: a guest whose QEMU died in it may have no
        other backup. Without a verification the copy waits for the next run's."""
        try:
            with self._phase("verify"):
                finished = flow.finish(False)
        except VirtopsError as second:
            left, done = "Its backup was not verified: %s" % second, second.actions or ()
        else:
            backup = cast("dict[str, Any] | None", finished.values["backup"])
            what = "What your own tasks have copied" if backup is None else "Its backup"
            left = "%s is complete all the same%s" % (what, "" if backup is None else ": %s" % backup["path"])
            done = finished.steps
        told = VirtopsError(error.code, str(error), left, error.partial)
        told.actions = (*(error.actions or ()), *done)
        return told

    def _back_up_offline(self, options: LiveBackupOptions, check: bool) -> Outcome:
        """With a snapshot after all where the guest was started meanwhile, and runs."""
        try:
            return self._copy_offline(options, check)
        except VirtopsError as error:
            may_begin_anew = not check and error.code in ("guest_started", "image_locked") and not options.users_copy
            if not may_begin_anew or not self._guest.domain.view().active:
                raise
            told = "The guest was started while it was to be backed up, and is backed up with a snapshot: %s" % error
        options = self._named()
        warned = self._look(options)
        made = self._make(options)
        return replace(made, warnings=(told, *warned, *made.warnings))

    def _copy_offline(self, options: LiveBackupOptions, check: bool) -> Outcome:
        """Of a guest that is off. It leaves nothing that would have to be put right: a partial set at most."""
        point = OfflinePoint(options.snapshot, self._guest)
        flow = self._copying(options, self._guest, point)
        with self._phase("copy"):
            copied = flow.copy(check)
        self._done += copied.steps
        with self._phase("verify"):
            finished = flow.finish(check)
        disks = chains(self._guest.observe())
        return Outcome(
            steps=copied.steps + finished.steps,
            before={"disks": disks, "backup": copied.before},
            after={"disks": disks, "backup": copied.after},
            values={**_of_offline(point), **finished.values},
            warnings=copied.warnings + finished.warnings,
        )

    def _plan(self, options: LiveBackupOptions) -> Outcome:
        """The same flows, of which the later ones look at what the snapshot would make."""
        taken = self._snapshot_flow(options).run(True)
        operation = self._foreseen(options.snapshot.name, taken)
        guest = replace(
            self._guest,
            domain=cast(LiveBackupPort, ForeseenDomain(self._guest.domain, self._guest.images, operation)),
            images=cast(ImagePort, ForeseenImages(self._guest.images, operation)),
        )
        flow = self._copying(options, guest)
        copied = flow.copy(True)
        return _joined(taken, copied, self._merge_flow(options, guest).run(True), flow.finish(True))

    def _foreseen(self, name: str, taken: Outcome) -> Operation:
        """The guest still writes to the bases: nothing is noted of what they are."""
        overlays = cast("list[dict[str, str]]", taken.values["overlays"])
        return Operation(
            id=str(uuid.uuid4()),
            kind=KIND,
            name=name,
            phase=CREATED,
            started=self._guest.clock.utcnow(),
            disks=tuple(JournalDisk(it["disk"], it["base"], it["base_format"], it["overlay"]) for it in overlays),
            consistency=str(taken.values["consistency"]),
            boot=self._guest.clock.boot(),
        )

    def _snapshot_flow(self, options: LiveBackupOptions) -> ExternalSnapshot:
        def refuse(view: DomainView, plan: SnapshotPlan) -> None:
            bases = tuple(Source(disk.target, disk.base, disk.overlay) for disk in plan.disks)
            if options.users_copy:
                users_copy.refuse_early(view, bases, self._guest.images, self._tools.store)
            else:
                refuse_early(options.backup, view, bases, self._guest.images, self._tools.store)

        return ExternalSnapshot(options.snapshot, self._guest, refuse)

    def _copying(
        self, options: LiveBackupOptions, guest: Guest[LiveBackupPort], offline: OfflinePoint | None = None
    ) -> Backup | UsersCopy:
        """What comes between the snapshot and the merge, or stands alone where the guest is off."""
        if not options.users_copy:
            return self._copy_flow(options.backup, guest, offline)
        store, copier = self._tools.store, self._tools.copier
        point = offline or SnapshotPoint(options.backup, guest.images)
        return UsersCopy(options.users_copy, guest, store, copier, point, lambda: self._so_far(offline))

    def _so_far(self, offline: OfflinePoint | None) -> dict[str, object]:
        """The part of the result that is there before the copy."""
        values = _of_snapshot(self._taken) if offline is None else _of_offline(offline)
        before, after = ({"disks": side.get("disks")} for side in (self._taken.before, self._taken.after))
        return {"actions": list(self._done), "diff": {"before": before, "after": after}, **values}

    def _copy_flow(self, wish: BackupOptions, guest: Guest[LiveBackupPort], point: Point | None = None) -> Backup:
        store, copier = self._tools.store, self._tools.copier
        return Backup(wish, guest.domain, guest.images, store, copier, guest.clock, guest.progress, point)

    def _merge_flow(self, options: LiveBackupOptions, guest: Guest[LiveBackupPort]) -> Merge:
        wish = MergeOptions(
            snapshot=options.snapshot.name,
            bandwidth=options.bandwidth,
            deadline=options.deadline,
            delete_merged=True,
        )
        return Merge(wish, guest)

    def _put_right(self, error: VirtopsError) -> VirtopsError:
        """Merge what was not merged, thaw what is frozen; the error with what is left then. A failed snapshot has
        undone itself, and a failed copy has removed its partial set: what can be left are overlays."""
        done = error.actions or ()
        try:
            with self._phase("recovery"):
                done += self._recovery(None).run(False).steps
        except VirtopsError as second:
            if str(second) == str(error):
                return error
            if error.code == "stopped":
                return second
            done += second.actions or ()
            left = "What was left could not be put right: %s" % second
        else:
            left = "The guest is on its own images, no overlay is left"
        told = VirtopsError(error.code, str(error), left, error.partial)
        told.actions = done
        return told

    # -- stopping and measuring

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        self._guest.progress.phase(name)
        began = self._guest.clock.monotonic()
        try:
            yield
        finally:
            spent = self._guest.clock.monotonic() - began
            self._phases[name] = round(self._phases.get(name, 0.0) + spent, 3)

    def _measured(self) -> dict[str, object]:
        whole = len(self._window) == 2
        return {
            "window_ms": int((self._window[1] - self._window[0]) * 1000) if whole else None,
            "phases": dict(self._phases),
        }


def foreseen(found: UnderWay) -> Outcome:
    """In check mode, while a job works on the guest: no run was interrupted, and nobody knows what comes after it."""
    job = job_words(found.state)
    steps: tuple[str, ...]
    if found.same:
        steps = ("follow the %s, which makes this backup already, and return its result" % job,)
    else:
        steps = ("wait for the end of the %s" % job, "then back up the domain")
    values: dict[str, object] = {
        "backup": None,
        "consistency": None,
        "freeze_ms": None,
        "window_ms": None,
        "phases": {},
        "recovered": [],
        "overlays": [],
        "skipped_disks": [],
        "under_way": describe_state(found.state, "running"),
    }
    return Outcome(steps, values=values)


def _said(check: dict[str, Any]) -> str:
    """What a check found, with its disk. Its sentences have no full stop."""
    return "%s%s" % ("%s: " % check["disk"] if check["disk"] else "", check["message"])


def _of_offline(point: OfflinePoint) -> dict[str, object]:
    return {
        "overlays": [],
        "skipped_disks": [{"disk": it.target, "reason": it.reason} for it in point.plan.skipped],
        "consistency": OFFLINE,
        "freeze_ms": 0,
    }


def _of_snapshot(taken: Outcome) -> dict[str, object]:
    return {name: taken.values[name] for name in ("overlays", "skipped_disks", "consistency", "freeze_ms")}


def _joined(taken: Outcome, copied: Outcome, merged: Outcome, finished: Outcome) -> Outcome:
    values = _of_snapshot(taken)
    values |= {name: merged.values[name] for name in ("held_seconds", "suspended_seconds") if name in merged.values}
    return Outcome(
        steps=taken.steps + copied.steps + merged.steps + finished.steps,
        before={"disks": taken.before["disks"], "backup": copied.before},
        after={"disks": merged.after["disks"], "backup": copied.after},
        values={**values, **finished.values},
        warnings=taken.warnings + copied.warnings + merged.warnings + finished.warnings,
    )
