# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Faults 1 to 10: something dies, at a moment that matters."""

from __future__ import annotations

import stat

import pytest
from endstate import processes
from fleet import ELSEWHERE, until
from virtlab import LabError

from .scene import COPY, MERGE, SLOW_COPY, Scene


def test_fault_01_libvirtd_killed_mid_commit(scene: Scene) -> None:
    """QEMU's job goes on; the module finds it again, though no event tells of its end."""
    play = scene.start_merging()
    scene.record("copying")
    scene.restart_libvirtd()
    scene.record("after-restart")
    scene.assert_succeeded(play.end())
    scene.before.assert_normal_end()
    scene.next_run()


@pytest.mark.once
def test_libvirtd_hangs_mid_commit(scene: Scene) -> None:
    """A daemon that is there and never answers: the run ends all the same, and says so."""
    play = scene.start_merging()
    libvirtd = scene.hypervisor.libvirtd_pid()
    assert libvirtd is not None
    scene.kill(libvirtd, "STOP")
    try:
        ended = play.end()
        left = processes(scene.hypervisor)
    finally:
        scene.kill(libvirtd, "CONT")
    scene.assert_failed(ended, "libvirt_hangs")
    assert left == []
    scene.heal(resumed=True)


def test_fault_02_libvirtd_restarted_between_snapshot_and_copy(scene: Scene) -> None:
    """The job goes on over a new connection, and the journal came back with the daemon."""
    play = scene.start(COPY)
    scene.record("on-overlays")
    scene.restart_libvirtd()
    scene.assert_succeeded(scene.go(play))
    scene.before.assert_normal_end()
    scene.next_run()


def snapshot_options(name: str) -> dict[str, object]:
    """Return what the role gives to snapshot_external, with overlays that can be held up."""
    return {"name": name, "operation": "live_backup", "quiesce": "required", "overlay_dir": ELSEWHERE}


def test_fault_03_libvirtd_dies_between_freeze_and_thaw(scene: Scene) -> None:
    """Nobody can thaw the guest until libvirtd is back: then it is thawed, without the next run."""
    with scene.stuck_in_snapshot(
        lambda: scene.start_module("snapshot_external", **snapshot_options("live-backup-stuck"))
    ) as run:
        scene.hypervisor.libvirtd_kill()
    scene.hypervisor.libvirtd_start()
    ended = run.end()
    assert ended.results[-1].result["error_code"] == "connection_lost"
    until("a thawed guest", lambda: not scene.is_frozen(), 15)
    scene.before.assert_writes()
    scene.heal()


def test_fault_04_qemu_killed_during_snapshot_creation(scene: Scene) -> None:
    """The guest is off, on its own images; started again it has all that it was promised."""
    with scene.stuck_in_snapshot(lambda: scene.start(quiesce="required", overlay_dir=ELSEWHERE)) as play:
        scene.member.guest.kill_qemu()
    failed = scene.assert_failed(play.end(), "guest_ended")
    assert "The guest is now shut off" in failed["msg"]
    scene.record("off")
    scene.member.boot()
    scene.heal(rebooted=True)


@pytest.mark.once
def test_fault_05_guest_destroyed_mid_copy(scene: Scene) -> None:
    """The bases stand still all the same: the copy ends, and the merge is done offline."""
    play = scene.start(rate_limit=SLOW_COPY)
    scene.until_copied(4)
    scene.member.guest.destroy()
    scene.record("off-on-overlays")
    scene.assert_succeeded(play.end())
    scene.member.boot()
    scene.before.assert_normal_end(rebooted=True)
    scene.next_run(rebooted=True)


def test_fault_06_guest_destroyed_mid_commit_then_started(scene: Scene) -> None:
    """Its job is gone, its overlay is not: the merge begins anew, in this run or the next."""
    play = scene.start_merging()
    module = scene.module_pid()
    # Between two looks of the module
    scene.kill(module, "STOP")
    scene.member.guest.destroy()
    assert "vda" in scene.overlays()
    scene.member.boot()
    scene.record("job-gone")
    mark = scene.member.guest.mark()
    scene.kill(module, "CONT")
    failure = scene.assert_failed(play.end(), "commit_failed")
    # What was copied is a backup all the same, and is not lost if nobody runs the play again
    (found,) = scene.member.sets()
    assert f"Its backup is complete all the same: {found.folder}" in failure["msg"]
    scene.heal(sets=2, rebooted=True, marks=(mark,))


def is_up(scene: Scene) -> bool:
    """Whether the guest's own side of its control channel answers."""
    try:
        scene.member.guest.command("true", timeout=1)
    except LabError:
        return False
    return True


@pytest.mark.parametrize("what", ["reboots", pytest.param("shuts_down", marks=pytest.mark.once)])
def test_fault_07_guest_ends_between_snapshot_and_merge(scene: Scene, what: str) -> None:
    """A reboot is nothing to a block job, and one that is off is merged offline."""
    play = scene.start(MERGE)
    guest = scene.member.guest
    if what == "reboots":
        guest.command("(sleep 0.2; shutdown -r) >/dev/null 2>&1 &")
        until("the reboot", lambda: not is_up(scene), 20)
    else:
        guest.shutdown()
    scene.assert_succeeded(scene.go(play))
    if what == "reboots":
        guest.wait()
    else:
        scene.member.boot()
    scene.before.assert_normal_end(rebooted=True)
    scene.next_run(rebooted=True)


