# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The live backup when nothing goes wrong, also for the generations that the faults are not made on."""

from __future__ import annotations

from .scene import Scene


def test_without_a_fault(scene: Scene) -> None:
    """The guest's file systems are frozen for the snapshot, and the second run finds nothing of the first."""
    scene.heal(quiesce="required")
    scene.heal(sets=2, quiesce="required")
    assert [found.manifest["consistency"] for found in scene.member.sets()] == ["filesystem", "filesystem"]
