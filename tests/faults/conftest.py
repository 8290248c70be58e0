# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""One hypervisor of one generation for all tests, and the proof that each test can fail: --mutate."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / name) for name in ("lab", "plays")]
pytest.register_assert_rewrite("endstate", "fleet", f"{__package__}.scene")

from endstate import all_lost_nothing
from virtlab import Lab

from .mutations import MUTATIONS, mutated
from .scene import Scene, Stage

FAILED = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of this set."""
    parser.addoption("--generation", default="host", help="whose libvirt and QEMU (see tests/lab)")
    parser.addoption("--record", metavar="DIR", help="keep what libvirt shows at the moments that matter")
    parser.addoption(
        "--mutate", metavar="N[,N…]|all", help="take out what these tests guard, and see each of them fail"
    )


def number_of(name: str) -> int:
    """Return the fault that a test is about."""
    found = re.match(r"test_fault_(\d\d)_", name)
    return int(found.group(1)) if found else 0


def name_of(test: str) -> str:
    """Return how its records are called."""
    return re.sub(r"[^a-z0-9_]+", "_", test.removeprefix("test_").removeprefix("fault_")).strip("_")


def chosen(config: pytest.Config) -> set[int]:
    """Return the faults of --mutate."""
    asked = config.getoption("--mutate")
    return set(MUTATIONS) if asked == "all" else {int(number) for number in (asked or "").split(",") if number}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --mutate: one test for each fault that something of ours guards."""
    if not config.getoption("--record"):
        items[:] = [item for item in items if not item.name.startswith("test_moment_")]
    if not config.getoption("--mutate"):
        return
    wanted = {number: MUTATIONS[number].case for number in chosen(config) if MUTATIONS[number].edits}
    kept = []
    for item in items:
        number = number_of(item.name)
        if number in wanted and wanted[number] in item.name:
            kept.append(item)
            del wanted[number]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell the fixtures of a failure; with --mutate, a failure is what must be."""
    report = yield
    if report.when != "call":
        return report
    failed = item.stash[FAILED] = report.failed
    if item.config.getoption("--mutate"):
        why = str(call.excinfo.value).strip().splitlines()[:1] if call.excinfo else []
        VERDICTS[number_of(item.name)] = f"fails, as it must ({''.join(why)[:90]})" if failed else "DOES NOT NOTICE"
        report.outcome = "passed" if failed else "failed"
        report.longrepr = None if failed else "the test does not notice that what it guards is gone"
    return report


VERDICTS: dict[int, str] = {}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """With --mutate: the table."""
    if not config.getoption("--mutate"):
        return
    terminalreporter.section("without what they guard, the tests")
    for number in sorted(chosen(config)):
        mutation = MUTATIONS[number]
        verdict = VERDICTS.get(number, "not run") if mutation.edits else "nothing of ours alone"
        terminalreporter.write_line(f"{number:2}  {verdict}  -- {mutation.mechanism}")


@pytest.fixture(scope="session")
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """The hypervisor. In the end its guests' disks are read."""
    if os.geteuid() != 0:
        pytest.fail("the lab makes namespaces and mounts: these tests have to run as root")
    stage = Stage(Lab(), request.config.getoption("--generation"), tmp_path_factory.mktemp("controller"))
    stage.down()
    yield stage
    try:
        all_lost_nothing(before for _unused, before in stage.members.values())
    finally:
        stage.down()


@pytest.fixture
def mutation(request: pytest.FixtureRequest, stage: Stage, tmp_path: Path) -> Iterator[None]:
    """With --mutate: the collection without what this test guards."""
    if not request.config.getoption("--mutate"):
        yield
        return
    whole = stage.controller.collections
    stage.controller.patience = 90  # without its mechanism a play may never end
    stage.controller.collections = mutated(whole, tmp_path / "collections", number_of(request.node.name))
    yield
    stage.controller.collections = whole


@pytest.fixture
def scene(request: pytest.FixtureRequest, stage: Stage, mutation: None) -> Iterator[Scene]:
    """The stage with its usual guest. Sets go after each test; after a failure, everything."""
    yield from on_stage(request, stage, "web")


def on_stage(request: pytest.FixtureRequest, stage: Stage, name: str) -> Iterator[Scene]:
    """Set the scene for one test."""
    records = request.config.getoption("--record")
    scene = Scene(
        stage,
        getattr(stage, name)(),
        name_of(request.node.name),
        Path(records) if records else None,
    )
    scene.member.guest.write(rate=10)
    yield scene
    scene.close()
    stage.wake()
    if request.node.stash.get(FAILED, True):
        stage.down()
        return
    for found in scene.member.sets():
        stage.hypervisor.exec(["rm", "-rf", found.folder])
