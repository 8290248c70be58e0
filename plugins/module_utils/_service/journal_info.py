# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: what journal_info tells. Apart from the other read-only modules, which need not load what
a recovery needs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from .._core.convergence import Deadline
from .._core.errors import VirtopsError
from .._core.journal import CREATED, KEPT, RESERVED, JournalDisk, Operation
from .._core.model import DomainView, Outcome
from .._core.ports import DeletePort, ImagePort
from .._core.snapshot import is_in_chain
from .block_jobs import describe_job
from .guest import Guest
from .info import describe_operation
from .recover import RecoverOptions, Recovery
from .restore_end import RestoreEnd
from .strays import lost_operations


def journal(guest: Guest[DeletePort], restores: RestoreEnd | None = None) -> Outcome:
    """The operations as guests_info tells them, where their disks really stand, and how the open ones end."""
    view, images = guest.observe(), guest.images
    journalled = view.journal
    lost = lost_operations(view, journalled, guest.domain.snapshots)
    operations = (*journalled.operations, *lost)
    recovery = _recovery(guest, restores) if any(operation.open for operation in operations) else ""
    told = [
        {
            **describe_operation(operation, noted=operation not in lost),
            "memory": operation.memory,
            "disks": [
                {**disk, **_standing(noted, view, images)}
                for disk, noted in zip(describe_operation(operation)["disks"], operation.disks)
            ],
            "recovery": " ".join((recovery, _play(operation))).strip() if operation.open else None,
        }
        for operation in operations
    ]
    return Outcome(values={"operations": told})


def _standing(noted: JournalDisk, view: DomainView, images: ImagePort) -> dict[str, Any]:
    """What the chain, the job and the files say. `base_unchanged` is None where nobody wrote down what it was."""
    disk = view.disk(noted.target)
    job = None if disk is None else disk.job
    return {
        "identity": None if noted.identity is None else asdict(noted.identity),
        "in_chain": is_in_chain(view, noted.target, noted.overlay),
        "overlay_exists": images.exists(noted.overlay),
        "base_unchanged": _unchanged(noted, images),
        "job": describe_job(job),
    }


def _unchanged(noted: JournalDisk, images: ImagePort) -> bool | None:
    if noted.identity is None:
        return None
    return images.exists(noted.base) and images.identity(noted.base) == noted.identity


def _recovery(guest: Guest[DeletePort], restores: RestoreEnd | None) -> str:
    """What virtops.libvirt.recover would do: its own plan, so that the words cannot differ from the deed."""
    options = RecoverOptions(deadline=Deadline(timeout=0))  # who only looks waits for no job of libvirt's
    try:
        outcome = Recovery(options, guest, restores=restores).run(check=True)
    except VirtopsError as error:
        if error.code in ("connection_lost", "no_such_domain"):
            raise
        return "virtops.libvirt.recover would refuse: %s" % error
    words = "virtops.libvirt.recover would: %s." % "; ".join(outcome.steps)
    return " ".join((words, *outcome.warnings))  # as of a file that is not ours, and stays


def _play(operation: Operation) -> str:
    """A module alone has no dest to finish a backup to."""
    if operation.kind in (KEPT, *RESERVED) or operation.phase != CREATED:
        return ""
    return "The play that began it (%s) finishes its backup first, if its bases are unchanged." % operation.kind
