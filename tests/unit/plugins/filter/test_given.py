# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""What a variable means that may be blank, or a string."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.virtops.libvirt.plugins.filter.given import given


@pytest.mark.parametrize(
    ("value", "default", "meant"),
    [
        ("", 60, 60),
        (" \t", 60, 60),
        (None, 60, 60),
        (0, 60, 0),
        ("0", 60, "0"),
        (" 5 ", 60, "5"),
        (False, True, False),
        ("false", True, "false"),
        ("", True, True),
        (" fail ", "throttle", "fail"),
        # Lists
        ("", ["*"], ["*"]),
        ([], ["*"], ["*"]),
        (["", None, " "], ["*"], ["*"]),
        (" , ", ["*"], ["*"]),
        ("web*, db1", ["*"], ["web*", "db1"]),
        ([" web ", ""], ["*"], ["web"]),
        ("[]", [], []),
        ('["web", "db"]', [], ["web", "db"]),
        ("[{name: vdc, snapshot: 'no'}]", [], [{"name": "vdc", "snapshot": "no"}]),
        ("[seq]*", [], ["[seq]*"]),
        ("[ab]*,[", [], ["[ab]*", "["]),
        # A list where none is expected, as in hosts
        (["hv1", " "], "hypervisors", ["hv1"]),
        ([], "hypervisors", "hypervisors"),
        # Dictionaries
        ("", {}, {}),
        ("{name: acme.web.upgrade}", {}, {"name": "acme.web.upgrade"}),
        ("acme", {}, "acme"),
    ],
)
def test_table(value: Any, default: Any, meant: Any) -> None:
    assert given(value, default) == meant
