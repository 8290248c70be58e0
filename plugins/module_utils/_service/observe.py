# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: one reading of a domain, the same for every flow."""

from __future__ import annotations

from dataclasses import replace

from .._core.model import Disk, DomainView, OtherImages
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


def every_image(others: OtherImages, images: ImagePort) -> frozenset[str]:
    """Every image in a chain of another domain; of those that are off, the images know the chain."""
    found = set(others.known)
    for tip in others.tips:
        if images.exists(tip.path):
            found.update(layer.path for layer in images.chain(tip.path, tip.format))
    return frozenset(found)


def chains(view: DomainView) -> dict[str, list[str]]:
    """Each disk's images, active layer first: what `diff` and the results show."""
    return {disk.target: [layer.path for layer in disk.chain] for disk in view.disks if disk.chain}
