# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the flow that removes old backup sets by a retention policy.

look -> plan -> (check mode stops here) -> what an interrupted run left half removed -> set by set, newest first: so
nothing goes before what stands on it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

from .._core.backup_set import iso8601, stamp_of_iso
from .._core.errors import VirtopsError
from .._core.keep import NO_POLICY, Keep, Verdict
from .._core.model import Outcome
from .._core.plan import Step
from .._core.ports import Clock, Progress, Silent
from .._core.prune import DomainPrune, PrunePlan, newest_bad, plan_prune, why_not_good
from .._core.sets import BackupSet, SetsPort
from .run import Run

#: What a target says that takes sets and lets none go.
_REFUSALS = ("permission_denied", "not_writable")


@dataclass(frozen=True)
class BackupPruneOptions:
    """What the user asked for. `domain` is a name or a UUID; None: all domains, each by itself."""

    dest: str
    keep: Keep
    domain: str | None = None


class BackupPrune:
    """Remove what the policy does not keep."""

    def __init__(
        self, options: BackupPruneOptions, sets: SetsPort, clock: Clock, progress: Progress | None = None
    ) -> None:
        self._options = options
        self._sets = sets
        self._clock = clock
        self._progress = progress or Silent()

    def run(self, check: bool, made: BackupSet | None = None) -> Outcome:
        """Plan, and where not `check`, apply. Raises VirtopsError; the next run goes on from there.

        `made` is a set that there would be by then, which check mode does not make.
        """
        options = self._options
        found = self._sets.list(options.dest, options.domain)
        foreseen = () if made is None or made.path in [one.path for one in found] else (made,)
        if options.domain is not None and not found and not foreseen:
            raise VirtopsError(
                "set_missing",
                "%s has no backup of domain %s" % (options.dest, options.domain or "''"),
                "Correct the name, or leave domain out. See what is there with virtops.libvirt.backup_info",
            )
        plan = plan_prune((*found, *foreseen), options.keep, self._clock.utcnow())
        with Run(check, self._clock, self._progress) as run:
            if not options.keep.is_given:
                run.warnings.append("No backup is removed: %s." % NO_POLICY)
            removed = [verdict for domain in plan.domains for verdict in domain.removed]
            paths = [half.path for half in plan.unfinished] + [verdict.item.name for verdict in removed]
            for half in plan.unfinished:
                words = "finish the removal of the backup %s" % half.path
                run.apply(Step((words,), partial(self._remove, half.path, paths)))
            for verdict in removed:
                words = "remove the backup %s" % verdict.item.name
                run.apply(Step((words,), partial(self._remove, verdict.item.name, paths)))
            bad = [domain.bad for domain in plan.domains if domain.bad is not None]
            if bad:
                raise _joined(map(newest_bad, bad), plan)
            there = [one.path for one in (*found, *foreseen)]
            return run.outcome(
                {"sets": there}, {"sets": [path for path in there if path not in paths]}, _describe(plan)
            )

    def _remove(self, path: str, paths: list[str]) -> None:
        try:
            self._sets.remove(path)
        except VirtopsError as error:
            if error.code not in _REFUSALS:
                raise
            left = paths[paths.index(path) :]
            raise VirtopsError(
                "remove_refused",
                "The target refuses to remove backups (%s). %d would go: %s"
                % (error.cause.rstrip("."), len(left), ", ".join(left)),
                "If it is append-only, leave out the keep options here, and remove them on its server. Otherwise give "
                "this host the right to remove them",
            ) from error


def prune_after(backup: Outcome, prune: BackupPrune, check: bool, foreseen: BackupSet) -> Outcome:
    """Prune when a backup is complete, as the last step of its task. A failure of that says that the backup is there.

    `foreseen` is the set that check mode did not make.
    """
    made = cast("dict[str, Any] | None", backup.values["backup"])
    if made is None and not check:
        return backup
    if made is not None:
        taken = stamp_of_iso(made["times"]["snapshot"])
        foreseen = replace(foreseen, path=made["path"], taken=taken)
    try:
        pruned = prune.run(check, foreseen if check else None)
    except VirtopsError as error:
        told = VirtopsError(
            error.code,
            "The backup %s is complete and verified, but the older ones were not pruned. %s"
            % (foreseen.path, error.cause),
            error.remedy,
        )
        told.actions = (*backup.steps, *(error.actions or ()))
        raise told from error
    return Outcome(
        steps=backup.steps + pruned.steps,
        before={**backup.before, **pruned.before},
        after={**backup.after, **pruned.after},
        values={**backup.values, **pruned.values},
        warnings=backup.warnings + pruned.warnings,
    )


def _joined(errors: Iterable[VirtopsError], plan: PrunePlan) -> VirtopsError:
    """One failure, of all domains whose newest set is not good. The others were pruned."""
    every = tuple(errors)
    removed = [_told(verdict, domain) for domain in plan.domains for verdict in domain.removed]
    cause = " ".join("%s." % error.cause.rstrip(".") for error in every)
    return VirtopsError(every[0].code, cause, every[0].remedy, removed)


def _describe(plan: PrunePlan) -> dict[str, object]:
    """`removed`, `kept` and `left`, as results have them."""
    return {
        "removed": [_told(verdict, domain) for domain in plan.domains for verdict in domain.removed],
        "kept": [_told(verdict, domain) for domain in plan.domains for verdict in domain.kept],
        "left": [
            {"path": found.path, "domain": found.domain, "state": found.state, "reason": why_not_good(found)}
            for found in plan.left
        ],
    }


def _told(verdict: Verdict, domain: DomainPrune) -> dict[str, Any]:
    found = domain.sets[verdict.item.name]
    return {
        "path": found.path,
        "domain": found.domain,
        "uuid": found.uuid,
        "taken": iso8601(found.taken),
        "verified": found.is_verified,
        "reason": verdict.reason,
    }
