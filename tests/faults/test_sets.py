# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A target that is not this hypervisor's alone: other hosts and other users have their hands in it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import yaml
from fleet import Set, sha256, until
from virtlab import BACKUP

from .scene import SLOW_COPY, SLOW_MERGE, Scene

# About the folder of the backups
pytestmark = pytest.mark.once

SNAPSHOT = "live-backup-sets"
#: Another hypervisor, as far as a module can see: its machine-id, and locks of its own.
OTHER_HOST = """\
#!/bin/sh
mkdir -p /run/virtops.libvirt /dev/shm/virtops.libvirt
exec unshare --mount sh -ec '
  mount --bind /srv/machine-id /etc/machine-id
  mount -t tmpfs none /run/virtops.libvirt; mount -t tmpfs none /dev/shm/virtops.libvirt
  exec python3 "$@"' sh "$@"
"""
OTHER_UUID = "11111111-2222-4333-8444-555555555555"
#: Another user, and a folder that only root may write to.
STRANGER = ["setpriv", "--reuid", "4711", "--regid", "4711", "--clear-groups", "sh", "-ec"]
PRIVATE = "/srv/private-of-root"
#: A set with so many files that its removal takes a while, and what kills that as soon as it has begun.
OLD, MANY = "20200101T000000Z", 50_000
KILLER = "(until [ -e {leftover} ]; do :; done; kill -KILL $(pgrep -f '[_]host.helper')) >/dev/null 2>&1 &"


def on_other_host(scene: Scene, module: str, **options: object) -> dict[str, Any]:
    """Run a module as another hypervisor with the same guest would."""
    script = scene.hypervisor.outside("/srv/other-host")
    script.write_text(OTHER_HOST, encoding="utf-8")
    script.chmod(0o755)
    scene.hypervisor.outside("/srv/machine-id").write_text("0123456789abcdef0123456789abcdef\n", encoding="utf-8")
    task = {"name": module, f"virtops.libvirt.{module}": {"domain": scene.member.guest.name, **options}}
    path = scene.stage.controller.folder / "other-host.yml"
    path.write_text(
        yaml.safe_dump([{"name": module, "hosts": scene.hypervisor.name, "gather_facts": False, "tasks": [task]}]),
        encoding="utf-8",
    )
    play = scene.stage.controller.run(playbook=str(path), ansible_python_interpreter="/srv/other-host")
    assert play.results, play.output
    return play.results[-1].result


@contextmanager
def standing_still(scene: Scene) -> Iterator[None]:
    """The module that works on the guest does nothing meanwhile."""
    module = scene.module_pid()
    scene.kill(module, "STOP")
    try:
        yield
    finally:
        scene.kill(module, "CONT")


def snapshot(scene: Scene, **options: object) -> dict[str, Any]:
    """Put the guest on its overlays."""
    return scene.module("snapshot_external", name=SNAPSHOT, operation="live_backup", **options)


def merge(scene: Scene) -> None:
    """Take it off them again."""
    merged = scene.module("block_commit", snapshot=SNAPSHOT, delete_merged=True)
    assert merged.get("changed"), merged


def forge(found: Set, **changes: object) -> None:
    """Make a set say something else."""
    file, sums = found.path("manifest.json"), found.path("SHA256SUMS")
    before = sha256(file)
    file.write_text(json.dumps({**found.manifest, **changes}), encoding="utf-8")
    sums.write_text(sums.read_text(encoding="utf-8").replace(before, sha256(file)), encoding="utf-8")


def test_two_hosts_share_a_target(scene: Scene) -> None:
    """Of one guest: the second leaves alone what the first is writing. Of two guests of one name: it is refused."""
    assert snapshot(scene).get("changed")
    run = scene.start_module("image_backup", snapshot=SNAPSHOT, dest=BACKUP, rate_limit=SLOW_COPY)
    scene.until_copied(4)
    with standing_still(scene):
        second = on_other_host(scene, "image_backup", snapshot=SNAPSHOT, dest=BACKUP)
    assert second.get("error_code") == "set_under_way", second
    first = run.end().results[-1].result
    assert first.get("changed"), first
    (found,) = scene.member.sets()
    found.check(scene.member.targets, scene.before.mark)

    # What the other host's death left is nobody's only when nothing has come into it for long
    forge(found, machine="another")
    partial = found.path().parent / f".{found.path().name}.partial"
    found.path().rename(partial)
    refused = scene.module("image_backup", snapshot=SNAPSHOT, dest=BACKUP)
    assert refused.get("error_code") == "set_under_way", refused
    assert sorted(file.name for file in partial.iterdir()) == [
        "SHA256SUMS",
        "domain.xml",
        "initrd.img",
        "kernel",
        "manifest.json",
        "vda.raw",
        "vdb.qcow2",
    ]
    scene.hypervisor.exec(["sh", "-c", f"touch -d '2 hours ago' {BACKUP}/web/.*.partial {BACKUP}/web/.*.partial/*"])
    again = scene.module("image_backup", snapshot=SNAPSHOT, dest=BACKUP)
    assert "unfinished" in again["actions"][0], again
    merge(scene)

    # Complete sets belong to the guest, wherever it runs; and another of its name is refused before the snapshot
    forge(found, machine="another", hypervisor="another")
    scene.before.assert_normal_end()
    forge(found, domain={"name": "web", "uuid": OTHER_UUID})
    refused = snapshot(scene, backup={"dest": BACKUP})
    assert refused.get("error_code") == "set_foreign", refused
    assert OTHER_UUID in refused["msg"]
    told = scene.stage.controller.module(scene.hypervisor.name, "preflight_info", guests=["web"], dest=BACKUP)
    (check,) = [check for check in told["guests"][0]["checks"] if check["status"] == "failed"]
    assert (check["check"], check["error_code"]) == ("target", "set_foreign")
    assert not scene.overlays()
    assert scene.member.phase() == ""


