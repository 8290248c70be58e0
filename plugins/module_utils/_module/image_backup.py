# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the options of image_backup, and how they reach the flow."""

from __future__ import annotations

from .._core.backup import BackupWish
from .._core.errors import VirtopsError
from .._core.model import Outcome
from .._host.copy import ImageCopier
from .._host.store import BackupStore
from .._service.backup import Backup
from .entry import DomainContext, run_domain_module
from .specs import BACKUP, COPY, KEEP_FREE, ArgumentSpec, merged

SPEC: ArgumentSpec = merged(
    BACKUP,
    COPY,
    KEEP_FREE,
    {"snapshot": {"type": "str"}, "overlays": {"type": "list", "elements": "path"}},
)


def main() -> None:
    run_domain_module(
        SPEC,
        _flow,
        changes=True,
        required_one_of=[("snapshot", "overlays")],
        mutually_exclusive=[("snapshot", "overlays")],
    )


def _flow(context: DomainContext) -> Outcome:
    wish = BackupWish(**{**{name: context.params[name] for name in SPEC}, "overlays": _overlays(context)})
    return back_up(context, wish)


def back_up(context: DomainContext, wish: BackupWish) -> Outcome:
    """The backup flow, for this module and for recover."""
    store, copier = BackupStore(), ImageCopier(context.clock)
    return Backup(wish, context.domain, context.images, store, copier, context.clock).run(context.check)


def _overlays(context: DomainContext) -> tuple[str, ...]:
    """An empty list would be a backup of nothing that succeeds."""
    overlays = tuple(context.params["overlays"] or ())
    if not overlays and not context.params["snapshot"]:
        raise VirtopsError("bad_option", "Neither snapshot nor overlays names anything", "Give one of them")
    return overlays
