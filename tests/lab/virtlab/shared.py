# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A folder that several lab hypervisors share, and guests that migrate between them."""

from __future__ import annotations

from collections.abc import Sequence

from ._sys import run
from .hypervisor import Hypervisor, Volume


def share(hypervisors: Sequence[Hypervisor], folder: str, size_mib: int = 256) -> None:
    """Mount one file system at this folder of each; it goes with the last of them.

    One block device mounted twice by one kernel is one file system, with one set of locks.
    """
    image = hypervisors[0].lab.dir / "volumes" / f"{folder.strip('/').replace('/', '-')}.img"
    image.unlink(missing_ok=True)
    Volume(size_mib).make(image)
    device = run(["losetup", "--find", "--show", image]).stdout.strip()
    number = device.removeprefix("/dev/loop")
    try:
        for hypervisor in hypervisors:
            script = 'test -b "$0" || mknod "$0" b 7 "$1"; mkdir -p "$2" && mount "$0" "$2" && chmod 711 "$2"'
            hypervisor.exec(["sh", "-c", script, device, number, folder])
    finally:
        run(["losetup", "--detach", device])  # once nobody has it mounted any more


def migrate(name: str, source: Hypervisor, target: Hypervisor) -> None:
    """`virsh migrate --live`: the guest is defined at the target, and stays defined at the source."""
    sockets = [hypervisor.outside("/run/libvirt/libvirt-sock") for hypervisor in (source, target)]
    ours, theirs = (f"qemu+unix:///system?socket={path}" for path in sockets)
    options = ["--live", "--persistent", "--unsafe", "--migrateuri", "tcp://127.0.0.1", "--listen-address", "127.0.0.1"]
    run(["virsh", "-q", "-c", ours, "migrate", name, theirs, *options], timeout=120)
