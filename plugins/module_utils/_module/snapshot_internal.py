# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Private to virtops.libvirt: the options of snapshot_internal, and how they reach the flow."""

from __future__ import annotations

from .._core.errors import VirtopsError
from .._core.internal import InternalWish
from .._core.model import Outcome
from .._core.snapshot_tree import CHILDREN
from .._service.internal import InternalSnapshot
from .entry import DomainContext, run_domain_module
from .specs import ArgumentSpec

SPEC: ArgumentSpec = {
    "name": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "description": {"type": "str"},
    "halt": {"type": "bool", "default": False},
    "children": {"type": "str", "choices": list(CHILDREN), "default": "keep"},
}


def main() -> None:
    run_domain_module(SPEC, _flow, changes=True)


def _flow(context: DomainContext) -> Outcome:
    given = context.params
    flow = InternalSnapshot(context.domain, context.images, context.clock)
    if given["state"] == "absent":
        if given["halt"]:
            raise VirtopsError(
                "bad_option", "halt goes with state: present.", "Leave it out, or shut the domain off before"
            )
        return flow.absent(given["name"], given["children"], context.check)
    return flow.present(InternalWish(given["name"], given["description"], given["halt"]), context.check)
