# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Private to virtops.libvirt: the options of snapshot_revert, and how they reach the flow."""

from __future__ import annotations

from .._core.model import Outcome
from .._core.revert import RUN_STATES, RevertWish
from .._service.revert import Revert
from .entry import DomainContext, run_domain_module
from .specs import ArgumentSpec

SPEC: ArgumentSpec = {
    "name": {"type": "str"},
    "current": {"type": "bool", "default": False},
    "run_state": {"type": "str", "choices": list(RUN_STATES), "default": "snapshot"},
    "force": {"type": "bool", "default": False},
    "reset_nvram": {"type": "bool", "default": False},
}


def main() -> None:
    run_domain_module(
        SPEC,
        _flow,
        changes=True,
        mutually_exclusive=[("name", "current")],
        required_if=[("current", False, ("name",))],
    )


def _flow(context: DomainContext) -> Outcome:
    given = context.params
    wish = RevertWish(
        **{name: given[name] for name in ("name", "run_state", "force", "reset_nvram")},
    )
    return Revert(wish, context.domain, context.images, context.clock).run(context.check)
