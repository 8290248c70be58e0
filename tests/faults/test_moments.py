# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Moments that no fault passes reliably, made by hand for the records: only with --record."""

from __future__ import annotations

from .scene import MERGE, Scene
from .test_jobs import foreign_copy


def test_moment_foreign_job(scene: Scene) -> None:
    """Somebody's blockcopy on a disk that stands on our overlay."""
    play = scene.start(MERGE)
    with foreign_copy(scene):
        scene.record("copying")
    scene.assert_succeeded(scene.go(play))


def test_moment_config_stale(scene: Scene) -> None:
    """Somebody defines the guest again from XML that was saved while it stood on its overlays, after the merge."""
    play = scene.start(MERGE)
    virsh, name = scene.hypervisor.virsh, scene.member.guest.name
    saved = virsh("dumpxml", "--inactive", name)
    virsh("blockcommit", name, "vda", "--active", "--shallow", "--pivot")
    virsh("define", "/dev/stdin", stdin=saved)
    scene.record("merged")
    # The overlay may have data that were never merged: it is kept, and the end says so
    ended = scene.go(play)
    assert "was kept" in ended.output
