# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: what a snapshot that was PREPARED by a run that died may have left besides its overlays.

libvirt goes on with a snapshot when the module that asked for it is killed. To save the guest's memory takes it a
while, in which the guest is paused. Where libvirt itself dies, half a memory file stays, and the guest may stay paused.
Where the watchdog dies with the module, the guest stays frozen.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable
from dataclasses import dataclass, replace
from functools import partial

from .._core.errors import VirtopsError
from .._core.journal import JournalDisk, Operation
from .._core.model import SAVING, DomainView
from .._core.plan import Step
from .._core.ports import GuestPort, UndoPort
from .._core.snapshot import THAW_SECONDS, is_in_chain
from .._core.text import command
from .guest import Guest
from .ours import kept_words
from .overlays import is_unused, refuse_data
from .run import Run

#: Between two looks at libvirt's job.
_POLL_SECONDS = 0.5


def awake(operation: Operation, guest: Guest[UndoPort], seconds: float, run: Run) -> DomainView:
    """The domain once the request has come to its end, and its guest runs on; in check mode as it would be then.

    That step comes before any refusal: whatever is asked for now, no guest stays paused or frozen by us.
    """
    view = _settled(operation, guest, seconds)
    if operation.frozen and view.active:
        words = "thaw the file systems of %s, which an interrupted snapshot may have left frozen" % view.name
        run.apply(Step((words,), lambda: _thaw(operation, view, guest)))
        return replace(view, journal_found=view.journal.put(operation.held(None)))
    if not is_left_paused(operation, view):
        return view
    run.apply(Step(("resume %s, which an interrupted snapshot left paused" % view.name,), guest.domain.resume))
    return replace(view, state="running", paused_by=None)


def _thaw(operation: Operation, view: DomainView, guest: Guest[UndoPort]) -> None:
    """The watchdog may have done so before. The mark of the freeze ended with a QEMU that ended since."""
    try:
        guest.domain.thaw(THAW_SECONDS)
    except VirtopsError as error:
        if error.code == "connection_lost":
            raise
        raise VirtopsError(
            error.code,
            "Domain %s may still be frozen, as the snapshot %r was interrupted: %s"
            % (view.name, operation.name, error.cause),
            "See that the guest runs and its agent answers (%s), then run the task again. If this is not possible, "
            "turn the guest off (%s), which loses what a power loss would lose, and run the task again"
            % (command("virsh", "domfsthaw", view.name), command("virsh", "destroy", view.name)),
        ) from error
    guest.put(operation.held(None))


def unswitched(operation: Operation, view: DomainView, guest: Guest[UndoPort]) -> tuple[JournalDisk, ...]:
    """The disks that were not switched to the overlay that was made for them.

    Raises `overlay_in_use` where the guest's newest data may be in one all the same: libvirt does not know of a switch
    that QEMU made while libvirt died.
    """
    left = tuple(disk for disk in operation.disks if not is_in_chain(view, disk.target, disk.overlay))
    ours = guest.ours(view)
    for path in (disk.overlay for disk in left):
        # No disk can have been switched to a file of another kind
        there = guest.images.exists(path) and ours.is_overlay(path, operation.disks)
        if there and not is_unused(path, view, guest.images):
            raise refuse_data(path, view)
    return left


@dataclass(frozen=True)
class Undoing:
    """The steps that undo a snapshot which was not taken, the files that they remove, and what is told of others."""

    steps: tuple[Step, ...] = ()
    files: frozenset[str] = frozenset()
    warnings: tuple[str, ...] = ()


def undoing(
    operation: Operation,
    view: DomainView,
    guest: Guest[UndoPort],
    keep: Container[str] = frozenset(),
    mine: Container[str] = frozenset(),
) -> Undoing:
    """How to remove what was made for a snapshot that no disk was switched for. What was the user's before stays his,
    and so do those to `keep`. What this very run made is `mine`: of the rest the journal alone says so, which a guest's
    tenant may have written. Raises `overlay_in_use` where the guest's newest data may be in one of them."""
    images, ours = guest.images, guest.ours(view)
    made = [disk.overlay for disk in unswitched(operation, view, guest) if not disk.reused and disk.overlay not in keep]
    why = {path: None if path in mine else ours.why_not(path, operation.disks) for path in made if images.exists(path)}
    words = {path: "remove the overlay %s, which nothing was written to" % path for path in why if why[path] is None}
    memory = operation.memory
    if memory is not None and _is_free_memory(memory, guest):
        why[memory] = ours.why_not_memory(memory)
        if why[memory] is None:
            words[memory] = "remove %s, the memory of a snapshot that was not taken" % memory
    steps = tuple(Step((text,), partial(images.remove, path)) for path, text in words.items())
    kept = tuple(kept_words(path, reason) for path, reason in why.items() if reason is not None)
    return Undoing((*steps, *ending(operation, (), "", guest)), frozenset(words), kept)


def ending(operation: Operation, paths: Iterable[str], words: str, guest: Guest[GuestPort]) -> tuple[Step, ...]:
    """The steps that end an operation with the removal of these files; `words` say of each what is removed."""
    steps = tuple(Step((words % path,), partial(guest.images.remove, path)) for path in paths)
    end = "remove operation %s from the journal" % operation.name
    return (*steps, Step((end,), partial(guest.drop, operation)))


def take_back(
    operation: Operation,
    made: Collection[str],
    guest: Guest[UndoPort],
    cause: VirtopsError,
    busy: bool = False,
) -> bool:
    """After a failure: remove what this run made where no disk was switched, else the journal stays with all of it.
    `busy`: libvirt may be about to switch them."""
    view = guest.domain.view()
    if all(found.id != operation.id for found in view.journal.operations):
        return True  # the undo of a later step did it
    there = [disk for disk in operation.disks if disk.overlay in made and guest.images.exists(disk.overlay)]
    kept = [disk for disk in there if busy or not is_unused(disk.overlay, view, guest.images)]
    if kept or busy:
        cause.partial = [{"disk": disk.target, "overlay": disk.overlay} for disk in kept]
        return False
    keep = {disk.overlay for disk in operation.disks} - set(made)
    for step in undoing(operation, view, guest, keep, made).steps:
        step.act()
    return True


def _settled(operation: Operation, guest: Guest[UndoPort], seconds: float) -> DomainView:
    """A reading of the domain once libvirt has done, or given up, what it was asked for."""
    until = guest.clock.monotonic() + seconds
    while guest.domain.has_job() or (operation.memory is not None and guest.images.holders(operation.memory)):
        if guest.clock.monotonic() >= until:
            raise VirtopsError(
                "libvirt_busy",
                "libvirt still works at the snapshot %r that an interrupted run asked for." % operation.name,
                "See 'virsh domjobinfo', and run the task again when that is over",
            )
        guest.clock.sleep(_POLL_SECONDS)
    return guest.observe()


def is_left_paused(operation: Operation, view: DomainView) -> bool:
    """libvirt pauses the guest while it saves the memory. Where it dies then, it resumes it when it is back, mostly."""
    return operation.memory is not None and view.state == "paused" and view.paused_by == SAVING


def _is_free_memory(path: str, guest: Guest[UndoPort]) -> bool:
    """Does no record of the domain name it, and is libvirt done with it?"""
    if guest.images.kind(path) != "file" or guest.images.holders(path):
        return False
    return all(record.memory_file != path for record in guest.domain.snapshots())
