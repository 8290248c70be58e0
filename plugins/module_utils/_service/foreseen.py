# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: a domain as it will be once a planned snapshot was taken.

In check mode the flows that follow a snapshot plan on this: they look at the domain and its images by the same ports as
ever, and find the overlays in the chains and the operation in the journal.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .._core.journal import Operation
from .._core.model import (
    Disk,
    DomainView,
    FileIdentity,
    ImageInfo,
    Layer,
    Signature,
    SnapshotDisk,
    SnapshotRecord,
)
from .._core.ports import ImagePort, ViewPort
from .observe import observe


class ForeseenDomain:
    """The domain on the overlays of `operation`. What is not about that, the domain itself answers."""

    def __init__(self, domain: ViewPort, images: ImagePort, operation: Operation) -> None:
        self._domain = domain
        self._images = images
        self._operation = operation

    def view(self) -> DomainView:
        view = observe(self._domain, self._images)
        return replace(
            view,
            disks=tuple(map(self._on_overlay, view.disks)),
            config_disks=tuple(map(self._on_overlay, view.config_disks)),
            journal_found=view.journal.put(self._operation),
        )

    def _on_overlay(self, disk: Disk) -> Disk:
        noted = self._operation.disk(disk.target)
        return disk if noted is None else replace(disk, chain=(Layer(noted.overlay, "qcow2"), *disk.chain))

    def snapshot(self, name: str) -> SnapshotRecord | None:
        return self._record() if name == self._operation.name else self._domain.snapshot(name)

    def snapshots(self) -> tuple[SnapshotRecord, ...]:
        return (*self._domain.snapshots(), self._record())

    def _record(self) -> SnapshotRecord:
        disks = (SnapshotDisk(disk.target, "external", disk.overlay, "qcow2") for disk in self._operation.disks)
        return SnapshotRecord(self._operation.name, "disk-snapshot", 0, tuple(disks))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._domain, name)


class ForeseenImages:
    """The host's images, and the overlays of `operation`, which nobody has written to."""

    def __init__(self, images: ImagePort, operation: Operation) -> None:
        self._images = images
        self._bases = {disk.overlay: Layer(disk.base, disk.base_format) for disk in operation.disks}

    def info(self, path: str, image_format: str) -> ImageInfo:
        base = self._bases.get(path)
        if base is None:
            return self._images.info(path, image_format)
        size = self._images.info(base.path, base.format).virtual_size
        return ImageInfo(path, "qcow2", size, 0, base.path, base.format)

    def chain(self, path: str, image_format: str) -> tuple[Layer, ...]:
        base = self._bases.get(path)
        if base is None:
            return self._images.chain(path, image_format)
        return (Layer(path, "qcow2"), *self._images.chain(base.path, base.format))

    def exists(self, path: str) -> bool:
        return path in self._bases or self._images.exists(path)

    def kind(self, path: str) -> str:
        return "file" if path in self._bases else self._images.kind(path)

    def signature(self, path: str) -> Signature:
        base = self._bases.get(path)
        return self._images.signature(path) if base is None else Signature("qcow2", backing=base.path)

    def identity(self, path: str) -> FileIdentity:
        return FileIdentity("", 0, 0, 0) if path in self._bases else self._images.identity(path)

    def holds_data(self, path: str) -> bool:
        return path not in self._bases and self._images.holds_data(path)

    def holders(self, path: str) -> tuple[int, ...]:
        return () if path in self._bases else self._images.holders(path)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._images, name)
