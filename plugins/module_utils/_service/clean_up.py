# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: what follows a merge, whoever asked for it: overlays, records and the journal, which goes
last. What is left half-way tells the next run to go on here."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .._core.deletion import settled
from .._core.journal import Journal, JournalDisk, Operation
from .._core.model import DomainView, FileIdentity, Layer
from .._core.plan import Done, Step
from .._core.ports import GuestPort, MergePort
from .forest import RecordWrite, keep_times, rewrite_records
from .guest import Guest
from .ours import Ours, kept_words
from .overlays import LATER, Kept, claim_words, kept_for_others, own_files, remove_layer, unsure_words, with_kept


@dataclass(frozen=True)
class Clearance:
    """What nothing needs any more once the layers are merged.

    `layers` are images that may go, each with the words for that. `memory`: files with the memory of snapshots.
    `records` go, and `gone` are the names that are no snapshots afterwards. `writes`: the records that stay and name an
    image which goes; `moved` tells where its data are. `sweep`: the end of what
    earlier runs merged and kept, and `kept` what is told of the rest of that. `not_ours`: files
    that the journal names and that stay, and why. `ending` are the words of the operation's end.
    """

    layers: Mapping[str, str] = field(default_factory=dict)
    memory: tuple[str, ...] = ()
    records: tuple[str, ...] = ()
    gone: frozenset[str] = frozenset()
    writes: tuple[RecordWrite, ...] = ()
    moved: Mapping[str, Layer] = field(default_factory=dict)
    sweep: tuple[Step, ...] = ()
    kept: tuple[str, ...] = ()
    not_ours: Mapping[str, str] = field(default_factory=dict)
    ending: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What can be told before."""
        return (*(kept_words(path, why) for path, why in self.not_ours.items()), *self.kept)


def clearance(
    layers: Mapping[str, str], memory: Collection[str], noted: Sequence[JournalDisk], ours: Ours, **others: Any
) -> Clearance:
    """The clearance of those of these files that are ours; `noted` are the disks of the operation that names them."""
    why = {
        **{path: ours.why_not(path, noted) for path in layers},
        **{path: ours.why_not_memory(path) for path in memory},
    }
    return Clearance(
        {path: words for path, words in layers.items() if why[path] is None},
        tuple(path for path in memory if why[path] is None),
        not_ours={path: reason for path, reason in why.items() if reason is not None},
        **others,
    )


class CleanUp:
    """The steps of one clearance. Each layer was journalled, is in no chain here and open to nobody; else it stays, and
    a warning tells why. Those of `unsure` are looked up when their turn comes: the merge may have found some."""

    def __init__(self, guest: Guest[MergePort], plan: Clearance) -> None:
        self._guest = guest
        self._plan = plan
        self._kept: list[Kept] = []
        self._others = functools.cache(guest.others)
        self._view = functools.cache(guest.observe)
        self._unsure: frozenset[str] = frozenset()

    def steps(self, operation: Operation | None, unsure: Callable[[], frozenset[str]]) -> tuple[Step, ...]:
        """All of them; `operation` is what is to end."""
        plan, remove = self._plan, self._guest.images.remove
        steps = [Step(tuple(write.words for write in plan.writes), lambda: self._rewrite(unsure()))]
        for path, words in plan.layers.items():
            steps.append(Step((words,), functools.partial(self._remove, path)))
        for path in plan.memory:
            steps.append(Step(("delete the memory of a snapshot, %s" % path,), functools.partial(remove, path)))
        steps += plan.sweep
        for name in plan.records:
            steps.append(Step(("delete the record of snapshot %s" % name,), functools.partial(self._unrecord, name)))
        return (*steps, Step(plan.ending, lambda: self._close(operation)))

    def _rewrite(self, unsure: frozenset[str]) -> None:
        self._unsure = unsure
        keep_times(self._plan.moved.items(), self._view(), self._guest.images)
        if self._plan.writes:
            rewrite_records(self._guest.domain, self._plan.moved, self._plan.gone)

    def _remove(self, path: str) -> Done | None:
        if path in self._unsure:
            return Done(())
        kept = remove_layer(path, self._view(), self._others, self._guest)
        if kept is None:
            return None
        self._kept.append(kept)
        return Done(())

    def _unrecord(self, name: str) -> None:
        if self._guest.domain.snapshot(name) is not None:
            self._guest.domain.delete_snapshot_record(name)

    def _close(self, operation: Operation | None) -> Done:
        """Of what is held by somebody the operation stays open: the next run goes on by it. What is kept for another
        domain is noted, and the snapshots above the merge know what they stand on now."""
        journal = self._guest.journal
        after = journal
        held = any(layer.for_now for layer in self._kept)
        if operation is not None:
            after = settled(journal, operation, self._plan.gone, self._identity)
            after = with_kept(after, operation, self._kept, self._guest.images)
            after = after.put(operation.held(None)) if held else after
        if after != journal:
            self._guest.domain.write_journal(after)
        noted = {disk.overlay for op in after.merged for disk in op.disks}
        kept = [
            "%s%s%s"
            % (
                "The merged overlay " if layer.path in self._plan.moved else "",
                layer.why,
                " " + LATER if layer.path in noted else "",
            )
            for layer in self._kept
        ]
        return Done(() if held else None, (*kept, *map(unsure_words, sorted(self._unsure))))

    def _identity(self, path: str) -> FileIdentity | None:
        return self._guest.images.identity(path) if self._guest.images.exists(path) else None


def sweeping(view: DomainView, journal: Journal, guest: Guest[GuestPort]) -> tuple[tuple[Step, ...], tuple[str, ...]]:
    """The steps that delete what earlier runs merged and kept for another domain, and what is told of the rest.

    An overlay that was written to since, or that is in use again, is a layer like any other: then only its note goes.
    """
    gone, forgotten, warnings = [], [], []
    own, ours, others = own_files(view, guest.images), guest.ours(view), functools.cache(guest.others)
    for disk in (disk for op in journal.merged for disk in op.disks):
        path = disk.overlay
        if path in own or path in journal.overlays() or not kept_for_others(path, journal, guest.images):
            forgotten.append(path)
            continue
        reason = ours.why_not(path, (disk,))
        if reason is not None:
            forgotten.append(path)
            warnings.append(kept_words(path, reason))
            continue
        claim = others().claims(path, journal.made_at(path))
        held = guest.images.holders(path)
        if claim is not None:
            warnings.append("The merged overlay %s %s" % (claim_words(path, claim), LATER))
        elif held:
            told = ", ".join(str(pid) for pid in held)
            warnings.append("The merged overlay %s was kept: a process has it open (PID %s). %s" % (path, told, LATER))
        else:
            gone.append(path)
    words = "delete the merged overlay %s, which was kept for another domain"
    steps = [Step((words % path,), functools.partial(_sweep, path, guest)) for path in gone]
    words = "remove the note of the merged overlay %s from the journal"
    steps += [Step((words % path,), functools.partial(_forget, path, guest)) for path in forgotten]
    return tuple(steps), tuple(warnings)


def _sweep(path: str, guest: Guest[GuestPort]) -> Done | None:
    """The merge may have taken long: what is in use again meanwhile stays."""
    view = guest.observe()
    is_kept = kept_for_others(path, view.journal, guest.images)
    kept = remove_layer(path, view, guest.others, guest) if is_kept else None
    if kept is not None:
        return Done((), ("The merged overlay %s %s" % (kept.why, LATER),))
    _forget(path, guest)
    return None if is_kept else Done(())


def _forget(path: str, guest: Guest[GuestPort]) -> None:
    guest.domain.write_journal(guest.journal.without_merged([path]))
