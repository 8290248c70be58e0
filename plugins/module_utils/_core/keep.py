# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: retention: which backups or snapshots stay, decided from their times alone.

The keep options are those of Proxmox Backup Server. Each option in turn, from keep_last to keep_yearly, walks from the
newest to the oldest and keeps the newest one of each of its periods, up to its number of periods. A period without a
backup does not count, nor does one in which an earlier option kept a backup. What an option has covered, a later one
does not look at. Periods are of UTC, in which sets are named, and weeks are those of ISO 8601.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .errors import VirtopsError
from .journal import epoch

#: The keep options, in the order in which they count.
PERIODS = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
#: The reason of all that stays where no keep option is given.
NO_POLICY = "no keep option is given"


@dataclass(frozen=True)
class Keep:
    """How many periods of each kind keep a backup; 0: the option is not given. `min_age` is in seconds."""

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    min_age: int = 0
    keep_unverified: bool = False

    @property
    def is_given(self) -> bool:
        """Is there any option that says what stays? Without one everything does."""
        return any(getattr(self, period) for period in PERIODS)


@dataclass(frozen=True)
class Item:
    """A backup or a snapshot, by a name that no other one has. `taken` is its UTC time as 20261120T120000Z.

    `needed` is why it has to stay whatever the options say, in words; `base` the name of the one that it stands on.
    """

    name: str
    taken: str
    verified: bool = True
    needed: str = ""
    base: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What becomes of an item, and why."""

    item: Item
    stays: bool
    reason: str


def decide(keep: Keep, items: Iterable[Item], now: str) -> tuple[Verdict, ...]:
    """A verdict for each item, newest first: in this order nothing goes before what stands on it.

    The options decide first, on all items. `min_age`, `keep_unverified` and what is needed only add to what stays:
    they never make an older one go.
    """
    newest_first = _newest_first(items)
    reasons = _by_options(keep, newest_first)
    for item in newest_first:
        if item.name not in reasons:
            why = _held_back(keep, item, now)
            if why:
                reasons[item.name] = why
    bases = {item.name: item.base for item in newest_first}
    for item in newest_first:
        above, base = item.name, item.base
        while above in reasons and base is not None and base in bases and base not in reasons:
            reasons[base] = "%s stands on it" % above
            above, base = base, bases[base]
    return tuple(
        Verdict(item, item.name in reasons, reasons.get(item.name, "no keep option covers it")) for item in newest_first
    )


def require_keep(keep: Keep) -> None:
    """Refuse a policy of which somebody expects that it removes something."""
    if not keep.is_given and (keep.min_age or keep.keep_unverified):
        raise VirtopsError(
            "bad_option",
            "min_age or keep_unverified is given, but no keep option, so nothing would ever be removed.",
            "Give at least one of %s" % ", ".join("keep_%s" % period for period in PERIODS),
        )


def _newest_first(items: Iterable[Item]) -> list[Item]:
    """Of those of one second, the later in the list counts as the newer."""
    return sorted(items, key=lambda item: item.taken)[::-1]


def _held_back(keep: Keep, item: Item, now: str) -> str:
    """Why what no option keeps stays all the same; "" where it goes."""
    if item.needed:
        return item.needed
    if keep.min_age and epoch(now) - epoch(item.taken) < keep.min_age:
        return "it is younger than min_age (%d s)" % keep.min_age
    if keep.keep_unverified and not item.verified:
        return "it is not verified (keep_unverified)"
    return ""


#: The period that a stamp is in, by the options after keep_last.
_PERIOD_OF: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("hourly", lambda stamp: "%s-%s-%s %sh" % (stamp[:4], stamp[4:6], stamp[6:8], stamp[9:11])),
    ("daily", lambda stamp: "%s-%s-%s" % (stamp[:4], stamp[4:6], stamp[6:8])),
    ("weekly", lambda stamp: "%d-W%02d" % _day(stamp).isocalendar()[:2]),
    ("monthly", lambda stamp: "%s-%s" % (stamp[:4], stamp[4:6])),
    ("yearly", lambda stamp: stamp[:4]),
)


def _day(stamp: str) -> datetime.date:
    return datetime.date(int(stamp[:4]), int(stamp[4:6]), int(stamp[6:8]))


def _by_options(keep: Keep, newest_first: list[Item]) -> dict[str, str]:
    """The reason of each item that an option keeps."""
    if not keep.is_given:
        return {item.name: NO_POLICY for item in newest_first}
    kept = {item.name: "keep_last" for item in newest_first[: keep.last]}
    covered = set(kept)
    for option, period_of in _PERIOD_OF:
        count = getattr(keep, option)
        if not count:
            continue
        periods = {item.name: period_of(item.taken) for item in newest_first}
        before = {periods[name] for name in kept}
        chosen: set[str] = set()
        for item in newest_first:
            period = periods[item.name]
            if item.name in covered or period in before:
                continue
            if period not in chosen:
                if len(chosen) >= count:
                    break
                chosen.add(period)
                kept[item.name] = "keep_%s: the newest of %s" % (option, period)
            covered.add(item.name)
    return kept
