# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Words that could fool who reads them."""

from __future__ import annotations

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.text import command, shown, words_shown


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain", "plain"),
        ("größe, 日本 \U0001f600", "größe, 日本 \U0001f600"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\x9b1A\x7f", "\\x9b1A\\x7f"),
        ("\u202eevil\u2066", "\\u202eevil\\u2066"),
        ("\u2028\u2029\u200b\ufeff", "\\u2028\\u2029\\u200b\\ufeff"),
        ("\udcff", "\\udcff"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_is_shown(text: str, line: str) -> None:
    assert shown(text) == line
    assert shown(line) == line


def test_only_words_are_changed() -> None:
    """A path has to name its file, whatever is in it."""
    result = {
        "actions": ["delete /a\nb"],
        "path": "/a\nb",
        "guests": [{"name": "a\nb", "checks": [{"message": "a\nb", "remedy": None, "disk": "vda"}], "size": 1}],
    }
    assert words_shown(result) == {
        "actions": ["delete /a\\nb"],
        "path": "/a\nb",
        "guests": [{"name": "a\nb", "checks": [{"message": "a\\nb", "remedy": None, "disk": "vda"}], "size": 1}],
    }


def test_a_command_to_paste() -> None:
    assert command("virsh", "start", "web1") == "virsh start web1"
    assert command("virsh", "start", "o d;$(id)'") == """virsh start 'o d;$(id)'"'"''"""
