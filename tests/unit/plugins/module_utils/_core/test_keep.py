# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Retention: two simulated years against a model that shares no code with the policy, and a table of its rules."""

from __future__ import annotations

import datetime
import itertools
import random

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.keep import (
    NO_POLICY,
    Item,
    Keep,
    decide,
    require_keep,
)

BEGIN = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
DAYS = 731
HOUR = datetime.timedelta(hours=1)
DAY = 24 * HOUR


def stamp(moment):
    return moment.strftime("%Y%m%dT%H%M%SZ")


# -- the model: whole periods as numbers, and set arithmetic


def _number(option, moment):
    """The period that a moment is in, counted from some beginning."""
    days = moment.toordinal()
    return {
        "hourly": days * 24 + moment.hour,
        "daily": days,
        "weekly": (days - 1) // 7,  # day 1 of the calendar, 0001-01-01, was a Monday
        "monthly": moment.year * 12 + moment.month,
        "yearly": moment.year,
    }[option]


def model(policy, moments):
    """The moments that stay. `policy` is a dict of numbers by option."""
    if not any(policy.values()):
        return set(moments)
    ordered = sorted(moments)
    staying = set(ordered[::-1][: policy.get("last", 0)])
    settled = set(staying)
    for option in ("hourly", "daily", "weekly", "monthly", "yearly"):
        taken = {_number(option, moment) for moment in staying}
        open_periods = {}
        for moment in ordered:
            number = _number(option, moment)
            if moment not in settled and number not in taken:
                open_periods.setdefault(number, []).append(moment)
        for number in sorted(open_periods)[::-1][: policy.get(option, 0)]:
            staying.add(max(open_periods[number]))
            settled.update(open_periods[number])
    return staying


# -- schedules of two years: for each day its backups


def nightly():
    return [[BEGIN + day * DAY + 2 * HOUR] for day in range(DAYS)]


def nightly_with_gaps():
    """The hypervisor is off each tenth night, for three weeks in summer, and over the turn of the year."""
    found = []
    for day in range(DAYS):
        off = day % 10 == 3 or day % 365 in range(180, 201) or day % 365 in range(360, 365)
        found.append([] if off else [BEGIN + day * DAY + 23 * HOUR + datetime.timedelta(minutes=30)])
    return found


def every_four_hours():
    return [[BEGIN + day * DAY + hour * HOUR for hour in range(0, 24, 4)] for day in range(DAYS)]


def by_hand():
    """At any time, several in an hour, none for weeks."""
    chance = random.Random(4)
    found = []
    for day in range(DAYS):
        count = chance.choice((0, 0, 0, 0, 1, 1, 2, 7))
        seconds = sorted(chance.sample(range(86400), count))
        found.append([BEGIN + day * DAY + datetime.timedelta(seconds=second) for second in seconds])
    return found


ALONE = [
    {option: number} for option in ("last", "hourly", "daily", "weekly", "monthly", "yearly") for number in (1, 3, 30)
]
COMBINED = [
    {"last": 3, "daily": 7},
    {"last": 3, "hourly": 24, "daily": 7, "weekly": 4, "monthly": 12, "yearly": 2},
    {"daily": 14, "weekly": 8, "monthly": 6},
    {"weekly": 5, "monthly": 3},
    {"hourly": 5, "monthly": 24},
    {"last": 1, "yearly": 1},
    {"daily": 3, "yearly": 3},
]


@pytest.mark.parametrize("schedule", [nightly, nightly_with_gaps, every_four_hours, by_hand])
@pytest.mark.parametrize("policy", ALONE + COMBINED, ids=str)
def test_two_years_of_backups_are_pruned_as_the_model_says(schedule, policy):
    """Each evening what that day brought is added, and pruned: what stays is what the next day begins with."""
    there, known = set(), {}
    for number, day in enumerate(schedule()):
        there.update(day)
        known.update({moment: Item(stamp(moment), stamp(moment)) for moment in day})
        if not there:
            continue
        now = stamp(BEGIN + (number + 1) * DAY)
        verdicts = decide(Keep(**policy), [known[moment] for moment in sorted(there)], now)
        stays = model(policy, there)
        assert {verdict.item.name for verdict in verdicts if verdict.stays} == {known[moment].name for moment in stays}
        assert [verdict.item for verdict in verdicts] == [known[moment] for moment in sorted(there, reverse=True)]
        assert max(there) in stays
        there = stays


