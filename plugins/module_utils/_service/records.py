# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: snapshot records as they are to be: redefined, current, described, renamed, cloned.

read -> plan -> (check mode stops here) -> records written, a renamed one's children with it -> the old one deleted.
Each step may be made again, so a run that died is finished by the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from .._core import xml
from .._core.errors import VirtopsError
from .._core.journal import Journal, Operation
from .._core.model import DomainView, Outcome, SnapshotRecord
from .._core.names import check_record_name
from .._core.plan import Step
from .._core.ports import RecordPort
from .._core.refusals import refuse_open
from .._core.snapshot import is_in_chain, unknown_words
from .._core.snapshot_tree import children_of, doomed_by
from .forest import RecordWrite
from .guest import Guest
from .snapshot_info import describe_snapshot


@dataclass(frozen=True)
class RecordOptions:
    """What the user asked for. `text` is the XML of a record to write; without it `name` is there already."""

    name: str | None = None
    text: str | None = None
    current: bool = False
    description: str | None = None
    new_name: str | None = None
    clone: bool = False
    validate: bool = False


@dataclass(frozen=True)
class _Plan:
    """`doomed` is the record whose place another one has taken."""

    name: str
    writes: tuple[RecordWrite, ...]
    doomed: str | None = None


class Records:
    """Bring one snapshot record of a domain into the form that was asked for."""

    def __init__(self, options: RecordOptions, guest: Guest[RecordPort]) -> None:
        self._options = options
        self._guest = guest
        self._domain = guest.domain

    def run(self, check: bool) -> Outcome:
        """Raises VirtopsError; images are never touched."""
        texts = {xml.parse_snapshot(text).name: text for text in self._domain.snapshot_xmls(secure=True)}
        current = self._domain.current_snapshot() if texts else None
        plan = self._plan(texts, current)
        after = dict(texts)
        for write in plan.writes:
            after[xml.parse_snapshot(write.text).name] = write.text
        if plan.doomed is not None:
            del after[plan.doomed]
        steps = self._steps(plan)
        if steps:
            check_record_name(plan.name)
            view = self._domain.view()
            refuse_open(view, view.journal)  # its record would be in motion
        made_current = (xml.parse_snapshot(write.text).name for write in plan.writes if write.current)
        told = _told(after, plan.name, next(made_current, current))
        before_name = plan.doomed or plan.name
        with self._guest.run(check) as run:
            run.apply(*steps)
            return run.outcome(
                {"snapshots": sorted(texts), "snapshot": _told(texts, before_name, current)},
                {"snapshots": sorted(after), "snapshot": told},
                {"snapshot": told},
            )

    # -- plan

    def _plan(self, texts: dict[str, str], current: str | None) -> _Plan:
        options = self._options
        name = self._name()
        if options.new_name is not None and options.new_name != name:
            return self._plan_copy(name, options.new_name, texts, current)
        wanted = self._wanted(name, texts)
        self._check_place(wanted, texts)
        return _Plan(name, _writes(name, wanted, texts, current, options.current))

    def _name(self) -> str:
        options = self._options
        if options.text is None:
            return options.name or ""
        found = xml.parse_snapshot(options.text).name
        if not found or (options.name is not None and options.name != found):
            raise VirtopsError(
                "bad_option",
                "The XML is of snapshot %r, and name is %r." % (found, options.name),
                "Give the XML of that snapshot, or leave name out",
            )
        return found

    def _wanted(self, name: str, texts: dict[str, str]) -> str:
        text = self._options.text if self._options.text is not None else texts.get(name)
        if text is None:
            raise _no_such_snapshot(name)
        return xml.edited_snapshot(text, description=self._options.description)

    def _check_place(self, wanted: str, texts: dict[str, str]) -> None:
        """What libvirt would refuse, said in the order in which a whole tree is written."""
        record = xml.parse_snapshot(wanted)
        if record.parent is not None and record.parent not in texts:
            raise VirtopsError(
                "no_such_parent",
                "Snapshot %r has the parent %r, which the domain has no record of." % (record.name, record.parent),
                "Write the parents first; virtops.libvirt.snapshot_info lists them in that order",
            )
        uuid = xml.snapshot_uuid(wanted)
        own = self._domain.view().uuid
        if uuid is not None and uuid != own:
            raise VirtopsError(
                "other_domain",
                "The record of snapshot %r belongs to the domain with the UUID %s, and this one has %s."
                % (record.name, uuid, own),
                "Define the domain with the UUID that it had, or give another domain",
            )

    def _plan_copy(self, name: str, new_name: str, texts: dict[str, str], current: str | None) -> _Plan:
        """A rename is a copy, then the children moved to it, then the end of the old one."""
        if name not in texts:
            if new_name in texts and not self._options.clone:  # renamed already
                return _Plan(new_name, self._writes_found(new_name, texts, current, self._options.current))
            raise _no_such_snapshot(name)
        old = xml.parse_snapshot(texts[name])
        _refuse_internal(old, new_name)
        kept = self._options.current or (current == name and not self._options.clone)
        if new_name in texts:
            self._refuse_other(old, xml.parse_snapshot(texts[new_name]))
            writes = list(self._writes_found(new_name, texts, current, kept))
        else:
            wanted = xml.edited_snapshot(texts[name], name=new_name, description=self._options.description)
            verb = "clone" if self._options.clone else "copy"
            writes = [RecordWrite(wanted, kept, "%s the record of snapshot %s as %s" % (verb, name, new_name))]
        if self._options.clone:
            return _Plan(new_name, tuple(writes))
        records = [xml.parse_snapshot(text) for text in texts.values()]
        for child in children_of(records)[name]:
            moved = xml.edited_snapshot(texts[child], parent=new_name)
            writes.append(RecordWrite(moved, current == child, "move snapshot %s below %s" % (child, new_name)))
        return _Plan(new_name, tuple(writes), name)

    def _writes_found(
        self, name: str, texts: dict[str, str], current: str | None, kept: bool
    ) -> tuple[RecordWrite, ...]:
        """The copy is there, as an earlier run made it: what of it is to be otherwise now."""
        wanted = xml.edited_snapshot(texts[name], description=self._options.description)
        return _writes(name, wanted, texts, current, kept)

    def _refuse_other(self, old: SnapshotRecord, found: SnapshotRecord) -> None:
        """A copy may have been described anew since; but where the old one goes, its words may be nowhere else."""
        wanted, there = _facts(old), _facts(found)
        if self._options.clone or self._options.description is not None:
            del wanted["description"]
        differs = ["%s: %s, not %s" % (what, there[what], one) for what, one in wanted.items() if there[what] != one]
        if differs:
            raise VirtopsError(
                "snapshot_differs",
                "Snapshot %r exists already, and is no copy of %r (%s)." % (found.name, old.name, "; ".join(differs)),
                "Choose another name, or delete the record of that one first with state: absent",
            )

    # -- effects

    def _steps(self, plan: _Plan) -> list[Step]:
        redefine, validate = self._domain.redefine_snapshot, self._options.validate
        steps = [Step((one.words,), partial(redefine, one.text, one.current, validate)) for one in plan.writes]
        if plan.doomed is not None:
            words = "delete the record of snapshot %s, not its data" % plan.doomed
            steps.append(Step((), partial(self._rename_operation, plan.doomed, plan.name)))
            steps.append(Step((words,), partial(self._domain.delete_snapshot_record, plan.doomed)))
        return steps

    def _rename_operation(self, old: str, new: str) -> None:
        """The journal finds a kept snapshot's overlays by its name."""
        operation = self._guest.journal.of_snapshot(old)
        if operation is not None:
            self._guest.put(replace(operation, name=new))


