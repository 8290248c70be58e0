# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""The options of the modules that read backup sets."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  rate_limit:
    description: The highest speed at which each file is read, in MiB/s. V(0) is no limit.
    type: int
    default: 0
  parallel:
    description: How many files of a set are read at the same time. This counts the copies of running backups, too.
    type: int
    default: 4
  stall_timeout:
    description:
      - After how many seconds without any progress the module gives up, because the storage of O(dest) does not answer.
        It then fails with C(copy_stalled).
    type: int
    default: 300
"""