@pytest.mark.parametrize("seed", range(40))
def test_a_first_prune_of_two_years_is_as_the_model_says(seed):
    """All at once, where nothing was pruned before, with numbers of all sizes."""
    chance = random.Random(seed)
    moments = list(itertools.chain(*chance.choice((nightly, nightly_with_gaps, by_hand))()))
    options = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
    policy = {option: chance.choice((0, 0, 1, 2, 5, 13, 100)) for option in options}
    verdicts = decide(Keep(**policy), [Item(stamp(moment), stamp(moment)) for moment in moments], stamp(BEGIN))
    kept = [verdict.item for verdict in verdicts if verdict.stays]
    assert {item.name for item in kept} == {stamp(moment) for moment in model(policy, moments)}
    # A prune that was interrupted, wherever it was: the next one keeps the same
    left = kept + [verdict.item for verdict in verdicts if not verdict.stays and chance.random() < 0.5]
    again = decide(Keep(**policy), left, stamp(BEGIN))
    assert [verdict.item for verdict in again if verdict.stays] == kept


# -- the rules, one by one


def stays(keep, *items, now="20270101T000000Z"):
    return {verdict.item.name: verdict.reason for verdict in decide(keep, items, now) if verdict.stays}


def items(*stamps):
    return [Item(one, one) for one in stamps]


def test_without_an_option_everything_stays():
    there = items("20261120T120000Z", "20261121T120000Z")
    assert set(stays(Keep(), *there).values()) == {NO_POLICY}
    assert len(stays(Keep(min_age=5, keep_unverified=True), *there)) == 2


def test_a_later_option_does_not_count_what_an_earlier_one_covers():
    """keep_daily looks only at days in which keep_last kept none: 4 days stay, not 2."""
    there = items(*("202611%02dT020000Z" % day for day in range(1, 11)))
    assert sorted(stays(Keep(last=2, daily=2), *there)) == [
        "20261107T020000Z",
        "20261108T020000Z",
        "20261109T020000Z",
        "20261110T020000Z",
    ]


def test_what_an_option_drops_no_later_one_brings_back():
    """The older one of the same day is covered by keep_daily, so keep_monthly takes one of the month before."""
    there = items("20261031T010000Z", "20261101T010000Z", "20261101T020000Z")
    assert sorted(stays(Keep(daily=1, monthly=1), *there)) == ["20261031T010000Z", "20261101T020000Z"]


def test_weeks_are_those_of_iso_8601():
    """2027-01-01 is a Friday of 2026-W53; the Monday after begins 2027-W01."""
    there = items("20261228T000000Z", "20270101T000000Z", "20270103T235959Z", "20270104T000000Z")
    found = stays(Keep(weekly=2), *there, now="20270110T000000Z")
    assert found == {
        "20270104T000000Z": "keep_weekly: the newest of 2027-W01",
        "20270103T235959Z": "keep_weekly: the newest of 2026-W53",
    }


def test_what_is_held_back_makes_nothing_else_go():
    """min_age, keep_unverified and what is needed only add: keep_last keeps what it kept without them."""
    there = [
        Item("a", "20261101T000000Z", needed="it is the newest verified one"),
        Item("b", "20261102T000000Z", verified=False),
        Item("c", "20261103T000000Z"),
        Item("d", "20261231T230000Z"),
        Item("e", "20261231T233000Z"),
    ]
    assert sorted(stays(Keep(last=1), *there)) == ["a", "e"]
    assert stays(Keep(last=1, min_age=3601, keep_unverified=True), *there) == {
        "a": "it is the newest verified one",
        "b": "it is not verified (keep_unverified)",
        "d": "it is younger than min_age (3601 s)",
        "e": "keep_last",
    }
    assert "d" not in stays(Keep(last=1, min_age=3600), *there)


def test_nothing_goes_that_another_stands_on():
    """Through all levels; one that goes itself holds nothing."""
    chain = [
        Item("full", "20261101T000000Z"),
        Item("one", "20261102T000000Z", base="full"),
        Item("two", "20261103T000000Z", base="one"),
        Item("other", "20261104T000000Z"),
        Item("side", "20261105T000000Z", base="other"),
        Item("new", "20261106T000000Z", base="two"),
    ]
    assert stays(Keep(last=1), *chain) == {
        "new": "keep_last",
        "two": "new stands on it",
        "one": "two stands on it",
        "full": "one stands on it",
    }


def test_of_one_second_the_later_in_the_list_is_the_newer():
    there = [Item("first", "20261101T000000Z"), Item("second", "20261101T000000Z")]
    assert list(stays(Keep(last=1), *there)) == ["second"]


def test_one_from_the_future_is_young():
    """A clock that was set back."""
    there = items("20261101T000000Z", "20280101T000000Z")
    assert sorted(stays(Keep(last=1, min_age=60), *there)) == ["20280101T000000Z"]


def test_a_policy_that_removes_nothing_is_refused():
    require_keep(Keep())
    require_keep(Keep(last=1, min_age=1))
    with pytest.raises(VirtopsError, match="no keep option"):
        require_keep(Keep(min_age=1))
