# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the options of recover, and how they reach the flow."""

from __future__ import annotations

from .._core.backup import BackupWish
from .._core.model import Outcome
from .._host.reaper import Reaper
from .._service.recover import RecoverWish, Recovery
from .entry import DomainContext, run_domain_module
from .image_backup import back_up
from .specs import BACKUP, COPY, DEADLINE, ArgumentSpec, deadline, merged

SPEC: ArgumentSpec = {
    "operations": {"type": "list", "elements": "str", "default": []},
    "backup": {"type": "dict", "options": merged(BACKUP, COPY)},
    "timeout": {"type": "int", "default": 3600},
    **DEADLINE,
}


def main() -> None:
    run_domain_module(SPEC, _flow, changes=True)


def _flow(context: DomainContext) -> Outcome:
    wish = RecoverWish(tuple(context.params["operations"]), deadline(context.params))
    given = context.params["backup"]

    def finish(snapshot: str) -> Outcome:
        wish = BackupWish(snapshot=snapshot, keep_free=context.params["keep_free"], **given)
        return back_up(context, wish)

    backup = None if given is None else finish
    tools = context.domain, context.images, context.clock, context.watchdog
    return Recovery(wish, *tools, backup, Reaper(context.clock)).run(context.check)
