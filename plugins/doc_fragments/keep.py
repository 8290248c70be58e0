# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: documentation of the options that say what a prune keeps."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  keep_last:
    description:
      - How many of the newest stay. V(0) means that this option is not given.
      - The keep options mean what those of Proxmox Backup Server mean. They count one after the other, from
        O(keep_last) over O(keep_hourly), O(keep_daily), O(keep_weekly) and O(keep_monthly) to O(keep_yearly). Each
        walks from the newest to the oldest, and keeps the newest one of each of its periods, up to its number of
        periods.
      - A period without a backup does not count. A period of which an earlier option keeps one does not count either.
        What an option covers, a later one does not look at. So the options add up.
      - Hours, days, weeks, months and years are those of UTC. (Proxmox Backup Server uses local time.)
      - Without any keep option, nothing is removed.
    type: int
    default: 0
  keep_hourly:
    description: For how many hours the newest of the hour stays. V(0) means that this option is not given.
    type: int
    default: 0
  keep_daily:
    description: For how many days the newest of the day stays. V(0) means that this option is not given.
    type: int
    default: 0
  keep_weekly:
    description:
      - For how many weeks the newest of the week stays. V(0) means that this option is not given.
      - Weeks are those of ISO 8601. They begin on Monday.
    type: int
    default: 0
  keep_monthly:
    description: For how many months the newest of the month stays. V(0) means that this option is not given.
    type: int
    default: 0
  keep_yearly:
    description: For how many years the newest of the year stays. V(0) means that this option is not given.
    type: int
    default: 0
  min_age:
    description:
      - Nothing that is younger than this number of seconds is removed, whatever the keep options say. V(0) sets no
        limit.
      - It makes nothing older go. What it holds back counts for the keep options as if it did not.
    type: int
    default: 0
"""
