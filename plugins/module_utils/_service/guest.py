# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: a guest is one thing: its domain, its images, its journal, and what watches over it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from .._core.journal import Journal, Operation
from .._core.model import DomainView
from .._core.ports import Clock, GuestPort, ImagePort, Progress, Silent, Watchdog
from .observe import OtherFiles, every_image, observe
from .ours import Ours
from .run import Run

#: What a flow needs of libvirt.
PortT_co = TypeVar("PortT_co", bound=GuestPort, covariant=True)


@dataclass(frozen=True)
class Guest(Generic[PortT_co]):
    """What a flow works on. `progress` is where it says how far it is."""

    domain: PortT_co
    images: ImagePort
    clock: Clock
    watchdog: Watchdog
    progress: Progress = field(default_factory=Silent)

    def observe(self) -> DomainView:
        """The domain as it is now, with each disk's whole chain."""
        return observe(self.domain, self.images)

    def others(self) -> OtherFiles:
        """The images of the host's other domains."""
        return every_image(self.domain.other_images(), self.images)

    def ours(self, view: DomainView) -> Ours:
        """Which files the journal may make us delete."""
        return Ours(view, self.domain.snapshots(), self.images)

    def run(self, check: bool) -> Run:
        """What executes the steps of a flow."""
        return Run(check, self.clock, self.progress)

    @property
    def journal(self) -> Journal:
        """As it is now."""
        return self.domain.view().journal

    def put(self, operation: Operation) -> None:
        """Write the operation into the journal, in the place of the one with its ID."""
        self.domain.write_journal(self.journal.put(operation))

    def drop(self, operation: Operation) -> None:
        """Remove the operation from the journal."""
        self.domain.write_journal(self.journal.drop(operation))
