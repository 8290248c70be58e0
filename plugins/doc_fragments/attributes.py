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
    description: In check mode it returns what it would change, and changes nothing.
    support: full
  diff_mode:
    description: In diff mode it returns what changes, or in check mode what would change.
  idempotent:
    description:
      - A second run with the same options changes nothing.
      - This is so if nothing else changed the domain in between.
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
    description:
      - Use C(group/virtops.libvirt.all) in C(module_defaults) to set defaults for all modules, for example of O(uri).
    support: full
    membership:
      - virtops.libvirt.all
"""
