# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Makes, boots, shuts off and removes a test guest, and runs commands in it: `python3 -c THIS VERB JSON`.

Each in one task: a task costs the controller more than most of what is done here.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from typing import Any

#: Seconds
BOOT, SHUTDOWN, RUN, POLL = 120, 120, 120, 0.1


def call(*words: str, text: str | None = None) -> str:
    """Run a program, and end with what it said where it fails."""
    done = subprocess.run(words, input=text, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        sys.exit("%s: %s" % (" ".join(words), done.stderr or done.stdout))
    return done.stdout


def remove(wish: dict[str, Any]) -> None:
    """No guest of that name, and no folder of its images."""
    name = wish["name"]
    found = subprocess.run(["virsh", "domstate", name], capture_output=True, encoding="utf-8", check=False)
    if found.returncode == 0:
        if "shut off" not in found.stdout:
            call("virsh", "destroy", name)
        call("virsh", "undefine", name, "--snapshots-metadata", "--nvram")
    if os.path.exists(wish["folder"]):
        shutil.rmtree(wish["folder"])


def make_image(disk: dict[str, Any], folder: str) -> None:
    """Make an image with an ext4 file system of its own, or an overlay on a golden one, which is made by the first."""
    golden, new = os.path.join(folder, "golden.image"), os.path.join(folder, "new.raw")
    kind = "qcow2" if disk.get("golden") else disk["format"]
    path = os.path.join(folder, disk.get("file", "%s.%s" % (disk["name"], kind)))
    image = golden if disk.get("golden") else path
    if not os.path.exists(image):
        call("mkfs.ext4", "-q", new, "48M")
        call("qemu-img", "convert", "-f", "raw", "-O", disk["format"], new, image)
        os.unlink(new)
    if disk.get("golden"):
        call("qemu-img", "create", "-q", "-f", "qcow2", "-F", disk["format"], "-b", golden, path)
    if "internal" in disk:
        call("qemu-img", "snapshot", "-c", disk["internal"], path)


def make(wish: dict[str, Any]) -> None:
    """Make it anew, and boot it where it is to run."""
    remove(wish)
    os.mkdir(wish["folder"])
    os.chmod(wish["folder"], 0o711)
    for disk in wish["disks"]:
        make_image(disk, wish["folder"])
    call("virsh", "define", "/dev/stdin", text=wish["xml"])
    if wish["running"]:
        call("virsh", "start", wish["name"])
        if wish["agent"]:
            wait(wish)


def wait(wish: dict[str, Any]) -> None:
    """Wait until its agent answers."""
    ping = ["virsh", "qemu-agent-command", wish["name"], "--timeout", "5", '{"execute": "guest-ping"}']
    deadline = time.monotonic() + BOOT
    while subprocess.run(ping, capture_output=True, check=False).returncode:
        if time.monotonic() > deadline:
            call(*ping)
        time.sleep(3 * POLL)


def shut_off(wish: dict[str, Any]) -> None:
    """Shut it down through its agent, and wait until it is off."""
    # It may be off before its agent's answer has arrived, which virsh calls an error
    shutdown = ["virsh", "shutdown", wish["name"], "--mode", "agent"]
    said = subprocess.run(shutdown, capture_output=True, encoding="utf-8", check=False)
    deadline = time.monotonic() + SHUTDOWN
    while "shut off" not in call("virsh", "domstate", wish["name"]):
        if time.monotonic() > deadline:
            sys.exit("not off within %d s: %s" % (SHUTDOWN, said.stderr))
        time.sleep(3 * POLL)


def ask(name: str, execute: str, arguments: dict[str, Any]) -> Any:
    """Ask its agent."""
    request = json.dumps({"execute": execute, "arguments": arguments})
    return json.loads(call("virsh", "qemu-agent-command", name, request))["return"]


def run(wish: dict[str, Any]) -> None:
    """Run a command in it, once its agent answers, and show what that said."""
    wait(wish)
    program, *words = wish["command"]
    arguments = {"path": program, "arg": words, "capture-output": True}
    pid = ask(wish["name"], "guest-exec", arguments)["pid"]
    deadline = time.monotonic() + RUN
    while True:
        ended = ask(wish["name"], "guest-exec-status", {"pid": pid})
        if ended["exited"]:
            break
        if time.monotonic() > deadline:
            sys.exit("%s: not ended within %d s" % (program, RUN))
        time.sleep(POLL)
    said = {stream: base64.b64decode(ended.get(stream + "-data", "")).decode() for stream in ("out", "err")}
    print(said["out"], end="")
    failed = ended.get("exitcode", 0) or ended.get("signal", 0)
    if failed:
        sys.exit("%s: %s: %s" % (wish["command"], failed, said["err"]))


if __name__ == "__main__":
    verbs = {"make": make, "remove": remove, "wait": wait, "shut_off": shut_off, "run": run}
    verbs[sys.argv[1]](json.loads(sys.argv[2]))
