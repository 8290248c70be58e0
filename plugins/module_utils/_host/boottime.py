# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: when this host was booted."""

from __future__ import annotations

import os
import time

from .._core.journal import stamp_of


def booted_at() -> str:
    """The UTC time of the start of PID 1, as 20261120T120000Z.

    By the clock of now: where that was set after the boot, by what it was set.
    """
    with open("/proc/1/stat", "rb") as file:
        ticks = int(file.read().rpartition(b")")[2].split()[19])
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return stamp_of(time.time() - age)


def boot_id() -> str:
    """Another one after each boot, whatever the clock says. A namespace may have put its own there."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
