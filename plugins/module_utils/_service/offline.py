# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the images of a guest that is off, as a backup copies them: no snapshot, no journal.

The domain's lock keeps other runs away, and QEMU's lock the guest: it cannot be started until the copy has ended. A
block device has no such lock, nor has a file on a file system without locks. There libvirt's events and the guest's
state tell whether it was off all the time; a copy of which they do not is thrown away.
"""

from __future__ import annotations

import uuid

from .._core.backup import Selection
from .._core.model import DomainView
from .._core.offline import (
    OfflinePlan,
    guest_started,
    plan_offline,
    require_unmoved,
    require_unwritten,
    select_offline,
)
from .._core.ports import OfflinePort
from .._core.refusals import image_shared
from .._core.snapshot import SnapshotOptions
from .away import require_here
from .guest import Guest


class OfflinePoint:
    """Implements `_service.backup.Point`. Of `options` only the disks count."""

    def __init__(self, options: SnapshotOptions, guest: Guest[OfflinePort]) -> None:
        self._options = options
        self._guest = guest
        #: What `select` chose
        self.plan = OfflinePlan((), ())
        #: The images that no lock keeps from being written to
        self._loose: tuple[str, ...] = ()
        self._name = ""

    def select(self, view: DomainView) -> Selection:
        """Listens from here on: what the guest did before has no part in the copy."""
        if view.active:
            raise guest_started(view.name, "It is %s now" % view.state)
        require_here(view, self._guest.images)
        self._name = view.name
        self.plan = plan_offline(self._options, view, view.journal)
        clock, images = self._guest.clock, self._guest.images
        selection = select_offline(self.plan, str(uuid.uuid4()), clock.utcnow(), images.identity)
        self._loose = tuple(
            source.base.path for source in selection.sources if not images.is_lockable(source.base.path)
        )
        if self._loose:
            self._guest.domain.watch_activity()
            self._require_own(selection)
        return selection

    def require_still(self, selection: Selection, view: DomainView) -> None:
        """`view` was read just now, so that all events of before have come."""
        require_unmoved(selection, view)
        require_unwritten(selection, self._guest.images.identity)
        self.watch()

    def lockable(self, paths: tuple[str, ...]) -> tuple[str, ...]:
        """A lock that the file system does not have keeps nobody away."""
        return tuple(path for path in paths if self._guest.images.is_lockable(path))

    def watch(self) -> None:
        """A start that QEMU's lock has foiled is none."""
        seen = self._guest.domain.activity() if self._loose else ""
        if seen:
            raise guest_started(self._name, "%s, and no lock guards %s" % (seen, self._loose[0]))

    def _require_own(self, selection: Selection) -> None:
        """Another domain may write to such an image, and this one is off all the same."""
        others = self._guest.others()
        for source in selection.sources:
            if source.base.path in self._loose and source.base.path in others:
                raise image_shared(source.base.path, source.target)
