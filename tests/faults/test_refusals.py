# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Faults 18 to 22, 25 to 27, 29 and 30: what cannot be done, or looks odd, is told, and nothing is left behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from endstate import Before, sha256_of
from fleet import ELSEWHERE
from playbook import Play
from virtlab import BACKUP, IMAGES

from .scene import MERGE, ODD_PATH, SLOW_COPY, SNAPSHOT, Scene, Stage


def assert_nothing_done(scene: Scene) -> None:
    """The guest was not switched, and nothing lies around."""
    scene.before.assert_normal_end(sets=0)


@pytest.mark.once
@pytest.mark.parametrize("why", ["no_directory", "no_space"])
def test_fault_18_creation_fails_on_the_second_disk(scene: Scene, why: str) -> None:
    """The first disk is not switched either, and its overlay goes."""
    target, folder = "/srv/target", "/srv/missing" if why == "no_directory" else ELSEWHERE
    scene.hypervisor.exec(["mkdir", "-p", target])
    with scene.full(BACKUP) if why == "no_space" else nullcontext():
        play = scene.run(dest=target, disks=[{"name": "vdb", "file": f"{folder}/vdb.qcow2"}])
        scene.assert_failed(play, why)
    assert_nothing_done(scene)
    assert os.listdir(scene.hypervisor.outside(ELSEWHERE)) == []
    scene.heal()


def test_fault_18_creation_fails_inside_libvirt(scene: Scene) -> None:
    """Nothing is wrong with the second overlay until QEMU opens it: neither disk is switched, and both overlays go."""
    folder = "/srv/private"
    scene.hypervisor.exec(["mkdir", "-p", "-m", "700", folder])
    failed = scene.assert_failed(
        scene.run(disks=[{"name": "vdb", "file": f"{folder}/vdb.qcow2"}]), "permission_denied", "libvirt_error"
    )
    assert f"{folder}/vdb.qcow2" in failed["msg"]
    assert_nothing_done(scene)
    assert os.listdir(scene.hypervisor.outside(folder)) == []
    scene.heal()


@pytest.mark.once
def test_fault_19_overlay_path_exists(scene: Scene) -> None:
    """Somebody's file is not touched."""
    path = f"{IMAGES}/web/web.vdb.live-backup-19.qcow2"
    file = scene.hypervisor.outside(path)
    file.write_text("somebody's", encoding="utf-8")
    scene.assert_failed(scene.run(snapshot="live-backup-19"), "overlay_exists")
    assert file.read_text(encoding="utf-8") == "somebody's"
    file.unlink()
    assert_nothing_done(scene)
    scene.heal(snapshot="live-backup-19")


@pytest.mark.once
def test_fault_19_stale_overlay_of_an_earlier_run(scene: Scene) -> None:
    """Our own, which nothing was written to, makes room for the new one."""
    role: dict[str, Any] = {"snapshot": "live-backup-19", "overlay_dir": ELSEWHERE, "quiesce": "required"}
    with scene.stuck_in_snapshot(lambda: scene.start(**role)) as play:
        scene.kill(scene.module_pid())
        play.kill()
        scene.hypervisor.libvirtd_kill()
    scene.hypervisor.libvirtd_start()
    assert (scene.member.phase(), scene.overlays()) == ("prepared", {})
    assert len(os.listdir(scene.hypervisor.outside(ELSEWHERE))) == 2
    scene.record("prepared")
    scene.heal(**role)
    assert os.listdir(scene.hypervisor.outside(ELSEWHERE)) == []


