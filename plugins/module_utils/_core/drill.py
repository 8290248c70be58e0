# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: whether a set boots, decided without any effect, and what the trial of it needs."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from .choose_sets import Choice
from .errors import VirtopsError
from .sets import COMPLETE, BackupSet

#: The codes of what is a set's fault, not the host's.
OF_THE_SET = ("drill_failed", "set_damaged", "set_not_alone")

#: How the names of trials begin, so that everybody sees what they are.
PREFIX = "drill-"
#: Characters of a check's output that a result holds.
WORDS_LIMIT = 2000
#: Bytes of a console that are looked at, counted from its end.
CONSOLE_LIMIT = 1 << 20
#: Extras of a set that QEMU reads when it starts the guest.
BOOT_FILES = ("kernel", "initrd", "dtb")


@dataclass(frozen=True)
class DrillOptions:
    """What the user asked for. `timeout` in seconds, `memory` in bytes (0: as the guest has it).

    A guest is up when what it prints has a match of `pattern`; where that is empty, when its agent answers. Then
    `command` is run in it.
    """

    choice: Choice
    timeout: int
    pattern: str = ""
    command: tuple[str, ...] = ()
    command_timeout: int = 60
    memory: int = 0
    at_once: int = 1


@dataclass(frozen=True)
class Exported:
    """An image of the set that is served to the trial: `file` in the set, of this `format` and size in bytes."""

    target: str
    file: str
    format: str
    virtual_size: int


@dataclass(frozen=True)
class DrillPlan:
    """What a trial is made of. `nvram` and `boot` are files in the set."""

    name: str
    uuid: str
    images: tuple[Exported, ...]
    nvram: str | None
    boot: Mapping[str, str]


class ScratchPort(Protocol):
    """A folder that goes away with the trial, and the servers of its images."""

    folder: str

    def serve(self, image: Exported) -> str:
        """`qemu-nbd --read-only`: serve an image of the set over a socket, whose path is returned."""

    def overlay(self, image: Exported, socket: str) -> str:
        """`qemu-img create`: what the trial writes to."""

    def read(self, file: str) -> str:
        """A small file of the set, as text."""

    def take_copy(self, file: str) -> str:
        """Copy a small file of the set, for QEMU to use; its path."""

    def hand_over(self) -> None:
        """All is in it: QEMU may pass through."""

    def console(self) -> str:
        """What the guest has printed so far, the end of it."""

    @property
    def console_path(self) -> str:
        """Where it is printed to."""


class TrialGuest(Protocol):
    """A transient guest under way."""

    def is_running(self) -> bool:
        """virDomainGetState."""

    def answers(self) -> bool:
        """Does its agent answer?"""

    def execute(self, command: tuple[str, ...], seconds: int) -> tuple[int, str]:
        """guest-exec by the agent: exit code, and what it printed."""


class TrialHost(Protocol):
    """Where trials run."""

    def boot(self, xml: str) -> AbstractContextManager[TrialGuest]:
        """virDomainCreateXML, AUTODESTROY: it ends with the context, with our connection and with our process."""


def require_pattern(options: DrillOptions) -> None:
    """Refuse a pattern that is none."""
    try:
        re.compile(options.pattern)
    except re.error as error:
        raise VirtopsError(
            "bad_pattern", "console is no regular expression: %s" % error, "Give one that Python's re knows"
        ) from error


def plan_drill(found: BackupSet) -> DrillPlan:
    """Refuses a set that cannot be booted from itself alone."""
    if found.state != COMPLETE or found.manifest is None:
        raise VirtopsError("set_damaged", "It is %s: %s" % (found.state, found.why), "Back the guest up again")
    manifest: Mapping[str, Any] = found.manifest
    leaning = [disk["file"] for disk in manifest["disks"] if disk["backing"] is not None]
    if leaning:
        raise VirtopsError(
            "set_not_alone",
            "The copies %s need backing files outside of the set" % ", ".join(leaning),
            "Restore this set instead: backups without keep_backing stand alone",
        )
    extras = {extra["kind"]: extra["file"] for extra in manifest.get("extras", ())}
    nvram = (manifest.get("nvram") or {}).get("file")
    # A name of the guest's own may be too long for one with more in it
    name = "%s%s-%s" % (PREFIX, found.domain[:100], os.path.basename(found.path))
    return DrillPlan(
        name=name,
        uuid=str(uuid.uuid4()),
        images=tuple(
            Exported(disk["target"], disk["file"], disk["format"], disk["virtual_size"]) for disk in manifest["disks"]
        ),
        nvram=nvram,
        boot={kind: extras[kind] for kind in BOOT_FILES if kind in extras},
    )


def is_up(pattern: str, console: str) -> bool:
    return re.search(pattern, console) is not None


def not_up(why: str, seconds: float, console: str) -> VirtopsError:
    """The error for a set that did not boot; `seconds` are those that were waited."""
    words = "It did not come up: within %d s %s. Its console ends with: %s" % (
        seconds,
        why,
        _end_of(console) or "nothing",
    )
    return VirtopsError("drill_failed", words, "Give it longer (timeout)")


def check_failed(code: int, said: str) -> VirtopsError:
    """The error for a guest that came up, and is not what it should be."""
    words = "It came up, and the check in it ended with exit code %d: %s" % (code, _end_of(said) or "no output")
    return VirtopsError("drill_failed", words, "Look at it")


def some_failed(failed: Mapping[str, str], tried: int) -> VirtopsError:
    """The error for all of them; `failed` are the words for each, by its path."""
    words = "; ".join("%s: %s" % (path, said.rstrip(".")) for path, said in failed.items())
    return VirtopsError(
        "drill_failed",
        "%d of %d backup sets did not boot as they should: %s" % (len(failed), tried, words),
        "Verify such a set (backup_verify). If it is whole, restore it under another name and look at it. Until you "
        "know why, count on an older one",
    )


def _end_of(text: str) -> str:
    return " ".join(text[-300:].split())
