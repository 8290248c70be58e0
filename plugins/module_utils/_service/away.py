# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: is a guest that is off at this host really off?"""

from __future__ import annotations

from .._core.model import DomainView, is_local
from .._core.ports import ImagePort
from .._core.refusals import guest_moved, refuse_away


def require_here(view: DomainView, images: ImagePort, remedy: str | None = None) -> None:
    """Refuse to touch the images of a guest whose memory is saved, or that runs at another host that shares them.

    After a migration libvirt tells, until its daemon is restarted; after that, and where a cluster started the guest
    elsewhere, QEMU's lock on the image does. `remedy` is what helps one whose memory is saved.
    """
    refuse_away(view, remedy)
    for disk in () if view.active else view.disks:
        path = None if disk.active is None or disk.readonly or disk.shareable else disk.active.path
        if path is None or not is_local(path) or not images.is_being_written(path):
            continue
        if not images.holders(path):
            why = "is off here, but another host that shares its storage writes to %s (disk %s)"
            raise guest_moved(view, why % (path, disk.target))
