# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Faults 11 to 14: no space, or no end."""

from __future__ import annotations

from typing import Any

import pytest
from fleet import ELSEWHERE, until
from virtlab import BACKUP, IMAGES

from .scene import MERGE, SLOW_COPY, SLOW_MERGE, Scene


def test_fault_11_no_space_for_the_overlay(scene: Scene) -> None:
    """QEMU pauses the guest. Merging needs no space there: after it the guest goes on, without a write lost."""
    play = scene.start(MERGE, overlay_dir=ELSEWHERE)
    guest = scene.member.guest
    with scene.full(BACKUP):
        guest.command("dd if=/dev/urandom of=/mnt/vda/dirt.bin bs=1M count=8 >/dev/null 2>&1 &")
        guest.command("(sleep 1; sync; rm /mnt/vda/dirt.bin; sync) >/dev/null 2>&1 &")
        until("a guest paused by QEMU", lambda: guest.state() == "paused", 30)
        scene.record("paused")
        scene.assert_succeeded(scene.go(play))
    scene.before.assert_normal_end()
    scene.next_run()


@pytest.mark.once
def test_fault_11_overlays_run_short_of_space(scene: Scene) -> None:
    """With less free than is to be kept the guest is held back at once, so that QEMU never has to pause it."""
    role: dict[str, Any] = {"on_timeout": "throttle", "throttle_timeout": 60, "bandwidth": SLOW_MERGE}
    play = scene.start(MERGE, overlay_dir=ELSEWHERE, **role)
    guest = scene.member.guest
    scene.dirty(6)
    # A twentieth of that small file system is kept, 16 MiB; unhindered, the guest soon writes what is left
    with scene.full(BACKUP, spare_mib=12):
        play.open_gate()
        scene.until_merging()
        guest.write(rate=0, bulk_kib=512, span_mib=20, disks=["vda"])
        try:
            states = set()
            while play.process.poll() is None:
                states.add(guest.state())
            ended = play.end()
        finally:
            if guest.state() == "running":
                guest.write(rate=10)
        assert states == {"running"}
        scene.assert_succeeded(ended)
        (result,) = [item.result for item in ended.of(scene.member.alias, "live_backup")]
        assert result["held_seconds"] > 0
        assert result["suspended_seconds"] == 0
    scene.before.assert_normal_end()
    scene.next_run()


def test_fault_12_no_space_for_the_base(scene: Scene) -> None:
    """The job fails, and the guest stays on its overlay; with space again the next run merges.

    The other disk may be on its base by then, where the guest's own next write finds no space either: QEMU pauses the
    guest, and the next run resumes it.
    """
    # The overlays have space, the bases have none; and more is written than any test before has put into them
    play = scene.start(MERGE, overlay_dir=ELSEWHERE)
    scene.dirty(24)
    with scene.full(IMAGES):
        failed = scene.assert_failed(scene.go(play), "commit_failed", "no_space")
        scene.record("failed")
        told = {disk["disk"]: disk for disk in failed["partial"]}
        assert told["vda"]["after"][1:] == scene.before.facts.live["vda"]
    scene.heal(resumed=True, overlay_dir=ELSEWHERE)


@pytest.mark.parametrize(
    "policy", [*(pytest.param(policy, marks=pytest.mark.once) for policy in ("fail", "throttle")), "suspend"]
)
def test_fault_14_commit_never_ready(scene: Scene, policy: str) -> None:
    """The guest writes faster than its merge copies: at the deadline the run does what it was told to."""
    # A suspended guest may only stand still if that ends the merge: what is left must be little then
    limits = {
        "fail": {},
        "throttle": {"throttle_timeout": 60},
        "suspend": {"throttle_timeout": 1, "suspend_timeout": 20},
    }
    role: dict[str, Any] = {"bandwidth": SLOW_MERGE, "timeout": 3, "on_timeout": policy, **limits[policy]}
    play = scene.start(MERGE, **role)
    scene.dirty(6)
    scene.member.guest.write(rate=0, bulk_kib=512, span_mib=4, disks=["vda"])
    try:
        ended = scene.go(play)
        scene.record("ended")
        if policy == "fail":
            scene.assert_failed(ended, "timeout", "job_ending")
        else:
            scene.assert_succeeded(ended)
            (result,) = [item.result for item in ended.of(scene.member.alias, "live_backup")]
            assert result["held_seconds"] > 0
            assert (result["suspended_seconds"] > 0) == (policy == "suspend")
            assert result["suspended_seconds"] < 20
        scene.before.assert_writes()
    finally:
        scene.member.guest.write(rate=10)
    if policy == "fail":
        # After a failure the role tries to merge once more: where that came to its end, the next run is a new backup
        scene.heal(sets=None, resumed=True)
    else:
        scene.before.assert_normal_end()
        scene.next_run()


@pytest.mark.once
def test_fault_13_no_space_on_the_target_mid_copy(scene: Scene) -> None:
    """The partial set goes, the guest is merged all the same, and the sets that were there stay."""
    scene.assert_succeeded(scene.run())
    (older,) = scene.member.sets()
    play = scene.start(rate_limit=SLOW_COPY)
    scene.until_copied(4)
    with scene.full(BACKUP):
        scene.assert_failed(play.end(), "no_space")
    assert (scene.member.sets(), scene.member.leftovers(), scene.overlays()) == ([older], [], {})
    older.check(scene.member.targets, scene.before.mark)
    scene.heal(sets=2)
