# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A backup target that stops answering: what reads or writes there waits in the kernel, and heeds no signal."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fleet import until
from virtlab import Hypervisor

from .scene import SLOW_COPY, Scene

# About the kernel's waits, and our processes
pytestmark = pytest.mark.once

TARGET = "/srv/hanging"
SIZE = 160 << 20
#: Seconds without progress after which a copy is to be given up, and until the play has then ended.
STALL = 3
PATIENCE = 20


@contextmanager
def hanging(hypervisor: Hypervisor, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A file system at TARGET that lies behind a FUSE daemon: while that is stopped, it answers no more."""
    behind, file = folder / "behind.raw", folder / "fuse.raw"
    for path in (behind, file):
        path.touch()
    os.truncate(behind, SIZE)
    blocks = ["--blockdev", f"driver=file,node-name=disk,filename={behind}"]
    export = ["--export", f"type=fuse,id=disk,node-name=disk,mountpoint={file},writable=on"]
    with subprocess.Popen(["qemu-storage-daemon", *blocks, *export]) as daemon:
        try:
            until("the FUSE file", lambda: file.stat().st_size == SIZE, 20)
            subprocess.run(["mkfs.ext4", "-q", "-F", file], check=True)
            found = subprocess.run(["losetup", "-f", "--show", file], check=True, stdout=subprocess.PIPE, text=True)
            loop = found.stdout.strip()
            try:
                hypervisor.exec(["sh", "-c", f"mkdir -p {TARGET} && mount {loop} {TARGET}"])
                yield daemon
            finally:
                daemon.send_signal(signal.SIGCONT)
                hypervisor.exec(["umount", TARGET])
                subprocess.run(["losetup", "-d", loop], check=True)
        finally:
            daemon.send_signal(signal.SIGCONT)
            daemon.terminate()


@pytest.mark.parametrize(
    "role", [pytest.param({}, id="copy"), pytest.param({"format": "qcow2"}, id="convert", marks=pytest.mark.once)]
)
def test_a_target_that_hangs_keeps_no_guest_on_its_overlays(scene: Scene, tmp_path: Path, role: dict[str, Any]) -> None:
    """The copy is given up, the guest is merged, and the partial set is left to the next run."""
    with hanging(scene.hypervisor, tmp_path) as daemon:
        play = scene.start(dest=TARGET, rate_limit=SLOW_COPY, stall_timeout=STALL, **role)
        images = scene.hypervisor.outside(TARGET)
        until("a copy under way", lambda: any(file.stat().st_blocks for file in images.glob("*/.*/vda.*")), 60)
        daemon.send_signal(signal.SIGSTOP)
        try:
            ended = play.end(timeout=PATIENCE)
            assert scene.overlays() == {}
        finally:
            daemon.send_signal(signal.SIGCONT)
            play.end()
        scene.assert_failed(ended, "copy_stalled")
        until("the end of what waited", lambda: not helpers(scene.hypervisor), 30)
        partial = list(images.glob("*/.*.partial"))
        assert partial
        # It is the next run's: removed, and a new one is made
        scene.assert_succeeded(scene.run(dest=TARGET, **role))
        assert not any(path.exists() for path in partial)
    scene.before.assert_normal_end(sets=0)


def test_a_killed_job_leaves_no_lock_where_the_target_hangs(scene: Scene, tmp_path: Path) -> None:
    """What waits for the target is a process of its own, which SIGKILL cannot end: it holds no lock, so nobody has to
    wait for it."""
    with hanging(scene.hypervisor, tmp_path) as daemon:
        play = scene.start(dest=TARGET, rate_limit=SLOW_COPY)
        images = scene.hypervisor.outside(TARGET)
        until("a copy under way", lambda: any(file.stat().st_blocks for file in images.glob("*/.*/vda.*")), 60)
        module = scene.module_pid()
        daemon.send_signal(signal.SIGSTOP)
        try:
            until("a copy that waits", lambda: helpers(scene.hypervisor, "D"), 30)
            scene.kill(module)
            # The play's own rescue may be at it
            recovered = scene.module("recover", lock_timeout=60)
            assert "error_code" not in recovered, recovered
            assert scene.overlays() == {}
            assert helpers(scene.hypervisor, "D")
        finally:
            daemon.send_signal(signal.SIGCONT)
            play.end()
        until("the end of what waited", lambda: not helpers(scene.hypervisor), 30)
    # Of a task that was killed: each is only a file, which the next copy takes over
    scene.hypervisor.exec(["sh", "-c", "rm -f /run/virtops.libvirt/copy-*.lock"])
    scene.before.assert_normal_end(sets=0)


def helpers(hypervisor: Hypervisor, state: str = "") -> list[str]:
    """Return the threads of the processes that touch the target, in this state."""
    said = hypervisor.exec(["ps", "-eL", "-o", "state=,args="], check=False).stdout
    return [line for line in said.splitlines() if line.startswith(state) and "_host.helper" in line]
