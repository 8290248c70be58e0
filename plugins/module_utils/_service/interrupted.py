# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: what a snapshot that was PREPARED by a run that died may have left besides its overlays.

libvirt goes on with a snapshot when the module that asked for it is killed. To save the guest's memory takes it a
while, in which the guest is paused. Where libvirt itself dies, half a memory file stays, and the guest may stay paused.
Where the watchdog dies with the module, the guest stays frozen.
"""

from __future__ import annotations

from dataclasses import replace

from .._core.errors import VirtopsError
from .._core.journal import JournalDisk, Operation
from .._core.model import SAVING, DomainView, Outcome
from .._core.ports import Clock, ImagePort, JobPort, UndoPort
from .._core.snapshot import THAW_SECONDS, is_in_chain
from .._core.text import command
from .observe import observe
from .ours import Ours, kept_words
from .overlays import is_unused, refuse_data

#: Between two looks at libvirt's job.
_POLL_SECONDS = 0.5


def awake(
    operation: Operation, domain: UndoPort, images: ImagePort, clock: Clock, seconds: float, check: bool
) -> tuple[DomainView, tuple[str, ...]]:
    """The domain once the request has come to its end, and the step that lets its guest run on.

    That step comes before any refusal: whatever is asked for now, no guest stays paused or frozen by us. The journal in
    the view is as after that step, in check mode too.
    """
    view = _settled(operation, domain, images, clock, seconds)
    if operation.frozen and view.active:
        return _thawed(operation, view, domain, check)
    if not is_left_paused(operation, view):
        return view, ()
    if not check:
        domain.resume()
    words = "resume %s, which an interrupted snapshot left paused" % view.name
    return replace(view, state="running", paused_by=None), (words,)


def _thawed(
    operation: Operation, view: DomainView, domain: UndoPort, check: bool
) -> tuple[DomainView, tuple[str, ...]]:
    """The watchdog may have done so before. The mark of the freeze ended with a QEMU that ended since."""
    journal = view.journal.put(operation.held(None))
    if not check:
        try:
            domain.thaw(THAW_SECONDS)
        except VirtopsError as error:
            if error.code == "connection_lost":
                raise
            raise VirtopsError(
                error.code,
                "Domain %s may still be frozen, as the snapshot %r was interrupted: %s"
                % (view.name, operation.name, error.cause),
                "See that the guest runs and its agent answers (%s), then run the task again. Where that cannot be "
                "had, turn the guest off (%s), which loses what a power loss would, and run it again"
                % (command("virsh", "domfsthaw", view.name), command("virsh", "destroy", view.name)),
            ) from error
        domain.write_journal(journal)
    words = "thaw the file systems of %s, which an interrupted snapshot may have left frozen" % view.name
    return replace(view, journal_found=journal), (words,)


def unswitched(operation: Operation, view: DomainView, domain: JobPort, images: ImagePort) -> tuple[JournalDisk, ...]:
    """The disks that were not switched to the overlay that was made for them.

    Raises `overlay_in_use` where the guest's newest data may be in one all the same: libvirt does not know of a switch
    that QEMU made while libvirt died.
    """
    left = tuple(disk for disk in operation.disks if not is_in_chain(view, disk.target, disk.overlay))
    there = [disk.overlay for disk in left if images.exists(disk.overlay)]
    ours = Ours(view, domain.snapshots() if there else (), images)
    for path in there:
        # No disk can have been switched to a file of another kind
        if ours.is_overlay(path, operation.disks) and not is_unused(path, view, images):
            raise refuse_data(path, view)
    return left


def undo(operation: Operation, view: DomainView, domain: UndoPort, images: ImagePort, check: bool) -> Outcome:
    """Remove what was made for a snapshot that no disk was switched for. What was the user's before stays his."""
    left = unswitched(operation, view, domain, images)
    made = [disk.overlay for disk in left if not disk.reused and images.exists(disk.overlay)]
    ours = Ours(view, domain.snapshots(), images)
    kept = {path: why for path in made for why in [ours.why_not(path, operation.disks)] if why is not None}
    paths = [path for path in made if path not in kept]
    memory = left_memory(operation.memory, view, domain, images)
    if not check:
        for path in paths if memory is None else [*paths, memory]:
            images.remove(path)
        domain.write_journal(domain.view().journal.drop(operation))
    steps = (
        *("remove the overlay %s, which nothing was written to" % path for path in paths),
        *(() if memory is None else (memory_words(memory),)),
        "remove operation %s from the journal" % operation.name,
    )
    warnings = tuple(kept_words(path, why) for path, why in kept.items())
    return Outcome(steps, warnings=warnings + kept_memory(operation.memory, view, domain, images))


def _settled(operation: Operation, domain: JobPort, images: ImagePort, clock: Clock, seconds: float) -> DomainView:
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


def left_memory(path: str | None, view: DomainView, domain: JobPort, images: ImagePort) -> str | None:
    """The memory file of a snapshot that was not taken, where there is one that no record of the domain names."""
    if path is None or not _is_free_memory(path, domain, images):
        return None
    return path if Ours(view, domain.snapshots(), images).why_not_memory(path) is None else None


def kept_memory(path: str | None, view: DomainView, domain: JobPort, images: ImagePort) -> tuple[str, ...]:
    """The warning of a file in its place that is not that memory."""
    if path is None or not _is_free_memory(path, domain, images):
        return ()
    why = Ours(view, domain.snapshots(), images).why_not_memory(path)
    return () if why is None else (kept_words(path, why),)


def _is_free_memory(path: str, domain: JobPort, images: ImagePort) -> bool:
    if images.kind(path) != "file" or images.holders(path):
        return False
    return all(record.memory_file != path for record in domain.snapshots())


def memory_words(path: str) -> str:
    return "remove %s, the memory of a snapshot that was not taken" % path
