# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the flows that more than one module runs, joined with their adapters."""

from __future__ import annotations

from .._core.backup import BackupWish
from .._core.model import Outcome
from .._host.helper import backup_target
from .._service.backup import Backup
from .._service.merge import Merge
from .._service.merge_plan import MergeWish
from .entry import DomainContext


def merge(context: DomainContext, wish: MergeWish) -> Outcome:
    """Merge, for block_commit and block_pull."""
    context.progress.phase("merge")
    return Merge(wish, context.guest).run(context.check)


def back_up(context: DomainContext, wish: BackupWish) -> Outcome:
    """Copy the bases of a snapshot, for image_backup and recover."""
    with backup_target(wish.stall_timeout) as (store, copier):
        tools = context.domain, context.images, store, copier, context.clock, context.progress
        return Backup(wish, *tools).run(context.check)
