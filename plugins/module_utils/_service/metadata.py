# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the flow of snapshot_metadata, which changes records and never an image.

observe -> plan -> (check mode stops here) -> journal written -> records deleted.
"""

from __future__ import annotations

from collections.abc import Sequence

from .._core.journal import Journal, Operation
from .._core.model import DomainView, Outcome, SnapshotRecord
from .._core.ports import ImagePort, RecordPort
from .._core.refusals import refuse_open
from .._core.snapshot import is_in_chain, unknown_words
from .._core.snapshot_tree import children_of, doomed_by
from .observe import observe
from .snapshot_info import told_snapshot


def delete_record(domain: RecordPort, images: ImagePort, name: str, children: str, check: bool) -> Outcome:
    """Delete the snapshot's record (and its descendants', as `children` says); its layers and data stay.

    Refused while an operation is open: the record and the layers are then in motion together.
    """
    records = domain.snapshots()
    doomed = doomed_by(name, children, records)
    found = next((record for record in records if record.name == name), None)
    told = (
        None if found is None else told_snapshot(found, children_of(records)[name], domain.current_snapshot() == name)
    )
    before = tuple(record.name for record in records)
    after = tuple(left for left in before if left not in {record.name for record in doomed})
    if doomed:
        left = _journal_without(domain, images, doomed)
        if not check:
            if left is not None:
                domain.write_journal(left)
            domain.delete_snapshot_record(name, children)
    return Outcome(
        steps=tuple(f"delete the record of snapshot {record.name}, not its data" for record in doomed),
        before={"snapshots": list(before)},
        after={"snapshots": list(after)},
        values={"snapshot": told},
        warnings=() if found is not None else unknown_words(name, domain.view()),
    )


def _journal_without(domain: RecordPort, images: ImagePort, doomed: Sequence[SnapshotRecord]) -> Journal | None:
    """The journal to write before the records go; None where it stays as it is.

    Before them: a record without its operation is an ordinary snapshot's, an operation without its layers is a lie.
    """
    view = domain.view()
    journal = view.journal
    refuse_open(view, journal)
    ours = [found for found in (journal.of_snapshot(record.name) for record in doomed) if found is not None]
    if not ours:
        return None
    seen = observe(domain, images)
    left = journal
    for operation in ours:
        if not _has_layers(operation, seen):
            left = left.drop(operation)
    return None if left == journal else left


def _has_layers(operation: Operation, view: DomainView) -> bool:
    """Is a layer of it still in use? Then it stays in the journal, as a snapshot without metadata does."""
    return any(is_in_chain(view, disk.target, disk.overlay) for disk in operation.disks)
