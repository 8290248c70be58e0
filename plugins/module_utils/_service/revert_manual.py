# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Private to virtops.libvirt: going back to an external snapshot where libvirt cannot, or must not.

journal PREPARED -> new overlays -> guest off -> definition and journal in one write -> record -> old layers removed.
Until that write the domain has what it had, and a run that died before it is undone by the next one, or by recover.
"""

from __future__ import annotations

import uuid
from dataclasses import replace
from functools import partial

from .._core import xml
from .._core.errors import VirtopsError
from .._core.images import Named, Place, Use
from .._core.journal import PREPARED, Journal, Operation
from .._core.model import DomainView, Layer, SnapshotRecord
from .._core.plan import Step
from .._core.ports import RevertPort
from .._core.refusals import require_disk
from .._core.revert_manual import (
    NewLayer,
    base_of,
    check_untouched,
    interrupted,
    memory_file,
    needed,
    new_overlay,
    prepared,
    settled,
    switched,
)
from .._core.snapshot import PlannedDisk
from .guest import Guest
from .interrupted import Undoing, ending, take_back, undoing
from .ours import noted
from .overlays import removable, require_place
from .sound import require_sound_chain


class ManualRevert:
    """One revert of a persistent domain to an external snapshot, with its memory where it has that."""

    def __init__(self, record: SnapshotRecord, texts: dict[str, str], guest: Guest[RevertPort]) -> None:
        self._record = record
        self._texts = texts
        self._guest = guest
        self._domain = guest.domain
        self._images = guest.images
        self._made: set[str] = set()

    def plan(self, view: DomainView, journal: Journal, why: str) -> tuple[NewLayer, ...]:
        """Raises VirtopsError; nothing was touched then. `why` libvirt does not do it."""
        if not view.persistent:
            raise VirtopsError(
                "transient_domain",
                "Domain %s is transient, so that only libvirt could take it back to an external snapshot, and %s."
                % (view.name, why),
                "Make it persistent ('virsh define')",
            )
        left = self._left(view, journal).files
        return tuple(self._layer(target, chain, view, left) for target, chain in self.bases(view, journal).items())

    def bases(self, view: DomainView, journal: Journal) -> dict[str, tuple[Layer, ...]]:
        """Each disk's image of the snapshot's moment with what is below, or why there is no going back to it."""
        saved = self._with_volumes(xml.snapshot_images(self._texts[self._record.name]))
        memory = memory_file(self._record)
        if memory is not None and not self._images.exists(memory):
            raise VirtopsError(
                "snapshot_stale",
                "The memory image %s of snapshot %r is gone." % (memory, self._record.name),
                "Bring it back; or delete the record with virtops.libvirt.snapshot_metadata and state: absent",
            )
        targets = [disk.target for disk in self._record.disks if disk.mode == "external"]
        return {target: self._base(target, saved, view, journal) for target in targets}

    def _with_volumes(self, saved: dict[str, Layer]) -> dict[str, Layer]:
        """Records name a volume by its pool: then the overlay itself tells what it stands on."""
        found = dict(saved)
        for disk in self._record.disks:
            if disk.target not in saved and disk.file is not None and self._images.exists(disk.file):
                found.update((disk.target, layer) for layer in self._images.chain(disk.file, "qcow2")[1:2])
        return found

    def _base(self, target: str, saved: dict[str, Layer], view: DomainView, journal: Journal) -> tuple[Layer, ...]:
        base = base_of(self._record, target, saved, view)
        if not self._images.exists(base.path):
            raise VirtopsError(
                "snapshot_stale",
                "The image %s of disk %s at snapshot %r is gone." % (base.path, target, self._record.name),
                "Bring it back; or delete the record with virtops.libvirt.snapshot_metadata and state: absent",
            )
        memory = memory_file(self._record)
        saved_at = None if memory is None else self._images.identity(memory)
        check_untouched(self._record, target, base, self._images.identity(base.path), journal, saved_at)
        place = Place(target, view.name)
        looks = require_sound_chain(base, Named(self._described(target)), Use.REVERT, place, self._images)
        return tuple(look.layer for look in looks)

    def _described(self, target: str) -> tuple[Layer, ...]:
        """What the record's own definition says of the disk's images."""
        definitions = xml.snapshot_definitions(self._texts[self._record.name])
        return next((disk.chain for disks in definitions for disk in disks if disk.target == target), ())

    def _layer(self, target: str, chain: tuple[Layer, ...], view: DomainView, left: frozenset[str]) -> NewLayer:
        disk = require_disk(view, target)
        path = new_overlay(self._record, disk, view, lambda name: name not in left and self._images.exists(name))
        require_place(PlannedDisk(target, chain[0], path), self._images, left)
        return NewLayer(target, path, chain, disk.chain)

    def steps(self, layers: tuple[NewLayer, ...], view: DomainView, journal: Journal) -> tuple[Step, ...]:
        """Each of them may be made again after a death: the next run begins with what this one left."""
        stale, clock = interrupted(self._record, journal), self._guest.clock
        operation = prepared(self._record, layers, str(uuid.uuid4()), clock.utcnow())
        operation = replace(operation, boot=clock.boot())
        undo = partial(self._undo, operation)
        steps = [*self._left(view, journal).steps, Step((), partial(self._guest.put, operation), undo)]
        for one in layers:
            words = "create the overlay %s on %s (%s)" % (one.overlay, one.base.path, one.target)
            steps.append(Step((words,), partial(self._create_overlay, one, view), undo))
        if view.active:
            steps.append(Step(("turn %s off" % view.name,), self._domain.power_off))
        true = settled(journal if stale is None else journal.drop(stale), layers, view)
        gone = self._discarded(layers, true)
        left = true.put(noted(switched(operation, layers, gone), self._images)) if gone else true
        switch = {one.target: Layer(one.overlay, "qcow2") for one in layers}
        define = partial(self._domain.define_on, switch, left)
        steps.append(Step(("define %s on the new overlays" % view.name,), define))
        overlays = {one.target: one.overlay for one in layers}
        text = xml.with_snapshot_files(self._texts[self._record.name], overlays)
        steps.append(Step((), partial(self._domain.redefine_snapshot, text, True, False), final=True))
        words = "remove %s, which only the snapshot's time after stood on"
        return (*steps, *(Step((words % path,), partial(self._images.remove, path)) for path in gone))

    def _create_overlay(self, one: NewLayer, view: DomainView) -> None:
        size = self._images.info(one.base.path, one.base.format).virtual_size
        self._images.create_overlay(one.overlay, one.base, size, view.qemu_user)
        self._made.add(one.overlay)

    def _undo(self, operation: Operation, cause: VirtopsError) -> bool:
        return take_back(operation, self._made, self._guest, cause)

    def definition(self, layers: tuple[NewLayer, ...]) -> str:
        """What the memory image was saved with, on the new overlays. Raises where that image cannot be read."""
        saved = self._domain.saved_definition(memory_file(self._record) or "")
        return xml.with_disk_layers(saved, {one.target: Layer(one.overlay, "qcow2") for one in layers})

    def go_on(self, definition: str, paused: bool, reset_nvram: bool) -> None:
        """Start the guest from the memory of that moment. The memory image stays, so that it can be gone back to again.

        The guest was off, so nothing can have written to the new overlays since: disks and memory are of one moment.
        """
        try:
            self._domain.restore(memory_file(self._record) or "", definition, paused, reset_nvram)
        except VirtopsError as error:
            error.remedy = (
                "The disks of the domain are those of the snapshot, and it is off. Run the task again when the cause "
                "is gone; or start it without the memory of that moment, as after a power loss ('virsh start')"
            )
            raise

    def _left(self, view: DomainView, journal: Journal) -> Undoing:
        """What an earlier run of this task left: before the switch its overlays, after it the old layers."""
        stale = interrupted(self._record, journal)
        if stale is None:
            return Undoing()
        if stale.phase == PREPARED:
            return undoing(stale, view, self._guest)
        paths, kept = removable(stale, view, self._guest)
        steps = ending(stale, paths, "remove %s, which an interrupted revert left", self._guest)
        return Undoing(steps, frozenset(paths), kept)

    def warnings(self, view: DomainView, journal: Journal) -> tuple[str, ...]:
        """What an interrupted run's journal names, and what stays all the same."""
        return self._left(view, journal).warnings

    def _discarded(self, layers: tuple[NewLayer, ...], journal: Journal) -> list[str]:
        """The layers that nothing can need any more: no record, no operation, no other domain."""
        records = {name: xml.snapshot_paths(text) for name, text in self._texts.items()}
        others = self._guest.others()
        candidates = [one.discarded for one in layers]
        return [
            path
            for path in candidates
            if path is not None
            and others.claims(path, journal.made_at(path)) is None
            and not needed(path, self._record.name, records, journal)
            and self._images.exists(path)
        ]
