# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

from typing import Any

import yaml

DOCUMENTATION = r"""
name: given
short_description: Read a variable that may be blank, or a string
version_added: 0.1.0
author: virtops.libvirt contributors (@virtops)
description:
  - Returns the value of a variable, or a default if the value is blank. Extra variables and survey answers are strings,
    and an unanswered question is an empty string. The roles and playbooks of this collection use this filter to read
    such variables.
  - Blank are an empty string, a string of blanks, V(null), and a list that holds only these. V(0) and V(false) are not
    blank.
  - A string is returned without blanks at its ends. If the default is a list or a dictionary, a string that begins with
    C([) or C({) is read as YAML. Any other string is read as a list with commas between its items, if the default is a
    list.
positional: _input, default
options:
  _input:
    description: The value.
    type: raw
    required: true
  default:
    description: What is returned if the value is blank.
    type: raw
    required: true
"""

EXAMPLES = r"""
- name: Wait as many seconds as the survey says, or a minute
  ansible.builtin.wait_for_connection:
    timeout: "{{ answered_timeout | virtops.libvirt.given(60) }}"
"""

RETURN = r"""
_value:
  description: The value or the default.
  type: raw
"""


def given(value: Any, default: Any) -> Any:
    """The value as its user means it, or the default."""
    if isinstance(value, str):
        value = value.strip()
        if isinstance(default, (list, dict)):
            value = _structure(value, isinstance(default, list))
    if isinstance(value, (list, tuple)):
        stripped = [item.strip() if isinstance(item, str) else item for item in value]
        value = [item for item in stripped if item not in ("", None)]
    return default if value is None or value == "" or value == [] or value == {} else value


def _structure(text: str, is_list: bool) -> Any:
    """The list or dictionary that a string stands for. What cannot be read as one is left for the module to refuse."""
    if text.startswith(("[", "{")):
        try:
            found = yaml.safe_load(text)
        except yaml.YAMLError:
            found = None
        if isinstance(found, (list, dict)):
            return found
    return text.split(",") if is_list else text


class FilterModule:
    """What Ansible asks for the filters in this file."""

    def filters(self) -> dict[str, Any]:
        return {"given": given}