def _writes(
    name: str, wanted: str, texts: dict[str, str], current: str | None, wants_current: bool
) -> tuple[RecordWrite, ...]:
    """What brings the record of that name to the one that is wanted; nothing where it is so."""
    makes_current = wants_current and current != name
    if name in texts and xml.covers(texts[name], wanted) and _same_words(texts[name], wanted):
        return (RecordWrite(texts[name], True, "make snapshot %s the current one" % name),) if makes_current else ()
    verb = "write the record of snapshot %s%s" % (name, " and make it the current one" if makes_current else "")
    return (RecordWrite(wanted, wants_current or current == name, verb),)


def _facts(record: SnapshotRecord) -> dict[str, str]:
    """In words, all but the name."""
    disks = (" ".join((disk.target, disk.mode, disk.file or "")).strip() for disk in record.disks)
    return {
        "description": record.description or "none",
        "parent": record.parent or "none",
        "state": record.state,
        "creation time": str(record.creation_time),
        "memory": " ".join((record.memory, record.memory_file or "")).strip(),
        "disks": ", ".join(disks) or "none",
    }


def _same_words(found: str, wanted: str) -> bool:
    """`covers` cannot tell that something is to be left out."""
    return xml.parse_snapshot(found).description == xml.parse_snapshot(wanted).description


