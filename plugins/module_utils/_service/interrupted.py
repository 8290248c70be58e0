# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: what a snapshot that was PREPARED by a run that died may have left besides its overlays.

libvirt goes on with a snapshot when the module that asked for it is killed. To save the guest's memory takes it a
while, in which the guest is paused. Where libvirt itself dies, half a memory file stays, and the guest may stay paused.
"""

from __future__ import annotations

from .._core.errors import VirtopsError
from .._core.journal import Operation
from .._core.model import SAVING, DomainView
from .._core.ports import Clock, ImagePort, JobPort
from .observe import observe

#: Between two looks at libvirt's job.
_POLL_SECONDS = 0.5


def settled(operation: Operation, domain: JobPort, images: ImagePort, clock: Clock, seconds: float) -> DomainView:
    """A reading of the domain once libvirt has done, or given up, what it was asked for."""
    until = clock.monotonic() + seconds
    while domain.has_job() or (operation.memory is not None and images.holders(operation.memory)):
        if clock.monotonic() >= until:
            raise VirtopsError(
                "libvirt_busy",
                "libvirt still works at the snapshot %r that an interrupted run asked for." % operation.name,
                "See 'virsh domjobinfo', and run the task again when that is over",
            )
        clock.sleep(_POLL_SECONDS)
    return observe(domain, images)


def is_left_paused(operation: Operation, view: DomainView) -> bool:
    """libvirt pauses the guest while it saves the memory. Where it dies then, it resumes it when it is back, mostly."""
    return operation.memory is not None and view.state == "paused" and view.paused_by == SAVING


def resume_words(view: DomainView) -> str:
    return "resume %s, which an interrupted snapshot left paused" % view.name


def left_memory(path: str | None, domain: JobPort, images: ImagePort) -> str | None:
    """The memory file of a snapshot that was not taken, where there is one that no record of the domain names."""
    if path is None or images.kind(path) != "file" or images.holders(path):
        return None
    return None if any(record.memory_file == path for record in domain.snapshots()) else path


def memory_words(path: str) -> str:
    return "remove %s, the memory of a snapshot that was not taken" % path
