# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A guest that moves to another hypervisor while it stands on its overlays: that one goes on, the old one does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fleet import Member
from playbook import Controller
from virtlab import Disk, Hypervisor, Lab
from virtlab.shared import migrate, share

NAME = "mover"
SHARED = "/srv/shared"


@pytest.fixture
def mover(hypervisors: list[Hypervisor]) -> Iterator[Member]:
    """A guest of the first hypervisor, whose image both see."""
    share(hypervisors, SHARED)
    member = Member(hypervisors[0].guest(NAME), (Disk("vda", size_mib=48, path=f"{SHARED}/{NAME}/vda.qcow2"),))
    member.define()
    try:
        member.boot()
        yield member
    finally:
        for hypervisor in reversed(hypervisors):
            hypervisor.guest(NAME).cleanup()
            hypervisor.exec(["umount", "-l", SHARED])


def refusals(controller: Controller, host: Hypervisor, *tasks: tuple[str, dict[str, Any]]) -> dict[str, str]:
    """Return what each of these modules says there, by the codes that they fail with; they must not change anything."""
    before = definition(host)
    results = [controller.module(host.name, module, domain=NAME, **options) for module, options in tasks]
    assert definition(host) == before
    return {str(result.get("error_code")): str(result["msg"]) for result in results}


def definition(host: Hypervisor) -> str:
    """Return what is defined there, and with it the journal."""
    return host.virsh("dumpxml", "--inactive", NAME)


def test_a_migrated_guest_is_recovered_where_it_is(
    hypervisors: list[Hypervisor], lab: Lab, mover: Member, controller: Controller
) -> None:
    """What it leaves behind is not touched, whatever is asked for there."""
    old, new = hypervisors
    mark = mover.guest.mark()
    taken = controller.module(
        old.name, "snapshot_external", domain=NAME, name="left", operation="live_backup", metadata=False
    )
    assert taken.get("changed"), taken
    migrate(NAME, old, new)
    moved = Member(new.guest(NAME), mover.disks)
    assert (mover.guest.state(), moved.guest.state()) == ("shut off", "running")
    for restarted in (False, True):
        if restarted:  # libvirt has forgotten why the guest is off
            old.libvirtd_kill()
            old.libvirtd_start()
        more = () if restarted else (("block_commit", {"snapshot": "left", "delete_merged": True}),)
        said = refusals(controller, old, ("recover", {}), *more)
        assert said.keys() == {"guest_moved"}
        assert ("another host that shares its storage writes to" in said["guest_moved"]) is restarted

    play = controller.run(target=new.name, guests=[NAME])
    assert play.rc == 0, play.output
    assert "backed up to" in play.report()[moved.alias]
    found = moved.facts()
    assert (found.live, found.journal) == ({"vda": [f"{SHARED}/{NAME}/vda.qcow2"]}, False)
    (made, *_unused) = moved.sets()
    made.check({"vda"}, mark)
    said = refusals(controller, old, ("recover", {}))
    assert "If the guest moved to another host" in said["overlay_gone"]
    new.exec(["rm", "-rf", made.folder])
