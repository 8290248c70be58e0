# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the one error type that reaches the user.

Every expected failure is a `VirtopsError`: one sentence of cause, one of remedy, and a stable
short code that playbooks may test. Anything else that is raised is a bug and stays a traceback.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class VirtopsError(Exception):
    """An expected failure.

    `code` is stable across releases (it is the module result's `error_code`). `partial` tells, per
    disk, what had been done before the failure, where that can be. `actions` are the steps that were done, None where
    no flow had begun. `told` is what else the result has.
    """

    def __init__(
        self,
        code: str,
        cause: str,
        remedy: str,
        partial: list[dict[str, Any]] | None = None,
        actions: Sequence[str] | None = None,
    ) -> None:
        super().__init__(cause)
        self.code = code
        self.cause = cause
        self.remedy = remedy
        self.partial = partial
        self.actions = None if actions is None else tuple(actions)
        self.told: dict[str, Any] = {}

    def __str__(self) -> str:
        return "%s %s" % (_sentence(self.cause), _sentence(self.remedy))


class LibvirtFailure(VirtopsError):
    """A libvirt call that failed; the adapter's table has mapped its number to `code`."""


def _sentence(text: str) -> str:
    text = text.strip()
    return text if not text or text[-1] in ".!?" else text + "."