def _refuse_internal(record: SnapshotRecord, new_name: str) -> None:
    if any(disk.mode == "internal" for disk in record.disks) or record.memory == "internal":
        raise VirtopsError(
            "internal_name",
            "Snapshot %r is internal: its data in the images go by that name, so a record named %r would have none."
            % (record.name, new_name),
            "Keep the name and give it a description, or take a new snapshot under the other name",
        )


def _no_such_snapshot(name: str) -> VirtopsError:
    return VirtopsError(
        "no_such_snapshot",
        "The domain has no record of a snapshot %r." % name,
        "virtops.libvirt.snapshot_info lists them; to write one anew give its xml",
    )


def _told(texts: dict[str, str], name: str, current: str | None) -> dict[str, Any] | None:
    if name not in texts:
        return None
    records: Sequence[SnapshotRecord] = [xml.parse_snapshot(text) for text in texts.values()]
    found = next(record for record in records if record.name == name)
    return describe_snapshot(found, children_of(records)[name], name == current)


def delete_record(guest: Guest[RecordPort], name: str, children: str, check: bool) -> Outcome:
    """Delete the snapshot's record (and its descendants', as `children` says); its layers and data stay.

    Refused while an operation is open: the record and the layers are then in motion together.
    """
    domain = guest.domain
    records = domain.snapshots()
    doomed = doomed_by(name, children, records)
    found = next((record for record in records if record.name == name), None)
    told = (
        None
        if found is None
        else describe_snapshot(found, children_of(records)[name], domain.current_snapshot() == name)
    )
    before = tuple(record.name for record in records)
    after = tuple(left for left in before if left not in {record.name for record in doomed})
    with guest.run(check) as run:
        left = _journal_without(guest, doomed) if doomed else None
        if left is not None:
            run.apply(Step((), partial(domain.write_journal, left)))
        if doomed:
            words = tuple("delete the record of snapshot %s, not its data" % record.name for record in doomed)
            run.apply(Step(words, partial(domain.delete_snapshot_record, name, children)))
        run.warnings += () if found is not None else unknown_words(name, domain.view())
        return run.outcome({"snapshots": list(before)}, {"snapshots": list(after)}, {"snapshot": told})


def _journal_without(guest: Guest[RecordPort], doomed: Sequence[SnapshotRecord]) -> Journal | None:
    """The journal to write before the records go; None where it stays as it is.

    Before them: a record without its operation is an ordinary snapshot's, an operation without its layers is a lie.
    """
    view = guest.observe()
    journal = view.journal
    refuse_open(view, journal)
    ours = [found for found in (journal.of_snapshot(record.name) for record in doomed) if found is not None]
    if not ours:
        return None
    left = journal
    for operation in ours:
        if not _has_layers(operation, view):
            left = left.drop(operation)
    return None if left == journal else left


def _has_layers(operation: Operation, view: DomainView) -> bool:
    """Is a layer of it still in use? Then it stays in the journal, as a snapshot without metadata does."""
    return any(is_in_chain(view, disk.target, disk.overlay) for disk in operation.disks)
