# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Two lab hypervisors with three guests each, which all tests share; they go with the last test."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / name) for name in ("lab", "plays")]
pytest.register_assert_rewrite("endstate", "fleet")

from fleet import Member
from playbook import Controller
from virtlab import IMAGES, Disk, Hypervisor, Lab

T = TypeVar("T")
R = TypeVar("R")

NAMES = ("e2e1", "e2e2")
ODD_PATH = f"{IMAGES}/größe, d 1/Platte ü,1.qcow2"
# Whatever libvirt permits: Ansible has a meaning for each of these signs somewhere.
ODD_NAME = "odd {{ 7*7 }} näme, [1] & co:22"

DISKS = {
    ("e2e1", "web1"): (
        (
            Disk("vda", golden="base", fill_mib=8),
            Disk("hda", device="cdrom"),
            Disk("vdb", size_mib=8, format="raw", blank=True, shareable=True),
        ),
        {"hda": "cdrom", "vdb": "shareable"},
    ),
    ("e2e1", "web2"): ((Disk("vda", golden="base", fill_mib=8), Disk("vdb", format="raw")), {}),
    ("e2e1", "db"): ((Disk("vda"), Disk("vdb", format="raw", fill_mib=8), Disk("vdc", path=ODD_PATH)), {}),
    ("e2e2", "web1"): ((Disk("vda", format="raw"),), {}),
    ("e2e2", "files"): (
        (Disk("vda", fill_mib=8), Disk("vdb", size_mib=8, format="raw", blank=True, readonly=True)),
        {"vdb": "read-only"},
    ),
    ("e2e2", ODD_NAME): ((Disk("vda"), Disk("vdb", format="raw")), {}),
}


def in_parallel(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Do the work for each item at once."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(work, items))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of the fleet last: its guests, once they are up, write all the time."""
    items.sort(key=lambda item: "fleet" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """The lab, with two hypervisors of our own."""
    if os.geteuid() != 0:
        pytest.fail("the lab makes namespaces and mounts: these tests have to run as root")
    lab = Lab()
    lab.down(NAMES)
    lab.up(NAMES)
    yield lab
    lab.down(NAMES)


@pytest.fixture(scope="session")
def hypervisors(lab: Lab) -> list[Hypervisor]:
    """Both hypervisors."""
    return [lab.hypervisor(name) for name in NAMES]


@pytest.fixture(scope="session")
def fleet(hypervisors: list[Hypervisor]) -> dict[str, Member]:
    """The guests, all running and writing, by their names in Ansible's inventory."""
    by_name = {hypervisor.name: hypervisor for hypervisor in hypervisors}
    for hypervisor in hypervisors:  # those of modules that tests before this one killed
        hypervisor.exec(["sh", "-c", "rm -f /run/virtops.libvirt/*.lock"])
    # Six that write all the time take from the plays what they would need of the processors
    members = [Member(by_name[host].guest(name), *what, rate=2) for (host, name), what in DISKS.items()]
    for member in members:
        member.define()
    in_parallel(Member.boot, members)
    return {member.alias: member for member in members}


@pytest.fixture(scope="session")
def controller(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Controller:
    """The machine that Ansible runs on."""
    return Controller(tmp_path_factory.mktemp("controller"), NAMES, lab)


@pytest.fixture
def member(fleet: dict[str, Member], request: pytest.FixtureRequest) -> Member:
    """One guest, by indirect parametrization."""
    return fleet[request.param]


ALIASES = [f"{name}@{host}" for host, name in DISKS]
# Runs a test for each guest of the fleet.
every_guest = pytest.mark.parametrize(
    "member", ALIASES, ids=["odd" if " " in alias else alias for alias in ALIASES], indirect=True
)
