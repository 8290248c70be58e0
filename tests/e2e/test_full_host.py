# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A hypervisor whose /run is full, or closed to us, while a guest stands on its overlays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from endstate import Before
from fleet import Member
from gate import Gate, gated
from playbook import Controller
from virtlab import Hypervisor

FULL = "mount -o remount,size=$(($(df --output=used -k /run | tail -1) + 16))k /run; cat /dev/zero >/run/ballast"
FREE = "rm -f /run/ballast; mount -o remount,size=50% /run"
FOLDER = "/run/virtops.libvirt"
CLOSED = f"mkdir -p -m 700 {FOLDER} && mount --bind {FOLDER} {FOLDER} && mount -o remount,bind,ro {FOLDER}"
OPEN = f"umount {FOLDER}"


@contextmanager
def closed(hypervisor: Hypervisor, how: str) -> Iterator[None]:
    """No byte can be written to /run, or no lock be made there."""
    begin, end = {"full": (FULL, FREE), "read-only": (CLOSED, OPEN)}[how]
    # cat fails, as there is no space
    hypervisor.exec(["sh", "-c", begin], check=how != "full")
    try:
        yield
    finally:
        hypervisor.exec(["sh", "-c", end])


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_the_merge_needs_no_space_on_run(
    fleet: dict[str, Member], controller: Controller, how: str, tmp_path: Path
) -> None:
    """The lock holds without its text, and the journal without libvirt's status file: the run ends as any other."""
    member = fleet["web1@e2e2"]
    before = Before.of(member)
    with_gates = Controller(
        tmp_path, controller.hosts, controller.lab, gated(controller.collections, tmp_path / "tree")
    )
    gate = Gate(member.hypervisor, "merge")
    play = with_gates.start(live_backup_guests=[member.guest.name], target="second")
    play.gate = gate
    play.reach_gate()
    with closed(member.hypervisor, how):
        play.open_gate()
        ended = play.end()
        assert ended.rc == 0, ended.output
    # libvirt writes its status file again at the next change only: a restart until then would bring the overlays back
    member.hypervisor.virsh("suspend", member.guest.name)
    member.hypervisor.virsh("resume", member.guest.name)
    if how == "read-only":  # the job could not remove its lock, which the next one takes over
        member.hypervisor.exec(["sh", "-c", f"rm {FOLDER}/domain-*.lock"])
    before.assert_normal_end()
    for found in member.sets():
        member.hypervisor.exec(["rm", "-rf", found.folder])
