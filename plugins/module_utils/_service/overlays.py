# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: where an overlay may come, and when one of an interrupted snapshot may go."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, replace

from .._core.errors import VirtopsError
from .._core.images import needs_rewrite
from .._core.journal import Journal, Operation
from .._core.model import DomainView, ImageInfo, OtherImages
from .._core.ports import GuestPort, ImagePort
from .._core.snapshot import PlannedDisk
from .._core.text import command
from .guest import Guest
from .observe import FileSet, OtherFiles, every_image
from .ours import kept_words

#: Seconds that a process is given to close a layer. libvirt shows the new chain a moment before QEMU is told to drop
#: the layers that were merged.
CLOSE_SECONDS = 5.0


def require_place(disk: PlannedDisk, images: ImagePort, stale: Container[str] = frozenset()) -> None:
    """Refuse a folder that no overlay can be made in; `stale` are overlays that will be removed first."""
    require_folder(disk.overlay, "overlay of disk %s" % disk.target, "overlay_dir or disks", images)
    if images.exists(disk.overlay) and disk.overlay not in stale:
        raise VirtopsError(
            "overlay_exists",
            "The overlay %s for disk %s exists already." % (disk.overlay, disk.target),
            "Choose another snapshot name or file; remove that file only once you know that no domain uses it",
        )


def require_memory_place(path: str, view: DomainView, images: ImagePort, stale: Container[str] = frozenset()) -> None:
    """Refuse a file that the guest's memory cannot be saved to; `stale` are files that will be removed first."""
    folder = require_folder(path, "memory of domain %s" % view.name, "memory", images)
    if images.exists(path) and path not in stale:
        raise VirtopsError(
            "memory_exists",
            "The file %s for the memory of domain %s exists already." % (path, view.name),
            "Choose another; remove that file only once you know that no snapshot needs it",
        )
    free = images.free_bytes(folder)
    if free < view.memory_bytes:
        raise VirtopsError(
            "memory_space",
            "Domain %s has up to %d MiB of memory to save, and %s has %d MiB free."
            % (view.name, view.memory_bytes >> 20, folder, free >> 20),
            "Make space there, or choose another folder",
        )
    if images.others_write(folder):
        raise VirtopsError(
            "path_unsafe",
            "The memory of domain %s would be written to %s, which another user may write to: libvirt writes that file "
            "as root by its name, and the user may put a symlink there." % (view.name, folder),
            "Choose a folder that only root may write to, also all folders above it",
        )


def require_folder(path: str, what: str, options: str, images: ImagePort) -> str:
    """The folder that the file is to come into."""
    folder = os.path.dirname(path)
    if not images.is_directory(folder):
        raise VirtopsError(
            "no_directory",
            "The folder %s for the %s does not exist." % (folder, what),
            "Create it, or choose another with %s" % options,
        )
    if not images.is_writable(folder):
        raise VirtopsError(
            "not_writable",
            "The folder %s for the %s cannot be written to." % (folder, what),
            "Run the module with the rights to it (become), or choose another folder",
        )
    images.others_write(folder)  # it refuses a way there that another user may have made
    return folder


def require_reusable(disk: PlannedDisk, view: DomainView, others: OtherImages, images: ImagePort) -> None:
    """Refuse an existing file that the disk cannot go on in without losing or changing anything."""
    path, base = disk.overlay, disk.base
    kind = images.kind(path)
    if kind == "missing":
        raise VirtopsError(
            "overlay_missing",
            "The overlay %s for disk %s does not exist." % (path, disk.target),
            _create_it(disk),
        )
    if kind == "other":
        raise _unsuitable(disk, "it is neither a file nor a block device")
    _require_free(disk, view, others, images)
    why = _why_not_reusable(disk, _info(disk, images), images)
    if why is not None:
        raise _unsuitable(disk, why)
    if images.holds_data(path):
        raise VirtopsError(
            "overlay_not_empty",
            "The overlay %s for disk %s holds data of its own, which the guest would see." % (path, disk.target),
            "Create it anew on %s" % base.path,
        )


def _info(disk: PlannedDisk, images: ImagePort) -> ImageInfo:
    try:
        return images.info(disk.overlay, "qcow2")
    except VirtopsError as error:
        if error.code != "image_failed":
            raise
        raise _unsuitable(disk, "it is not a qcow2 image") from error


def _require_free(disk: PlannedDisk, view: DomainView, others: OtherImages, images: ImagePort) -> None:
    path = disk.overlay
    taken = path in own_files(view, images) or path in every_image(others, images)
    holders = images.holders(path)
    if not taken and not holders:
        return
    raise VirtopsError(
        "overlay_taken",
        "The overlay %s for disk %s is in use by %s."
        % (path, disk.target, "a domain" if taken else "process %d" % holders[0]),
        "Give a file of its own, which nothing uses",
    )


def _why_not_reusable(disk: PlannedDisk, info: ImageInfo, images: ImagePort) -> str | None:
    base = disk.base
    if info.encrypted:
        return "it is encrypted"
    if info.beside:
        return needs_rewrite(info)
    if info.corrupt:
        return "it is marked as corrupt"
    if info.backing_path is None:
        return "it has no backing file, but needs %s" % base.path
    if not _same_file(info.backing_path, base.path, images):
        return "its backing file is %s, not %s" % (info.backing_path, base.path)
    if info.backing_format != base.format:
        said = "does not say its backing file's format" if info.backing_format is None else ""
        return "it %s, which is %s" % (said or "says that its backing file is %s" % info.backing_format, base.format)
    if info.virtual_size < images.info(base.path, base.format).virtual_size:
        return "it is smaller than the disk"
    return None