@pytest.mark.once
def test_fault_20_agent_absent_dead_or_hanging(scene: Scene, stage: Stage) -> None:
    """`required` fails in bounded time; `preferred` backs up, and says what it did instead."""
    odd = stage.odd()
    scene.before = Before.of(scene.member)  # with the other guest's images beside it
    before, both = Before.of(odd), [scene.member.guest.name, odd.guest.name]
    scene.member.guest.agent_service("hang")
    try:
        play = scene.start(guests=both, quiesce="required", freeze_timeout=2).end()
        scene.assert_failed(play, "agent_unresponsive")
        scene.assert_failed(play, "no_agent", member=odd)
    finally:
        scene.member.guest.agent_service("resume")
    scene.member.guest.agent_service("stop")
    try:
        play = scene.start(guests=both, quiesce="preferred", freeze_timeout=2).end()
        for member in (scene.member, odd):
            scene.assert_succeeded(play, member)
            (result,) = [item.result for item in play.of(member.alias, "live_backup")]
            assert result["consistency"] == "crash"
            assert "was not frozen" in str(result["warnings"])
            assert "crash-consistent" in play.report()[member.alias]
    finally:
        scene.member.guest.agent_service("start")
        scene.member.guest.wait()
    before.assert_normal_end()
    scene.before.assert_normal_end()
    scene.heal(sets=2, quiesce="required")
    for found in odd.sets():
        scene.hypervisor.exec(["rm", "-rf", found.folder])


def test_freeze_hook_that_takes_longer_than_it_may(scene: Scene) -> None:
    """`preferred` goes on once the guest is thawed, and says so; with time enough the same guest is frozen."""
    guest = scene.member.guest
    guest.command("printf '#!/bin/sh\\nsleep 2\\n' >/run/hook; chmod +x /run/hook; agent stop; agent start /run/hook")
    try:
        guest.wait()
        play = scene.run(quiesce="preferred", freeze_timeout=1)
        scene.assert_succeeded(play)
        (result,) = [item.result for item in play.of(scene.member.alias, "live_backup")]
        assert result["consistency"] == "crash"
        assert "was not frozen" in str(result["warnings"])
        assert not scene.is_frozen()
        scene.assert_succeeded(scene.run(quiesce="required"))
        assert [found.manifest["consistency"] for found in scene.member.sets()] == ["crash", "filesystem"]
    finally:
        guest.agent_service("stop")
        guest.agent_service("start")
        guest.wait()
    scene.before.assert_normal_end(sets=2)


@pytest.mark.once
def test_fault_21_frozen_by_somebody_else(scene: Scene) -> None:
    """Whoever froze it thaws it, not we."""
    virsh, name = scene.hypervisor.virsh, scene.member.guest.name
    virsh("domfsfreeze", name)
    try:
        failed = scene.assert_failed(scene.run(quiesce="required"), "already_frozen")
        assert "domfsthaw" in failed["msg"]
        assert scene.is_frozen()
        play = scene.run(quiesce="preferred")
        scene.assert_succeeded(play)
        assert "crash-consistent" in play.report()[scene.member.alias]
        assert scene.is_frozen()
    finally:
        virsh("domfsthaw", name)
    scene.before.assert_normal_end()
    scene.heal(sets=2, quiesce="required")


@pytest.mark.once
def test_fault_22_paused_guest(scene: Scene) -> None:
    """It cannot be frozen, and it is not resumed by us."""
    virsh, name = scene.hypervisor.virsh, scene.member.guest.name
    for quiesce in ("required", "preferred"):
        play = scene.start(SNAPSHOT, quiesce=quiesce)
        virsh("suspend", name)
        try:
            ended = scene.go(play)
            if quiesce == "required":
                scene.assert_failed(ended, "guest_paused")
            else:
                scene.assert_succeeded(ended)
                assert "crash-consistent" in ended.report()[scene.member.alias]
            assert scene.member.guest.state() == "paused"
        finally:
            virsh("resume", name)
    scene.before.assert_normal_end()
    scene.heal(sets=2, quiesce="required")


@dataclass(frozen=True)
class OddRun:
    """The play, twice, on the guest whose disks are all odd."""

    scene: Scene
    first: Play
    second: Play
    digests: dict[str, str]


@pytest.fixture
def odd(request: pytest.FixtureRequest, stage: Stage, mutation: None) -> Iterator[OddRun]:
    """Run it: once for all three tests, but with --mutate for each of them."""
    if "odd" not in stage.notes:
        scene = Scene(stage, stage.odd(), "odd")
        digests = {path: sha256_of(scene.hypervisor, path) for path in scene.before.facts.live["vda"][1:]}
        stage.notes["odd"] = OddRun(scene, scene.run(), scene.run(), digests)
    yield stage.notes["odd"]
    if request.config.getoption("--mutate"):
        stage.down()


