# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""What a variable means that is true or false."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.virtops.libvirt.plugins.filter.switch import switch


@pytest.mark.parametrize(
    ("value", "meant"),
    [(True, True), (False, False), ("yes", True), (" No ", False), ("on", True), (1, True), ("0", False), ("F", False)],
)
def test_what_is_true_or_false(value: object, meant: bool) -> None:
    """As Ansible's own type bool has it."""
    assert switch(value, not meant, "look") is meant


@pytest.mark.parametrize("default", [True, False])
@pytest.mark.parametrize("value", ["", "  ", None])
def test_a_blank_one_is_not_given(value: object, default: bool) -> None:
    """A survey gives it for a question that was not answered."""
    assert switch(value, default, "look") is default


@pytest.mark.parametrize("value", ["maybe", "fasle", "nope", 2, ["x"], {"a": 1}])
def test_what_is_neither_is_refused(value: object) -> None:
    """A misspelt `true` is not false."""
    with pytest.raises(AnsibleFilterError, match=r"look is (['\"]).*\1, which is neither true nor false"):
        switch(value, False, "look")
