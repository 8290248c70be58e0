# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the options of guests_info, and how they reach the flow."""

from __future__ import annotations

from .._core.model import Outcome
from .._core.strays import is_stray_name
from .._host.images import Images
from .._service import info
from .entry import HostContext, run_host_module
from .specs import ArgumentSpec

STATES = ["running", "idle", "paused", "in shutdown", "shut off", "crashed", "pmsuspended"]
SPEC: ArgumentSpec = {
    "guests": {"type": "list", "elements": "str", "default": ["*"]},
    "exclude": {"type": "list", "elements": "str", "default": []},
    "states": {"type": "list", "elements": "str", "choices": STATES, "default": []},
}


def main() -> None:
    run_host_module(SPEC, _flow)


def _flow(context: HostContext) -> Outcome:
    params = context.params
    return info.guests(
        context.host.domains(),
        params["guests"],
        params["exclude"],
        params["states"],
        lambda uuid: context.host.records(uuid, is_stray_name),
        Images(),
    )
