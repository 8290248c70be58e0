# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A set is booted to see that it does: alone, reachable for nobody, and only read."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from fleet import Member, until
from playbook import Controller, Play
from virtlab import Hypervisor

WEB, HOST = "web1@e2e2", "second"
DRILL = "virtops.libvirt.restore_drill"
DEST = "/srv/backup"
UP = [r"/bin/sh", "-c", "test -e /proc/1 && echo ready"]


def stats(folder: Path) -> dict[str, tuple[Any, ...]]:
    """What may not change in a set: all but the notes in it, and when it was read."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.name != "notes.json":
            stat = path.lstat()
            names = {name: os.getxattr(path, name) for name in os.listxattr(path)}
            found[path.name] = (stat.st_ino, stat.st_uid, stat.st_gid, stat.st_mode, stat.st_mtime_ns, names)
    return found


def noted(folder: Path) -> dict[str, Any]:
    """What the drill has noted in the set."""
    found: dict[str, Any] = json.loads((folder / "notes.json").read_text(encoding="utf-8"))["booted"]
    return found


def left(host: Hypervisor) -> list[str]:
    """What a drill must not leave: guests, servers, folders."""
    guests = [name for name in host.virsh("list", "--all", "--name").split() if name.startswith("drill-")]
    servers = [line for line in host.exec(["ps", "-eo", "args="]).stdout.splitlines() if line.startswith("qemu-nbd")]
    return guests + servers + [path.name for path in host.outside("/var/tmp").glob("virtops-drill-*")]


@pytest.fixture(scope="module")
def made(fleet: dict[str, Member], controller: Controller) -> Path:
    """A set of a guest that runs, as the host sees it from outside."""
    play = controller.run(target=HOST, guests="web1")
    assert play.rc == 0, play.output
    member = fleet[WEB]
    return member.hypervisor.outside(member.sets()[-1].folder)


def drill(controller: Controller, *arguments: str, **variables: Any) -> Play:
    """The newest set of the guest, on its hypervisor."""
    wanted = {"restore_drill_dest": DEST, "restore_drill_guests": "web1", "restore_drill_memory": "256"}
    return controller.run(*arguments, playbook=DRILL, target=HOST, **{**wanted, **variables})


def test_the_newest_set_boots(made: Path, fleet: dict[str, Member], controller: Controller) -> None:
    """Its guest answers, the check in it is run, the set is as it was, and nothing else is left."""
    host, before = fleet[WEB].hypervisor, stats(made)
    planned = drill(controller, "--check", restore_drill_command=json.dumps(UP))
    assert planned.rc == 0, planned.output
    assert not (made / "notes.json").exists()
    play = drill(controller, restore_drill_command=json.dumps(UP))
    assert play.rc == 0, play.output
    (line,) = play.report().values()
    assert re.fullmatch(rf"web1/{made.name}@e2e2: booted in \d+ s", line)
    assert noted(made)["ok"]
    assert stats(made) == before
    assert left(host) == []
    assert fleet[WEB].guest.state() == "running"


def test_one_that_does_not_boot_is_named(made: Path, fleet: dict[str, Member], controller: Controller) -> None:
    """By its console, which never shows that; it is noted."""
    play = drill(controller, restore_drill_console="never[ ]there", restore_drill_timeout="5")
    assert play.rc != 0
    (line,) = play.report().values()
    assert line.startswith(f"web1/{made.name}@e2e2: FAILED. It did not come up: within 5 s its console did")
    assert not noted(made)["ok"]
    assert left(fleet[WEB].hypervisor) == []


def test_a_killed_drill_leaves_no_guest(made: Path, fleet: dict[str, Member], controller: Controller) -> None:
    """libvirt ends the guest, its servers end, and the next drill, whose check fails, removes the folder."""
    host = fleet[WEB].hypervisor
    play = controller.start(gate="", playbook=DRILL, target=HOST, restore_drill_dest=DEST, restore_drill_guests="web1")
    until("the guest of the drill", lambda: "drill-web1" in host.virsh("list", "--name"), 60)
    for folder in host.outside("/proc").glob("[0-9]*"):
        words = (folder / "cmdline").read_bytes() if (folder / "cmdline").exists() else b""
        if b"restore_drill" in words:
            host.exec(["kill", "-KILL", folder.name], check=False)
    ended = play.end()
    assert ended.rc != 0
    until("the end of its guest", lambda: [name for name in left(host) if not name.startswith("virtops-")] == [], 30)
    check = '["/bin/sh", "-c", "exit 3"]'
    again = drill(controller, restore_drill_console="lab guest is u[p]", restore_drill_command=check)
    assert again.rc != 0
    assert "It came up, and the check in it ended with exit code 3" in next(iter(again.report().values()))
    assert left(host) == []


def test_nothing_to_boot(fleet: dict[str, Member], controller: Controller) -> None:
    """It is said, and a failure unless the user knows."""
    play = drill(controller, restore_drill_guests="", guests="typo")
    assert play.rc != 0
    assert "typo" in play.output
