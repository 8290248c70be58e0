# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Private to virtops.libvirt: going back to an external snapshot where libvirt cannot, or must not.

journal PREPARED -> new overlays -> guest off -> definition and journal in one write -> record -> old layers removed.
Until that write the domain has what it had, and a run that died before it is undone by the next one, or by recover.
"""

from __future__ import annotations

import uuid
from contextlib import suppress
from dataclasses import replace

from .._core import xml
from .._core.errors import VirtopsError
from .._core.external_revert import (
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
from .._core.images import Named, Place, Use
from .._core.journal import CREATED, PREPARED, Journal, Operation
from .._core.model import DomainView, Layer, SnapshotRecord
from .._core.ports import Clock, ImagePort, RevertPort
from .._core.refusals import require_disk
from .._core.snapshot import PlannedDisk
from .observe import every_image
from .ours import Ours, kept_words, noted
from .overlays import is_unused, refuse_data, removable, require_place
from .sound import require_sound_chain


class ManualRevert:
    """One revert of a persistent domain to an external snapshot, with its memory where it has that."""

    def __init__(
        self, record: SnapshotRecord, texts: dict[str, str], domain: RevertPort, images: ImagePort, clock: Clock
    ) -> None:
        self._record = record
        self._texts = texts
        self._domain = domain
        self._images = images
        self._clock = clock

    def plan(self, view: DomainView, journal: Journal, why: str) -> tuple[NewLayer, ...]:
        """Raises VirtopsError; nothing was touched then. `why` libvirt does not do it."""
        record = self._record
        if not view.persistent:
            raise VirtopsError(
                "transient_domain",
                "Domain %s is transient, so that only libvirt could take it back to an external snapshot, and %s."
                % (view.name, why),
                "Make it persistent ('virsh define')",
            )
        stale = interrupted(record, journal)
        begun = stale is not None and stale.phase == PREPARED
        going = stale.disks if stale is not None and begun else ()
        ours = self._ours(view)
        left = frozenset(disk.overlay for disk in going if ours.why_not(disk.overlay, going) is None)
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
        require_place(PlannedDisk(target, chain[0], path), self._images, tuple(left))
        return NewLayer(target, path, chain, disk.chain)

    def steps(self, layers: tuple[NewLayer, ...], view: DomainView, journal: Journal) -> tuple[str, ...]:
        steps = ["remove %s, which an interrupted revert left" % path for path in self._old_layers(view, journal)[0]]
        steps += ["create the overlay %s on %s (%s)" % (one.overlay, one.base.path, one.target) for one in layers]
        if view.active:
            steps.append("turn %s off" % view.name)
        steps.append("define %s on the new overlays" % view.name)
        gone = self._discarded(layers, settled(journal, layers, view))
        return (*steps, *("remove %s, which only the snapshot's time after stood on" % path for path in gone))

    def apply(self, layers: tuple[NewLayer, ...], view: DomainView, journal: Journal) -> None:
        """Each step may be made again after a death: the next run begins with `_clear`."""
        journal = self._clear(view, journal)
        operation = prepared(self._record, layers, str(uuid.uuid4()), self._clock.utcnow())
        operation = replace(operation, boot=self._clock.boot())
        self._write(journal.put(operation))
        made: list[str] = []
        try:
            for one in layers:
                size = self._images.info(one.base.path, one.base.format).virtual_size
                self._images.create_overlay(one.overlay, one.base, size, view.qemu_user)
                made.append(one.overlay)
            if view.active:
                self._domain.power_off()
            true = settled(journal, layers, view)
            gone = self._discarded(layers, true)
            left = true.put(noted(switched(operation, layers, gone), self._images)) if gone else true
            switch = {one.target: Layer(one.overlay, "qcow2") for one in layers}
            self._domain.define_on(switch, left)
        except VirtopsError as error:
            self._undo(operation, made, error)
            raise
        overlays = {one.target: one.overlay for one in layers}
        text = xml.with_snapshot_files(self._texts[self._record.name], overlays)
        self._domain.redefine_snapshot(text, True, False)
        for path in gone:
            self._images.remove(path)

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

    def _clear(self, view: DomainView, journal: Journal) -> Journal:
        """What an earlier run of this task made, and no disk was switched to."""
        stale = interrupted(self._record, journal)
        if stale is None:
            return journal
        for path in self._old_layers(view, journal)[0]:
            self._images.remove(path)
        ours = self._ours(view)
        for disk in stale.disks if stale.phase == PREPARED else ():
            if not self._images.exists(disk.overlay) or not ours.is_overlay(disk.overlay, stale.disks):
                continue
            if not is_unused(disk.overlay, view, self._images):
                raise refuse_data(disk.overlay, view)
            if ours.why_not(disk.overlay, stale.disks) is None:
                self._images.remove(disk.overlay)
        return journal.drop(stale)

    def _old_layers(self, view: DomainView, journal: Journal) -> tuple[list[str], tuple[str, ...]]:
        """Those that a run was going to remove when it died, and the warnings of those that are not ours to remove."""
        stale = interrupted(self._record, journal)
        if stale is None or stale.phase != CREATED:
            return [], ()
        return removable(stale, view, self._domain.other_images(), self._images, self._ours(view))

    def _ours(self, view: DomainView) -> Ours:
        return Ours(view, (xml.parse_record(text) for text in self._texts.values()), self._images)

    def warnings(self, view: DomainView, journal: Journal) -> tuple[str, ...]:
        """What an interrupted run's journal names, and what stays all the same."""
        stale = interrupted(self._record, journal)
        if stale is None or stale.phase != PREPARED:
            return self._old_layers(view, journal)[1]
        ours = self._ours(view)
        there = [disk.overlay for disk in stale.disks if self._images.exists(disk.overlay)]
        why = {path: ours.why_not(path, stale.disks) for path in there}
        return tuple(kept_words(path, reason) for path, reason in why.items() if reason is not None)

    def _undo(self, operation: Operation, made: list[str], cause: VirtopsError) -> None:
        """After a failure: where no disk was switched, nothing is left behind; else the journal stays."""
        with suppress(VirtopsError):
            view = self._domain.view()
            if all(is_unused(path, view, self._images) for path in made):
                for path in made:
                    self._images.remove(path)
                self._write(view.journal.drop(operation))
            else:
                cause.partial = [{"overlay": path} for path in made]

    def _discarded(self, layers: tuple[NewLayer, ...], journal: Journal) -> list[str]:
        """The layers that nothing can need any more: no record, no operation, no other domain."""
        records = {name: xml.snapshot_paths(text) for name, text in self._texts.items()}
        others = every_image(self._domain.other_images(), self._images)
        candidates = [one.discarded for one in layers]
        return [
            path
            for path in candidates
            if path is not None
            and others.claims(path, journal.made_at(path)) is None
            and not needed(path, self._record.name, records, journal)
            and self._images.exists(path)
        ]

    def _write(self, journal: Journal) -> None:
        self._domain.write_journal(journal)
