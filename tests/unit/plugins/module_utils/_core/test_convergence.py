# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is due when a guest writes faster than its merge copies, as tables."""

from __future__ import annotations

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.convergence import (
    LEAST_LIMIT,
    MIB,
    Brake,
    Deadline,
    brake_at,
    can_end_within,
    is_short,
    throttled,
    write_limit,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import BlockJob

NONE, THROTTLE, SUSPEND, GIVE_UP = Brake.NONE, Brake.THROTTLE, Brake.SUSPEND, Brake.GIVE_UP


@pytest.mark.parametrize(
    ("policy", "short_since", "due"),
    [
        # at 0, 50, 100, 159, 160, 169, 170 seconds of a timeout of 100, a throttle of 60, a suspension of 10
        ("fail", None, [NONE, NONE, GIVE_UP, GIVE_UP, GIVE_UP, GIVE_UP, GIVE_UP]),
        ("fail", 20.0, [NONE, NONE, GIVE_UP, GIVE_UP, GIVE_UP, GIVE_UP, GIVE_UP]),
        ("throttle", None, [NONE, NONE, THROTTLE, THROTTLE, GIVE_UP, GIVE_UP, GIVE_UP]),
        ("suspend", None, [NONE, NONE, THROTTLE, THROTTLE, SUSPEND, SUSPEND, GIVE_UP]),
        # short of space after 20 s: the brakes come then, and only once
        ("throttle", 20.0, [NONE, THROTTLE, GIVE_UP, GIVE_UP, GIVE_UP, GIVE_UP, GIVE_UP]),
        ("throttle", 0.0, [THROTTLE, THROTTLE, GIVE_UP, GIVE_UP, GIVE_UP, GIVE_UP, GIVE_UP]),
        # what is short only after the deadline changes nothing
        ("suspend", 130.0, [NONE, NONE, THROTTLE, THROTTLE, SUSPEND, SUSPEND, GIVE_UP]),
    ],
)
def test_what_is_due(policy: str, short_since: float | None, due: list[Brake]) -> None:
    deadline = Deadline(timeout=100, on_timeout=policy)
    assert [brake_at(deadline, at, short_since) for at in (0, 50, 100, 159, 160, 169, 170)] == due


def test_after_early_brakes_the_merge_goes_on_until_its_time_is_over() -> None:
    deadline = Deadline(timeout=1000, on_timeout="suspend")
    found = [brake_at(deadline, at, 5.0) for at in (4, 5, 64, 65, 74, 75, 999, 1000)]
    assert found == [NONE, THROTTLE, THROTTLE, SUSPEND, SUSPEND, NONE, NONE, GIVE_UP]


@pytest.mark.parametrize(
    ("free", "size", "reserve", "short"),
    [
        (255 * MIB, 1 << 40, 256, True),
        (256 * MIB, 1 << 40, 256, False),
        (10 * MIB, 200 * MIB, 256, False),
        (9 * MIB, 200 * MIB, 256, True),
        (0, 1 << 40, 0, False),
    ],
)
def test_short_of_space(free: int, size: int, reserve: int, short: bool) -> None:
    assert is_short(free, size, reserve) is short


def test_the_limit_is_lowered_each_time_and_never_to_nothing() -> None:
    assert [write_limit(512 * MIB, lowered) for lowered in (0, 1, 2)] == [64 * MIB, 8 * MIB, MIB]
    assert write_limit(512 * MIB, 9) == write_limit(0, 0) == LEAST_LIMIT


@pytest.mark.parametrize(
    ("before", "during"),
    [
        ({"write_bytes_sec": 0}, {"write_bytes_sec": 1000, "read_bytes_sec": 0}),
        ({"write_bytes_sec": 500}, {"write_bytes_sec": 500, "read_bytes_sec": 0}),
        ({"write_bytes_sec": 5000, "write_iops_sec": 7}, {"write_bytes_sec": 1000, "write_iops_sec": 7}),
        # libvirt refuses a limit of the total beside one of writes: reads keep the total's
        (
            {"total_bytes_sec": 5000, "total_bytes_sec_max": 9000, "total_bytes_sec_max_length": 3},
            {"total_bytes_sec": 0, "total_bytes_sec_max": 0, "total_bytes_sec_max_length": 0, "read_bytes_sec": 5000},
        ),
        ({"total_bytes_sec": 600}, {"write_bytes_sec": 600, "read_bytes_sec": 600}),
        ({"write_bytes_sec": 5000, "write_bytes_sec_max": 9000}, {"write_bytes_sec": 1000, "write_bytes_sec_max": 0}),
    ],
)
def test_the_guests_own_limits_stay(before: dict[str, int], during: dict[str, int]) -> None:
    found = throttled(before, 1000)
    assert {name: found[name] for name in during} == during
    assert found["write_bytes_sec"] <= 1000


def test_a_pause_has_to_be_of_use() -> None:
    job = BlockJob("active-commit", cur=10 * MIB, end=20 * MIB)
    assert can_end_within(job, MIB, 10)
    assert not can_end_within(job, MIB, 9)
    assert not can_end_within(job, 0, 10)
