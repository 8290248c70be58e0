# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: what to do when a guest writes faster than its merge copies. No effects.

The guest's writes are slowed down, then stopped, each for a bounded time; after that the merge is given up, and the
guest goes on, on its overlay.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from .model import BlockJob

FAIL = "fail"
THROTTLE = "throttle"
SUSPEND = "suspend"
POLICIES = (FAIL, THROTTLE, SUSPEND)

MIB = 1024 * 1024
#: A guest is never held below so many bytes/s: its file systems must still get a log entry through.
LEAST_LIMIT = 64 * 1024
#: Seconds that a limit is given before it is lowered.
LIMIT_SECONDS = 5.0
#: The first limit is this part of the job's own speed, each further one that part of the last. Far less than one half,
#: as QEMU copies whole clusters: 64 KiB for each 4 KiB that the guest writes at random.
LIMIT_PART = 8


@dataclass(frozen=True)
class Deadline:
    """How long a merge may take, and what happens then. Seconds; `keep_free` in MiB."""

    timeout: int = 3600
    on_timeout: str = FAIL
    throttle_timeout: int = 60
    suspend_timeout: int = 10
    keep_free: int = 256

    @property
    def brakes(self) -> bool:
        """May the guest be slowed down or stopped?"""
        return self.on_timeout != FAIL

    @property
    def brake_seconds(self) -> int:
        """For how long the guest may be held back in all."""
        return self.throttle_timeout + (self.suspend_timeout if self.on_timeout == SUSPEND else 0)

    @property
    def seconds(self) -> int:
        """How long the merge may take in all."""
        return self.timeout + (self.brake_seconds if self.brakes else 0)


class Brake(enum.Enum):
    """How hard the guest is held back at a moment."""

    NONE = "none"
    THROTTLE = "throttle"
    SUSPEND = "suspend"
    GIVE_UP = "give-up"


def brake_at(deadline: Deadline, elapsed: float, short_since: float | None) -> Brake:
    """What is due `elapsed` seconds after the merge began.

    `short_since` is the moment when the overlays' file system ran short of space: then the brakes come early, and the
    merge goes on after them for as long as it may, because without it the overlays grow all the more.
    """
    begin = float(deadline.timeout)
    if deadline.brakes:
        begin = min(begin, deadline.timeout if short_since is None else short_since)
        if begin <= elapsed < begin + deadline.throttle_timeout:
            return Brake.THROTTLE
        if begin <= elapsed < begin + deadline.brake_seconds:
            return Brake.SUSPEND
    return Brake.GIVE_UP if elapsed >= deadline.timeout else Brake.NONE


def is_short(free: int, size: int, reserve: int) -> bool:
    """Is less than `reserve` MiB free? Of a small file system, less than a twentieth. Bytes otherwise."""
    return free < min(reserve * MIB, size // 20)


def write_limit(copied_per_second: float, lowered: int) -> int:
    """The guest's limit in bytes/s, after it was lowered so often, for a job that copies so many bytes/s."""
    return max(LEAST_LIMIT, int(copied_per_second / LIMIT_PART ** (lowered + 1)))


def throttled(tune: dict[str, int], limit: int) -> dict[str, int]:
    """These limits with at most `limit` bytes/s of writes. libvirt takes no limit of writes beside one of the total."""
    found = dict(tune)
    total = found.get("total_bytes_sec", 0)
    own = found.get("write_bytes_sec", 0) or total
    found["read_bytes_sec"] = found.get("read_bytes_sec", 0) or total
    found["write_bytes_sec"] = min(limit, own) if own else limit
    for name in ("total_bytes_sec", "total_bytes_sec_max", "write_bytes_sec_max"):
        for text in (name, name + "_length"):
            if text in found:
                found[text] = 0
    return found


def can_end_within(job: BlockJob, copied_per_second: float, seconds: float) -> bool:
    """Can the job copy what is left in that time, if the guest writes nothing more?"""
    return (job.end - job.cur) <= copied_per_second * seconds
