# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the end of a restore: the files go to their places.

From here on there is only forward: the domain is defined on all the restored images, which wait beside their places.
At each moment its definition names whole images, so that a guest which is started early, as by its autostart after a
crash of the host, runs on what was restored, and on nothing that is mixed.
"""

from __future__ import annotations

import os
from functools import partial

from .._core import xml
from .._core.errors import VirtopsError
from .._core.extras import TPM, tpm_folder
from .._core.journal import RESTORE, RESTORE_DISKS, Journal, Operation, Reverted
from .._core.model import DomainView, FileIdentity
from .._core.plan import Step
from .._core.ports import ImagePort, RestorePort
from .._core.refusals import image_shared
from .._core.restore import PlacePort, image_exists, place_of_waiting, waiting_path
from .observe import every_image


def open_restore(journal: Journal) -> Operation | None:
    """The one that an earlier run did not finish."""
    return next((operation for operation in journal.operations if operation.kind in (RESTORE, RESTORE_DISKS)), None)


def waiting_files(view: DomainView, places: PlacePort, tpm_root: str) -> dict[str, str]:
    """What waits beside its place, and the place, as the definition tells it."""
    found = ((path, place_of_waiting(path, view.uuid)) for path in _named(view, places, tpm_root))
    return {path: place for path, place in found if place is not None}


def _named(view: DomainView, places: PlacePort, tpm_root: str) -> list[str]:
    """The files of a domain that is off which a restore may have written."""
    named = [layer.path for disk in view.config_disks for layer in disk.chain[:1]]
    named += [view.nvram] if view.nvram else []
    for part in view.parts:
        if part.kind == TPM:
            folder = tpm_folder(part, view.uuid, tpm_root)
            named += [os.path.join(folder, name) for name in places.names(folder)]
    return named


class RestoreEnd:
    """Put the files of one restore in their places, also of one that an earlier run did not finish."""

    def __init__(self, domain: RestorePort, images: ImagePort, places: PlacePort, tpm_root: str) -> None:
        self._domain = domain
        self._images = images
        self._places = places
        self._tpm_root = tpm_root

    def steps(self, view: DomainView, operation: Operation) -> tuple[Step, ...]:
        """Of a domain whose journal has this operation. Refuses what is not as it was when the restore began."""
        if view.active:
            raise VirtopsError(
                "guest_running",
                "Domain %s was started before its restored images were at their places. It runs on these images"
                % view.name,
                "Shut it down, then run the task again, which only renames the images",
            )
        moves = waiting_files(view, self._places, self._tpm_root)
        self._require_free(view, operation, moves)
        return self.of(view.name, operation, moves)

    def of(self, name: str, operation: Operation, moves: dict[str, str]) -> tuple[Step, ...]:
        """The same, for these files, which is all that check mode knows."""
        put = [
            Step(("put %s in its place" % place,), partial(self._places.put, waiting, place))
            for waiting, place in moves.items()
        ]
        define = Step(("define %s on its restored files" % name,), partial(self._define, moves))
        return (*put, define, Step((), partial(self._end, operation, moves)))

    def _define(self, moves: dict[str, str]) -> None:
        definition = self._domain.domain_xml()
        moved = xml.moved_images(definition, moves)
        if moved != definition:
            self._domain.define(moved)

    def _end(self, operation: Operation, moves: dict[str, str]) -> None:
        """Last the journal: it then only says what the domain was restored from. The definition names the places now,
        also where an earlier run was interrupted here."""
        view = self._domain.view()
        beside = {waiting_path(path, view.uuid) for path in _named(view, self._places, self._tpm_root)}
        for waiting in sorted(beside | moves.keys()):
            if self._images.exists(waiting):
                self._places.remove(waiting)
        journal = view.journal.drop(operation)
        self._domain.write_journal(Journal(journal.operations, None, journal.merged, self._rest(view, operation)))

    def _rest(self, view: DomainView, operation: Operation) -> Reverted | None:
        """A restore of single disks leaves the domain as no set describes it."""
        if operation.kind == RESTORE_DISKS:
            return None
        return Reverted(operation.name, xml.definition_digest(self._domain.domain_xml()), written(view, self._images))

    def _require_free(self, view: DomainView, operation: Operation, moves: dict[str, str]) -> None:
        """Only the file is replaced that was there when the restore began."""
        others = every_image(self._domain.other_images(), self._images)
        noted = {disk.overlay: disk.made for disk in operation.disks}
        for waiting, place in moves.items():
            there, new = self._places.look(place), self._places.look(waiting)
            if there is None or new is None or new.inode == there.inode:
                continue
            if place in others:
                raise image_shared(place, view.name)
            if there.kind != "file" or noted.get(waiting) != there.inode[1]:
                raise image_exists(place)


def written(view: DomainView, images: ImagePort) -> tuple[tuple[str, FileIdentity], ...]:
    """What the disks of a domain that is off write to, as it is now."""
    tops = [disk.active.path for disk in view.config_disks if disk.active is not None and not disk.readonly]
    return tuple((path, images.identity(path)) for path in tops if images.kind(path) == "file")
