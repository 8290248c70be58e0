# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the options of preflight_info, and how they reach the flow."""

from __future__ import annotations

from .._core.backup import BackupWish
from .._core.model import Outcome
from .._core.preflight_facts import Limits, parse_reserve
from .._core.snapshot import DiskWish, SnapshotWish
from .._host.apparmor import rules
from .._host.images import Images
from .._host.store import BackupStore
from .._service.preflight import Preflight, PreflightWish
from . import guests_info, snapshot_external
from .entry import HostContext, run_host_module
from .specs import BACKUP, ArgumentSpec, merged

_SNAPSHOT = {name: snapshot_external.SPEC[name] for name in ("disks", "overlay_dir", "freeze_timeout")}
_GUESTS = {name: guests_info.SPEC[name] for name in ("guests", "exclude")}
SPEC: ArgumentSpec = merged(
    _GUESTS,
    BACKUP,
    _SNAPSHOT,
    {
        "states": {**guests_info.SPEC["states"], "default": ["running"]},
        "quiesce": {**snapshot_external.SPEC["quiesce"], "default": "preferred"},
        "operation": {"type": "str", "default": "live_backup"},
        "max_chain": {"type": "int", "default": 25},
        "overlay_reserve": {"type": "str", "default": "5%"},
    },
)


def main() -> None:
    run_host_module(SPEC, _flow)


def _flow(context: HostContext) -> Outcome:
    given = context.params
    wish = PreflightWish(
        backup=BackupWish(**{name: given[name] for name in BACKUP}),
        snapshot=SnapshotWish(
            # Overlays are named after it, and no such file is there: each is looked for before it is made.
            name="preflight",
            disks=tuple(DiskWish(disk["name"], disk["snapshot"], disk["file"]) for disk in given["disks"]),
            overlay_dir=given["overlay_dir"],
            freeze_timeout=given["freeze_timeout"],
            kind=given["operation"],
        ),
        limits=Limits(
            given["max_chain"], parse_reserve(given["overlay_reserve"]), given["quiesce"], given["operation"]
        ),
        guests=tuple(given["guests"]),
        exclude=tuple(given["exclude"]),
        states=tuple(given["states"]),
    )
    return Preflight(wish, context.host, Images(), BackupStore(), rules).run()
