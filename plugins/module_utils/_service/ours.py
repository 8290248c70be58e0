# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: which files the journal can make us delete, or write to.

The journal is in the domain's metadata, where others may write, too: what it names is not ours for that. A file of ours
is one that we noted when it was made, is of a kind that we make, and lies where this domain's images lie or has a name
that we give to its overlays. Whatever else the journal names is kept, and told.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace

from .._core.journal import JournalDisk, Operation
from .._core.model import DomainView, SnapshotRecord, is_local
from .._core.ports import ImagePort
from .._core.snapshot import is_overlay_name
from .observe import FileSet


class Ours:
    """The files of one domain, by one reading of it and of libvirt's records of its snapshots."""

    def __init__(self, view: DomainView, records: Iterable[SnapshotRecord], images: ImagePort) -> None:
        self._view = view
        self._images = images
        disks = view.disks + view.config_disks
        paths = {layer.path for disk in disks for layer in disk.chain if is_local(layer.path)}
        self._chain = frozenset(paths)
        paths |= {disk.file for record in records for disk in record.disks if disk.file is not None}
        self._paths = FileSet(paths, images)
        self._folders = FileSet((os.path.dirname(path) for path in paths), images)

    def why_not(self, path: str, disks: Sequence[JournalDisk]) -> str | None:
        """Why this overlay of an operation with these disks is to be kept, as a clause; None where it may go.

        What libvirt itself shows in a chain needs no proof.
        """
        if path in self._chain:
            return None
        found = self._images.signature(path)
        if found.kind in ("missing", "block"):  # the node of a device is never removed
            return None
        noted = [disk for disk in disks if disk.overlay == path]
        if any(disk.made is not None and disk.made != self._images.identity(path).inode for disk in noted):
            return "it is another file than the one that was made"
        if not self.is_overlay(path, disks):
            stands = "it stands on %s" % found.backing if found.backing else "it is no qcow2 image with a backing file"
            return "%s, which is not what was made" % stands
        if not self._is_at_home(path, noted):
            return "it does not lie where the images of %s lie" % self._view.name
        return None

    def is_overlay(self, path: str, disks: Sequence[JournalDisk]) -> bool:
        """Is it of the kind that these disks of an operation were given: a qcow2 image on exactly that base?

        A death while it is made leaves it empty, or without the name of its base.
        """
        found = self._images.signature(path)
        noted = [disk for disk in disks if disk.overlay == path]
        if found.kind in ("empty", "block"):
            return True
        if found.kind != "qcow2":
            return False
        backing = found.backing
        if backing is None:
            return not self._images.holds_data(path)
        bases = {disk.base for disk in noted}
        targets = {disk.target for disk in noted}
        bases |= {disk.overlay for disk in disks if disk.target in targets}  # several layers that go into one base
        if "" in bases:  # it goes with the snapshot that it was made for, whatever it stands on
            return backing in self._paths or os.path.dirname(backing) in self._folders
        return backing in FileSet(bases, self._images)

    def _is_at_home(self, path: str, noted: Sequence[JournalDisk]) -> bool:
        folder, name = os.path.split(path)
        named = any(is_overlay_name(name, self._view.name, disk.target) for disk in noted)
        return named or path in self._paths or folder in self._folders

    def is_image(self, path: str) -> bool:
        """May it be written to, or named to libvirt, as an image of this domain? It is one, or lies beside one."""
        return not is_local(path) or path in self._paths or os.path.dirname(path) in self._folders

    def why_not_memory(self, path: str) -> str | None:
        """The same for the file of a snapshot's memory: libvirt writes into it whose it is, wherever it lies."""
        found = self._images.signature(path)
        if found.kind == "memory" and found.domain == self._view.uuid:
            return None
        if found.kind == "empty" and os.path.dirname(path) in self._folders:
            return None  # libvirt died before it wrote a byte
        if found.kind == "memory":
            return "it is the memory of another domain (%s)" % found.domain
        return "it is no memory of a guest that libvirt has saved"


def kept_words(path: str, why: str) -> str:
    """The warning of a file that the journal names, and that stays."""
    return "%s was kept: the journal names it, and %s. Look at it before you delete it." % (path, why)


def foreign_journal(view: DomainView) -> str:
    """The warning of a journal that came along with a copied definition."""
    return (
        "The journal in the metadata of domain %s belongs to the domain with the UUID %s, whose definition was copied. "
        "It is ignored here. The next operation on this domain writes its own in its place."
        % (view.name, view.journal_of)
    )


def noted(operation: Operation, images: ImagePort) -> Operation:
    """The operation with what its overlays are now, by which a later run knows them."""
    return replace(operation, disks=tuple(_noted(disk, images) for disk in operation.disks))


def _noted(disk: JournalDisk, images: ImagePort) -> JournalDisk:
    if images.kind(disk.overlay) != "file":
        return disk
    return replace(disk, made=images.identity(disk.overlay).inode)