def test_another_user_in_the_target(scene: Scene) -> None:
    """Neither believed where the folder is theirs, nor followed where they swap it under a copy."""
    dest, guest = f"{BACKUP}/open", scene.member.guest.name
    hypervisor, folder = scene.hypervisor, f"{BACKUP}/open/{guest}"
    hypervisor.exec(["sh", "-ec", f"rm -rf {dest} {PRIVATE}; mkdir -m 1777 {dest}; mkdir -m 700 {PRIVATE}"])
    taken = snapshot(scene)
    run = scene.module("image_backup", snapshot=SNAPSHOT, dest=BACKUP)
    (real,) = scene.member.sets()

    # In a folder with the sticky bit they come first, and forge a set of this very moment
    stamp = real.path().name
    forged = json.dumps({key: value for key, value in run["backup"].items() if key != "path"})
    files = {disk["file"]: disk["bytes"] for disk in run["backup"]["disks"]}
    lengths = "; ".join(f"truncate -s {length} {file}" for file, length in files.items())
    script = f"mkdir -p {folder}/{stamp}; cd {folder}/{stamp}; cat >manifest.json; {lengths}"
    hypervisor.exec([*STRANGER, script], stdin=forged)
    believed = scene.module("image_backup", snapshot=SNAPSHOT, dest=dest)
    assert believed.get("error_code") == "dest_not_private", believed
    assert "4711" in believed["msg"]
    hypervisor.exec([*STRANGER, f"rm -r {folder}"])

    # In one without it they may rename what is root's, and put a link in its place
    hypervisor.exec(["chmod", "0777", dest])
    running = scene.start_module("image_backup", snapshot=SNAPSHOT, dest=dest, rate_limit=SLOW_COPY)
    partial = hypervisor.outside(f"{folder}/.{stamp}.partial")
    until("a copy under way", (partial / "vda.raw").exists, 60)
    with standing_still(scene):
        swap = f"mv {folder} {dest}/x; mkdir {folder}; ln -s {PRIVATE} {folder}/.{stamp}.partial"
        hypervisor.exec([*STRANGER, swap])
    ended = running.end().results[-1].result
    assert list(hypervisor.outside(PRIVATE).iterdir()) == []
    assert ended.get("error_code") == "dest_not_private", ended
    assert list(hypervisor.outside(f"{dest}/x").iterdir()) == []
    assert taken.get("changed"), taken
    merge(scene)
    hypervisor.exec(["rm", "-rf", dest, PRIVATE])
    scene.before.assert_normal_end()


@pytest.mark.once
def test_a_death_between_the_merge_and_the_verification(scene: Scene) -> None:
    """What was copied is verified by the next run, without another copy."""
    run = scene.start_module("live_backup", dest=BACKUP, rate_limit=SLOW_COPY, bandwidth=SLOW_MERGE)
    scene.until_copied(4)
    scene.dirty(4)
    until("a set that is copied", lambda: "digests.json" in partial_files(scene), 60)
    (helper,) = {line.split()[0] for line in scene.arguments("pid=,args=").splitlines() if "_host.helper" in line}
    scene.kill(int(helper), "STOP")
    until("the end of the merge", lambda: not scene.overlays() and not scene.member.phase(), 60)
    folder = scene.member.partial()
    assert folder is not None
    copied = (folder / "vda.raw").stat().st_ino
    scene.kill(scene.module_pid())
    run.end()
    again = scene.module("live_backup", dest=BACKUP)
    (found,) = scene.member.sets()
    assert found.path("vda.raw").stat().st_ino == copied, again
    assert again["backup"]["path"] == found.folder
    scene.before.assert_normal_end()
    a_prune_that_is_killed(scene, found)


def a_prune_that_is_killed(scene: Scene, newest: Set) -> None:
    """What it was removing is nobody's set any more, the next prune removes the rest, and the newest is as it was."""
    old = newest.path().parent / OLD
    shutil.copytree(newest.path(), old)
    times = {**newest.manifest["times"], "snapshot": "2020-01-01T00:00:00Z"}
    (old / "manifest.json").write_text(json.dumps({**newest.manifest, "times": times}), encoding="utf-8")
    for number in range(MANY):
        (old / str(number)).touch()
    leftover = old.parent / f".{OLD}.removing"
    before = {file.name: sha256(file) for file in newest.path().iterdir()}
    scene.hypervisor.exec(["sh", "-c", KILLER.format(leftover=f"{BACKUP}/{old.parent.name}/{leftover.name}")])
    killed = scene.module("backup_prune", dest=BACKUP, keep_last=1)
    assert killed.get("error_code") == "copy_failed", killed
    assert not old.exists()
    assert {"manifest.json"} < set(os.listdir(leftover))
    again = scene.module("backup_prune", dest=BACKUP, keep_last=1)
    assert again["actions"] == [f"finish the removal of the backup {BACKUP}/{old.parent.name}/{leftover.name}"], again
    assert os.listdir(old.parent) == [newest.path().name]
    assert {file.name: sha256(file) for file in newest.path().iterdir()} == before
    assert not scene.module("backup_prune", dest=BACKUP, keep_last=1).get("changed")


def partial_files(scene: Scene) -> list[str]:
    """Return what is in the set under way."""
    folder = scene.member.partial()
    return [] if folder is None else os.listdir(folder)
