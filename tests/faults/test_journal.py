# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A journal that is not what we wrote: forged, copied along with a definition, or gone while its overlay is there."""

from __future__ import annotations

import re
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fleet import images, until
from virtlab import BACKUP, IMAGES

from .scene import COPY, SLOW_COPY, Scene

# About what we believe of metadata
pytestmark = pytest.mark.once

URI = "https://virtops.github.io/xmlns/libvirt/journal/1"
SOCKET = "/run/libvirt/libvirt-sock"
#: A user who may use libvirt, and nothing else.
OPERATOR = ("setpriv", "--reuid=65534", "--regid=libvirt", "--clear-groups")


@contextmanager
def libvirt_group(scene: Scene) -> Iterator[None]:
    """Members of the group libvirt may use it, as on a host where packages have set it up."""
    scene.hypervisor.exec(["chgrp", "libvirt", SOCKET])
    yield
    scene.hypervisor.exec(["chgrp", "root", SOCKET])


def write_journal(scene: Scene, operations: str, *who: str, name: str = "") -> None:
    """Put this journal into the domain's metadata, live and persistent."""
    words = ("metadata", name or scene.member.guest.name, "--uri", URI, "--key", "virtops", "--config", "--set")
    live = [] if name else ["--live"]
    journal = f"<journal schema='1'>{operations}</journal>"
    scene.hypervisor.exec([*who, "virsh", "-c", "qemu:///system", *words, journal, *live])


def operation(kind: str, phase: str, overlay: str, base: str, **attributes: str) -> str:
    """Return an operation of long ago on vda, as the journal has it."""
    more = "".join(f" {key}='{value}'" for key, value in attributes.items())
    return (
        f"<operation id='{uuid.uuid4()}' kind='{kind}' name='{attributes.get('memory') or kind}' phase='{phase}'"
        f" started='20200101T000000Z'{more}><disk target='vda' base='{base}' base_format='raw' overlay='{overlay}'/>"
        "</operation>"
    )


def test_forged_journal_deletes_nothing_of_roots(scene: Scene) -> None:
    """A user of libvirt writes operations into the metadata that name root's files, and another guest's image."""
    hypervisor = scene.hypervisor
    (base, *_unused) = scene.before.facts.live["vda"]
    secret = "/root/virtops-precious"
    foreign, saved = f"{IMAGES}/foreign.qcow2", f"{IMAGES}/foreign.save"
    hypervisor.exec(["sh", "-c", f"umask 077; echo precious >{secret}; echo LibvirtQemudSave >{saved}"])
    hypervisor.exec(["qemu-img", "create", "-q", "-f", "qcow2", foreign, "1M"])
    victims = [secret, foreign, saved]
    before = {path: hypervisor.exec(["sha256sum", path]).stdout for path in victims}
    forged = [
        operation("revert", "created", secret, base),
        operation("live_backup", "prepared", f"{base}.none", base, memory=secret),
        operation("snapshot", "prepared", foreign, base, memory=saved),
    ]
    try:
        with libvirt_group(scene):
            readable = hypervisor.exec([*OPERATOR, "cat", secret], check=False)
            assert readable.returncode != 0
            # What would be written to is not left out, but refused
            merge = operation("delete", "committing", foreign, base)
            write_journal(scene, merge.replace("'delete' phase", "'x (children: only)' phase"), *OPERATOR)
            assert scene.module("recover")["error_code"] == "not_ours"
            for one in forged:
                write_journal(scene, one, *OPERATOR)
                healed = scene.module("recover")
                assert "error_code" not in healed, healed
                named = [path for path in victims if path in one]
                assert named
                assert [path for path in named if f"{path} was kept" not in str(healed["warnings"])] == []
        assert {path: hypervisor.exec(["sha256sum", path]).stdout for path in victims} == before
    finally:
        hypervisor.exec(["rm", "-f", *victims])
    scene.before.assert_normal_end(sets=0)


def test_copied_definition_brings_no_journal_along(scene: Scene) -> None:
    """A clone of a guest that was being backed up has nothing to finish, and nothing of the guest is touched by it."""
    hypervisor, clone = scene.hypervisor, "clone"
    play = scene.start(COPY)
    try:
        text = hypervisor.virsh("dumpxml", "--inactive", scene.member.guest.name)
        text = re.sub(r"<uuid>.*?</uuid>|<mac address=.*?/>|<seclabel.*?</seclabel>", "", text, flags=re.DOTALL)
        text = text.replace("<name>web</name>", f"<name>{clone}</name>")
        text = re.sub(r"<disk .*</disk>", "", text, flags=re.DOTALL)
        assert "phase=" in text
        hypervisor.outside("/root/clone.xml").write_text(text, encoding="utf-8")
        hypervisor.virsh("define", "/root/clone.xml")
        there = images(hypervisor)
        (found,) = scene.stage.controller.module(hypervisor.name, "guests_info", guests=[clone])["guests"]
        assert found["journal"] == []
        assert found["journal_of"] == scene.member.facts().xml[0].partition("<uuid>")[2].partition("</uuid>")[0]
        healed = scene.module("recover", domain=clone)
        assert (healed["changed"], healed["operations"]) == (False, [])
        assert "whose definition was copied" in str(healed["warnings"])
        assert images(hypervisor) == there
    finally:
        hypervisor.virsh("undefine", clone, "--nvram", check=False)
    scene.assert_succeeded(scene.go(play))
    scene.before.assert_normal_end()


