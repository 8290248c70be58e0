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

    CHOICE = r"""
options:
  dest:
    description: The directory that backups are made in, as O(virtops.libvirt.live_backup#module:dest).
    type: path
  path:
    description: The one set that is meant, instead of those in O(dest).
    type: path
  domain:
    description: Only the sets of this domain, by its name or UUID. The domain need not exist.
    type: str
  guests:
    description:
      - Only the sets of domains that one of these patterns matches. A pattern is a domain's name with C(*), C(?) and
        C([...]) as in a shell, or a UUID.
    type: list
    elements: str
    default: ['*']
  exclude:
    description: The patterns of domains whose sets are left out.
    type: list
    elements: str
    default: []
  sets:
    description: Only the sets of these names, for example V(20261120T120000Z). Each must be there.
    type: list
    elements: str
    default: []
"""
