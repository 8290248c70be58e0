# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: a plan is data: what a flow is going to do, step by step. No effects.

A planner calls nothing and an act decides nothing; `_service.run` executes the steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Union

from .errors import VirtopsError


@dataclass(frozen=True)
class Done:
    """What came of a step. `words` is what was really done, None where that is all that its words say."""

    words: tuple[str, ...] | None = None
    warnings: tuple[str, ...] = ()


#: It raises VirtopsError; `actions` of that error are the words of what it did all the same.
Act = Callable[[], Union[Done, None]]
#: Takes the act back after that failure. False where it has to stay: then so does all that came before it.
Undo = Callable[[VirtopsError], bool]


@dataclass(frozen=True)
class Step:
    """One thing to do. A loop over the jobs of several disks is one step.

    `words` are what `actions` shows, none for a note in the journal. `undo` is for the failure of a
    later step; `final`: once this step has begun nothing that came before it is undone any more, as at the first commit
    into a base.
    """

    words: tuple[str, ...]
    act: Act
    undo: Undo | None = None
    final: bool = False


def nothing() -> None:
    """The act of a step that only says something."""
