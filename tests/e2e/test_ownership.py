# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A hypervisor whose libvirt gives no image to QEMU's user (dynamic_ownership = 0): whoever makes one has to."""

from __future__ import annotations

from endstate import Before
from fleet import Member
from playbook import Controller

CONFIG = "/etc/libvirt/qemu.conf"


def test_an_overlay_belongs_to_whom_its_base_does(fleet: dict[str, Member], controller: Controller) -> None:
    """QEMU opens it, and writes to it until it is merged."""
    member = fleet["web1@e2e2"]
    hypervisor, before = member.hypervisor, Before.of(member)
    hypervisor.exec(["sh", "-c", f"cp {CONFIG} {CONFIG}.kept && echo 'dynamic_ownership = 0' >>{CONFIG}"])
    hypervisor.libvirtd_restart()
    try:
        ended = controller.run(live_backup_guests=[member.guest.name], target="second")
        assert ended.rc == 0, ended.output
        before.assert_normal_end()
    finally:
        hypervisor.exec(["mv", f"{CONFIG}.kept", CONFIG])
        hypervisor.libvirtd_restart()
    for found in member.sets():
        hypervisor.exec(["rm", "-rf", found.folder])
