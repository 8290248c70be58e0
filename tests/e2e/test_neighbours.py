# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is wrong with another domain of the hypervisor stops no work on a guest that is well."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from endstate import Before
from fleet import Member, images
from playbook import Controller
from virtlab import IMAGES, Hypervisor

WELL = "web2@e2e1"
FOLDER = f"{IMAGES}/neighbours"
#: What a live backup calls its snapshots: an overlay of that name with data in it that is not known stops all work.
STRAY = "live-backup-20260101T000000Z"
# Each of these domains is off, and cannot be started.
BROKEN = {
    "nobase": "qemu-img create -q -f qcow2 -F qcow2 -u -b gone.qcow2 nobase.qcow2 8M",
    "noimage": "true",
    "rawfile": "truncate -s 8M rawfile.qcow2",
    "loop": "qemu-img create -q -f qcow2 loop.qcow2 8M; qemu-img create -q -f qcow2 -F qcow2 -b loop.qcow2 b.qcow2; "
    "qemu-img rebase -u -f qcow2 -F qcow2 -b b.qcow2 loop.qcow2",
}
DEFINITION = """
<domain type="qemu"><name>{name}</name><memory>65536</memory><os><type arch="x86_64">hvm</type></os><devices>
<disk type="file"><driver name="qemu" type="qcow2"/><source file="{folder}/{name}.qcow2"/><target dev="vda"/></disk>
</devices></domain>
"""


def define(host: Hypervisor, name: str, make: str) -> None:
    """Make an image and a domain that is off."""
    host.exec(["sh", "-ec", f"cd {FOLDER}; {make}"])
    host.virsh("define", "/dev/stdin", stdin=DEFINITION.format(name=name, folder=FOLDER))


@pytest.fixture
def well(fleet: dict[str, Member]) -> Iterator[Member]:
    """A guest among broken ones."""
    member = fleet[WELL]
    host = member.hypervisor
    host.exec(["mkdir", "-p", FOLDER])
    try:
        for name, make in BROKEN.items():
            define(host, name, make)
        yield member
    finally:
        for name in (*BROKEN, "late"):
            host.virsh("undefine", name, check=False)
        host.exec(["rm", "-rf", FOLDER])


def test_broken_neighbours(well: Member, controller: Controller) -> None:
    """The live backup, and a recovery; only an overlay that a neighbour may have come to stand on is kept, and
    deleted once that one is gone."""
    before = Before.of(well)
    host, name = well.hypervisor, well.guest.name
    taken = controller.module(host.name, "snapshot_external", domain=name, name=STRAY, operation="live_backup")
    (vda, vdb) = [overlay["overlay"] for overlay in taken["overlays"]]
    late = (
        f"qemu-img create -q -f qcow2 -F qcow2 -b {vdb} gone.qcow2 -u 8M; qemu-img create -q -f qcow2 -F qcow2 -b "
        "gone.qcow2 -u late.qcow2 8M; mv gone.qcow2 /srv/gone.qcow2"
    )
    define(host, "late", late)
    healed = controller.module(host.name, "recover", domain=name)
    assert healed["changed"], healed
    assert [path in str(healed["warnings"]) for path in (vda, vdb)] == [True, True]
    assert f"the domain late may use it, and this cannot be checked: {FOLDER}/gone.qcow2 is missing" in str(
        healed["warnings"]
    )

    again = controller.module(host.name, "recover", domain=name)
    assert [again["changed"], *(path in str(again["warnings"]) for path in (vda, vdb))] == [False, True, True]
    play = controller.run("--limit", f"{host.name}:{WELL}")
    assert play.rc == 0, play.output
    # Of this run none is kept: no domain has come since
    left = {path.rpartition("/")[2] for path in images(host) if f"{name}.vd" in path and ".live-backup-" in path}
    assert left == {path.rpartition("/")[2] for path in (vda, vdb)}
    host.virsh("undefine", "late")
    healed = controller.module(host.name, "recover", domain=name)
    assert f"delete the merged overlay {vda}" in str(healed), healed
    host.exec(["rm", "/srv/gone.qcow2", f"{FOLDER}/late.qcow2"])
    assert not controller.module(host.name, "recover", domain=name)["changed"]
    before.assert_normal_end()
