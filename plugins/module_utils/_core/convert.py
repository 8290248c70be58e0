# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Private to virtops.libvirt: raw images that become qcow2, decided without any effect."""

from __future__ import annotations

import os
from collections.abc import Container, Mapping
from dataclasses import dataclass

from .errors import VirtopsError
from .journal import CONVERT, PREPARED, Journal, JournalDisk, Operation
from .model import Disk, DomainView, FileIdentity, Layer
from .refusals import checked_path, image_shared, require_disk
from .snapshot import why_not_snapshotable


@dataclass(frozen=True)
class ConvertOptions:
    """What the user asked for. `disks`: targets, None for all that are raw; `dest_dir`: None for beside each image."""

    disks: tuple[str, ...] | None = None
    dest_dir: str | None = None
    delete_source: bool = False


@dataclass(frozen=True)
class Conversion:
    """One disk: its raw image, and the qcow2 one that takes its place."""

    target: str
    source: Layer
    path: str

    @property
    def image(self) -> Layer:
        return Layer(self.path, "qcow2")

    @property
    def partial(self) -> str:
        """Where the image is while it is written."""
        folder, name = os.path.split(self.path)
        return os.path.join(folder, ".%s.partial" % name)


def plan_conversions(options: ConvertOptions, view: DomainView, others: Container[str]) -> tuple[Conversion, ...]:
    """The disks that have to be converted, in the domain's order; `others` are the images of other domains."""
    if options.dest_dir is not None:
        checked_path(options.dest_dir)
    named = None if options.disks is None else {require_disk(view, target).target for target in options.disks}
    found = []
    for disk in view.disks:
        if named is not None and disk.target not in named:
            continue
        if disk.active is None or disk.active.format != "raw":
            if named is not None and (disk.active is None or disk.active.format != "qcow2"):
                raise _unsuitable(disk, view, "it has no raw image on this host")
            continue
        why = why_not_snapshotable(disk) or _odd(disk.active)
        if why is not None:
            if named is not None:
                raise _unsuitable(disk, view, why)
            continue
        found.append(Conversion(disk.target, disk.active, _new_path(disk, disk.active, view, options.dest_dir)))
    for one in found:
        if one.source.path in others:
            raise image_shared(one.source.path, one.target)
    _refuse_same_names(found)
    return tuple(found)


def removal_of(
    plan: tuple[Conversion, ...], sources: Mapping[str, FileIdentity], identifier: str, started: str
) -> Operation:
    """What is noted before the definition is written: each raw image that goes then, below the one that replaces it."""
    disks = tuple(
        JournalDisk(one.target, one.source.path, one.source.format, one.path, sources[one.source.path])
        for one in plan
        if one.source.path in sources
    )
    return Operation(identifier, CONVERT, "conversion to qcow2", PREPARED, started, disks)


def interrupted(journal: Journal) -> Operation | None:
    """The removal that an earlier run did not finish."""
    return next((operation for operation in journal.operations if operation.kind == CONVERT), None)


def _odd(image: Layer) -> str | None:
    """Its file is then not, as it lies there, what the guest reads."""
    return "it is %s" % image.odd if image.odd else None


def _unsuitable(disk: Disk, view: DomainView, why: str) -> VirtopsError:
    return VirtopsError(
        "disk_unsuitable",
        "Disk %s of domain %s cannot be converted: %s." % (disk.target, view.name, why),
        "Leave it out of disks",
    )


def _new_path(disk: Disk, source: Layer, view: DomainView, dest_dir: str | None) -> str:
    folder, name = os.path.split(source.path)
    if disk.on_device:
        if dest_dir is None:
            raise VirtopsError(
                "overlay_needed",
                "Disk %s of domain %s is the block device %s, which has no place for an image beside it."
                % (disk.target, view.name, source.path),
                "Give an existing directory with dest_dir, or leave this disk out with disks",
            )
        return os.path.join(dest_dir, "%s.%s.qcow2" % (view.name, disk.target))
    stem, extension = os.path.splitext(name)
    return os.path.join(dest_dir or folder, (stem if extension in (".raw", ".img") else name) + ".qcow2")


def _refuse_same_names(conversions: list[Conversion]) -> None:
    paths = [one.path for one in conversions]
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        raise VirtopsError(
            "image_exists",
            "Two disks would get the image %s." % twice,
            "Convert them one after another, with disks and another dest_dir",
        )
