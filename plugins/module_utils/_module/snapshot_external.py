# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the options of snapshot_external, and how they reach the flows."""

from __future__ import annotations

from functools import partial

from .._core.backup import BackupWish, Source
from .._core.convergence import Deadline
from .._core.errors import VirtopsError
from .._core.journal import KEPT, RESERVED
from .._core.model import DomainView, Outcome
from .._core.snapshot import FREEZE_SECONDS, DiskWish, SnapshotPlan, SnapshotWish
from .._core.snapshot_tree import CHILDREN
from .._host.store import BackupStore
from .._service.backup import refuse_early
from .._service.snapshot import ExternalSnapshot
from .._service.snapshot_delete import SnapshotDeletion
from .entry import DomainContext, run_domain_module
from .specs import BACKUP, ArgumentSpec

SPEC: ArgumentSpec = {
    "name": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "description": {"type": "str"},
    "disks": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "snapshot": {"type": "str", "choices": ["external", "no"], "default": "external"},
            "file": {"type": "path"},
            "format": {"type": "str", "choices": ["qcow2"], "default": "qcow2"},
        },
    },
    "overlay_dir": {"type": "path"},
    "reuse_external": {"type": "bool", "default": False},
    "memory": {"type": "path"},
    "live": {"type": "bool", "default": False},
    "halt": {"type": "bool", "default": False},
    "quiesce": {"type": "str", "choices": ["required", "preferred", "never"], "default": "never"},
    "freeze_timeout": {"type": "int", "default": FREEZE_SECONDS},
    "metadata": {"type": "bool", "default": True},
    "operation": {"type": "str", "default": KEPT},
    "backup": {
        "type": "dict",
        "options": {name: BACKUP[name] for name in ("dest", "format", "compress", "method", "keep_backing")},
    },
    "timeout": {"type": "int", "default": 3600},
    "children": {"type": "str", "choices": list(CHILDREN), "default": "keep"},
}


def main() -> None:
    run_domain_module(SPEC, _flow, changes=True)


def _flow(context: DomainContext) -> Outcome:
    return _absent(context) if context.params["state"] == "absent" else _present(context)


def _present(context: DomainContext) -> Outcome:
    given = context.params
    if given["operation"] in RESERVED:
        raise VirtopsError(
            "bad_option",
            "The operation's name %r is the journal's own word." % given["operation"],
            "Give the workflow another name",
        )
    wish = SnapshotWish(
        name=given["name"],
        description=given["description"],
        disks=tuple(DiskWish(disk["name"], disk["snapshot"], disk["file"]) for disk in given["disks"]),
        overlay_dir=given["overlay_dir"],
        quiesce=given["quiesce"],
        freeze_timeout=given["freeze_timeout"],
        metadata=given["metadata"],
        kind=given["operation"],
        memory=given["memory"],
        live=given["live"],
        halt=given["halt"],
        reuse=given["reuse_external"],
        timeout=given["timeout"],
    )
    flow = ExternalSnapshot(
        wish, context.domain, context.images, context.watchdog, context.clock, partial(_refuse_backup, context)
    )
    return flow.run(context.check)


def _refuse_backup(context: DomainContext, view: DomainView, plan: SnapshotPlan) -> None:
    """With the option backup: what image_backup would refuse after the snapshot is refused before it."""
    given = context.params["backup"]
    if given is not None:
        bases = tuple(Source(disk.target, disk.base, disk.overlay) for disk in plan.disks)
        refuse_early(BackupWish(**given), view, bases, context.images, BackupStore())


def _absent(context: DomainContext) -> Outcome:
    """A snapshot is given up by merging what it added: the guest keeps all its data."""
    given = context.params
    return SnapshotDeletion(
        given["name"],
        given["children"],
        Deadline(timeout=given["timeout"]),
        context.domain,
        context.images,
        context.clock,
        context.watchdog,
    ).run(context.check)
