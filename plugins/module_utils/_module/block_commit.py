# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the options of block_commit, and how they reach the flow."""

from __future__ import annotations

from .._core.model import Outcome
from .._service.merge import Merge
from .._service.merge_plan import MergeWish
from .entry import DomainContext, run_domain_module
from .specs import DEADLINE, MERGE, ArgumentSpec, deadline, merged

OPTIONS: ArgumentSpec = merged(
    MERGE,
    {
        "snapshot": {"type": "str"},
        "base": {"type": "path"},
        "top": {"type": "path"},
        "pivot": {"type": "bool", "default": True},
    },
)
SPEC: ArgumentSpec = merged(OPTIONS, DEADLINE)


def main() -> None:
    run_domain_module(
        SPEC,
        _flow,
        changes=True,
        required_one_of=[("snapshot", "base")],
        mutually_exclusive=[("snapshot", "base"), ("snapshot", "top")],
        required_by={"top": "base"},
    )


def _flow(context: DomainContext) -> Outcome:
    given = {name: context.params[name] for name in OPTIONS if name != "timeout"}
    wish = MergeWish(**{**given, "disks": tuple(given["disks"])}, deadline=deadline(context.params))
    return merge(context, wish)


def merge(context: DomainContext, wish: MergeWish) -> Outcome:
    """The merge flow, for this and the other modules that merge."""
    return Merge(wish, context.domain, context.images, context.clock, context.watchdog).run(context.check)
