# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the flow that deletes a domain's snapshots by a retention policy.

The policy decides; the flows of snapshot_internal and snapshot_external delete. External snapshots whose layers stand
on each other go in one merge, so that no data are copied twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from .._core.backup_set import iso8601
from .._core.convergence import Deadline
from .._core.deletion import chained
from .._core.errors import VirtopsError
from .._core.journal import DELETE, Journal, Operation, stamp_of
from .._core.keep import NO_POLICY, Item, Keep, Verdict, decide
from .._core.model import DomainView, Outcome, SnapshotRecord
from .._core.ports import SnapshotPrunePort
from .._core.refusals import refuse_open
from .block_jobs import describe_disks
from .forest import points_of, texts_of
from .guest import Guest
from .internal import InternalSnapshot
from .observe import chains
from .snapshot_delete import SnapshotDeletion
from .snapshot_info import unrecorded


@dataclass(frozen=True)
class SnapshotPruneOptions:
    """What the user asked for. `prefix`: only snapshots whose names begin with it."""

    prefix: str
    keep: Keep
    deadline: Deadline


class SnapshotPrune:
    """Delete what the policy does not keep."""

    def __init__(self, options: SnapshotPruneOptions, guest: Guest[SnapshotPrunePort]) -> None:
        self._options = options
        self._guest = guest
        self._domain = guest.domain

    def run(self, check: bool) -> Outcome:
        """Plan, and where not `check`, apply. Raises VirtopsError; the next run goes on from there."""
        with self._guest.run(check) as run:
            first = self._guest.observe()
            found = self._records(first.journal)
            ended: list[Outcome] = []
            begun = self._begun(first.journal)
            if begun is not None:
                ended.append(run.include(self._merge((begun.name, *begun.also), check)))
            view = first if check else self._guest.observe()
            refuse_open(view, view.journal, begun.id if begun is not None and check else None)
            going = () if begun is None else (begun.name, *begun.also)
            records = {name: record for name, record in found.items() if name not in going}
            verdicts = decide(self._options.keep, map(_item, records.values()), self._guest.clock.utcnow())
            gone = [records[verdict.item.name] for verdict in verdicts[::-1] if not verdict.stays]
            if begun is not None and check:
                run.actions += ["then delete snapshot %s" % record.name for record in gone]
            else:
                flows = self._flows(gone, view)
                # All of it is refused before the first of several begins
                for flow in flows if len(flows) > 1 and not check else ():
                    flow(True)
                ended += [run.include(flow(check)) for flow in flows]
            if not self._options.keep.is_given:
                run.warnings.append("Nothing is deleted: %s." % NO_POLICY)
            before = chains(first)
            layers = _merged(ended)
            after = _left(before, ended) if check else chains(self._guest.observe())
            left = set(records) - {record.name for record in gone}
            return run.outcome(
                {"disks": before, "snapshots": sorted(found)},
                {"disks": after, "snapshots": sorted(left)},
                {
                    "removed": [_describe(verdict, records) for verdict in verdicts if not verdict.stays],
                    "kept": [_describe(verdict, records) for verdict in verdicts if verdict.stays],
                    "disks": describe_disks((), before, after, layers) if layers else [],
                },
            )

    def _records(self, journal: Journal) -> dict[str, SnapshotRecord]:
        """Those with the prefix, oldest first where two have the same time."""
        records = (*unrecorded(journal), *self._domain.snapshots())
        return {record.name: record for record in records if record.name.startswith(self._options.prefix)}

    def _begun(self, journal: Journal) -> Operation | None:
        """The deletion of such snapshots that was interrupted: nothing takes it back, so it is finished first."""
        ours = (op for op in journal.operations if op.kind == DELETE and op.children == "keep")
        return next((op for op in ours if op.name.startswith(self._options.prefix)), None)

    def _flows(self, gone: Sequence[SnapshotRecord], view: DomainView) -> list[Callable[[bool], Outcome]]:
        """One flow that removes each part of these, oldest first."""
        external = [record for record in gone if record.external or not record.metadata]
        internal = [record for record in gone if record not in external]
        if external and internal:
            raise VirtopsError(
                "mixed_kinds",
                "Of the snapshots of domain %s with the prefix %r, internal and external ones would go in one run "
                "(%s; %s)."
                % (
                    view.name,
                    self._options.prefix,
                    ", ".join(record.name for record in internal),
                    ", ".join(record.name for record in external),
                ),
                "Give each kind a prefix of its own; new_name of virtops.libvirt.snapshot_metadata renames one",
            )
        if internal:
            flow = InternalSnapshot(self._guest)
            return [partial(flow.absent, record.name, "keep") for record in internal]
        groups = chained(points_of(texts_of(self._domain), view.journal), external) if external else ()
        return [partial(self._merge, group) for group in groups]

    def _merge(self, names: tuple[str, ...], check: bool) -> Outcome:
        self._guest.progress.phase("merge")
        flow = SnapshotDeletion(names[0], "keep", self._options.deadline, self._guest, names[1:])
        return flow.run(check)


def _item(record: SnapshotRecord) -> Item:
    return Item(record.name, stamp_of(record.creation_time))


def _describe(verdict: Verdict, records: Mapping[str, SnapshotRecord]) -> dict[str, Any]:
    record = records[verdict.item.name]
    return {
        "name": record.name,
        "kind": "internal" if record.metadata and not record.external else "external",
        "taken": iso8601(verdict.item.taken),
        "reason": verdict.reason,
    }


def _merged(ended: Sequence[Outcome]) -> dict[str, list[str]]:
    """The layers that leave each disk's chain, topmost first."""
    found: dict[str, list[str]] = {}
    for outcome in ended[::-1]:
        for disk in cast("list[dict[str, Any]]", outcome.values.get("disks", [])):
            found.setdefault(disk["disk"], []).extend(disk["merged"])
    return found


def _left(before: Mapping[str, list[str]], planned: Sequence[Outcome]) -> dict[str, list[str]]:
    """The chains as they will be: each plan takes its own layers from the chains of now."""
    foreseen = [outcome.after["disks"] for outcome in planned if "disks" in outcome.after]
    return {
        target: [path for path in chain if all(path in disks.get(target, ()) for disks in foreseen)]
        for target, chain in before.items()
    }