def test_fault_25_disks_that_no_snapshot_holds(odd: OddRun) -> None:
    """Each is left alone, and named with the reason."""
    for play in (odd.first, odd.second):
        odd.scene.assert_succeeded(play)
        (result,) = [item.result for item in play.of(odd.scene.member.alias, "live_backup")]
        reasons = {item["disk"]: item["reason"] for item in result["skipped_disks"]}
        skipped = odd.scene.member.skipped
        assert reasons.keys() == skipped.keys()
        assert all(word in reasons[target] for target, word in skipped.items())
    odd.scene.before.assert_normal_end(sets=2)


def test_fault_26_chain_of_four_layers(odd: OddRun) -> None:
    """Only our layer is merged: what was below stays, byte for byte."""
    assert len(odd.scene.before.facts.live["vda"]) == 4
    odd.scene.before.assert_normal_end(sets=2)
    assert {path: sha256_of(odd.scene.hypervisor, path) for path in odd.digests} == odd.digests


def test_fault_27_odd_path_through_a_symlink(odd: OddRun) -> None:
    """Spaces, commas, letters beyond ASCII, and a link on the way."""
    assert odd.scene.before.facts.live["vdb"] == [ODD_PATH]
    odd.scene.assert_succeeded(odd.first)
    odd.scene.before.assert_normal_end(sets=2)
    for found in odd.scene.member.sets():
        sources = {disk["target"]: disk["source"] for disk in found.manifest["disks"]}
        assert sources["vdb"] == ODD_PATH


@pytest.mark.once
def test_fault_29_permission_denied_on_overlay_creation(scene: Scene) -> None:
    """Not even root may make a file there: refused before anything is done."""
    with scene.immutable(f"{IMAGES}/web"):
        scene.assert_failed(scene.run(), "not_writable")
    assert_nothing_done(scene)
    scene.heal()


def test_fault_29_permission_denied_on_commit(scene: Scene) -> None:
    """QEMU may not write to the base: the guest goes on, on its overlay, until it may."""
    play = scene.start(MERGE)
    with scene.immutable(scene.before.facts.live["vda"][0]):
        scene.assert_failed(scene.go(play), "permission_denied", "libvirt_error", "commit_failed")
        scene.record("denied")
        assert "vda" in scene.overlays()
        scene.before.assert_writes()
    scene.heal(resumed=True)


def flip(image: Path) -> None:
    """Change one bit of data that is written already."""
    with image.open("r+b") as file:
        at = 1 << 20
        while not os.pread(file.fileno(), 4096, at).strip(b"\0"):
            at += 4096
        byte = os.pread(file.fileno(), 1, at)[0]
        os.pwrite(file.fileno(), bytes([byte ^ 4]), at)


def truncate(image: Path) -> None:
    """Cut off what is written already; the copy goes on behind it."""
    size = image.stat().st_size
    os.truncate(image, 1 << 20)
    os.truncate(image, size)


@pytest.mark.once
@pytest.mark.parametrize("damage", [flip, truncate], ids=["bit_flipped", "truncated"])
def test_fault_30_damaged_backup(scene: Scene, damage: object) -> None:
    """Verification fails; the sets that are there stay, and the damaged one does not become one."""
    scene.assert_succeeded(scene.run())
    (older,) = scene.member.sets()
    play = scene.start(rate_limit=SLOW_COPY)
    scene.until_copied(8)
    folder = scene.member.partial()
    assert folder is not None
    damage(folder / "vda.raw")  # type: ignore[operator]
    scene.assert_failed(play.end(), "verify_failed")
    assert [found.folder for found in scene.member.sets()] == [older.folder]
    assert (scene.member.leftovers(), scene.overlays()) == ([], {})
    older.check(scene.member.targets, scene.before.mark)
    scene.heal(sets=2)
