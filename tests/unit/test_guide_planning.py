# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The worked example of the guide "Planning backups" is what the policy does."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

from ansible_collections.virtops.libvirt.plugins.module_utils._core.keep import Item, Keep, decide

PAGE = Path(__file__).resolve().parents[2] / "docs" / "docsite" / "rst" / "guide_planning.rst"
NEWEST = datetime.datetime(2026, 11, 20, 2)
NIGHTS = 730


def kept(**options: int) -> list[tuple[str, str]]:
    """Option and day of each set that stays."""
    nights = [NEWEST - datetime.timedelta(days=night) for night in range(NIGHTS)]
    items = [Item(f"{night:%Y-%m-%d}", f"{night:%Y%m%dT%H%M%SZ}") for night in nights]
    verdicts = decide(Keep(**options), items, "20261120T030000Z")
    return [(verdict.reason.partition(":")[0], verdict.item.name) for verdict in verdicts if verdict.stays]


def test_the_sets_of_the_example():
    text = PAGE.read_text(encoding="utf-8")
    example = text[text.index("A worked example") : text.index("What never goes")]
    options = {name: int(number) for name, number in re.findall(r"``keep_(\w+): (\d+)``", example)}
    rows = re.findall(r"\* - ``(keep_\w+)``\n     - ((?:[\d, -]|\n       )+)", example)
    told = [(option, day) for option, days in rows for day in re.findall(r"\d{4}-\d\d-\d\d", days)]
    assert told == kept(**options)
    assert f"keep these {len(told)} of {NIGHTS} sets" in example
    assert f"plan for {len(told) + 1} of them: {(len(told) + 1) * 40} GiB" in example
    assert f"keep up to {sum(options.values())} backups" in text
