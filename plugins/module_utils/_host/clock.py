# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the real time."""

from __future__ import annotations

import time

from .._core.journal import stamp_of
from .boottime import boot_id


class SystemClock:
    """Implements `_core.ports.Clock`."""

    def utcnow(self) -> str:
        """As 20261120T120000Z."""
        return stamp_of(time.time())

    def boot(self) -> str:
        """A UUID."""
        return boot_id()

    def monotonic(self) -> float:
        """Seconds, by clock_gettime(2) CLOCK_MONOTONIC."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Negative is none at all."""
        time.sleep(max(0.0, seconds))
