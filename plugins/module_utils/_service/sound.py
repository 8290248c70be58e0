# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: looking at a chain, image by image, before anything is done with it.

An image is opened only once `_core.images` has found nothing against the one above it, in the format that was told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .._core.images import Look, Named, Place, Use, flaw, looped, named_by
from .._core.model import DomainView, ImageInfo, Layer, is_local
from .._core.ports import ImagePort
from .observe import FileSet


def require_sound(
    view: DomainView, target: str, use: Use, images: ImagePort, begun: frozenset[str] = frozenset()
) -> tuple[Look, ...]:
    """The images of a disk, from the one that the guest writes to downwards. Raises what stands against that use."""
    disk = view.disk(target)
    if disk is None or disk.active is None:
        return ()
    named = replace(named_by(view, target), begun=begun)
    return require_sound_chain(disk.active, named, use, Place(target, view.name), images)


def require_sound_chain(first: Layer, named: Named, use: Use, place: Place, images: ImagePort) -> tuple[Look, ...]:
    """The same for a chain that need not be a disk's present one."""
    looks: list[Look] = []
    layer: Layer | None = first
    while layer is not None:
        look = _look(layer, named, images)
        wrong = flaw(look, named, use, place)
        if wrong is not None:
            raise wrong
        looks.append(look)
        layer = _next(look)
        if layer is not None and any(layer.path == above.layer.path for above in looks):
            raise looped(first.path, layer.path)
    return tuple(looks)


def _look(layer: Layer, named: Named, images: ImagePort) -> Look:
    """What is odd is not opened: its file is no image of the format that the XML gives the disk."""
    if layer.odd or not is_local(layer.path):
        return Look(layer)
    info = images.info(layer.path, layer.format)
    held = [path for path in info.beside if named.whole and is_local(path) and _together(layer.path, path, images)]
    return Look(layer, info, _below(layer, info, named, images), frozenset(held))


def _together(one: str, other: str, images: ImagePort) -> bool:
    return bool(set(images.holders(one)) & set(images.holders(other)))


def _below(owner: Layer, info: ImageInfo, named: Named, images: ImagePort) -> Layer | None:
    """What the XML says of the backing file. One on the network has other words in a header: its place tells."""
    path = info.backing_path
    if path is None:
        return None
    if not is_local(path):
        after = _after(owner, named.layers, images)
        return after if after is not None and not is_local(after.path) else None
    return find(path, named.layers, images)


def _after(owner: Layer, layers: Sequence[Layer], images: ImagePort) -> Layer | None:
    found = find(owner.path, layers[:-1], images)
    return None if found is None else layers[layers.index(found) + 1]


def find(path: str, layers: Sequence[Layer], images: ImagePort) -> Layer | None:
    """The one whose file this is; paths may differ by a symlink."""
    same = next((layer for layer in layers if layer.path == path), None)
    return same or next((layer for layer in layers if path in FileSet([layer.path], images)), None)


def _next(look: Look) -> Layer | None:
    info = look.info
    if info is None or info.backing_path is None:
        return None
    return look.below or Layer(info.backing_path, info.backing_format or "")
