# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What plays say and do where one is interrupted, only foresees, or meets another on its guest."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fleet import until
from playbook import STOP

from .scene import COPY, MERGE, Scene

# About what Ansible shows, and our own lock
pytestmark = pytest.mark.once


@contextmanager
def interrupted(scene: Scene, before: str) -> Iterator[None]:
    """A run whose controller dies before this task: its operation is open. In the end the guest is at rest again."""
    scene.kill_all(scene.start(before))
    assert scene.member.phase() == "created"
    try:
        yield
    finally:
        if scene.member.phase():
            scene.heal(sets=None, resumed=True)


@contextmanager
def at_work(scene: Scene, seconds: int) -> Iterator[None]:
    """Another task holds the guest's lock for so long."""
    uuid = scene.hypervisor.virsh("domuuid", scene.member.guest.name).strip()
    lock = f"/run/virtops.libvirt/domain-{uuid}.lock"
    scene.hypervisor.exec(["mkdir", "-p", "-m", "700", "/run/virtops.libvirt"])
    holder = subprocess.Popen(scene.hypervisor.enter(["flock", lock, "sleep", str(seconds)]))
    until("the lock", lambda: scene.hypervisor.exec(["flock", "-n", lock, "true"], check=False).returncode != 0, 20)
    yield
    assert holder.wait(30) == 0


def test_a_task_waits_for_the_guests_lock(scene: Scene) -> None:
    """It is another task that works on the guest, and no live backup."""
    with at_work(scene, seconds=5):
        scene.assert_succeeded(scene.run())
    scene.before.assert_normal_end()


def test_two_plays_on_one_guest(scene: Scene) -> None:
    """The second finds the first one's job at work, and both report its end."""
    first = scene.start(COPY)
    wish: dict[str, Any] = {"guests": [scene.member.guest.name], "live_backup_preflight": False}
    second = scene.stage.controller.start(pipelining=True, gate="Snapshot, copy, merge", **wish)
    second.reach_gate()
    jobs = scene.hypervisor.outside("/run/virtops.libvirt/jobs")
    there = len(os.listdir(jobs))
    second.open_gate()
    # A job of its own, which finds the other one and is gone
    until("the second play's job", lambda: len(os.listdir(jobs)) > there, 60, every=0.01)
    until("its end", lambda: len(os.listdir(jobs)) == there, 60)
    ended = [scene.go(first), second.end()]
    for play in ended:
        scene.assert_succeeded(play)
    assert ended[0].report() == ended[1].report()
    scene.before.assert_normal_end(sets=1)


def test_a_backup_is_stopped(scene: Scene) -> None:
    """It ends with its merge done, and says so; where none is under way nothing is changed."""
    wish: dict[str, Any] = {"playbook": STOP, "stop_guests": [scene.member.guest.name]}
    play = scene.start(COPY)
    stop = scene.stage.controller.start(pipelining=True, **wish)
    jobs = scene.hypervisor.outside("/run/virtops.libvirt/jobs")
    until("the order", lambda: any(jobs.glob("*/stop")), 60)
    scene.assert_failed(scene.go(play), "stopped")
    scene.before.assert_normal_end(sets=0)
    assert f"Stopped: {scene.member.alias}." in stop.end().output
    again = scene.stage.controller.run(**wish)
    assert (again.rc, again.changed()) == (0, [])


def test_a_killed_controller_needs_no_second_play(scene: Scene) -> None:
    """The job ends by itself."""
    play = scene.start(COPY)
    play.kill()
    play.open_gate()
    until("the end of the job", lambda: scene.member.phase() == "", 60)
    scene.before.assert_normal_end(sets=1)


def test_a_resumed_play_shows_no_failure(scene: Scene) -> None:
    """It succeeds, so nothing of it may look as if it had failed."""
    with interrupted(scene, MERGE):
        play = scene.heal(resumed=True)
        assert [item.task for item in play.of(scene.member.alias) if item.status == "failed"] == []
        assert "fatal: " not in play.output


def test_check_mode_on_a_healthy_guest(scene: Scene) -> None:
    """It foresees a success, and does nothing."""
    play = scene.stage.controller.run("--check", guests=[scene.member.guest.name])
    scene.before.assert_normal_end(sets=0)
    assert play.rc == 0, play.output
    assert scene.member.alias in play.report()


def test_check_mode_with_an_operation_open(scene: Scene) -> None:
    """It foresees that the interrupted run is finished, and leaves it open."""
    with interrupted(scene, COPY):
        play = scene.stage.controller.run("--check", guests=[scene.member.guest.name])
        assert scene.member.phase() == "created"
        assert play.rc == 0, play.output
        assert scene.member.alias in play.report()
