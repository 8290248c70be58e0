# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: which backup sets a prune removes, decided without any effect.

The retention policy (see `keep`) decides among the whole sets of one domain. All else is named, and never touched.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace

from .errors import VirtopsError
from .keep import Item, Keep, Verdict, decide
from .sets import COMPLETE, DAMAGED, BackupSet


@dataclass(frozen=True)
class DomainPrune:
    """What becomes of the sets of one domain, newest first. `bad` is its newest set, where that is not good."""

    uuid: str
    sets: Mapping[str, BackupSet]
    verdicts: tuple[Verdict, ...]
    bad: BackupSet | None = None

    @property
    def removed(self) -> tuple[Verdict, ...]:
        """None where the newest set is not good: then an older one may be all that there is."""
        return () if self.bad else tuple(verdict for verdict in self.verdicts if not verdict.stays)

    @property
    def kept(self) -> tuple[Verdict, ...]:
        """The rest."""
        if self.bad is None:
            return tuple(verdict for verdict in self.verdicts if verdict.stays)
        reason = "the newest backup, %s, is not good" % self.bad.path
        return tuple(verdict if verdict.stays else replace(verdict, reason=reason) for verdict in self.verdicts)


@dataclass(frozen=True)
class PrunePlan:
    """`left` are the sets that nothing touches, `unfinished` those whose removal was interrupted."""

    domains: tuple[DomainPrune, ...]
    left: tuple[BackupSet, ...]
    unfinished: tuple[BackupSet, ...]


def plan_prune(sets: Iterable[BackupSet], keep: Keep, now: str) -> PrunePlan:
    """Each domain, by its UUID, by itself."""
    every = tuple(sets)
    good = [found for found in every if is_good(found)]
    domains = tuple(
        _of_domain([found for found in good if found.uuid == uuid], every, keep, now)
        for uuid in dict.fromkeys(found.uuid for found in good)
    )
    unfinished = tuple(found for found in every if found.is_half_removed)
    return PrunePlan(domains, tuple(found for found in every if found not in good + list(unfinished)), unfinished)


def is_good(found: BackupSet) -> bool:
    """Whole, and nobody has found it otherwise. Only such a set counts as a backup, and only such a set is removed."""
    return found.state == COMPLETE and bool(found.uuid) and found.taken is not None and not found.notes.is_failed


def why_not_good(found: BackupSet) -> str:
    """In words."""
    if found.state == COMPLETE and found.notes.verified is not None and found.notes.is_failed:
        return "Its verification of %s failed: %s" % (found.notes.verified.stamp, found.notes.verified.words)
    return "%s: %s" % (found.state, found.why)


def newest_bad(bad: BackupSet) -> VirtopsError:
    """The failure of a prune that removed nothing of a domain."""
    return VirtopsError(
        "newest_set_bad",
        "No backup of domain %s was removed, because the newest one, %s, is not good. %s"
        % (bad.domain or os.path.basename(os.path.dirname(bad.path)), bad.path, why_not_good(bad)),
        "Check that set with virtops.libvirt.backup_verify, and make a new backup. Once the newest one is good, older "
        "ones are removed again",
    )


def _of_domain(good: list[BackupSet], every: tuple[BackupSet, ...], keep: Keep, now: str) -> DomainPrune:
    """`good` are its own sets, `every` also those that are not, of which some may stand on them."""
    uuid = good[0].uuid
    best = max(good, key=lambda found: (found.is_verified, found.taken or ""))
    above = {_base_of(found): found.path for found in every if found not in good and not found.is_half_removed}
    words = "it is the newest verified one" if best.is_verified else "none is verified, and it is the newest"
    needed = {best.path: words}
    items = []
    for found in good:
        if found.path in above:
            needed.setdefault(found.path, "%s stands on it" % above[found.path])
        why = needed.get(found.path, "")
        items.append(Item(found.path, found.taken or "", found.is_verified, why, _base_of(found)))
    sets = {found.path: found for found in good}
    return DomainPrune(uuid, sets, decide(keep, items, now), _bad_newest(good, every))


def _bad_newest(good: list[BackupSet], every: tuple[BackupSet, ...]) -> BackupSet | None:
    """The newest set, where it is not good. One that nothing tells the domain of is that of its folder."""
    folders = {os.path.dirname(found.path) for found in good}
    own = [found for found in every if found.uuid == good[0].uuid or _is_in(folders, found)]
    newest = max((found for found in own if found.state in (COMPLETE, DAMAGED)), key=lambda found: found.taken or "")
    return None if is_good(newest) else newest


def _is_in(folders: Container[str], found: BackupSet) -> bool:
    return not found.uuid and os.path.dirname(found.path) in folders


def _base_of(found: BackupSet) -> str | None:
    """The path of the set that it is incremental on: one in the same folder."""
    return None if found.base is None else os.path.join(os.path.dirname(found.path), found.base)
