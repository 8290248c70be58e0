# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Each run: the play, a kill, the play again; then all is as it was, but for a backup."""

from __future__ import annotations

import re
from typing import Any

import pytest
from endstate import Before, all_lost_nothing
from fleet import Member
from playbook import LIVE_BACKUP, Controller, Play, RunningPlay
from virtlab import Mark, lost

from .conftest import Stage, Tally
from .strike import Hit, Striker, chosen

#: Seconds for one play, all waiting of the role included.
PLAY_SECONDS = 180
#: Slow enough that each phase can be hit: MiB/s.
ROLE: dict[str, Any] = {
    "live_backup_rate_limit": 8,
    "live_backup_bandwidth": 4,
    "live_backup_timeout": 90,
    "live_backup_lock_timeout": 60,
    "live_backup_freeze_timeout": 5,
}
#: What is refused where a guest ended at its pivot.
EITHER = re.compile(r"newest data are in (\S+) or in (\S+)[.] ")


def test_run(run: int, stage: Stage, tally: Tally) -> None:
    """Kill, and run again."""
    strike = chosen(tally.seed, run)
    hit, said = Hit(""), ""
    tally.runs += 1
    try:
        member = stage.ready()
        before = Before.of(member)
        play = start(stage.controller)
        hit = Striker(strike, member, play).strike()
        if strike.kind != "controller" or not hit.phase:
            play.end(PLAY_SECONDS)
        again = start(stage.controller).end(PLAY_SECONDS)
        said = again.output
        if strike.kind == "libvirtd" and (is_forgotten(member) or "shows a pivot of disk" in said):
            # Not ours to heal: libvirt itself cannot tell what QEMU did. It is refused, and nothing is lost
            tally.forgotten += 1
            assert "libvirt has lost" in said
            assert lost_records(member, [before.mark, *([hit.mark] if hit.mark else [])]) == []
            stage.down()
            return
        either = EITHER.search(said)
        if strike.kind == "QEMU" and either:
            # Nor can anybody tell whether QEMU pivoted before it died: a human is asked, who has both images
            tally.forgotten += 1
            assert [path for path in either.groups() if not member.hypervisor.outside(path).is_file()] == []
            stage.down()
            return
        check(before, hit, again, tally)
        remove_sets(member)
    except BaseException as error:
        error.add_note(
            f"seed {tally.seed}, run {run}: {strike}; hit: {hit.phase or 'nothing, the play was over'}\n"
            f"again: ./dev test campaign -- --seed {tally.seed} --run {run}\n"
            f"the second play said: {said}"
        )
        tally.failed += 1
        stage.give_up()
        raise
    finally:
        if hit.phase:
            tally.kinds[strike.kind] += 1
            tally.phases[hit.phase] += 1
        else:
            tally.missed += 1


def test_disks_at_the_end(stage: Stage, tally: Tally) -> None:
    """The guest off, its images read: whole, with each record that it was ever promised."""
    if stage.first is None:
        pytest.skip("the last run failed, and left no guest to read")
    try:
        all_lost_nothing([stage.first])
    except AssertionError:
        tally.lost += 1
        raise


def test_enough_was_hit(tally: Tally, request: pytest.FixtureRequest) -> None:
    """Plays that are over before their kill prove nothing."""
    if request.config.getoption("--run") is not None:
        pytest.skip("one run only")
    assert sum(tally.kinds.values()) >= tally.runs * 3 / 4, tally.line()


def start(controller: Controller) -> RunningPlay:
    """Start the play; its modules outlive their controller."""
    return controller.start(pipelining=True, gate="", playbook=LIVE_BACKUP, **ROLE)


def check(before: Before, hit: Hit, again: Play, tally: Tally) -> None:
    """The second run ended well, and left nothing but a backup: also of a guest that is off, as its QEMU was killed."""
    member = before.member
    assert again.rc == 0, again.output
    rebooted = member.guest.state() != "running"
    if rebooted:
        member.boot()
    gone = lost_records(member, [before.mark, *([hit.mark] if hit.mark else [])])
    tally.lost += len(gone)
    assert gone == []
    try:
        before.assert_normal_end(rebooted=rebooted, sets=None)
    except AssertionError:
        tally.leftovers += 1
        raise


def is_forgotten(member: Member) -> bool:
    """Whether libvirt shows the guest as off while its QEMU runs: no merge may touch it then."""
    return member.guest.state() == "shut off" and emulators(member) != []


def emulators(member: Member) -> list[str]:
    """Return the guest's QEMU, if it runs."""
    said = member.hypervisor.exec(["ps", "-eo", "args="]).stdout
    return [line for line in said.splitlines() if f"guest={member.guest.name}," in line]


def lost_records(member: Member, marks: list[Mark]) -> list[str]:
    """Return what the guest's disks, not its memory, do not hold of what it was promised by then."""
    member.guest.command("echo 3 >/proc/sys/vm/drop_caches")
    journals = list(member.guest.journals().values())
    return [text for mark in marks for text in lost(journals, mark)]


def remove_sets(member: Member) -> None:
    """Each run begins without one."""
    for found in member.sets():
        member.hypervisor.exec(["rm", "-rf", found.folder])
