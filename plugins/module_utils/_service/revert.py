# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Private to virtops.libvirt: the flow of snapshot_revert.

observe -> plan -> (check mode stops here) -> libvirt's call -> the journal as it is true now. A run that died before
the journal was written is finished by the next one, which goes back once more. What libvirt cannot do, or must not, is
in revert_manual.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from functools import partial
from typing import Any

from .._core import xml
from .._core.errors import VirtopsError
from .._core.journal import Journal, Reverted
from .._core.model import DomainView, Layer, Outcome, SnapshotRecord
from .._core.plan import Step
from .._core.ports import RevertPort
from .._core.refusals import refuse_open
from .._core.revert import RevertOptions, journal_after, refuse_internal, refuse_revert, state_after
from .._core.revert_manual import interrupted, memory_file, view_after, why_not_by_libvirt
from .._core.snapshot_tree import children_of
from .._core.text import command
from .away import require_here
from .guest import Guest
from .internal import names_inside
from .observe import chains
from .revert_manual import ManualRevert
from .run import Run
from .snapshot_info import describe_snapshot

#: libvirt chooses the name of an overlay that it makes.
_NEW = "(a new overlay)"


class Revert:
    """Bring a domain back to a snapshot."""

    def __init__(self, options: RevertOptions, guest: Guest[RevertPort]) -> None:
        self._options = options
        self._guest = guest
        self._domain = guest.domain
        self._images = guest.images

    def run(self, check: bool) -> Outcome:
        """Raises VirtopsError, before the first effect where the cause can be seen before."""
        with self._guest.run(check) as run:
            return self._run(run)

    def _run(self, run: Run) -> Outcome:
        view = self._guest.observe()
        texts = {xml.parse_snapshot(text).name: text for text in self._domain.snapshot_xmls(secure=True)}
        records = [xml.parse_snapshot(text) for text in texts.values()]
        current = self._domain.current_snapshot() if records else None
        name = self._named(current, view)
        record = next((record for record in records if record.name == name), None)
        if record is None:
            raise _no_such_snapshot(name, view)
        journal = view.journal
        left = interrupted(record, journal)
        refuse_open(view, journal, own=None if left is None else left.id)
        told = describe_snapshot(record, children_of(records)[name], True)
        before: dict[str, object] = {"state": view.state, "current": current, "disks": chains(view)}
        if left is None and self._stands_on(record, view, current, journal):
            found: dict[str, object] = {"snapshot": told, "state_before": view.state, "state_after": view.state}
            return Outcome(before=before, after=before, values=found)
        goal = state_after(self._options, record)
        refuse_revert(self._options, record, view, self._domain.libvirt_version())
        require_here(
            replace(view, state="shut off"),  # as one that runs may be turned off on the way
            self._images,
            "Start it, or discard that memory (%s), then run the task again"
            % command("virsh", "managedsave-remove", view.name),
        )
        steps, after_chains = self._way(record, current, texts, view, journal)
        run.warnings += () if left is None else self._manual(record, texts).warnings(view, journal)
        run.apply(*steps)
        reached = goal
        if not run.check:
            reached = self._settle(name, texts[name], journal)
            told = self._told(name)
        after: dict[str, object] = {"state": goal, "current": name, "disks": after_chains}
        return run.outcome(before, after, {"snapshot": told, "state_before": view.state, "state_after": reached})

    def _way(
        self,
        record: SnapshotRecord,
        current: str | None,
        texts: dict[str, str],
        view: DomainView,
        journal: Journal,
    ) -> tuple[tuple[Step, ...], dict[str, list[str]]]:
        """The steps, and the chains that they lead to. Raises what is to be refused."""
        if not record.external:
            self._refuse_internal(record, texts[record.name], view)
            return self._by_libvirt(record, view), self._chains_after(texts[record.name], view)
        manual = self._manual(record, texts)
        bases = manual.bases(view, journal)
        why_not = self._why_not_by_libvirt(record, current, texts, view, journal)
        if why_not is None:
            after = {**chains(view), **{name: [_NEW, *_paths(chain)] for name, chain in bases.items()}}
            return self._by_libvirt(record, view), after
        fresh = self._options.reset_nvram
        if fresh and state_after(self._options, record) == "shut off":
            raise VirtopsError(
                "unsupported",
                "libvirt does not revert this domain itself (%s), so its UEFI variables can be reset only when it "
                "starts, but it would be off." % why_not,
                "Set run_state: running; or leave out reset_nvram, and later 'virsh start --reset-nvram'",
            )
        layers = manual.plan(view, journal, why_not)
        memory = memory_file(record)
        definition = None if memory is None else manual.definition(layers)
        goal = state_after(self._options, record)
        steps = manual.steps(layers, view, journal)
        if definition is not None:
            words = "go on with the memory in %s, %s" % (memory, goal)
            steps += (Step((words,), partial(manual.go_on, definition, goal == "paused", fresh)),)
        elif goal != "shut off":
            words = "start %s, %s%s" % (view.name, goal, ", with fresh UEFI variables" if fresh else "")
            steps += (Step((words,), partial(self._domain.power_on, goal == "paused", fresh)),)
        return steps, chains(view_after(layers, view))

    def _manual(self, record: SnapshotRecord, texts: dict[str, str]) -> ManualRevert:
        return ManualRevert(record, texts, self._guest)

    def _by_libvirt(self, record: SnapshotRecord, view: DomainView) -> tuple[Step, ...]:
        what = "disks and memory" if record.memory != "no" else "disks"
        words = "take the %s of %s back to snapshot %s; it is then %s"
        text = words % (what, view.name, record.name, state_after(self._options, record))
        options = self._options
        back = partial(self._domain.revert, record.name, options.run_state, options.force, options.reset_nvram)
        return (Step((text,), back),)

    def _told(self, name: str) -> dict[str, Any]:
        records = self._domain.snapshots()
        record = next(record for record in records if record.name == name)
        return describe_snapshot(record, children_of(records)[name], True)

    def _named(self, current: str | None, view: DomainView) -> str:
        name = self._options.name if self._options.name is not None else current
        if name is None:
            raise VirtopsError(
                "no_such_snapshot",
                "Domain %s has no current snapshot." % view.name,
                "Give the name of one; virtops.libvirt.snapshot_info lists them",
            )
        return name

    # -- does it stand there already?

    def _stands_on(self, record: SnapshotRecord, view: DomainView, current: str | None, journal: Journal) -> bool:
        """Only of a guest that is off it can be known: nobody wrote to its images since the last revert."""
        last = journal.reverted
        if view.active or last is None or self._options.reset_nvram or state_after(self._options, record) != "shut off":
            return False
        if record.memory != "no" or not (record.name == current == last.name):
            return False
        # Of a block device nothing tells whether it was written to
        return last == self._reverted(record.name, view) and not any(found.device for _path, found in last.images)

    def _reverted(self, name: str, view: DomainView) -> Reverted:
        active = [disk.active.path for disk in view.disks if disk.active is not None and not disk.readonly]
        images = tuple((path, self._images.identity(path)) for path in active if self._images.exists(path))
        return Reverted(name, xml.definition_digest(self._domain.domain_xml()), images)

    # -- what needs a look at the host

    def _why_not_by_libvirt(
        self,
        record: SnapshotRecord,
        current: str | None,
        texts: dict[str, str],
        view: DomainView,
        journal: Journal,
    ) -> str | None:
        """The manual way is always careful; libvirt's is taken only where nothing can be lost by it."""
        if not self._domain.reverts_external():
            return "this libvirt cannot"
        if interrupted(record, journal) is not None:
            return "what an interrupted revert left is not libvirt's"
        users: dict[str, Container[str]] = {
            **{"snapshot %r" % name: xml.snapshot_paths(text) for name, text in texts.items() if name != current},
            "the journal": frozenset(disk.base for op in journal.operations for disk in op.disks),
        }
        at = None if current is None else xml.parse_record(texts[current])
        others = self._guest.others()
        files = [disk.file for disk in (() if at is None else at.disks) if disk.file is not None]
        users["another domain"] = [path for path in files if others.claims(path, journal.made_at(path)) is not None]
        saved = xml.snapshot_definitions(texts[record.name])
        return why_not_by_libvirt(record, at, saved, view, users, lambda path: self._images.kind(path) == "file")

    def _refuse_internal(self, record: SnapshotRecord, text: str, view: DomainView) -> None:
        saved = xml.snapshot_images(text)
        inside = {layer.path: names_inside(layer.path, layer.format, self._images) for layer in saved.values()}
        others = self._guest.others()
        refuse_internal(record, saved, view, inside, others)

    # -- effects

    def _settle(self, name: str, text: str, before: Journal) -> str:
        """Write the journal anew, as libvirt put that of the snapshot's moment in its place; the state reached."""
        view = self._guest.observe()
        at_snapshot = xml.snapshot_journal(text)
        records = frozenset(record.name for record in self._domain.snapshots())
        journal = journal_after(before, at_snapshot, view, records)
        if not view.active:
            journal = replace(journal, reverted=self._reverted(name, view))
        if journal != Journal() or view.journal_found != Journal():
            self._domain.write_journal(journal)
        return view.state

    # -- words

    def _chains_after(self, text: str, view: DomainView) -> dict[str, list[str]]:
        """An internal snapshot's images are those of its moment, with what is below them."""
        known = chains(view)
        found: dict[str, list[str]] = {}
        for target, layer in xml.snapshot_images(text).items():
            if known.get(target, [""])[0] == layer.path or not self._images.exists(layer.path):
                found[target] = known.get(target, [layer.path])
            else:
                found[target] = [one.path for one in self._images.chain(layer.path, layer.format)]
        return found


def _paths(chain: tuple[Layer, ...]) -> list[str]:
    return [layer.path for layer in chain]


def _no_such_snapshot(name: str, view: DomainView) -> VirtopsError:
    words: dict[str, Any] = {"name": name, "domain": view.name}
    return VirtopsError(
        "no_such_snapshot",
        "Domain %(domain)s has no snapshot %(name)r." % words,
        "virtops.libvirt.snapshot_info lists those that it has",
    )
