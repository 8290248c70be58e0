# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Faults 15 to 17, 23, 24 and 28: block jobs that are early, late, foreign, aborted, or on a disk that changes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from virtlab import IMAGES, LabError

from .scene import COPY, MERGE, SLOW_COPY, SLOW_MERGE, Scene


def test_fault_15_pivot_asked_for_before_ready(scene: Scene) -> None:
    """libvirt refuses it; our module waits until it can be done, and the run goes on with the other disk."""
    play = scene.start(MERGE)
    scene.dirty()
    scene.kill_all(play)
    (snapshot,) = scene.member.facts().snapshots
    scene.module("block_commit", snapshot=snapshot, disks=["vda"], bandwidth=SLOW_MERGE, wait=False)
    name = scene.member.guest.name
    with pytest.raises(LabError, match=r"not (yet )?ready|not yet"):
        scene.hypervisor.virsh("blockjob", name, "vda", "--pivot")
    result = scene.module("block_job", disk="vda", state="pivoted", timeout=60)
    assert (result.get("error_code"), result["changed"]) == (None, True)
    assert set(scene.overlays()) == {"vdb"}
    scene.record("half-pivoted")
    scene.assert_succeeded(scene.run())
    scene.before.assert_normal_end()
    scene.next_run()


def test_fault_16_ready_twice_or_never_as_an_event(scene: Scene) -> None:
    """One job was ready before we came; another was ready, was aborted, and becomes ready again."""
    play = scene.start(MERGE)
    virsh, name = scene.hypervisor.virsh, scene.member.guest.name
    for disk in ("vda", "vdb"):
        virsh("blockcommit", name, disk, "--active", "--shallow")
        scene.until_ready(disk)
    scene.record("ready")
    virsh("blockjob", name, "vdb", "--abort")
    scene.record("aborted")
    scene.assert_succeeded(scene.go(play))
    scene.before.assert_normal_end()
    scene.next_run()


def test_fault_17_first_disk_pivoted_second_fails(scene: Scene) -> None:
    """What came of each disk is told; the next run finishes the other."""
    play = scene.start(MERGE)
    base = scene.before.facts.live["vdb"][0]
    with scene.reader(base, "qcow2"):
        failed = scene.assert_failed(scene.go(play), "image_locked")
        assert re.search(rf"process \d+ has {re.escape(base)} open", failed["msg"])
        scene.record("half-pivoted")
        told = {disk["disk"]: disk for disk in failed["partial"]}
        assert told["vda"]["after"] == scene.before.facts.live["vda"]
        assert told["vdb"]["after"][1:] == scene.before.facts.live["vdb"]
        assert set(scene.overlays()) == {"vdb"}
        scene.before.assert_writes()
    scene.heal(resumed=True)


@pytest.mark.once
def test_fault_23_two_runs_at_once(scene: Scene) -> None:
    """They do not meet: the second wishes something else, waits for the first, and makes a backup of its own."""
    first = scene.start(rate_limit=SLOW_COPY)
    scene.until_copied(4)
    scene.assert_succeeded(scene.run(format="qcow2"))
    scene.assert_succeeded(first.end())
    scene.before.assert_normal_end(sets=2)
    scene.next_run(sets=3)


@contextmanager
def foreign_copy(scene: Scene) -> Iterator[None]:
    """Somebody copies vdb to elsewhere (virsh blockcopy), slowly."""
    virsh, name, target = scene.hypervisor.virsh, scene.member.guest.name, "/srv/foreign.raw"
    virsh("blockcopy", name, "vdb", target, "--format", "raw", "--transient-job", "--bandwidth", "1")
    try:
        yield
        assert scene.member.facts().jobs == ["vdb"]
    finally:
        virsh("blockjob", name, "vdb", "--abort")
        scene.hypervisor.exec(["rm", target])


@contextmanager
def foreign_backup(scene: Scene) -> Iterator[None]:
    """Somebody reads the guest's disks over NBD (virsh backup-begin, pull mode)."""
    virsh, name = scene.hypervisor.virsh, scene.member.guest.name
    port = scene.hypervisor.lab.free_port()
    xml = f"<domainbackup mode='pull'><server name='127.0.0.1' port='{port}'/></domainbackup>"
    virsh("backup-begin", name, "/dev/stdin", stdin=xml)
    try:
        yield
        assert "Backup" in virsh("domjobinfo", name, "--rawstats") + virsh("domjobinfo", name)
    finally:
        virsh("domjobabort", name)


