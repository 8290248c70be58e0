# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: one reading of a domain, the same for every flow."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import replace
from functools import cached_property

from .._core.model import Disk, DomainView, OtherImages, is_local
from .._core.ports import ImagePort, ViewPort


def observe(domain: ViewPort, images: ImagePort) -> DomainView:
    """The domain as it is now, with each disk's whole chain.

    libvirt tells a running domain's chain; of one that is off, only the images themselves know.
    """
    return observe_view(domain.view(), images)


def observe_view(view: DomainView, images: ImagePort) -> DomainView:
    """The same for a reading that was made already."""
    if view.active:
        return view
    return view.with_disks(tuple(_with_chain(disk, images) for disk in view.disks))


def _with_chain(disk: Disk, images: ImagePort) -> Disk:
    if disk.active is None or not images.exists(disk.active.path):
        return disk
    return replace(disk, chain=images.chain(disk.active.path, disk.active.format))


class FileSet(Container[str]):
    """Files by what they are: a path is in it too where it is another name of one, as /dev/VG/LV of a node in
    /dev/mapper, or a path through a symlink. Other names are looked for only where the path itself is not among them.
    """

    def __init__(self, paths: Iterable[str], images: ImagePort) -> None:
        self._paths = frozenset(paths)
        self._images = images

    def __contains__(self, path: object) -> bool:
        if path in self._paths:
            return True
        key = self._key(path) if isinstance(path, str) else None
        return key is not None and key in self._keys

    @cached_property
    def _keys(self) -> frozenset[tuple[int, int] | None]:
        return frozenset(self._key(path) for path in self._paths)

    def _key(self, path: str) -> tuple[int, int] | None:
        return self._images.file_key(path) if is_local(path) else None


def every_image(others: OtherImages, images: ImagePort) -> FileSet:
    """Every image in a chain of another domain; of those that are off, the images know the chain."""
    found = set(others.known)
    for tip in others.tips:
        if images.exists(tip.path):
            found.update(layer.path for layer in images.chain(tip.path, tip.format))
    return FileSet(found, images)


def chains(view: DomainView) -> dict[str, list[str]]:
    """Each disk's images, active layer first: what `diff` and the results show."""
    return {disk.target: [layer.path for layer in disk.chain] for disk in view.disks if disk.chain}
