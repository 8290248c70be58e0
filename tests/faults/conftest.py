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

from .mutations import MUTATIONS, Mutation, mutated, of
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


def chosen(config: pytest.Config) -> list[Mutation]:
    """Return what --mutate takes out, one after the other."""
    asked = config.getoption("--mutate")
    if asked == "all":
        return list(MUTATIONS)
    numbers = {int(number) for number in (asked or "").split(",") if number}
    return [mutation for mutation in MUTATIONS if mutation.fault in numbers]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """With --mutate: each test once for each mutation of its fault."""
    if metafunc.config.getoption("--mutate") and "mutation" in metafunc.fixturenames:
        found = of(number_of(metafunc.function.__name__))
        metafunc.parametrize("mutation", found, indirect=True, ids=[f"without-{i}" for i, _unused in enumerate(found)])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --mutate: one test for each mutation."""
    if not config.getoption("--record"):
        items[:] = [item for item in items if not item.name.startswith("test_moment_")]
    if not config.getoption("--mutate"):
        return
    wanted = [mutation for mutation in chosen(config) if mutation.edits]
    kept = []
    for item in items:
        mutation = mutation_of(item)
        if mutation in wanted and mutation.case in item.name:
            kept.append(item)
            wanted.remove(mutation)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def mutation_of(item: pytest.Item) -> Mutation | None:
    """Return what is taken out while this test runs."""
    found = item.callspec.params.get("mutation") if hasattr(item, "callspec") else None
    return found if isinstance(found, Mutation) else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell the fixtures of a failure; with --mutate, the failure that it is to see is what must be."""
    report = yield
    if report.when != "call":
        return report
    failed = item.stash[FAILED] = report.failed
    mutation = mutation_of(item)
    if mutation is None:
        return report
    text = str(call.excinfo.value) if call.excinfo else ""
    found = re.search(mutation.sees, text)
    if failed and found:
        VERDICTS[mutation] = f"fails, as it must: {' '.join(found.group().split())[:90]}"
        report.outcome, report.longrepr = "passed", None
    elif failed:
        VERDICTS[mutation] = f"FAILS WITH SOMETHING ELSE than {mutation.sees}"
    else:
        VERDICTS[mutation] = "DOES NOT NOTICE"
        report.outcome = "failed"
        report.longrepr = "the test does not notice that what it guards is gone"
    return report


VERDICTS: dict[Mutation, str] = {}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """With --mutate: the table."""
    if not config.getoption("--mutate"):
        return
    terminalreporter.section("without what they guard, the tests")
    for mutation in chosen(config):
        verdict = VERDICTS.get(mutation, "not run") if mutation.edits else "nothing of ours alone"
        terminalreporter.write_line(f"{mutation.fault:2}  {verdict}  -- {mutation.mechanism}")


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
    taken_out: Mutation | None = getattr(request, "param", None)
    if taken_out is None:
        yield
        return
    whole = stage.controller.collections
    stage.controller.patience = 90  # without its mechanism a play may never end
    stage.controller.collections = mutated(whole, tmp_path / "collections", taken_out)
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
        # What a mutation breaks may show in the next run only
        bool(os.environ.get("DEV_LONG") or request.config.getoption("--mutate")),
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
