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

TARGET = "/srv/hanging"
SIZE = 160 << 20
#: Seconds without progress after which a copy is to be given up, and until the play has then ended.
STALL = 3
PATIENCE = 9


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


@pytest.mark.xfail(
    strict=True,
    raises=subprocess.TimeoutExpired,
    reason="a copy has no stall_timeout: it waits in the module's own process, which then cannot merge",
)
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
    scene.before.assert_normal_end(sets=0)


def test_a_killed_module_that_cannot_end_is_named(scene: Scene, tmp_path: Path) -> None:
    """SIGKILL ends its first thread only: another waits for the target, and the lock with it. Nobody has to wait for a
    task that never ends, nor is it taken for gone while it may still write."""
    with hanging(scene.hypervisor, tmp_path) as daemon:
        play = scene.start(dest=TARGET, rate_limit=SLOW_COPY)
        images = scene.hypervisor.outside(TARGET)
        until("a copy under way", lambda: any(file.stat().st_blocks for file in images.glob("*/.*/vda.*")), 60)
        module = scene.module_pid()
        daemon.send_signal(signal.SIGSTOP)
        try:
            until("a copy that waits", lambda: "D" in states(scene.hypervisor, module), 30)
            scene.kill(module)
            result = scene.module("recover")
            assert result.get("error_code") == "orphan_stays", result
            assert f"rocess {module}" in result["msg"]
        finally:
            daemon.send_signal(signal.SIGCONT)
            play.end()  # what holds the files of its connection waited, too
    assert "error_code" not in scene.module("recover")
    # Of a task that was killed: each is only a file, which the next copy takes over
    scene.hypervisor.exec(["sh", "-c", "rm -f /run/virtops.libvirt/copy-*.lock"])
    scene.before.assert_normal_end(sets=0)


def states(hypervisor: Hypervisor, process: int) -> str:
    """Return the state of each thread of a process."""
    return hypervisor.exec(["ps", "-L", "-o", "state=", "-p", str(process)], check=False).stdout
