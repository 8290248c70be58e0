# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab: one folder with its hypervisors, its SSH key and a cache of what is slow to make."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterable
from pathlib import Path

from . import image, roots
from ._sys import LabError, locked, run
from .hypervisor import Hypervisor

DEFAULT_DIR = "/var/tmp/virtops-lab"
FIRST_PORT = 2201


class Lab:
    """Everything below one folder; labs in different folders share nothing but the machine's ports."""

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.dir = Path(folder or os.environ.get("VIRTOPS_LAB_DIR") or DEFAULT_DIR).absolute()
        if any(sign in str(self.dir) for sign in ",:\\ "):
            raise LabError(f"{self.dir}: overlayfs takes no comma, colon, backslash or space in a path")
        self.cache = self.dir / "cache"
        self.key = self.dir / "ssh_key"

    def hypervisor(self, name: str) -> Hypervisor:
        if not name.replace("-", "").isalnum():
            raise LabError(f"{name!r}: a hypervisor's name is a host name")
        return Hypervisor(self, name)

    def hypervisors(self) -> list[Hypervisor]:
        return [self.hypervisor(path.name) for path in sorted((self.dir / "hosts").glob("*"))]

    def up(self, names: Iterable[str] = ("hv1", "hv2"), *, generation: str | None = None) -> list[Hypervisor]:
        self.check_root()
        return [self.hypervisor(name).up(generation=generation) for name in names]

    @staticmethod
    def check_root() -> None:
        if os.geteuid() != 0:
            raise LabError("the lab makes namespaces and mounts: it has to run as root")

    def down(self, names: Iterable[str] | None = None, *, purge: bool = False) -> None:
        """Remove hypervisors, all by default; with the last one goes all but the cache, with `purge` that too."""
        for hypervisor in self.hypervisors() if names is None else map(self.hypervisor, names):
            hypervisor.down()
        if self.hypervisors():
            return
        for path in self.dir.glob("*"):
            if path != self.cache:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in self.dir.glob(".*"):
            path.unlink()
        if purge:
            run(["rm", "-rf", "--one-file-system", self.dir])

    # -- what the hypervisors share ------------------------------------------------------------------------------

    def guest_image(self) -> image.GuestImage:
        return image.build(self.cache)

    def scratch(self) -> Path:
        """A folder for copies that are removed at once."""
        path = self.dir / "scratch"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def make_key(self) -> None:
        """The key that opens every host of the lab as root."""
        with locked(self.dir / ".key.lock"):
            if not self.key.exists():
                run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "virtops-lab", "-f", self.key])

    def root_of(self, generation: str) -> Path:
        """The root file system that a hypervisor of this generation overlays."""
        return roots.root_of(self.cache, generation)

    def free_port(self, first: int = FIRST_PORT) -> int:
        """A loopback port that nothing listens on and that no hypervisor of this lab was given."""
        taken = {hypervisor.port for hypervisor in self.made()}
        for port in range(first, FIRST_PORT + 1000):
            if port in taken:
                continue
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
                return port
        raise LabError("no free port for sshd")

    # -- for Ansible ---------------------------------------------------------------------------------------------

    def known_hosts(self) -> Path:
        """Written anew each time: the hosts' keys are made with them and go with them."""
        path = self.dir / "known_hosts"
        lines = []
        for hypervisor in self.made():
            key = (hypervisor.dir / "state/etc/virtlab/host_key.pub").read_text(encoding="utf-8")
            lines.append(f"[127.0.0.1]:{hypervisor.port} {key}")
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text("".join(lines), encoding="utf-8")
        partial.rename(path)
        return path

    def made(self) -> list[Hypervisor]:
        """The hypervisors that are complete: another process may be about to make or to remove one."""
        return [hypervisor for hypervisor in self.hypervisors() if (hypervisor.dir / "config.json").exists()]

    def ssh_args(self) -> list[str]:
        return ["-o", f"UserKnownHostsFile={self.known_hosts()}", "-o", "StrictHostKeyChecking=yes"]

    def inventory(self) -> str:
        """An Ansible inventory in YAML: group `hypervisors`, one host per hypervisor."""
        lines = ["hypervisors:", "  hosts:"]
        for hypervisor in self.made():
            lines += [
                f"    {hypervisor.name}:",
                "      ansible_host: 127.0.0.1",
                f"      ansible_port: {hypervisor.port}",
            ]
        lines += [
            "  vars:",
            "    ansible_user: root",
            f"    ansible_ssh_private_key_file: {self.key}",
            f"    ansible_ssh_common_args: {' '.join(self.ssh_args())}",
            "    ansible_python_interpreter: /usr/bin/python3",
        ]
        return "\n".join(lines) + "\n"
