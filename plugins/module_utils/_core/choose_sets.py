# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: which of the sets in a dest are meant."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from .errors import VirtopsError
from .sets import COMPLETE, DAMAGED, UNKNOWN, BackupSet, SetsPort

#: What could be a set to work with; all else is only named.
_SETS = (COMPLETE, DAMAGED, UNKNOWN)


@dataclass(frozen=True)
class Choice:
    """What the user asked for: the sets of `dest`, or the one at `path`. `guests` and `exclude` are patterns of
    domains' names, or UUIDs, `names` those of sets."""

    dest: str = ""
    path: str = ""
    domain: str | None = None
    guests: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    newest: bool = False

    def look(self, sets: SetsPort) -> tuple[BackupSet, ...]:
        """All that are there."""
        if self.path:
            folder = os.path.dirname(os.path.normpath(self.path))
            return sets.list(os.path.dirname(folder), os.path.basename(folder))
        return sets.list(self.dest, self.domain)

    def choose(self, there: tuple[BackupSet, ...]) -> tuple[list[BackupSet], list[BackupSet]]:
        """Those that are meant, and others of these guests, which are no sets that could be."""
        if self.path:
            return [_require_one(there, self.path)], []
        ours = [found for found in there if _matches(found, self.guests) and not _matches(found, self.exclude)]
        if self.names:
            ours = [found for found in ours if os.path.basename(found.path) in self.names]
            self._require_named(ours)
        sets = [found for found in ours if found.state in _SETS]
        others = [found for found in ours if found not in sets]
        if self.newest:
            newest = {(os.path.dirname(found.path), found.uuid): found for found in sets}
            sets = [found for found in sets if found in newest.values()]
        return sets, others

    def patterns(self, there: tuple[BackupSet, ...]) -> tuple[list[str], list[str]]:
        """The patterns for which there are sets, and the others."""
        sets = [found for found in there if found.state in _SETS and not _matches(found, self.exclude)]
        matched = [pattern for pattern in self.guests if any(_matches(found, [pattern]) for found in sets)]
        return matched, [pattern for pattern in self.guests if pattern not in matched]

    def _require_named(self, found: Sequence[BackupSet]) -> None:
        names = {os.path.basename(one.path) for one in found}
        missing = [name for name in self.names if name not in names]
        if missing:
            raise VirtopsError(
                "set_missing",
                "%s has no backup set %s of these domains" % (self.dest, ", ".join(missing)),
                "Look for their names with virtops.libvirt.backup_info",
            )


def with_bases(chosen: Sequence[BackupSet], there: Sequence[BackupSet]) -> list[BackupSet]:
    """These and all that they are incremental on, in their order."""
    wanted = {found.path for found in chosen}
    for found in reversed(there):  # the newest first
        if found.path in wanted and found.base is not None:
            wanted.add(os.path.join(os.path.dirname(found.path), found.base))
    return [found for found in there if found.path in wanted]


def _matches(found: BackupSet, patterns: Sequence[str]) -> bool:
    """The name of a set that tells none is that of its folder."""
    name = found.domain or os.path.basename(os.path.dirname(found.path))
    return any(fnmatchcase(name, pattern) or found.uuid == pattern.lower() for pattern in patterns)


def _require_one(there: tuple[BackupSet, ...], path: str) -> BackupSet:
    wanted = os.path.normpath(path)
    one = next((found for found in there if os.path.normpath(found.path) == wanted), None)
    if one is None:
        raise VirtopsError(
            "set_missing",
            "There is no backup set %s" % path,
            "Look for its path with virtops.libvirt.backup_info",
        )
    if one.state not in _SETS:
        raise VirtopsError(
            "set_unsuitable",
            "%s is not a set that could be read, it is %s: %s" % (path, one.state, one.why),
            "Give the path of a complete set, as virtops.libvirt.backup_info shows them",
        )
    return one
