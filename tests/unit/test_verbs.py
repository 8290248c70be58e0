# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Each row of the guide "Coming from virsh" has a test on a real guest, and tests/verbs.yml says which."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

TESTS = Path(__file__).resolve().parents[1]
PAGE = (TESTS.parent / "docs" / "docsite" / "rst" / "guide_from_virsh.rst").read_text(encoding="utf-8")
TABLE = yaml.safe_load((TESTS / "verbs.yml").read_text(encoding="utf-8"))
BLOCKS = re.findall(r"^   :name: (\S+)$", PAGE, flags=re.MULTILINE)
BLOCK = re.compile(r"page (?P<block>[\w-]+)")
TASK = re.compile(r"(?P<target>\w+) (?P<file>\w+): (?P<task>.+?)(?: \[(?P<element>.+)\])?")
TEST = re.compile(r"(?P<set>e2e|faults)/(?P<file>\w+\.py)::(?P<test>\w+)")


def rows() -> list[str]:
    """Return the first cells of the page's tables, without the marks of code."""
    cells = re.findall(r"^   \* - (.+)$", PAGE, flags=re.MULTILINE)
    return [cell.replace("``", "") for cell in cells if cell != "virsh"]


def tasks_in(content: Any) -> Iterator[dict[str, Any]]:
    """Yield the tasks of a file, and those in its blocks."""
    for task in content:
        yield task
        for part in ("block", "rescue", "always"):
            yield from tasks_in(task.get(part, []))


def why_not(test: str) -> str | None:
    """Return why there is no such test; nothing where there is one."""
    if found := BLOCK.fullmatch(test):
        return None if found["block"] in BLOCKS else "the page has no such block"
    if found := TEST.fullmatch(test):
        path = TESTS / found["set"] / found["file"]
        has_it = path.exists() and f"\ndef {found['test']}(" in path.read_text(encoding="utf-8")
        return None if has_it else "there is no such function"
    if found := TASK.fullmatch(test):
        path = TESTS / "integration" / "targets" / found["target"] / "tasks" / f"{found['file']}.yml"
        if not path.exists():
            return f"there is no {path}"
        named = [
            task
            for task in tasks_in(yaml.safe_load(path.read_text(encoding="utf-8")))
            if task.get("name") == found["task"]
        ]
        if not named:
            return "there is no such task"
        elements = [part for task in named for part in task.get("loop", task.get("prove", {}).get("cases", []))]
        if found["element"] and not any(found["element"] in str(element) for element in elements):
            return "its loop has no such element"
        return None
    return "it is not written as a test is named"


def test_the_page_and_the_table_have_the_same_rows():
    assert sorted(rows()) == sorted(TABLE)


@pytest.mark.parametrize("row", TABLE)
def test_each_row_has_tests_that_exist(row):
    assert TABLE[row], "no test"
    assert {test: why_not(test) for test in TABLE[row] if why_not(test)} == {}


def test_each_block_of_the_page_stands_for_a_row():
    named = {found["block"] for tests in TABLE.values() for test in tests if (found := BLOCK.fullmatch(test))}
    assert sorted(set(BLOCKS) - named) == []


@pytest.mark.parametrize(
    "test",
    [
        "page nothing-of-that",
        "snapshot_info read: No such task",
        "snapshot_info nowhere: Read them all",
        "snapshot_info main: Filter them [--sideways]",
        "e2e/test_from_virsh.py::test_nothing",
        "faults/test_nowhere.py::test_nothing",
        "somewhere",
    ],
)
def test_a_test_that_does_not_exist_is_found_out(test):
    assert why_not(test)
