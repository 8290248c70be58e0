# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: one reading of a domain, the same for every flow."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from .._core.errors import VirtopsError
from .._core.model import Disk, DomainView, Layer, OtherImages, is_local
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
    found = images.chain(disk.active.path, disk.active.format)
    return replace(disk, chain=tuple(_as_told(layer, disk.chain, images) for layer in found))


def _as_told(layer: Layer, told: tuple[Layer, ...], images: ImagePort) -> Layer:
    """With what only the XML knows of this image."""
    for one in told:
        if (one.odd or one.data_file) and layer.path in FileSet([one.path], images):
            return replace(layer, odd=one.odd, data_file=one.data_file)
    return layer


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


@dataclass(frozen=True)
class Unseen:
    """Why nobody can tell what the chain of another domain has below its image `path`.

    `changed_ns`: when the images that can be seen of it were last written, in nanoseconds since 1970; None: unknown.
    `owner` is that domain's name, where it is known.
    """

    path: str
    why: str
    changed_ns: int | None
    owner: str = ""

    def may_stand_on(self, made: int | None) -> bool:
        """On an image that was made then (seconds since 1970)? What is older than it cannot name it."""
        return made is None or self.changed_ns is None or self.changed_ns >= made * 10**9


class OtherFiles(FileSet):
    """The images of the host's other domains, as far as those can be seen: a neighbour's fault is not ours."""

    def __init__(self, paths: Iterable[str], unseen: Iterable[Unseen], images: ImagePort) -> None:
        super().__init__(paths, images)
        self.unseen = tuple(unseen)

    def claims(self, path: str, made: int | None = None) -> str | None:
        """What speaks against deleting this image, which was made then: another domain has it, or may have it."""
        if path in self:
            return "another domain of this host stands on it"
        found = next((one for one in self.unseen if one.may_stand_on(made)), None)
        if found is None:
            return None
        who = "the domain %s" % found.owner if found.owner else "another domain of this host"
        return "%s may use it, and this cannot be checked: %s" % (who, found.why)


def every_image(others: OtherImages, images: ImagePort) -> OtherFiles:
    """Every image in a chain of another domain; of those that are off, the images know the chain."""
    found, unseen = set(others.known), []
    for tip in others.tips:
        paths, end = chain_of_another(tip, images)
        found.update(paths)
        unseen += [] if end is None else [replace(end, owner=others.owners.get(tip.path, ""))]
    unseen += [Unseen("", why, None) for why in others.unread]
    return OtherFiles(found, unseen, images)


def chain_of_another(tip: Layer, images: ImagePort) -> tuple[tuple[str, ...], Unseen | None]:
    """The images that a domain which is off stands on, and what hides the rest of them.

    Each image is read by itself, and trusted with nothing but the name of the next. One that is missing, is not of its
    format, or stands on itself is that domain's fault, which only keeps that one from starting.
    """
    paths: list[str] = []
    changed: list[int | None] = []
    layer: Layer | None = tip
    while layer is not None and is_local(layer.path) and layer.path not in paths:
        path = layer.path
        paths.append(path)
        try:
            kind = images.kind(path)
            if kind == "missing":
                why = "%s is missing, which %s stands on" % (path, paths[-2]) if len(paths) > 1 else None
                return tuple(paths), None if why is None else Unseen(path, why, _newest(changed))
            changed.append(images.identity(path).mtime_ns if kind == "file" else None)
            layer = images.below(layer)
        except VirtopsError as error:
            return tuple(paths), Unseen(path, error.cause.rstrip("."), _newest(changed))
    return tuple(paths), None


def _newest(times: list[int | None]) -> int | None:
    known = [time for time in times if time is not None]
    return max(known) if known and len(known) == len(times) else None


def chains(view: DomainView) -> dict[str, list[str]]:
    """Each disk's images, active layer first: what `diff` and the results show."""
    return {disk.target: [layer.path for layer in disk.chain] for disk in view.disks if disk.chain}
