# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Commands in messages: what they say of others, as a domain's name, is quoted for a shell, since people paste them.

No message puts a value into the text of a command itself; `command` of _core/text.py writes those that have one.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import DomainView
from ansible_collections.virtops.libvirt.plugins.module_utils._core.refusals import (
    guest_crashed,
    guest_moved,
    refuse_away,
)

UTILS = Path(__file__).resolve().parents[4] / "plugins" / "module_utils"
ODD = "o d;d%(x)s$(id)"
#: Up to what ends a command in our messages: a quote, a bracket or the sentence.
COMMAND = r"\b(virsh|qemu-img) [a-z][a-z-]*( [^'(),;:.]*)?"


def bare(source: str) -> Iterator[str]:
    """The texts with a command that a value is put into as it is; a value is %s here."""
    for node in ast.walk(ast.parse(source)):
        parts: list[Any] = node.values if isinstance(node, ast.JoinedStr) else [node]
        texts = [part.value if isinstance(part, ast.Constant) else "%s" for part in parts]
        text = "".join(one for one in texts if isinstance(one, str))
        if (len(parts) > 1 or isinstance(parts[0], ast.Constant)) and re.search(COMMAND + "%[sr]", text):
            yield text


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("'Start it (virsh start %s)' % name", True),
        ("'Start it (%s)' % command('virsh', 'start', name)", False),
        ("f'thaw it: virsh domfsthaw {name}'", True),
        ("f'thaw it: {name}'", False),
        ("'qemu-img create -f qcow2 -b %s NEW' % path", True),
        ("'Look at it with virsh edit; %s' % why", False),
        ("'Merge it with virsh blockcommit, or %s' % why", False),
    ],
)
def test_the_checker(source: str, found: bool) -> None:
    assert bool(list(bare(source))) == found


def test_no_message_puts_a_value_into_a_command_as_it_is() -> None:
    found = [(path.name, text) for path in sorted(UTILS.rglob("*.py")) for text in bare(path.read_text("utf-8"))]
    assert found == []


def away(**state: bool) -> VirtopsError:
    with pytest.raises(VirtopsError) as caught:
        refuse_away(DomainView(ODD, "uuid", "shut off", True, (), (), **state))  # type: ignore[arg-type]
    return caught.value


@pytest.mark.parametrize(
    ("refusal", "verb"),
    [
        (lambda: away(saved=True), "start"),
        (lambda: away(moved=True), "undefine"),
        (lambda: guest_moved(SimpleNamespace(name=ODD), "went"), "undefine"),  # type: ignore[arg-type]
        (lambda: guest_crashed(SimpleNamespace(name=ODD)), "destroy"),  # type: ignore[arg-type]
    ],
)
def test_an_odd_name_is_one_word_of_the_command(refusal: Any, verb: str) -> None:
    assert "(virsh %s '%s')" % (verb, ODD) in refusal().remedy
