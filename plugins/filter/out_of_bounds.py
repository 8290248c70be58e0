# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.virtops.libvirt.plugins.module_utils._core.bounds import BOUNDS, require_in_bounds
from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError

DOCUMENTATION = r"""
name: out_of_bounds
short_description: Name the first number that is out of bounds
version_added: 0.1.0
author: virtops.libvirt contributors (@virtops)
description:
  - Compares numbers with the bounds of this collection's module options. The roles do this first. Otherwise a module
    that runs later would refuse a number only after the snapshot was taken.
positional: _input, prefix
options:
  _input:
    description: The values, by the names of the modules' options. Other names are ignored. A number may be a string.
    type: dict
    required: true
  prefix:
    description: The prefix of the role's variables. With it the message names the variable, and not the option.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Check the bandwidth
  ansible.builtin.assert:
    that: not problem
    fail_msg: "{{ problem }}"
  vars:
    problem: "{{ {'bandwidth': my_bandwidth} | virtops.libvirt.out_of_bounds('my_') }}"
"""

RETURN = r"""
_value:
  description: Two sentences about the first number that is out of bounds, or an empty string.
  type: str
"""


def out_of_bounds(values: Mapping[str, Any], prefix: str = "") -> str:
    """What the modules would say of the first of these numbers that they refuse."""
    try:
        require_in_bounds("", {name: int(value) for name, value in values.items() if name in BOUNDS})
    except VirtopsError as error:
        return prefix + str(error)  # which begins with the option's name
    return ""


class FilterModule:
    """What Ansible asks for the filters in this file."""

    def filters(self) -> dict[str, Any]:
        return {"out_of_bounds": out_of_bounds}
