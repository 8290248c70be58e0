# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

from typing import Any

from ansible_collections.virtops.libvirt.plugins.module_utils._core.text import shown

DOCUMENTATION = r"""
name: shown
short_description: Make untrusted text safe to show
version_added: 0.1.0
author: virtops.libvirt contributors (@virtops)
description:
  - Returns the text in one line. Control characters, invisible characters and those that change the order of letters
    become escapes, for example V(\\n) or V(\\u202e).
  - Use it before you show text from a guest, its agent or its definition.
positional: _input
options:
  _input:
    description: The text.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Show what the agent said
  ansible.builtin.debug:
    msg: "{{ agent.stdout | virtops.libvirt.shown }}"
"""

RETURN = r"""
_value:
  description: The text in one line.
  type: str
"""


class FilterModule:
    """What Ansible asks for the filters in this file."""

    def filters(self) -> dict[str, Any]:
        return {"shown": lambda text: shown(str(text))}
