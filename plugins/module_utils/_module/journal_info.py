# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: journal_info, and how it reaches the flow."""

from __future__ import annotations

from .._core.model import Outcome
from .._service.journal_info import journal
from .entry import DomainContext, run_domain_module


def main() -> None:
    run_domain_module({}, _flow, changes=False)


def _flow(context: DomainContext) -> Outcome:
    return journal(context.domain, context.images, context.clock, context.watchdog)
