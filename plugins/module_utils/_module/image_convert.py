# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Private to virtops.libvirt: the options of image_convert, and how they reach the flow."""

from __future__ import annotations

from .._core.convert import ConvertWish
from .._core.model import Outcome
from .._service.convert import Convert
from .entry import DomainContext, run_domain_module
from .specs import ArgumentSpec

SPEC: ArgumentSpec = {
    "disks": {"type": "list", "elements": "str"},
    "dest_dir": {"type": "path"},
    "delete_source": {"type": "bool", "default": False},
}


def main() -> None:
    run_domain_module(SPEC, _flow, changes=True)


def _flow(context: DomainContext) -> Outcome:
    given = context.params
    disks = None if given["disks"] is None else tuple(given["disks"])
    wish = ConvertWish(disks, given["dest_dir"], given["delete_source"])
    return Convert(wish, context.domain, context.images, context.clock).run(context.check)