def test_fault_23_foreign_block_job(scene: Scene) -> None:
    """Somebody else's job is neither waited for nor ended, and the run does not get as far as libvirt's own refusal."""
    with foreign_copy(scene):
        failed = scene.assert_failed(scene.run(), "job_running")
        assert "is running on disk vdb" in failed["msg"]
    scene.before.assert_normal_end(sets=0)
    scene.heal()


def test_fault_23_foreign_backup_job(scene: Scene) -> None:
    """A backup job holds the whole domain: the run says so before it freezes the guest."""
    with foreign_backup(scene):
        mark = scene.member.guest.mark()
        scene.assert_failed(scene.run(quiesce="required"), "job_running")
        stall = scene.member.guest.journals()["vda"].longest_stall_ms(mark)
    assert stall < 5000
    scene.before.assert_normal_end(sets=0)
    scene.heal()


def attach(scene: Scene, path: str, image_format: str) -> None:
    """Plug a disk vdc in, for now and for ever."""
    options = ("--driver", "qemu", "--subdriver", image_format, "--live", "--config")
    scene.hypervisor.virsh("attach-disk", scene.member.guest.name, path, "vdc", *options)


def detach(scene: Scene) -> None:
    """Unplug it."""
    scene.hypervisor.virsh("detach-disk", scene.member.guest.name, "vdc", "--live", "--config")


def blank(scene: Scene) -> str:
    """Make an empty image in the guest's folder."""
    path = f"{IMAGES}/{scene.member.guest.name}/vdc.raw"
    scene.hypervisor.exec(["qemu-img", "create", "-q", "-f", "raw", path, "8M"])
    return path


def test_fault_24_disk_attached_and_disk_resized(scene: Scene) -> None:
    """A disk that the snapshot does not know is left alone; one that grew is merged in its new size."""
    play = scene.start(MERGE)
    path, guest = blank(scene), scene.member.guest
    attach(scene, path, "raw")
    scene.hypervisor.virsh("blockresize", guest.name, "vda", "80M")
    scene.assert_succeeded(scene.go(play))
    assert scene.member.facts().live["vdc"] == [path]
    assert guest.command("cat /sys/block/vda/size").split() == [str(80 << 11)]
    detach(scene)
    scene.hypervisor.exec(["rm", path])
    scene.before.assert_normal_end()
    scene.next_run()


def test_fault_24_disk_detached(scene: Scene) -> None:
    """Its overlay may hold data that are nowhere else: the run refuses, and merges once the disk is back."""
    path = blank(scene)
    attach(scene, path, "raw")
    play = scene.start(MERGE)
    overlay = scene.member.facts().live["vdc"][0]
    detach(scene)
    scene.record("detached")
    scene.assert_failed(scene.go(play), "chain_changed")
    assert scene.hypervisor.outside(overlay).exists()
    attach(scene, overlay, "qcow2")
    again = scene.run()
    scene.assert_succeeded(again)
    assert scene.member.facts().live["vdc"] == [path]
    detach(scene)
    scene.hypervisor.exec(["rm", path])
    for found in scene.member.sets():  # they hold vdc as well
        scene.hypervisor.exec(["rm", "-rf", found.folder])
    scene.heal()


def test_fault_28_aborted_commit_then_the_play_again(scene: Scene) -> None:
    """The base has got a part of what came later: it is never copied as the snapshot that it was."""
    play = scene.start(COPY)
    scene.kill_all(play)
    (name,) = scene.member.facts().snapshots
    scene.dirty()
    # One disk only: another that was merged would by itself be a reason to refuse the copy
    options = {"bandwidth": SLOW_MERGE, "timeout": 2, "disks": ["vda"]}
    assert scene.module("block_commit", snapshot=name, **options)["error_code"] == "timeout"
    scene.record("aborted")
    assert scene.overlays()
    scene.heal()
    (made,) = scene.member.sets()
    assert made.manifest["snapshot"] != name
