# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the options of snapshot_metadata, and how they reach the flow."""

from __future__ import annotations

from .._core.model import Outcome
from .._service.metadata import CHILDREN, delete_record
from .entry import DomainContext, run_domain_module
from .specs import ArgumentSpec

SPEC: ArgumentSpec = {
    "name": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["absent"], "required": True},
    "children": {"type": "str", "choices": list(CHILDREN), "default": "keep"},
}


def main() -> None:
    run_domain_module(SPEC, _flow, changes=True)


def _flow(context: DomainContext) -> Outcome:
    params = context.params
    return delete_record(context.domain, context.images, params["name"], params["children"], context.check)