def _same_file(one: str, other: str, images: ImagePort) -> bool:
    """A path may lead through a symlink, as those of logical volumes do."""
    return one in FileSet([other], images)


def _unsuitable(disk: PlannedDisk, why: str) -> VirtopsError:
    return VirtopsError(
        "overlay_unsuitable",
        "The file %s cannot be the overlay of disk %s: %s." % (disk.overlay, disk.target, why),
        _create_it(disk),
    )


def _create_it(disk: PlannedDisk) -> str:
    base = disk.base
    return "Create it (%s), or leave out reuse_external" % command(
        "qemu-img", "create", "-f", "qcow2", "-F", base.format, "-b", base.path, disk.overlay
    )


def is_unused(path: str, view: DomainView, images: ImagePort) -> bool:
    """Is it in no chain, open to nobody, and was nothing ever written to it?

    libvirtd or QEMU may have died after QEMU switched to it: then the guest's newest data are in an overlay that
    libvirt does not know.
    """
    if not images.exists(path) or images.holders(path):
        return False
    return path not in own_files(view, images) and not images.holds_data(path)


@dataclass(frozen=True)
class Kept:
    """A layer that was not deleted, and why. `for_now`: the next run may, so the journal has to know it until then.
    `claimed`: another domain has it, or may have it, and nobody holds it open."""

    path: str
    why: str
    for_now: bool = False
    claimed: bool = False


def remove_layer(path: str, view: DomainView, others: Callable[[], OtherFiles], guest: Guest[GuestPort]) -> Kept | None:
    """Delete a journalled layer where no chain of any domain has it and nobody holds it open; else say what keeps it.

    `others` are the images of the host's other domains.
    """
    images = guest.images
    if path in own_files(view, images):
        return Kept(path, "%s was kept: it is still in a chain of this domain." % path)
    claim = others().claims(path, view.journal.made_at(path))
    held = _lasting_holders(path, guest)
    if claim is not None and (not held or path in others()):
        return Kept(path, claim_words(path, claim), claimed=not held)
    if held:
        words = (
            "%s was kept: a process has it open (PID %s). Once that has ended, run the task again, which deletes it."
        )
        return Kept(path, words % (path, ", ".join(str(pid) for pid in held)), for_now=True)
    images.remove(path)
    return None


def claim_words(path: str, claim: str) -> str:
    return "%s was kept: %s." % (path, claim.rstrip("."))


def with_kept(journal: Journal, operation: Operation, kept: Iterable[Kept], images: ImagePort) -> Journal:
    """The journal that knows which overlays of the operation were merged and stay for another domain: as they are now
    they are nobody's newest data, and a later run deletes them."""
    claimed = {layer.path for layer in kept if layer.claimed and images.kind(layer.path) == "file"}
    return journal.with_merged(
        operation,
        (
            replace(disk, identity=images.identity(disk.overlay), pivoting=False)
            for disk in operation.disks
            if disk.overlay in claimed
        ),
    )


def kept_for_others(path: str, journal: Journal, images: ImagePort) -> bool:
    """Is it an overlay that was merged and kept, and that nobody wrote to since?"""
    then = journal.merged_as(path)
    return then is not None and images.kind(path) == "file" and images.identity(path) == then


#: What follows where an overlay was merged and is kept.
LATER = "All its data are merged; virtops.libvirt.recover, or the next live backup, deletes it once that is over."


def own_files(view: DomainView, images: ImagePort) -> FileSet:
    """What is in a chain of this domain, or would be after a start."""
    return FileSet([layer.path for disk in view.disks + view.config_disks for layer in disk.chain], images)


def unsure_words(path: str) -> str:
    """Of an overlay that may hold the only copy of data."""
    return (
        "The overlay %s was kept: the domain no longer uses it, but it is not known whether all its data were merged. "
        "Check this before you delete it (qemu-img compare shows the difference)." % path
    )


def _lasting_holders(path: str, guest: Guest[GuestPort]) -> tuple[int, ...]:
    """The processes that have it open, and do not close it within CLOSE_SECONDS."""
    deadline = guest.clock.monotonic() + CLOSE_SECONDS
    while True:
        held = guest.images.holders(path)
        if not held or guest.clock.monotonic() >= deadline:
            return held
        guest.clock.sleep(0.1)


def removable(operation: Operation, view: DomainView, guest: Guest[GuestPort]) -> tuple[list[str], tuple[str, ...]]:
    """The layers that a revert was going to remove: those that are still there, and that nobody took into use since.
    And the warnings of those that are no layers of ours."""
    used, own, images, ours = guest.others(), own_files(view, guest.images), guest.images, guest.ours(view)
    there = [disk.overlay for disk in operation.disks if disk.overlay not in own and images.exists(disk.overlay)]
    paths = [
        path for path in there if used.claims(path, view.journal.made_at(path)) is None and not images.holders(path)
    ]
    why = {path: ours.why_not(path, operation.disks) for path in paths}
    kept = tuple(kept_words(path, reason) for path, reason in why.items() if reason is not None)
    return [path for path in paths if why[path] is None], kept


def refuse_data(path: str, view: DomainView) -> VirtopsError:
    """The error for one that is not."""
    return VirtopsError(
        "overlay_in_use",
        "The overlay %s of an interrupted snapshot is in no chain of domain %s, yet the guest's newest data may be "
        "in it." % (path, view.name),
        "Do not start the domain from its present definition: see with 'qemu-img map' what is in the overlay, and who "
        "has it open, and put it back as the disk's source (virsh edit)",
    )