def forget(scene: Scene) -> None:
    """Somebody removes the journal from the domain's metadata."""
    scene.hypervisor.virsh("metadata", scene.member.guest.name, "--uri", URI, "--live", "--config", "--remove")


def die_on_overlays(scene: Scene) -> str:
    """A live backup dies while it copies, and its journal is removed. Return the snapshot's name."""
    play = scene.start(rate_limit=SLOW_COPY)
    scene.until_copied(2)
    scene.kill_all(play)
    (name,) = scene.member.facts().snapshots
    forget(scene)
    assert "vda" in scene.overlays()
    return name


@contextmanager
def impostor(scene: Scene) -> Iterator[None]:
    """A local user's program, with the command line of the guest's QEMU."""
    known = scene.hypervisor.virsh("domuuid", scene.member.guest.name).strip()
    command = f"exec -a qemu-x python3 -c 'import sys; sys.stdin.read()' -uuid {known}"
    argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "bash", "-c", command]
    process = subprocess.Popen(scene.hypervisor.enter(argv), stdin=subprocess.PIPE)
    try:
        until("the impostor", lambda: f"-uuid {known}" in scene.hypervisor.exec(["ps", "-eo", "args="]).stdout, 20)
        yield
    finally:
        process.communicate(timeout=20)  # the end of its input ends it


def test_lost_journal_of_a_guest_on_its_overlays(scene: Scene) -> None:
    """Each look names it, no other module works on top of it, and the next run merges it before it backs up."""
    name = die_on_overlays(scene)
    module = scene.stage.controller.module
    guests = module(scene.hypervisor.name, "guests_info", guests=[scene.member.guest.name])["guests"]
    assert [(found["name"], found["open"], found["noted"]) for found in guests[0]["journal"]] == [(name, True, False)]
    refused = scene.module("snapshot_external", name="mine")
    assert (refused["error_code"], "its journal is gone" in refused["msg"]) == ("operation_open", True)
    play = scene.heal(resumed=True)
    (recovered,) = [item.result for item in play.of(scene.member.alias, "live_backup")]
    assert any(step.startswith(f"take up {name}") for step in recovered["actions"]), recovered
    assert scene.module("recover")["actions"] == []


def test_lost_journal_of_a_guest_started_from_older_xml(scene: Scene) -> None:
    """Its newest data are in the overlay, which nothing refers to any more: all refuse until a human has looked."""
    hypervisor, guest = scene.hypervisor, scene.member.guest
    older = hypervisor.virsh("dumpxml", "--inactive", guest.name)
    name = die_on_overlays(scene)
    scene.before.assert_writes()
    overlay = scene.overlays()["vda"]
    whole = hypervisor.virsh("dumpxml", "--inactive", guest.name)
    guest.shutdown()
    hypervisor.virsh("snapshot-delete", guest.name, name, "--metadata")
    hypervisor.outside("/root/older.xml").write_text(older, encoding="utf-8")
    hypervisor.outside("/root/whole.xml").write_text(whole, encoding="utf-8")
    hypervisor.virsh("define", "/root/older.xml")
    there = images(hypervisor)
    play = scene.run()
    assert play.rc != 0
    assert "overlay_in_use" in play.output
    with impostor(scene):
        assert scene.module("recover")["error_code"] == "overlay_in_use"
    look = scene.stage.controller.module(
        hypervisor.name, "preflight_info", guests=[guest.name], states=[], dest=BACKUP, quiesce="never"
    )
    failed = {check["error_code"] for check in look["guests"][0]["checks"] if check["status"] == "failed"}
    assert failed == {"overlay_in_use"}, look
    assert images(hypervisor) == there
    # The human decides for the overlay
    hypervisor.virsh("define", "/root/whole.xml")
    assert overlay in scene.member.facts().persistent["vda"]
    scene.member.boot()
    scene.heal(rebooted=True)


#: Prints what comes, until its input ends.
LOGGER = """
import select, socket, sys
log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
log.bind("/dev/log")
while log in select.select([log, sys.stdin], [], [])[0]:
    print(log.recv(1 << 20).decode(errors="replace"), flush=True)
"""


def test_passwords_do_not_reach_the_log(scene: Scene) -> None:
    """Ansible logs what a module is given, before it does anything: not the XML of a record, which holds passwords."""
    hypervisor, secret = scene.hypervisor, "open-sesame"
    record = f"<domainsnapshot><name>x</name><domain><devices><graphics passwd='{secret}'/></devices></domain>"
    logger = subprocess.Popen(
        hypervisor.enter(["python3", "-c", LOGGER]), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        until("the log", lambda: hypervisor.exec(["test", "-S", "/dev/log"], check=False).returncode == 0, 20)
        assert scene.module("snapshot_metadata", xml=f"{record}</domainsnapshot>")["error_code"]
    finally:
        told, _unused = logger.communicate(timeout=20)
        hypervisor.exec(["rm", "-f", "/dev/log"])
    assert "snapshot_metadata" in told
    assert secret not in told
