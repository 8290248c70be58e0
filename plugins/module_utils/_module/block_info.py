# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the options of block_info, and how they reach the flow."""

from __future__ import annotations

from .._core.model import Outcome
from .._service import info
from .entry import DomainContext, run_domain_module
from .specs import ArgumentSpec

SPEC: ArgumentSpec = {"disks": {"type": "list", "elements": "str", "default": []}}


def main() -> None:
    run_domain_module(SPEC, _flow, changes=False)


def _flow(context: DomainContext) -> Outcome:
    return info.block(context.domain, context.images, context.params["disks"])
