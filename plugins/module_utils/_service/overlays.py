# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: where an overlay may come, and when one of an interrupted snapshot may go."""

from __future__ import annotations

import os

from .._core.errors import VirtopsError
from .._core.journal import Operation
from .._core.model import DomainView, OtherImages
from .._core.ports import Clock, ImagePort
from .._core.snapshot import PlannedDisk
from .observe import every_image

#: Seconds that a process is given to close a layer. libvirt shows the new chain a moment before QEMU is told to drop
#: the layers that were merged.
CLOSE_SECONDS = 5.0


def require_place(disk: PlannedDisk, images: ImagePort, stale: tuple[str, ...] = ()) -> None:
    """Refuse a folder that no overlay can be made in; `stale` are overlays that will be removed first."""
    folder = os.path.dirname(disk.overlay)
    if not images.is_directory(folder):
        raise VirtopsError(
            "no_directory",
            "The folder %s for the overlay of disk %s does not exist." % (folder, disk.target),
            "Create it, or choose another with overlay_dir or disks",
        )
    if not images.is_writable(folder):
        raise VirtopsError(
            "not_writable",
            "The folder %s for the overlay of disk %s cannot be written to." % (folder, disk.target),
            "Run the module with the rights to it (become), or choose another folder",
        )
    if images.exists(disk.overlay) and disk.overlay not in stale:
        raise VirtopsError(
            "overlay_exists",
            "The overlay %s for disk %s exists already." % (disk.overlay, disk.target),
            "Choose another snapshot name or file; remove that file only once you know that no domain uses it",
        )


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


def lasting_holders(path: str, images: ImagePort, clock: Clock) -> tuple[int, ...]:
    """The processes that have it open, and do not close it within CLOSE_SECONDS."""
    deadline = clock.monotonic() + CLOSE_SECONDS
    while True:
        held = images.holders(path)
        if not held or clock.monotonic() >= deadline:
            return held
        clock.sleep(0.1)


def removable(operation: Operation, view: DomainView, others: OtherImages, images: ImagePort) -> list[str]:
    """The layers that a revert was going to remove: those that are still there, and that nobody took into use since."""
    used = every_image(others, images)
    used |= {layer.path for disk in view.disks + view.config_disks for layer in disk.chain}
    paths = [disk.overlay for disk in operation.disks]
    return [path for path in paths if path not in used and images.exists(path) and not images.holders(path)]


def refuse_data(path: str, view: DomainView) -> VirtopsError:
    """The error for one that is not."""
    return VirtopsError(
        "overlay_in_use",
        "The overlay %s of an interrupted snapshot is in no chain of domain %s, yet the guest's newest data may be "
        "in it." % (path, view.name),
        "Do not start the domain from its present definition: see with 'qemu-img map' what is in the overlay, and who "
        "has it open, and put it back as the disk's source (virsh edit)",
    )
