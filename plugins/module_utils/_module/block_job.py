# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the options of block_job, and how they reach the flow."""

from __future__ import annotations

from .._core.model import Outcome
from .._service.job import JobControl, JobWish
from .entry import DomainContext, run_domain_module
from .specs import DEADLINE, ArgumentSpec, deadline, merged

OPTIONS: ArgumentSpec = {
    "disk": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "pivoted", "cancelled"], "default": "present"},
    "bandwidth": {"type": "int"},
    "timeout": {"type": "int", "default": 3600},
    "delete_merged": {"type": "bool", "default": False},
}
SPEC: ArgumentSpec = merged(OPTIONS, DEADLINE)


def main() -> None:
    run_domain_module(SPEC, _flow, changes=True)


def _flow(context: DomainContext) -> Outcome:
    given = {name: context.params[name] for name in OPTIONS if name != "timeout"}
    wish = JobWish(**given, deadline=deadline(context.params))
    return JobControl(wish, context.domain, context.images, context.clock, context.watchdog).run(context.check)
