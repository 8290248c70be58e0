# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""The attributes that modules have in common."""

from __future__ import annotations


class ModuleDocFragment:
    # What every module has
    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Runs in check mode and tells what it would change, without changing anything.
    support: full
  diff_mode:
    description: Returns in diff mode what changes, or in check mode what would change.
  idempotent:
    description:
      - Run again with the same options, it changes nothing.
      - This assumes that nothing else changed the domain in between.
    support: full
  platform:
    description: The target systems that it works on.
    support: full
    platforms: linux
"""

    # Modules that change something
    CHANGES = r"""
options: {}
attributes:
  diff_mode:
    support: full
"""

    # Modules that only read
    INFO = r"""
options: {}
attributes:
  check_mode:
    support: full
    details:
      - This module changes nothing.
  diff_mode:
    support: N/A
    details:
      - This module changes nothing.
"""

    ACTIONGROUP_ALL = r"""
options: {}
attributes:
  action_group:
    description: Use C(group/virtops.libvirt.all) in C(module_defaults) to set defaults, as of O(uri), for all modules.
    support: full
    membership:
      - virtops.libvirt.all
"""
