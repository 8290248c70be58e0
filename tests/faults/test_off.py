# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A guest that is off while it is backed up: who may start it meanwhile, and what becomes of the copy then."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fleet import Set, sha256, until
from virtlab import IMAGES, LabError

from .scene import SLOW_COPY, Scene

#: MiB/s: the copy lasts until it is thrown away.
CRAWL = 1
DEVICE_MIB = 64


@pytest.fixture
def off(scene: Scene) -> Iterator[Scene]:
    """Our guest, off; running again afterwards, for the next test."""
    scene.hypervisor.virsh("destroy", scene.member.guest.name)
    yield scene
    if scene.member.guest.state() == "shut off":
        scene.hypervisor.virsh("start", scene.member.guest.name)
    scene.member.guest.wait()


def new_sets(scene: Scene) -> list[Set]:
    """Return the complete sets that were made since the test began."""
    return [found for found in scene.member.sets() if found.folder not in scene.before.sets]


def test_no_start_while_the_files_are_copied(off: Scene) -> None:
    """QEMU's lock keeps it off for as long as the copy lasts, be that ended by a kill; then the next run copies."""
    virsh, name = off.hypervisor.virsh, off.member.guest.name
    play = off.start(rate_limit=SLOW_COPY)
    off.until_copied(4)
    with pytest.raises(LabError, match="lock"):
        virsh("start", name)
    assert off.member.guest.state() == "shut off"
    off.kill_all(play)
    partial = off.member.partial()
    assert partial is not None
    again = off.run()
    off.assert_succeeded(again)
    assert "(off, 2 disks, " in again.report()[off.member.alias]
    assert not partial.exists()
    (made,) = new_sets(off)
    assert made.manifest["consistency"] == "offline"
    virsh("start", name)
    off.member.guest.wait()
    off.before.assert_normal_end(rebooted=True)


@contextmanager
def on_a_device(scene: Scene) -> Iterator[str]:
    """Give the guest, for its next starts, a disk on a loop device with something on it: the last target in use."""
    image = scene.hypervisor.outside(IMAGES) / "device.raw"
    with image.open("wb") as file:
        file.write(b"\1" * (DEVICE_MIB << 20))
    found = subprocess.run(["losetup", "-f", "--show", image], check=True, stdout=subprocess.PIPE, text=True)
    device = found.stdout.strip()
    virsh, name = scene.hypervisor.virsh, scene.member.guest.name
    virsh("attach-disk", name, device, "vdx", "--config", "--subdriver", "raw", "--sourcetype", "block")
    try:
        yield device
    finally:
        if scene.member.guest.state() == "running":
            virsh("destroy", name)
        virsh("detach-disk", name, "vdx", "--config")
        subprocess.run(["losetup", "-d", device], check=True)
        image.unlink()


def test_a_copy_of_a_device_counts_only_if_the_guest_was_off_all_the_time(off: Scene) -> None:
    """Nothing locks it: the guest is started, and turned off again before anybody looks."""
    virsh, name = off.hypervisor.virsh, off.member.guest.name
    others = [{"name": disk, "snapshot": "no"} for disk in ("vda", "vdb")]
    with on_a_device(off):
        play = off.start(rate_limit=CRAWL, disks=others)
        until("a copy", lambda: off.member.partial() is not None and off.copied_mib() > 0, 60)
        virsh("start", name)
        virsh("destroy", name)
        failed = off.assert_failed(play.end(), "guest_started")
        assert "libvirt has told of its start or its end, and no lock guards /dev/loop" in failed["msg"]
        assert (new_sets(off), off.member.partial()) == ([], None)

        off.assert_succeeded(off.run(disks=others))
        (made,) = new_sets(off)
        assert [disk["target"] for disk in made.manifest["disks"]] == ["vdx"]
        assert sha256(made.path("vdx.raw")) == sha256(off.hypervisor.outside(IMAGES) / "device.raw")
