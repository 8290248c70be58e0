# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""How many runs of which seed; one hypervisor and one guest for all of them; and what came of it, in one line."""

from __future__ import annotations

import os
import random
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / name) for name in ("lab", "plays")]
pytest.register_assert_rewrite("endstate", "fleet")

from endstate import Before
from fleet import Member
from playbook import Controller
from virtlab import Disk, Lab

from .strike import KINDS, PHASES

NAME = "campaign"
#: Eight: each kind twice, and at each aim twice
RUNS, LONG_RUNS = 8, 200
TALLY = pytest.StashKey["Tally"]()


@dataclass
class Tally:
    """What the runs came to."""

    seed: int
    runs: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    phases: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    forgotten: int = 0
    failed: int = 0
    lost: int = 0
    leftovers: int = 0

    def line(self) -> str:
        """Return the closing line."""
        kinds = ", ".join(f"{kind} {self.kinds[kind]}" for kind in KINDS)
        phases = ", ".join(f"{phase} {self.phases[phase]}" for phase in PHASES)
        kills = sum(self.kinds.values())
        missed = f", {self.missed} runs over before their kill" if self.missed else ""
        # Not ours to heal: nobody can tell which images the guest uses, see the guide on guest_lost and pivot_lost
        missed += f", {self.forgotten} guests of unknown images, and refused" if self.forgotten else ""
        return (
            f"campaign: seed {self.seed}, {self.runs} runs, {kills} kills ({kinds}; {phases}){missed}, "
            f"{self.failed} runs that failed, {self.lost} lost records, {self.leftovers} leftovers"
        )


@dataclass
class Stage:
    """The hypervisor with its guest, made anew after a run that failed."""

    lab: Lab
    controller: Controller
    keep: bool = False
    member: Member | None = None
    first: Before | None = None
    failed: bool = False

    def ready(self) -> Member:
        """Return the guest, running and writing."""
        if self.member is None:
            host = self.lab.hypervisor(NAME)
            host.up()
            member = Member(host.guest("web"), (Disk("vda", format="raw", fill_mib=16), Disk("vdb")))
            member.define()
            self.member = member
            member.boot()
            self.first = Before.of(member)
        if self.member.guest.state() != "running":
            self.member.boot()
        # Enough to merge, not more than a merge can follow
        self.member.guest.write(rate=20, bulk_kib=64)
        return self.member

    def give_up(self) -> None:
        """After a run that failed: the next one begins anew."""
        self.failed = True
        if not self.keep:
            self.down()

    def down(self) -> None:
        """Remove it."""
        self.member = self.first = None
        self.lab.down([NAME])


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of this set."""
    runs = LONG_RUNS if os.environ.get("DEV_LONG") else RUNS
    parser.addoption(
        "--seed", type=int, default=random.randrange(100000), help="of all choices; by chance unless given"
    )
    parser.addoption("--runs", type=int, default=runs, help="how many")
    parser.addoption("--run", type=int, help="this one only, counted from 0")
    parser.addoption(
        "--keep", action="store_true", help="leave the hypervisor as it is after a run that failed; with -x"
    )


def pytest_configure(config: pytest.Config) -> None:
    """One tally for all."""
    config.stash[TALLY] = Tally(config.getoption("--seed"))


def pytest_report_header(config: pytest.Config) -> str:
    """Say the seed before anything can go wrong."""
    return f"campaign: seed {config.getoption('--seed')}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each run."""
    if "run" in metafunc.fixturenames:
        one = metafunc.config.getoption("--run")
        metafunc.parametrize("run", range(metafunc.config.getoption("--runs")) if one is None else [one])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The closing line."""
    terminalreporter.write_line(config.stash[TALLY].line())


@pytest.fixture(scope="session")
def tally(request: pytest.FixtureRequest) -> Tally:
    """What the runs come to."""
    return request.config.stash[TALLY]


@pytest.fixture(scope="session")
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """The hypervisor, gone in the end."""
    if os.geteuid() != 0:
        pytest.fail("the lab makes namespaces and mounts: these tests have to run as root")
    lab = Lab()
    controller = Controller(tmp_path_factory.mktemp("controller"), [NAME], lab)
    stage = Stage(lab, controller, request.config.getoption("--keep"))
    stage.down()
    yield stage
    if not (stage.keep and stage.failed):
        stage.down()
