# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A guest that is neither running nor simply off: saved with its memory, crashed, paused."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from endstate import sha256_of
from fleet import until

from .scene import Scene, Stage

#: As if the host had been booted since anything was begun, with a shorter wait between two looks.
AFTER_A_BOOT = """
import sys
from ansible_collections.virtops.libvirt.plugins.module_utils._boot import recover
recover.boot_id, recover.LOOK_SECONDS = (lambda: "another boot"), 0.5
sys.exit(recover.main([]))
"""
LIBRARY = "/usr/local/lib/virtops.libvirt"


def codes_of(scene: Scene, *tasks: tuple[str, dict[str, Any]]) -> list[str]:
    """Run these modules on our guest, one after the other in one play, and return each one's error code, or ""."""
    domain = {"domain": scene.member.guest.name}
    told = [{f"virtops.libvirt.{module}": {**domain, **options}, "ignore_errors": True} for module, options in tasks]
    play = {"hosts": scene.hypervisor.name, "gather_facts": False, "tasks": told}
    path = scene.stage.controller.folder / "states.yml"
    path.write_text(yaml.safe_dump([play]), encoding="utf-8")
    ended = scene.stage.controller.run(playbook=str(path))
    assert len(ended.results) == len(tasks), ended.output
    return [str(item.result.get("error_code", "")) for item in ended.results]


@contextmanager
def boot_recovery(scene: Scene) -> Iterator[tuple[subprocess.Popen[str], socket.socket]]:
    """What the unit runs after a boot, and the socket on which it tells systemd that the host may go on."""
    controller, host = scene.stage.controller, scene.hypervisor
    installed = controller.module(host.name, "boot_recovery")
    assert installed.get("changed"), installed
    place = "/run/virtops-notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(host.outside(place)))
        systemd.settimeout(60)
        words = ["env", "-C", "/", f"PYTHONPATH={LIBRARY}", "PYTHONDONTWRITEBYTECODE=1", f"NOTIFY_SOCKET={place}"]
        command = host.enter([*words, "/usr/bin/python3", "-c", AFTER_A_BOOT])
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            yield process, systemd
        except TimeoutError as error:
            process.kill()
            raise AssertionError(process.communicate()[0]) from error
        finally:
            process.kill()
            host.outside(place).unlink()
            controller.module(host.name, "boot_recovery", state="absent")


@pytest.mark.once
def test_saved_guest_is_left_alone_until_it_was_started(scene: Scene) -> None:
    """Everything that would merge or delete refuses, the boot recovery waits; the memory is not lost."""
    virsh, name = scene.hypervisor.virsh, scene.member.guest.name
    memory = f"/var/lib/libvirt/qemu/save/{name}.save"
    virsh("managedsave", name)
    assert codes_of(
        scene,
        ("snapshot_external", {"name": "fork"}),
        ("image_convert", {}),
        ("block_commit", {"base": scene.before.facts.live["vda"][0]}),
    ) == ["memory_saved", "memory_saved", ""]
    virsh("start", name)

    assert scene.module("snapshot_external", name="left", operation="live_backup").get("error_code") is None
    virsh("managedsave", name)
    digest = sha256_of(scene.hypervisor, memory)
    assert codes_of(
        scene,
        ("recover", {}),
        ("block_commit", {"snapshot": "left", "delete_merged": True}),
        ("block_pull", {"disks": ["vdb"]}),
        ("snapshot_external", {"name": "left", "state": "absent"}),
        ("snapshot_external", {"name": "left", "state": "absent", "children": "delete"}),
        ("snapshot_revert", {"name": "left"}),
    ) == [*["memory_saved"] * 5, "operation_open"]
    play = scene.run()
    assert play.rc != 0, play.output
    assert f"Start it (virsh start {name})" in play.report()[scene.member.alias]
    assert set(scene.overlays()) == {"vda", "vdb"}
    assert (scene.member.noted(), sha256_of(scene.hypervisor, memory)) == (["created"], digest)

    with boot_recovery(scene) as (process, systemd):
        assert systemd.recv(100) == b"READY=1"
        assert process.poll() is None
        virsh("start", name)
        said = process.communicate(timeout=90)[0]
    lines = [line for line in said.splitlines() if line.startswith(f"{name}: ")]
    assert [line.split(": ")[1].split(",")[0] for line in lines] == ["left as it is", "healed"], said
    assert process.returncode == 0
    until("a guest that runs", lambda: scene.member.guest.state() == "running", 20)
    assert scene.member.facts().boot_id == scene.before.facts.boot_id
    scene.before.assert_normal_end(rebooted=True, sets=0)


