# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the lines that say how far a job is, few enough for the log of a play on many guests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Lines of one job at most, but for those that a new phase brings.
MOST = 24
#: What a phase has to go on by for another line, in percent: at first, and after so many lines.
_STEP, _LATER_STEP, _MANY = 5, 10, 10
#: Seconds without a line after which there is one all the same; each time twice as many.
_QUIET = 60.0
_MIB = 1024 * 1024


class ProgressLines:
    """The lines of one job, in the order of time."""

    def __init__(self) -> None:
        self._phase = ""
        self._percent = 0
        self._lines = 0
        self._said_at: float | None = None
        self._quiet = _QUIET

    def line(self, job: Mapping[str, Any], now: float) -> str | None:
        """What there is to say of a job, as job_info shows it; None where it is not worth a line. `now` in seconds."""
        percent = _percent(job["disks"])
        if not job.get("phase") or not self._is_due(job["phase"], percent, now):
            return None
        self._phase, self._percent, self._said_at = job["phase"], percent, now
        self._lines += 1
        return describe(job)

    def _is_due(self, phase: str, percent: int, now: float) -> bool:
        if phase != self._phase or self._said_at is None:
            return True
        if self._lines >= MOST:
            return False
        if percent - self._percent >= (_STEP if self._lines < _MANY else _LATER_STEP):
            return True
        if now - self._said_at < self._quiet:
            return False
        self._quiet *= 2
        return True


def describe(job: Mapping[str, Any]) -> str:
    """One line: the phase, its disks in percent, MiB, MiB/s, and the time that is left at this speed."""
    disks = job["disks"]
    total = sum(disk["total"] for disk in disks)
    if not total:
        return str(job["phase"])
    done = min(total, sum(disk["done"] for disk in disks))
    each = ", ".join("%s %d %%" % (disk["disk"], _percent([disk])) for disk in disks)
    text = "%s %s: %d of %d MiB" % (job["phase"], each, done // _MIB, total // _MIB)
    if job["speed"] > 0 and done < total:
        speed = job["speed"] / _MIB
        text += ", %.*f MiB/s, %s left" % (0 if speed >= 10 else 1, speed, _time((total - done) / job["speed"]))
    return text


def _percent(disks: list[Mapping[str, Any]]) -> int:
    total = sum(disk["total"] for disk in disks)
    return min(100, 100 * sum(disk["done"] for disk in disks) // total) if total else 0


def _time(seconds: float) -> str:
    whole = int(seconds) + 1
    if whole < 60:
        return "%d s" % whole
    if whole < 3600:
        return "%d min %02d s" % divmod(whole, 60)
    return "%d h %02d min" % divmod(whole // 60, 60)
