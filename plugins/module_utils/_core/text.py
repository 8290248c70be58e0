# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: text of others, made fit for people's eyes.

What a guest's agent, a domain's name or an image says may hold what moves a terminal's cursor, begins a line of its
own, or turns the order of the letters: so it could say what we did not.
"""

from __future__ import annotations

import shlex
import unicodedata
from typing import Any

#: Control (Cc), format (Cf, with bidi and zero-width), lone surrogates (Cs), line and paragraph separators.
_FOOLING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
#: The keys of a result under which there are words for people. What is under others, as names and paths, has to stay
#: as it is: other tasks use it.
_WORDS = frozenset(
    {"actions", "error", "journal_error", "message", "msg", "problems", "reason", "remedy", "warnings", "why"}
)


def shown(text: str) -> str:
    """The text in one line, each character that could fool a reader as its escape."""
    return text if text.isascii() and text.isprintable() else "".join(map(_escaped, text))


def command(*words: str) -> str:
    """A command in a message, to be pasted into a shell. No quotes may stand around it: they would end at its own."""
    return " ".join(shlex.quote(word) for word in words)


def counted(number: int, what: str) -> str:
    """As in "1 disk" and "2 disks"."""
    return "%d %s%s" % (number, what, "" if number == 1 else "s")


def _escaped(character: str) -> str:
    if unicodedata.category(character) not in _FOOLING:
        return character
    number = ord(character)
    form = "\\x%02x" if number < 0x100 else "\\u%04x" if number < 0x10000 else "\\U%08x"
    return _SHORT.get(character) or form % number


def words_shown(value: Any, words: bool = False) -> Any:
    """A module's result in which all words for people are `shown`."""
    if isinstance(value, str):
        return shown(value) if words else value
    if isinstance(value, dict):
        return {key: words_shown(item, key in _WORDS) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [words_shown(item, words) for item in value]
    return value
