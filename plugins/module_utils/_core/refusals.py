# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the refusals that several flows give in the same words."""

from __future__ import annotations

import os

from .errors import VirtopsError
from .journal import RESERVED, Journal, Operation
from .model import CRASHED, Disk, DomainView
from .ports import Progress
from .text import command


def operation_open(domain: str, operation: Operation, lost: bool = False) -> VirtopsError:
    """The refusal that every module gives while another operation is under way. `lost`: its journal is gone."""
    return VirtopsError(
        "operation_open",
        "Operation %r (%s, begun %s) is still open on domain %s in phase %s%s."
        % (
            operation.name,
            operation.kind,
            operation.started,
            domain,
            operation.phase,
            "; its layers or its record are there, and its journal is gone" if lost else "",
        ),
        "Run the play that began it again, which finishes it"
        if operation.kind in RESERVED
        else "Run the play that began it again, or merge its layers with virtops.libvirt.block_commit, snapshot: %r "
        "and delete_merged: true" % operation.name,
    )


def require_read(view: DomainView) -> None:
    """Nothing may be done to a domain of which nothing is known."""
    if view.unread:
        raise definition_unread(view.name, view.uuid, view.unread)


def definition_unread(name: str, uuid: str, why: str) -> VirtopsError:
    """By its UUID: what makes its definition unreadable is most often a name that nobody can type."""
    return VirtopsError(
        "invalid_xml",
        "%s." % unread_words(name, why),
        "Look at it (%s). If a control character in its name is the cause, shut it off and give it another name (%s)"
        % (command("virsh", "dumpxml", uuid), command("virsh", "domrename", uuid, "NEW")),
    )


def unread_words(name: str, why: str) -> str:
    return "The definition of domain %s cannot be read: %s" % (name, why)


def guest_crashed(view: DomainView) -> VirtopsError:
    """It cannot be asked for anything any more, also not to shut down."""
    return VirtopsError(
        "guest_crashed",
        "Domain %s has crashed, and its QEMU is kept (on_crash)." % view.name,
        "End it (%s), which loses no more than a power loss would, then run the task again"
        % command("virsh", "destroy", view.name),
    )


def guest_paused(view: DomainView) -> VirtopsError:
    """Nothing in a guest whose CPUs stand still can freeze."""
    if view.state == CRASHED:
        return guest_crashed(view)
    return VirtopsError(
        "guest_paused",
        "Domain %s is %s, so its agent cannot freeze the file systems." % (view.name, view.state),
        "Resume it, or ask for quiesce: preferred or never",
    )


def refuse_open(view: DomainView, journal: Journal, own: str | None = None) -> None:
    """An operation that is under way has the disks and the records in motion; `own` is the ID of one to go on with."""
    stuck = next((operation for operation in journal.operations if operation.open and operation.id != own), None)
    if stuck is not None:
        raise operation_open(view.name, stuck)


def refuse_away(view: DomainView, remedy: str | None = None) -> None:
    """A guest that is off here, and goes on all the same: its images may not be merged or deleted, and no layer may
    come above them. One whose memory is saved goes on on the images that it was saved with, whatever its definition
    names by then; one that moved does so at another host."""
    if view.moved and not view.active:
        raise guest_moved(view, "was migrated to another host")
    if view.saved and not view.active:
        raise VirtopsError(
            "memory_saved",
            "The memory of domain %s is saved (virsh managedsave), and fits only the images that it was "
            "saved with." % view.name,
            remedy or "Start it (%s), then run the task or the play again" % command("virsh", "start", view.name),
        )


def guest_moved(view: DomainView, why: str) -> VirtopsError:
    """Its journal went with it: the host that it is at now is to go on."""
    return VirtopsError(
        "guest_moved",
        "Domain %s %s, so its definition on this host is old." % (view.name, why),
        "Run this on the host where the guest is now. If it will not come back, remove its definition here (%s), but "
        "no image" % command("virsh", "undefine", view.name),
    )


def refuse_jobs(view: DomainView) -> None:
    """A block job and a change of the layers, or of what is inside of them, do not go together."""
    for disk in view.disks:
        if disk.job is not None:
            raise VirtopsError(
                "job_running",
                "A block job (%s) is running on disk %s of domain %s." % (disk.job.kind, disk.target, view.name),
                "Wait for its end, or end it with 'virsh blockjob'",
            )


def image_shared(
    path: str,
    target: str,
    remedy: str = "Take it out of that domain's definition, or give that one an image of its own",
) -> VirtopsError:
    """What another domain stands on is not ours to change."""
    return VirtopsError(
        "base_shared", "The image %s of disk %s also belongs to another domain of this host." % (path, target), remedy
    )


def marked_words(disk: Disk) -> str:
    """Of a disk whose definition speaks against this snapshot."""
    return "its definition says snapshot='%s'" % disk.snapshot


def why_no_image(disk: Disk) -> str:
    """Of a disk that is no empty drive, and has no image on this host."""
    if disk.volume is not None:
        return (
            "its volume %s has no path on this host, as the storage pool is not active, has no such volume, or is on "
            "the network" % disk.volume
        )
    return "its source is of type %s, which is not an image on this host" % disk.source_type


def require_disk(view: DomainView, target: str) -> Disk:
    """The disk that the user named, or the refusal that every module gives."""
    disk = view.disk(target)
    if disk is None:
        raise VirtopsError(
            "no_such_disk",
            "Domain %s has no disk %s." % (view.name, target),
            "Name one of: %s" % (", ".join(found.target for found in view.disks) or "it has no disks"),
        )
    return disk


def checked_path(path: str) -> str:
    """An absolute path without '..': libvirt and QEMU resolve relative ones against other folders."""
    if not os.path.isabs(path) or ".." in path.split("/"):
        raise VirtopsError(
            "bad_path",
            "The path %r is not absolute, or has '..' in it." % path,
            "Give the full path from /, without '..'",
        )
    return path


def require_going(progress: Progress, what: str = "backup") -> None:
    """A safe point of a job: nothing is lost by an end here, as what was begun is merged or removed."""
    if progress.is_stopping():
        raise VirtopsError(
            "stopped",
            "The %s was told to stop before it was complete" % what,
            "Run the same task again to complete it",
        )
