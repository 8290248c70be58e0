# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the options of snapshot_metadata, and how they reach the flows."""

from __future__ import annotations

from .._core.model import Outcome
from .._core.snapshot_tree import CHILDREN
from .._service.metadata import delete_record
from .._service.records import Records, RecordWish
from .entry import DomainContext, run_domain_module
from .specs import ArgumentSpec

SPEC: ArgumentSpec = {
    "name": {"type": "str"},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    # With security_info it has the passwords of graphics; what a module is given is written to the host's log
    "xml": {"type": "str", "no_log": True},
    "current": {"type": "bool", "default": False},
    "description": {"type": "str"},
    "new_name": {"type": "str"},
    "clone": {"type": "bool", "default": False},
    "validate": {"type": "bool", "default": False},
    "children": {"type": "str", "choices": list(CHILDREN), "default": "keep"},
}


def main() -> None:
    run_domain_module(
        SPEC,
        _flow,
        changes=True,
        required_one_of=[("name", "xml")],
        mutually_exclusive=[("xml", "new_name")],
        required_if=[("state", "absent", ("name",)), ("clone", True, ("new_name",))],
    )


def _flow(context: DomainContext) -> Outcome:
    given = context.params
    if given["state"] == "absent":
        return delete_record(context.domain, context.images, given["name"], given["children"], context.check)
    wish = RecordWish(
        name=given["name"],
        text=given["xml"],
        **{name: given[name] for name in ("current", "description", "new_name", "clone", "validate")},
    )
    return Records(wish, context.domain).run(context.check)
