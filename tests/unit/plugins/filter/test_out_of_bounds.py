# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""A role says before anything else which of its numbers a module would refuse later."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.virtops.libvirt.plugins.filter.out_of_bounds import out_of_bounds


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, ""),
        ({"bandwidth": 0, "freeze_timeout": "60", "dest": "/srv", "disks": []}, ""),
        ({"bandwidth": -1}, "bandwidth is -1. Give a number of 0 or more."),
        ({"freeze_timeout": "0"}, "freeze_timeout is 0. Give a number of 1 or more."),
        ({"resume_within": "-1"}, "resume_within is -1. Give a number of 0 or more."),
        ({"connect_timeout": -1}, "connect_timeout is -1. Give a number of 0 or more."),
        ({"freeze_timeout": 3601}, "freeze_timeout is 3601. Give a number of 3600 or less."),
    ],
)
def test_out_of_bounds(values: dict[str, Any], said: str) -> None:
    """Strings are numbers too, and what is no numeric option is no business of the bounds."""
    assert out_of_bounds(values) == said


def test_the_variable_is_named() -> None:
    """The user gave the role's variable, not the module's option."""
    assert out_of_bounds({"timeout": -5}, "my_") == "my_timeout is -5. Give a number of 0 or more."
    assert out_of_bounds({"timeout": 5}, "my_") == ""
