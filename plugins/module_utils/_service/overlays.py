# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: when an overlay of an interrupted snapshot may go."""

from __future__ import annotations

from .._core.errors import VirtopsError
from .._core.model import DomainView
from .._core.ports import ImagePort


def is_unused(path: str, view: DomainView, images: ImagePort) -> bool:
    """Is it in no chain, open to nobody, and was nothing ever written to it?

    libvirtd or QEMU may have died after QEMU switched to it: then the guest's newest data are in an overlay that
    libvirt does not know.
    """
    if not images.exists(path) or images.holders(path):
        return False
    if any(disk.index_of(path) is not None for disk in view.disks + view.config_disks):
        return False
    return not images.holds_data(path)


def refuse_data(path: str, view: DomainView) -> VirtopsError:
    """The error for one that is not."""
    return VirtopsError(
        "overlay_in_use",
        "The overlay %s of an interrupted snapshot is in no chain of domain %s, yet the guest's newest data may be "
        "in it." % (path, view.name),
        "Do not start the domain from its present definition: see with 'qemu-img map' what is in the overlay, and who "
        "has it open, and put it back as the disk's source (virsh edit)",
    )
