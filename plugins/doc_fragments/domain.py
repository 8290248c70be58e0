# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""The options of every module that works on one domain, and of those that change it."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  domain:
    description:
      - The name or the UUID of the domain. A UUID is looked for first, as C(virsh) does.
    type: str
    required: true
"""

    LOCK = r"""
options:
  lock_timeout:
    description:
      - For how many seconds to wait while another task works on the domain. It may be one of a run whose controller
        died, as such a task goes on to its end. When the time is over, the module fails with C(locked).
      - V(0) does not wait.
    type: int
    default: 0
"""