@pytest.mark.once
def test_crashed_guest_whose_qemu_is_kept(scene: Scene) -> None:
    """It is active, as libvirt says: it is merged live; only virsh destroy ends it, and a revert does."""
    virsh, guest = scene.hypervisor.virsh, scene.member.guest
    assert scene.module("snapshot_external", name="left", operation="live_backup").get("error_code") is None
    guest.crash()
    assert codes_of(
        scene,
        ("recover", {}),
        ("snapshot_external", {"name": "frozen", "quiesce": "required"}),
        ("image_convert", {}),
        ("snapshot_external", {"name": "kept"}),
    ) == ["", "guest_crashed", "guest_crashed", ""]
    virsh("resume", guest.name)
    assert scene.member.facts().boot_id == scene.before.facts.boot_id
    scene.before.assert_writes()

    guest.crash()
    assert codes_of(scene, ("snapshot_revert", {"name": "kept", "run_state": "running"})) == [""]
    guest.wait()
    assert scene.member.facts().boot_id != scene.before.facts.boot_id
    assert codes_of(scene, ("snapshot_external", {"name": "kept", "state": "absent"})) == [""]
    scene.before.assert_normal_end(rebooted=True, sets=0)


@contextmanager
def held_open(scene: Scene, path: str) -> Iterator[None]:
    """A process has a file open, without any lock."""
    process = subprocess.Popen(scene.hypervisor.enter(["sh", "-c", 'exec sleep 300 <"$0"', path]))
    try:
        until("the process", lambda: "sleep 300" in scene.arguments(), 20)
        yield
    finally:
        process.kill()
        pid = scene.hypervisor.exec(["pgrep", "-f", "^sleep 300$"]).stdout.split()
        scene.hypervisor.exec(["kill", *pid])


@dataclass(frozen=True)
class Deletion:
    """What a deletion said whose two commits failed, and what it said when it could not delete an overlay."""

    failed: dict[str, Any]
    kept: dict[str, Any]
    overlay: str


@pytest.fixture
def deletion(scene: Scene, stage: Stage) -> Deletion:
    """Interrupt it, end one of its jobs by hand, and let it end: once for all three tests."""
    if "deletion" not in stage.notes:
        stage.notes["deletion"] = interrupted_deletion(scene)
    found: Deletion = stage.notes["deletion"]
    return found


def interrupted_deletion(scene: Scene) -> Deletion:
    """Leave nothing of it."""
    virsh, name, before = scene.hypervisor.virsh, scene.member.guest.name, scene.before.facts.live
    options = {"name": "kept", "state": "absent"}
    assert scene.module("snapshot_external", name="kept").get("error_code") is None
    with scene.immutable(before["vda"][0]), scene.reader(before["vdb"][0], "qcow2"):
        failed = scene.module("snapshot_external", **options)
    assert failed.get("error_code"), failed
    assert scene.member.noted() == ["created", "committing"]
    virsh("blockcommit", name, "vda", "--active", "--shallow")
    scene.until_ready("vda")
    pivoted = scene.module("block_job", disk="vda", state="pivoted")
    assert pivoted["changed"], pivoted
    assert set(scene.overlays()) == {"vdb"}
    assert scene.member.noted() == ["created", "committing"], "the deletion was taken for ended"
    overlay = scene.overlays()["vdb"]
    with held_open(scene, overlay):
        kept = scene.module("snapshot_external", **options)
    assert any(f"{overlay} was kept" in text for text in kept["warnings"]), kept
    assert scene.module("snapshot_external", **options).get("error_code") is None
    return Deletion(failed, kept, overlay)


@pytest.mark.once
def test_pivot_of_a_job_of_an_interrupted_deletion(scene: Scene, deletion: Deletion) -> None:
    """It ends the job, and leaves the deletion to its own task, which deletes what is left."""
    assert deletion.failed["partial"]
    scene.before.assert_normal_end(sets=0)


@pytest.mark.once
def test_each_disk_that_failed_is_told(deletion: Deletion) -> None:
    """With its own words."""
    assert [disk["disk"] for disk in deletion.failed["partial"] if disk["error"]] == ["vda", "vdb"]
    assert "Starting the commit of vda" in deletion.failed["msg"]
    assert "Starting the commit of vdb" in deletion.failed["msg"]


@pytest.mark.once
def test_an_overlay_that_was_kept_is_not_said_to_be_deleted(deletion: Deletion) -> None:
    """`actions` are the steps that were taken."""
    assert not [text for text in deletion.kept["actions"] if text.startswith(f"delete {deletion.overlay}")]
