# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the flows that more than one module runs, joined with their adapters."""

from __future__ import annotations

from .._core.backup import BackupOptions
from .._core.model import Outcome
from .._host.helper import backup_target
from .._host.restore import Places
from .._host.store import BackupStore
from .._service.backup import Backup
from .._service.restore_end import RestoreEnd
from .entry import DomainContext


def back_up(context: DomainContext, options: BackupOptions) -> Outcome:
    """Copy the bases of a snapshot, for image_backup and recover."""
    with backup_target(options.stall_timeout) as (store, copier):
        tools = context.domain, context.images, store, copier, context.clock, context.progress
        return Backup(options, *tools).run(context.check)


def restore_end(context: DomainContext) -> RestoreEnd:
    """The end of an interrupted restore of this domain, for recover and journal_info."""
    return RestoreEnd(context.domain, context.images, Places(), BackupStore().tpm_root())