@pytest.mark.parametrize(
    "phase",
    [*(pytest.param(phase, marks=pytest.mark.once) for phase in ("prepared", "created")), "committing"],
)
def test_fault_08_power_loss(scene: Scene, phase: str) -> None:
    """All of the host dies at once. Afterwards the journal says what was intended, the images how far it came."""
    member = scene.member
    if phase == "prepared":
        play = scene.start(quiesce="required")
        until("the journal", lambda: member.noted() == ["prepared"], 60, every=0.005)
    elif phase == "created":
        play = scene.start(COPY)
    else:
        play = scene.start_merging()
    scene.hypervisor.powerloss()
    assert member.noted() == [phase]
    scene.stage.up()
    play.open_gate()
    ended = play.end()
    scene.record(phase)
    # The task reaches the host again, and goes on with a guest that is off
    scene.assert_succeeded(ended)
    member.boot()
    scene.before.assert_normal_end(rebooted=True)
    scene.next_run(rebooted=True)


def assert_private(scene: Scene) -> None:
    """Overlays and images under way hold all that the guest knows: nobody else may read them."""
    folder = scene.member.partial()
    assert folder is not None
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    overlays = [scene.hypervisor.outside(path) for path in scene.overlays().values()]
    assert len(overlays) == len(scene.member.targets)
    assert {stat.S_IMODE(file.stat().st_mode) for file in (*folder.iterdir(), *overlays)} == {0o600}


@pytest.mark.once
@pytest.mark.parametrize("pipelining", [False, True], ids=["", "pipelining"])
def test_fault_09_controller_killed_during_the_copy(scene: Scene, pipelining: bool) -> None:
    """The job goes on to its end: the next run of the same play attaches to it, or comes after it."""
    play = scene.start(rate_limit=SLOW_COPY, pipelining=pipelining)
    scene.until_copied(4)
    play.kill()
    partial = scene.member.partial()
    assert partial is not None
    assert_private(scene)
    scene.heal(sets=None, resumed=True)
    # Its set's time is what the partial folder was named after
    assert f".{scene.member.sets()[0].folder.rpartition('/')[2]}.partial" == partial.name


@pytest.mark.once
def test_fault_09_job_killed_between_snapshot_and_copy(scene: Scene) -> None:
    """The guest is on its overlays, and no copy was begun: the next run finishes that backup."""
    play = scene.start(COPY)
    scene.kill_all(play)
    assert (scene.member.phase(), set(scene.overlays())) == ("created", scene.member.targets)
    scene.heal(resumed=True)


def test_fault_09_controller_killed_during_the_merge(scene: Scene) -> None:
    """The next run adopts QEMU's job, and copies no base again: it is no longer the snapshot."""
    play = scene.start_merging()
    scene.kill_all(play)
    partial = scene.member.partial()
    assert partial is not None
    made = partial.stat().st_ino
    scene.heal(resumed=True)
    assert [found.path().stat().st_ino for found in scene.member.sets()] == [made]


@pytest.mark.once
def test_fault_09_ssh_dropped_mid_module(scene: Scene) -> None:
    """The job goes on, and the controller finds it again."""
    play = scene.start(rate_limit=SLOW_COPY)
    scene.until_copied(4)
    scene.drop_ssh()
    scene.assert_succeeded(play.end())
    scene.before.assert_normal_end()
    scene.next_run()


def test_fault_10_module_killed_while_the_guest_is_frozen(scene: Scene) -> None:
    """Its watchdog thaws the guest within seconds; no next run is needed for that."""
    with scene.stuck_in_snapshot(
        lambda: scene.start_module("snapshot_external", **snapshot_options("live-backup-killed"))
    ) as run:
        scene.kill(scene.module_pid())
    until("a thawed guest", lambda: not scene.is_frozen(), 10)
    ended = run.end()
    assert ended.results[-1].result["error_code"] == "job_killed", ended.output
    scene.before.assert_writes()
    scene.record("switched-unnoted")
    scene.heal(resumed=True)


@pytest.mark.once
@pytest.mark.parametrize("again", ["the_task", "the_play"])
def test_fault_10_module_and_watchdog_killed_while_the_guest_is_frozen(scene: Scene, again: str) -> None:
    """Nobody thaws the guest before the next run, which does so first."""
    options = snapshot_options("live-backup-both-killed")
    with scene.stuck_in_snapshot(lambda: scene.start_module("snapshot_external", **options)) as run:
        scene.kill(scene.watchdog_pid())
        scene.kill(scene.module_pid())
    assert run.end().rc != 0
    assert scene.is_frozen()
    if again == "the_task":
        result = scene.start_module("snapshot_external", **options).end().results[-1].result
        assert result["actions"][0].startswith("thaw ")
        assert not scene.is_frozen()
    scene.heal(resumed=True)
    assert not scene.is_frozen()
    scene.before.assert_writes()
