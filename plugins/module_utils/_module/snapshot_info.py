# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the options of snapshot_info, and how they reach the flow."""

from __future__ import annotations

from .._core.model import Outcome
from .._core.snapshot_tree import Filters
from .._service.snapshot_info import SnapshotInfoWish, snapshots
from .entry import DomainContext, run_domain_module
from .specs import ArgumentSpec

FLAGS = (
    *("current", "roots", "leaves", "has_children", "active", "inactive", "disk_only", "internal", "external"),
    "descendants",
)
SPEC: ArgumentSpec = {
    "name": {"type": "str"},
    "from": {"type": "str"},
    "metadata": {"type": "bool"},
    **{name: {"type": "bool", "default": False} for name in (*FLAGS, "xml", "security_info")},
}


def main() -> None:
    run_domain_module(
        SPEC,
        _flow,
        changes=False,
        needs_secrets=lambda params: bool(params["security_info"]),
        mutually_exclusive=[("name", "current", "from")],
    )


def _flow(context: DomainContext) -> Outcome:
    given = context.params
    filters = Filters(
        name=given["name"],
        metadata=given["metadata"],
        start=given["from"],
        **{name: given[name] for name in FLAGS},
    )
    wish = SnapshotInfoWish(filters, given["xml"] or given["security_info"], given["security_info"])
    return snapshots(wish, context.domain)
