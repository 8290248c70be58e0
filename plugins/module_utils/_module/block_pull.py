# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the options of block_pull, and how they reach the flow."""

from __future__ import annotations

from .._core.convergence import Deadline
from .._core.model import Outcome
from .._service.merge_plan import MergeWish
from .block_commit import merge
from .entry import DomainContext, run_domain_module
from .specs import MERGE, ArgumentSpec, merged

SPEC: ArgumentSpec = merged(MERGE, {"base": {"type": "path"}})


def main() -> None:
    run_domain_module(SPEC, _flow, changes=True)


def _flow(context: DomainContext) -> Outcome:
    given = {name: context.params[name] for name in SPEC if name != "timeout"}
    limit = Deadline(timeout=context.params["timeout"])
    return merge(context, MergeWish(**{**given, "disks": tuple(given["disks"])}, deadline=limit, pull=True))
