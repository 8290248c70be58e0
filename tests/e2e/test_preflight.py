# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The preflight finds what would fail before anything is touched, and stops no guest that is ready."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fleet import Member, images, locks
from playbook import Controller, Play
from virtlab import IMAGES, Hypervisor

#: The one that is not ready comes first by its name
BUSY, CHECKED, FINE = "db@e2e1", "web1@e2e1", "web2@e2e1"
LACKING = "files@e2e2"
FOREIGN_COPY = f"{IMAGES}/foreign-copy.raw"
HERE = ("--limit", "e2e1:*@e2e1")


@pytest.fixture(scope="module", autouse=True)
def _unready(fleet: dict[str, Member]) -> Iterator[None]:
    """One guest has a block job of somebody else, another one checkpoints, which is worth a warning."""
    busy, checked = fleet[BUSY].guest, fleet[CHECKED].guest
    busy.hypervisor.virsh(
        *("blockcopy", busy.name, "vdb", FOREIGN_COPY, "--format", "raw", "--transient-job", "--bandwidth", "1")
    )
    checkpoint = "<domaincheckpoint><name>c1</name><disks><disk name='vda'/></disks></domaincheckpoint>"
    checked.hypervisor.virsh("checkpoint-create", checked.name, "/dev/stdin", stdin=checkpoint)
    yield
    busy.hypervisor.virsh("blockjob", busy.name, "vdb", "--abort", check=False)
    busy.hypervisor.exec(["rm", "-f", FOREIGN_COPY])
    checked.hypervisor.virsh("checkpoint-delete", checked.name, "c1", check=False)


def looks(play: Play) -> list[str]:
    """Return for which hosts the module was started."""
    return [item.host for item in play.results if item.action.endswith("preflight_info")]


def test_preflight_only(fleet: dict[str, Member], hypervisors: list[Hypervisor], controller: Controller) -> None:
    """It tells what is the matter with each guest, touches none, and fails as one is not ready."""
    facts = {alias: member.facts() for alias, member in fleet.items()}
    sets = {alias: len(member.sets()) for alias, member in fleet.items()}
    files = [images(hypervisor) for hypervisor in hypervisors]
    play = controller.run(preflight_only=True)
    assert play.rc != 0
    assert f"Not ready: {BUSY}" in play.output
    assert play.guests() == set()
    assert len(looks(play)) == len(hypervisors)
    report = play.report()
    assert report.keys() == fleet.keys()
    assert report[BUSY].startswith(f"{BUSY}: NOT READY. vdb: A block job (copy)")
    assert report[CHECKED].startswith(f"{CHECKED}: ready. WARNING: vdb: It is left out of the backup: it is shareable")
    assert "Checkpoints of another backup tool" in report[CHECKED]
    assert [line for line in report.values() if ".." in line] == []
    assert report[LACKING].startswith(f"{LACKING}: ready. WARNING: vdb: It is left out of the backup: it is read-only")
    others = fleet.keys() - {BUSY, CHECKED, LACKING}
    assert [alias for alias in others if report[alias] != f"{alias}: ready"] == []
    assert {alias: member.facts() for alias, member in fleet.items()} == facts
    assert {alias: len(member.sets()) for alias, member in fleet.items()} == sets
    assert [images(hypervisor) for hypervisor in hypervisors] == files
    assert locks(hypervisors[0]) == []


def test_all_are_ready(fleet: dict[str, Member], controller: Controller) -> None:
    """Then it is a success."""
    play = controller.run(preflight_only=True, target="second", guests=["web1", "odd*"])
    assert play.rc == 0, play.output
    assert len(play.report()) == 2
    assert [line for line in play.report().values() if not line.endswith(": ready")] == []


def test_little_is_said_of_guests_that_are_ready(fleet: dict[str, Member], controller: Controller) -> None:
    """They are just backed up."""
    there = len(fleet[FINE].sets())
    play = controller.run("--limit", f"e2e1:{FINE}")
    assert play.rc == 0, play.output
    (said,) = [item.result for item in play.of(FINE, "live_backup")]
    assert said.get("warnings", []) == []
    assert looks(play) == []
    assert len(fleet[FINE].sets()) == there + 1


def test_only_the_ready_are_backed_up(fleet: dict[str, Member], controller: Controller) -> None:
    """One that is not ready fails with the preflight's cause and is not touched; the others are backed up."""
    busy, fine = fleet[BUSY], fleet[FINE]
    before, sets, there = busy.facts(), len(busy.sets()), len(fine.sets())
    play = controller.run(*HERE)
    assert play.rc != 0
    (failed,) = [item.result for item in play.of(BUSY, "live_backup")]
    assert failed["error_code"] == "job_running"
    assert play.guests() == {BUSY, CHECKED, FINE}
    assert looks(play) == []
    assert "FAILED. The preflight found, and nothing was touched: vdb: A block job (copy)" in play.report()[BUSY]
    assert "backed up to" in play.report()[FINE]
    assert "Checkpoints of another backup tool" in play.output
    assert busy.facts() == before
    assert before.jobs == ["vdb"]
    assert len(busy.sets()) == sets
    assert len(fine.sets()) == there + 1


def test_hypervisor_that_cannot_be_looked_at(fleet: dict[str, Member], controller: Controller) -> None:
    """An option that cannot be meant: nothing is touched, and every guest is told so."""
    sets = {alias: len(member.sets()) for alias, member in fleet.items()}
    only = controller.run(*HERE, live_backup_overlay_reserve="much", preflight_only=True)
    assert only.refused().keys() == {BUSY, CHECKED, FINE}
    for play in (only, controller.run(*HERE, live_backup_overlay_reserve="much")):
        assert play.rc != 0
        told = play.report()
        assert told.keys() == {BUSY, CHECKED, FINE}
        assert [line for line in told.values() if "overlay_reserve is 'much'" not in line] == []
    assert {alias: len(member.sets()) for alias, member in fleet.items()} == sets
