# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Some guests cannot be backed up: they are left whole, the report names them, and the others do not notice.

Without the preflight, which finds most of it before the role begins (test_preflight.py): what comes after it must be
survived too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from fleet import Facts, Member, images, locks
from playbook import Controller, Play
from virtlab import IMAGES, Hypervisor

HUNG, BUSY, FINE = "web1@e2e1", "web2@e2e1", "db@e2e1"
FREEZE_TIMEOUT = 3
FOREIGN_COPY = f"{IMAGES}/foreign-copy.raw"


@dataclass(frozen=True)
class Run:
    """A run in which two of three guests fail: what each was before, how many sets it had, and how long it took."""

    play: Play
    facts: dict[str, Facts]
    sets: dict[str, int]
    images: set[str]
    seconds: float


@pytest.fixture(scope="module")
def run(fleet: dict[str, Member], controller: Controller) -> Iterator[Run]:
    """One guest's agent hangs where a freeze is required; another has a block job of somebody else."""
    hung, busy = fleet[HUNG].guest, fleet[BUSY].guest
    hung.agent_service("hang")
    busy.hypervisor.virsh(
        *("blockcopy", busy.name, "vdb", FOREIGN_COPY, "--format", "raw", "--transient-job", "--bandwidth", "1")
    )
    try:
        guests = {alias: fleet[alias] for alias in (HUNG, BUSY, FINE)}
        facts = {alias: member.facts() for alias, member in guests.items()}
        sets = {alias: len(member.sets()) for alias, member in guests.items()}
        before = images(hung.hypervisor)
        began = time.monotonic()
        play = controller.run(
            *("--limit", "e2e1:*@e2e1"),
            live_backup_preflight=False,
            live_backup_quiesce="required",
            live_backup_freeze_timeout=FREEZE_TIMEOUT,
        )
        yield Run(play, facts, sets, before, time.monotonic() - began)
    finally:
        hung.agent_service("resume")
        busy.hypervisor.virsh("blockjob", busy.name, "vdb", "--abort", check=False)  # a test may have ended it
        busy.hypervisor.exec(["rm", "-f", FOREIGN_COPY])


def error_codes(play: Play, alias: str) -> list[str]:
    """Return how the modules of a guest failed."""
    failed = [item for item in play.of(alias) if item.status == "failed"]
    return [str(item.result["error_code"]) for item in failed if "error_code" in item.result]


def test_play_fails(run: Run) -> None:
    """A run with a failed guest is no success, and says which failed."""
    assert run.play.rc != 0
    assert run.play.guests() == {HUNG, BUSY, FINE}
    assert "The backup failed for" in run.play.output


def test_other_guest_is_backed_up(run: Run, fleet: dict[str, Member]) -> None:
    """One guest's failure stops no other."""
    assert [item.status for item in run.play.of(FINE) if item.status not in ("ok", "skipped")] == []
    assert len(fleet[FINE].sets()) == run.sets[FINE] + 1
    assert "backed up to" in run.play.report()[FINE]


def test_hung_agent(run: Run) -> None:
    """A freeze that is required and cannot be had is a refusal, in bounded time."""
    assert error_codes(run.play, HUNG)[0] == "agent_unresponsive"
    assert "agent" in run.play.report()[HUNG]
    assert run.seconds < 90


def test_foreign_job(run: Run, fleet: dict[str, Member]) -> None:
    """Somebody else's block job is neither waited for nor ended."""
    assert error_codes(run.play, BUSY)[0] == "job_running"
    assert "vdb" in run.play.report()[BUSY]
    assert fleet[BUSY].facts().jobs == ["vdb"]


@pytest.mark.parametrize("alias", [HUNG, BUSY])
def test_failed_guest_is_left_whole(run: Run, fleet: dict[str, Member], alias: str) -> None:
    """It runs on, on the same chains; nothing of ours is left, and no set pretends to be one."""
    member = fleet[alias]
    assert member.facts() == run.facts[alias]
    assert not run.facts[alias].journal
    assert "FAILED" in run.play.report()[alias]
    assert len(member.sets()) == run.sets[alias]
    assert member.leftovers() == []
    member.guest.command("for disk in /mnt/*; do echo >$disk/probe && sync && rm $disk/probe; done", timeout=20)


def test_no_file_left(run: Run, hypervisors: list[Hypervisor]) -> None:
    """No overlay of a failed guest, and no lock."""
    assert images(hypervisors[0]) == run.images
    assert locks(hypervisors[0]) == []


@pytest.mark.parametrize("alias", [HUNG, BUSY])
def test_next_run_succeeds(run: Run, fleet: dict[str, Member], controller: Controller, alias: str) -> None:
    """Once the cause is gone, the same play backs the guest up."""
    member = fleet[alias]
    if alias == HUNG:
        member.guest.agent_service("resume")
    else:
        member.hypervisor.virsh("blockjob", member.guest.name, "vdb", "--abort")
    play = controller.run("--limit", f"e2e1:{alias}", live_backup_quiesce="required")
    assert play.rc == 0, play.output
    assert len(member.sets()) == run.sets[alias] + 1
    assert member.facts().jobs == []


@pytest.mark.parametrize(
    ("dest", "make", "error_code"),
    [
        ("/srv/missing", None, "dest_missing"),
        ("/srv/link", ["ln", "-sfn", "/srv/backup", "/srv/link"], "dest_symlink"),
    ],
)
def test_bad_target(
    fleet: dict[str, Member], controller: Controller, dest: str, make: list[str] | None, error_code: str
) -> None:
    """A backup target that cannot be used is refused before the snapshot, with its path and its remedy."""
    member = fleet["files@e2e2"]
    if make:
        member.hypervisor.exec(make)
    before, files, sets = member.facts(), images(member.hypervisor), len(member.sets())
    play = controller.run("--limit", f"e2e2:{member.alias}", live_backup_preflight=False, live_backup_dest=dest)
    assert play.rc != 0
    failed = [item for item in play.of(member.alias) if item.status == "failed"]
    assert (failed[0].task, failed[0].result["error_code"]) == ("Snapshot, copy, merge", error_code)
    # There is a report even where each guest failed
    assert dest in play.report()[member.alias]
    assert member.facts() == before
    assert images(member.hypervisor) == files
    assert len(member.sets()) == sets
