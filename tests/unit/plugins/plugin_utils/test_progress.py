# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Lines about a job: what they say, and how many there are."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.virtops.libvirt.plugins.plugin_utils.progress import ProgressLines, describe

MIB = 1024 * 1024


def job(phase: str, *disks: tuple[str, int, int], speed: float = 0) -> dict[str, Any]:
    """Return what job_info shows, from MiB."""
    shown = [{"disk": disk, "done": done * MIB, "total": total * MIB} for disk, done, total in disks]
    return {"phase": phase, "disks": shown, "speed": int(speed * MIB)}


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (job("snapshot"), "snapshot"),
        (job("copy", ("vda", 0, 2048)), "copy vda 0 %: 0 of 2048 MiB"),
        (
            job("copy", ("vda", 920, 2048), speed=210),
            "copy vda 44 %: 920 of 2048 MiB, 210 MiB/s, 6 s left",
        ),
        (
            job("merge", ("vda", 10, 10), ("vdb", 1, 100), speed=1.5),
            "merge vda 100 %, vdb 1 %: 11 of 110 MiB, 1.5 MiB/s, 1 min 07 s left",
        ),
        (job("copy", ("vda", 0, 102400), speed=10), "copy vda 0 %: 0 of 102400 MiB, 10 MiB/s, 2 h 50 min left"),
        # A mirror's length grows with what the guest writes
        (job("merge", ("vda", 12, 10), speed=5), "merge vda 100 %: 10 of 10 MiB"),
    ],
)
def test_a_line_says_phase_disks_and_speed(found: dict[str, Any], line: str) -> None:
    assert describe(found) == line


@pytest.mark.parametrize("seconds", [30, 600, 36_000, 864_000])
def test_there_are_some_lines_and_not_many(seconds: int) -> None:
    """A poll each ten seconds, two phases: about thirty lines at most, however long it lasts."""
    lines = ProgressLines()
    said = []
    for now in range(0, seconds + 1, 10):
        done = 2048 * now // seconds
        phase = ("copy", done * 2) if now * 2 < seconds else ("merge", done * 2 - 2048)
        said.append(lines.line(job(phase[0], ("vda", phase[1], 2048)), now))
    printed = [line for line in said if line]
    assert 3 <= len(printed) <= 30
    assert {line.split()[0] for line in printed} == {"copy", "merge"}


def test_what_stands_still_is_said_again_but_ever_less_often() -> None:
    lines = ProgressLines()
    said = [now for now in range(0, 3600, 10) if lines.line(job("copy", ("vda", 1, 100)), now)]
    assert said == [0, 60, 180, 420, 900, 1860]
    assert lines.line(job(""), 3600) is None
