# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the flow that installs, or removes, the recovery at boot."""

from __future__ import annotations

from collections.abc import Mapping

from .._core.boot import (
    DIRECTORY,
    ENABLED,
    LIBRARY,
    STARTED,
    UNIT,
    BootOptions,
    Entry,
    FilesPort,
    in_removal_order,
    wanted,
)
from .._core.model import Outcome

#: What is told of each, as it is and as it would be.
_PARTS = ((LIBRARY, "the code in %s" % LIBRARY), (UNIT, "the unit %s" % UNIT), (ENABLED, "the link %s" % ENABLED))


class BootUnit:
    """The code, the unit, and the link that enables it."""

    def __init__(self, options: BootOptions, sources: Mapping[str, str], entry: str, files: FilesPort) -> None:
        self._wanted = wanted(options, sources, entry)
        self._files = files

    def run(self, check: bool) -> Outcome:
        """Plan, and where not `check`, apply. The link comes last and goes first."""
        found = self._find()
        surplus = in_removal_order(path for path in found if path not in self._wanted and path != STARTED)
        lacking = [path for path, entry in self._wanted.items() if found.get(path) != entry]
        if not check:
            for path in surplus:
                self._files.remove(path)
            for path in lacking:
                self._files.put(path, self._wanted[path])
        steps = []
        for place, name in _PARTS:
            if self._wanted and any(_is_in(path, place) for path in (*lacking, *surplus)):
                steps.append("write %s" % name)
            elif any(_is_in(path, place) for path in surplus):
                steps.append("remove %s" % name)
        return Outcome(tuple(steps), _told(found), _told(self._wanted))

    def _find(self) -> dict[str, Entry | None]:
        """What is there of ours. The directory of what the host starts is everybody's: it has to be there, as it is."""
        found = {**self._files.find(LIBRARY), **self._files.find(UNIT), **self._files.find(ENABLED)}
        if self._files.find(STARTED):
            found[STARTED] = DIRECTORY
        return found


def _is_in(path: str, place: str) -> bool:
    return path == place or path.startswith(place + "/")


def _told(entries: Mapping[str, Entry | None]) -> dict[str, object]:
    """The unit's text, and how many files of code there are: they are too long to be read in a diff."""
    unit = entries.get(UNIT)
    return {
        "code": sorted(path for path in entries if _is_in(path, LIBRARY) and path.endswith(".py")),
        "unit": None if unit is None else unit.text,
        "enabled": entries.get(ENABLED) is not None,
    }
