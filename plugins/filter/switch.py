# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleFilterError
from ansible.module_utils.parsing.convert_bool import boolean

from ansible_collections.virtops.libvirt.plugins.filter.given import given

DOCUMENTATION = r"""
name: switch
short_description: Read a variable that is true or false, and refuse any other value
version_added: 0.1.0
author: virtops.libvirt contributors (@virtops)
description:
  - Does the same as P(virtops.libvirt.given#filter), for a variable that is true or false. It fails if the value is
    neither. The filter P(ansible.builtin.bool#filter) instead returns false for an unknown word, for example for a
    misspelt V(true).
positional: _input, default, variable
options:
  _input:
    description: The value.
    type: raw
    required: true
  default:
    description: What is returned if the value is blank.
    type: bool
    required: true
  variable:
    description: The name of the variable, for the error.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Say so if the survey asked for a check only
  ansible.builtin.debug:
    msg: This is only a check.
  when: answered_look | virtops.libvirt.switch(false, 'answered_look')
"""

RETURN = r"""
_value:
  description: The value or the default.
  type: bool
"""


def switch(value: Any, default: bool, variable: str) -> bool:
    """True or false as its user means it, or the default."""
    meant = given(value, default)
    try:
        return bool(boolean(meant, strict=True))
    except TypeError:
        raise AnsibleFilterError(
            "%s is %r, which is neither true nor false. Give one of them." % (variable, str(meant))
        ) from None


class FilterModule:
    """What Ansible asks for the filters in this file."""

    def filters(self) -> dict[str, Any]:
        return {"switch": switch}
