# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is killed in a run, and when: chosen by seed and number of the run alone, so that one run can be repeated."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fleet import Member
from playbook import RunningPlay
from virtlab import Hypervisor, Mark

KINDS = ("module", "controller", "libvirtd", "QEMU")
#: Where a strike aims at, and how many seconds after that has begun it comes at the latest.
AIMS = {"snapshot": 0.6, "copy": 2.2, "merge": 1.0, "pivot": 0.3}
#: What a strike may hit: the phases, or what comes after the last of them.
PHASES = ("snapshot", "copy", "merge", "pivot", "end")

#: Seconds for an aim to come in sight, and for a module to be there to be killed.
AIM_SECONDS = 90
MODULE_SECONDS = 5
POLL = 0.005


@dataclass(frozen=True)
class Strike:
    """One kill: `delay` is seconds from the aim's begin."""

    kind: str
    aim: str
    delay: float

    def __str__(self) -> str:
        """Return it in words."""
        return f"SIGKILL to the {self.kind}, {self.delay:.3f} s after the {self.aim} began"


@dataclass(frozen=True)
class Hit:
    """What came of it: the phase that was hit (empty: the play was over before), and what was durable just before."""

    phase: str
    mark: Mark | None = None


def chosen(seed: int, run: int) -> Strike:
    """Return the strike of a run. Of four runs each hits another kind and another aim, of sixteen another pair."""
    block, place = divmod(run, len(KINDS) * len(AIMS))
    chance = random.Random(f"{seed}/{block}")
    kinds, aims, shifts = list(KINDS), list(AIMS), list(range(len(AIMS)))
    for choices in (kinds, aims, shifts):
        chance.shuffle(choices)
    row, column = divmod(place, len(KINDS))
    kind, aim = kinds[column], aims[(column + shifts[row]) % len(aims)]
    return Strike(kind, aim, random.Random(f"{seed}/{block}/{place}").uniform(0, AIMS[aim]))


class Striker:
    """Watches a play on one guest from outside, and strikes."""

    def __init__(self, strike: Strike, member: Member, play: RunningPlay) -> None:
        """Watch."""
        self._strike = strike
        self._member = member
        self._play = play
        self._host: Hypervisor = member.hypervisor
        self._was_open = False

    def strike(self) -> Hit:
        """Wait for the aim and its delay, then kill."""
        if not self._await(self._in_sight, AIM_SECONDS):
            return Hit("")
        began = time.monotonic()
        mark = self._member.guest.mark()  # on a frozen guest too
        time.sleep(max(0.0, self._strike.delay - (time.monotonic() - began)))
        if self._strike.kind == "module" and not self._await(lambda: bool(modules(self._host)), MODULE_SECONDS):
            return Hit("", mark)
        if self._play.process.poll() is not None:
            return Hit("", mark)
        phase = self._phase()
        self._kill()
        return Hit(phase, mark)

    def _await(self, is_so: Callable[[], bool], seconds: float) -> bool:
        """Say whether it came before the play was over."""
        deadline = time.monotonic() + seconds
        while not is_so():
            if self._play.process.poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(POLL)
        return True

    def _in_sight(self) -> bool:
        """Whether what is aimed at has begun."""
        return self._phase() in PHASES[PHASES.index(self._strike.aim) :]

    def _phase(self) -> str:
        noted = self._member.phase()
        self._was_open = self._was_open or bool(noted)
        if not noted:
            return "end" if self._was_open else ""
        if noted == "committing":
            return "pivot" if is_ready(self._member) else "merge"
        return {"prepared": "snapshot", "created": "copy"}[noted]

    def _kill(self) -> None:
        if self._strike.kind == "controller":
            self._play.kill()
        elif self._strike.kind == "libvirtd":
            self._host.libvirtd_kill()
            self._host.libvirtd_start()  # as systemd does
        elif self._strike.kind == "QEMU":
            self._member.guest.kill_qemu()
        else:
            self._host.exec(["kill", "-KILL", *map(str, modules(self._host))], check=False)


def modules(host: Hypervisor) -> list[int]:
    """Return the modules that run on a hypervisor, by their numbers there: all its Pythons but watchdogs."""
    found = []
    for folder in host.outside("/proc").glob("[0-9]*"):
        words = _read(folder / "cmdline").split(b"\0")
        if words[0].endswith(b"python3") and not any(b"watchdog" in word for word in words):
            found.append(int(folder.name))
    return found


def is_ready(member: Member) -> bool:
    """Whether QEMU has a mirror that may be pivoted, by libvirt's own status file."""
    status = member.hypervisor.outside(f"/run/libvirt/qemu/{member.guest.name}.xml")
    return b"ready='yes'" in _read(status) or b"ready='pivot'" in _read(status)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
