# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Each module in each state is run on a real guest as check, run, run again, check again, by one test for all.

tests/e2e/test_from_virsh.py sees that the check says the same `changed`, keys, actions and diff as the run, and that it
touches nothing. Here: that no module, and no state of one, is left out there.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "docsite" / "rst" / "guide_from_virsh.rst"
MORE = ROOT / "tests" / "e2e" / "more_tasks.yml"
OURS = "virtops.libvirt."
#: Options that are as much as a state.
STATES = ("state", "run_state")
#: Words for a job that waits for them, which only tests/e2e/test_copy_tasks.py has
WORDS = (("live_backup", "copied"), ("live_backup", "copy_failed"))


def wanted() -> Iterator[tuple[str, str | None, str | None]]:
    """Yield each module with each state that its documentation has."""
    for path in sorted((ROOT / "plugins" / "modules").glob("*.py")):
        text = re.search(
            r'^DOCUMENTATION = r"""\n(.*?)^"""', path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
        )
        assert text, path
        options = yaml.safe_load(text.group(1)).get("options", {})
        found = [name for name in STATES if name in options]
        for name in found:
            choices = [choice for choice in options[name]["choices"] if (path.stem, choice) not in WORDS]
            yield from ((path.stem, name, choice) for choice in choices)
        if not found:
            yield path.stem, None, None


def run_tasks() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the modules of the tasks that the test runs, each with its options."""
    blocks = re.findall(
        r"^\.\. code-block:: yaml\n   :name: \S+\n\n((?:   .*\n|\n)+)", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    found = [yaml.safe_load(textwrap.dedent(block)) for block in blocks]
    found += yaml.safe_load(MORE.read_text(encoding="utf-8")).values()
    for tasks in found:
        for task in tasks:
            for key, options in task.items():
                if key.startswith(OURS) and not task.get("check_mode"):
                    yield key[len(OURS) :], options


@pytest.mark.parametrize(("module", "option", "state"), list(wanted()))
def test_its_check_is_compared_with_its_run(module, option, state):
    default = {"state": "present", "run_state": "snapshot"}.get(option)
    assert [
        options
        for name, options in run_tasks()
        if name == module and (option is None or options.get(option, default) == state)
    ]
