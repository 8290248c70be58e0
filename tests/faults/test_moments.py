# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Moments that no fault passes reliably, made by hand for the records: only with --record."""

from __future__ import annotations

from pathlib import Path

from virtlab import IMAGES

from .moments import keep
from .scene import MERGE, Scene, Stage
from .test_jobs import foreign_copy


def test_moment_foreign_job(scene: Scene) -> None:
    """Somebody's blockcopy on a disk that stands on our overlay."""
    play = scene.start(MERGE)
    with foreign_copy(scene):
        scene.record("copying")
    scene.assert_succeeded(scene.go(play))


def test_moment_ending(scene: Scene) -> None:
    """A job that was told to end, and cannot yet: the guest writes all the time."""
    play = scene.start(MERGE)
    virsh, name = scene.hypervisor.virsh, scene.member.guest.name
    scene.member.guest.write(rate=0, bulk_kib=256, disks=["vda"])
    virsh("blockcommit", name, "vda", "--active", "--shallow")
    scene.until_ready()
    virsh("blockjob", name, "vda", "--abort", "--async")
    scene.record("aborted")
    scene.member.guest.write(rate=10)
    scene.assert_succeeded(scene.go(play))


def test_moment_config_stale(stage: Stage, scene: Scene) -> None:
    """A merge below the active layer: the persistent definition goes on naming the layer."""
    odd = stage.odd()
    layers = {"top": f"{IMAGES}/odd/second.qcow2", "base": f"{IMAGES}/odd/vda.qcow2"}
    options = [word for option, path in layers.items() for word in (f"--{option}", path)]
    stage.hypervisor.virsh("blockcommit", "odd", "vda", *options, "--wait")
    if scene.records is not None:
        keep(odd, Path(scene.records) / f"{stage.generation}-{scene.name}-merged.xml")
    odd.guest.cleanup()
    del stage.members["odd"]
