# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A lab hypervisor: a libvirt host in namespaces of its own, with its own sshd, that can lose its power."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import struct
import subprocess
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import image
from ._sys import LabError, Process, locked, run, wait_for

if TYPE_CHECKING:
    from .guest import Guest
    from .lab import Lab

BOOT = Path(__file__).resolve().parent.parent / "hypervisor" / "boot"
IMAGES = "/var/lib/libvirt/images"
BACKUP = "/srv/backup"
#: Between the answers of one virsh
_MARK = "<<virtlab>>"
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}

LIBVIRTD_CONF = """\
auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_rw_perms = "0770"
log_outputs = "2:file:/var/log/libvirt/libvirtd.log"
"""
# No virtlogd (one daemon fewer to lose) and no AppArmor, whose profiles belong to the machine and not to this host.
QEMU_CONF = """\
stdio_handler = "file"
security_driver = "none"
cgroup_controllers = [ ]
"""
SSHD_CONFIG = """\
ListenAddress 127.0.0.1
Port {port}
HostKey /etc/virtlab/host_key
AuthorizedKeysFile /etc/virtlab/authorized_keys
PidFile /run/sshd.pid
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
UseDNS no
PrintMotd no
MaxSessions 100
MaxStartups 200:30:400
Subsystem sftp internal-sftp
SetEnv LANG=C.UTF-8
"""


@dataclass(frozen=True)
class Volume:
    """A loop-mounted file system in place of a folder of the hypervisor: small for ENOSPC, xfs for reflinks."""

    size_mib: int
    type: str = "ext4"

    def make(self, path: Path) -> None:
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".new")
        with partial.open("wb") as handle:
            handle.truncate(self.size_mib << 20)
        if self.type == "xfs":
            run(["mkfs.xfs", "-q", "-f", "-m", "reflink=1", partial])
        else:
            run(["mke2fs", "-q", "-F", "-t", self.type, "-m", "0", "-E", "lazy_itable_init=0", partial])
        partial.rename(path)


@dataclass(frozen=True)
class Config:
    """What `up` was asked for and what it chose; kept in config.json, so that a later `up` changes nothing."""

    generation: str
    port: int
    is_port_fixed: bool = False
    images: Volume | None = None
    backup: Volume | None = None

    @classmethod
    def load(cls, path: Path) -> Config | None:
        if not path.exists():
            return None
        data = json.loads(path.read_text(encoding="utf-8"))
        for name in ("images", "backup"):
            data[name] = Volume(**data[name]) if data[name] else None
        return cls(**data)

    def save(self, path: Path) -> None:
        partial = path.with_suffix(".new")
        partial.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
        partial.rename(path)


def _boot_record(now: float) -> bytes:
    """A utmp file (utmp(5)) that says when this host booted."""
    boot_time = 2
    return struct.pack(
        "<h2xi32s4s32s256shhiii16s20x", boot_time, 0, b"~", b"~~", b"reboot", b"", 0, 0, 0, int(now), 0, b""
    )


class Hypervisor:
    """One host of the lab. Paths that it takes are as they are inside; `outside` says where the machine sees them."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab = lab
        self.name = name
        self.dir = lab.dir / "hosts" / name

    # -- state ---------------------------------------------------------------------------------------------------

    @property
    def config(self) -> Config:
        config = Config.load(self.dir / "config.json")
        if config is None:
            raise LabError(f"{self.name}: no such hypervisor; run: lab up {self.name}")
        return config

    @property
    def port(self) -> int:
        return self.config.port

    def exists(self) -> bool:
        return self.dir.exists()

    def init(self) -> Process | None:
        """The init of its PID namespace, if it runs."""
        try:
            process = Process.parse((self.dir / "init").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return process if process is not None and process.is_alive() else None

    def is_on(self) -> bool:
        return self.init() is not None

    def outside(self, path: str) -> Path:
        """Where the machine finds an absolute path of this host; while it is off, only its state folders are there."""
        init = self.init()
        if init is not None:
            return Path(f"/proc/{init.pid}/root{path}")
        return self.dir / "state" / path.lstrip("/")

    def status(self) -> dict[str, Any]:
        config = Config.load(self.dir / "config.json")
        works = self.is_on() and self.libvirtd_is_up()
        return {
            "name": self.name,
            "dir": str(self.dir),
            "generation": config.generation if config else None,
            "port": config.port if config else None,
            "on": self.is_on(),
            "libvirtd": works,
            "guests": {guest.name: guest.state() for guest in self.guests()} if works else {},
        }

    # -- power ---------------------------------------------------------------------------------------------------

    def up(
        self,
        *,
        generation: str | None = None,
        port: int | None = None,
        images: Volume | None = None,
        backup: Volume | None = None,
    ) -> Hypervisor:
        """Make it exist and run: host, sshd and libvirtd. What an earlier call chose stays until `down`."""
        with locked(self.lab.dir / f".{self.name}.lock"):
            known = Config.load(self.dir / "config.json")
            if known is not None:
                self._refuse_change(known, {"generation": generation, "port": port, "images": images, "backup": backup})
            chosen_port = port or self.lab.free_port()
            config = known or Config(generation or "host", chosen_port, port is not None, images, backup)
            if not self.is_on():
                self._prepare(config)
                self._power_on(config)
            if not self._sshd_is_up():
                self._start_sshd()
            if not self.libvirtd_is_up():
                self.libvirtd_start()
        return self

    def _refuse_change(self, known: Config, asked: dict[str, Any]) -> None:
        for name, value in asked.items():
            if value is not None and value != getattr(known, name):
                raise LabError(f"{self.name}: {name} is {getattr(known, name)}; take it down before it becomes {value}")

    def powerloss(self) -> None:
        """Everything of this host dies at once, QEMU included; `up` switches it on again."""
        init = self.init()
        if init is not None:
            init.kill()
        self._await_unmounted()

    def down(self) -> None:
        """Remove it with all it had. Also right after a run that was killed half-way."""
        with locked(self.lab.dir / f".{self.name}.lock"):
            self.powerloss()
            (self.dir / "config.json").unlink(missing_ok=True)  # first: without it nobody looks at the rest
            run(["rm", "-rf", "--one-file-system", self.dir])
        (self.lab.dir / f".{self.name}.lock").unlink(missing_ok=True)

    def _prepare(self, config: Config) -> None:
        state = self.dir / "state"
        for folder in ("upper", "work", "root"):
            (self.dir / folder).mkdir(parents=True, exist_ok=True)
        for folder, mode in (
            ("etc/libvirt", 0o755),
            ("etc/virtlab", 0o755),
            ("var/lib/libvirt/images", 0o711),
            ("var/log/libvirt/qemu", 0o755),
            ("srv/backup", 0o755),
            ("root", 0o700),
        ):
            path = state / folder
            if not path.exists():
                path.mkdir(parents=True)
                path.chmod(mode)
        for volume, name in ((config.images, "images"), (config.backup, "backup")):
            if volume is not None:
                volume.make(self.dir / "volumes" / f"{name}.img")
        self.lab.make_key()
        self.lab.scratch()
        self._configure(config, state / "etc")
        image.place(self.lab.guest_image(), state / "var/lib/libvirt/boot")
        config.save(self.dir / "config.json")

    def _configure(self, config: Config, etc: Path) -> None:
        # libvirt migrates no guest to what it takes for the same host
        identity = f'host_uuid = "{uuid.uuid5(uuid.NAMESPACE_DNS, self.name)}"\n'
        (etc / "libvirt/libvirtd.conf").write_text(LIBVIRTD_CONF + identity, encoding="utf-8")
        (etc / "libvirt/qemu.conf").write_text(QEMU_CONF, encoding="utf-8")
        ours = etc / "virtlab"
        (ours / "sshd_config").write_text(SSHD_CONFIG.format(port=config.port), encoding="utf-8")
        shutil.copyfile(self.lab.key.with_suffix(".pub"), ours / "authorized_keys")
        if not (ours / "host_key").exists():
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.name, "-f", ours / "host_key"])
        upper = self.dir / "upper/etc"
        upper.mkdir(exist_ok=True)
        # libvirtd asks for the host's full name when it starts: without an answer here it waits for the network's.
        (upper / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n", encoding="utf-8")
        (upper / "hostname").write_text(f"{self.name}\n", encoding="utf-8")

    def _power_on(self, config: Config) -> None:
        lower = self.lab.root_of(config.generation)
        (self.dir / "init").unlink(missing_ok=True)
        (self.dir / "utmp").write_bytes(_boot_record(time.time()))
        with (self.dir / "boot.log").open("w") as log:
            boot = subprocess.Popen(
                ["unshare", "--mount", "--pid", "--uts", "--fork", BOOT, self.dir, self.name, lower],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=ENVIRONMENT,
                cwd="/",
                start_new_session=True,
            )

        def is_booted() -> bool:
            if boot.poll() is not None:
                raise LabError(f"{self.name} does not boot: {(self.dir / 'boot.log').read_text().strip()}")
            init = self.init()
            return init is not None and Path(f"/proc/{init.pid}/comm").read_text().strip() == "tini"

        wait_for(f"boot of {self.name}", is_booted, 60, every=0.02)
        # An account without a password is "locked" to sshd where PAM is not asked; with "*" it just has none.
        self.exec(["sed", "-i", "s/^root:[^:]*:/root:*:/", "/etc/shadow"])

    def _await_unmounted(self) -> None:
        """The namespace's mounts go when its last process is gone; a loop device may take a moment longer."""
        volumes = [os.fspath(path) for path in (self.dir / "volumes").glob("*.img")]

        def is_free() -> bool:
            return not any(run(["losetup", "-j", volume]).stdout.strip() for volume in volumes)

        wait_for(f"unmounting of {self.name}", is_free, 10)

    # -- commands ------------------------------------------------------------------------------------------------

    def enter(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` inside, as root."""
        init = self.init()
        if init is None:
            raise LabError(f"{self.name} is off")
        return ["nsenter", "-t", str(init.pid), "-m", "-p", "-u", "--", *argv]

    def exec(
        self, argv: Sequence[str], *, check: bool = True, timeout: float | None = 120, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        return run(self.enter(argv), check=check, timeout=timeout, stdin=stdin, env=ENVIRONMENT)

    def virsh(self, *args: str, check: bool = True, timeout: float | None = 60, stdin: str | None = None) -> str:
        command = ["virsh", "-q", "-c", "qemu:///system", *args]
        return self.exec(command, check=check, timeout=timeout, stdin=stdin).stdout

    def virsh_each(self, *commands: Sequence[str], check: bool = True) -> list[str]:
        """What virsh says to each command, through one connection: much of the time that one takes goes into that."""
        words = f"; echo '{_MARK}'; ".join(shlex.join(command) for command in commands)
        done = self.exec(["virsh", "-q", "-c", "qemu:///system", words], check=False, timeout=60)
        if check and "error:" in done.stderr:
            raise LabError(f"virsh {words!r}: {done.stderr.strip()}")
        return done.stdout.split(_MARK)

    def read_raw(self, image: Path, raw: Path) -> None:
        """Write an image of this host, with its backing chain, to a raw file in the lab's scratch folder.

        qemu-img runs inside, where the paths of the chain mean something.
        """
        inside = Path("/run/virtlab/scratch") / raw.relative_to(self.lab.scratch())
        self.exec(["qemu-img", "convert", "-O", "raw", str(image), str(inside)], timeout=1800)

    # -- daemons -------------------------------------------------------------------------------------------------

    def _daemon(self, name: str) -> int | None:
        """The number of a daemon inside this host, if it runs: what its PID file names may be dead or another."""
        try:
            pid = int(self.outside(f"/run/{name}.pid").read_text(encoding="utf-8"))
            comm = self.outside(f"/proc/{pid}/comm").read_text(encoding="utf-8")
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return None
        return pid if comm.strip() == name else None

    def _sshd_is_up(self) -> bool:
        return self._daemon("sshd") is not None

    def _start_sshd(self) -> None:
        """Start it; where another lab was quicker to take the port since it was found free, on the next one."""
        log = self.outside("/var/log/virtlab-sshd.log")

        def is_refused() -> bool:  # it says so after it has become a daemon
            return log.exists() and "Cannot bind any address" in log.read_text(encoding="utf-8", errors="replace")

        while True:
            log.unlink(missing_ok=True)
            self.exec(["/usr/sbin/sshd", "-f", "/etc/virtlab/sshd_config", "-E", "/var/log/virtlab-sshd.log"])
            wait_for(f"sshd of {self.name}", lambda: self._sshd_is_up() or is_refused(), 30)
            if self._sshd_is_up():
                return
            config = self.config
            if config.is_port_fixed:
                raise LabError(f"{self.name}: port {config.port} is taken")
            config = replace(config, port=self.lab.free_port(config.port + 1))
            config.save(self.dir / "config.json")
            self._configure(config, self.dir / "state/etc")

    def libvirtd_pid(self) -> int | None:
        """libvirtd's number inside this host."""
        return self._daemon("libvirtd")

    def libvirtd_is_up(self) -> bool:
        answers = ["virsh", "-q", "-c", "qemu:///system", "uri"]
        return self.libvirtd_pid() is not None and self.exec(answers, check=False, timeout=20).returncode == 0

    def libvirtd_start(self) -> None:
        """Start it and wait until it answers; nothing in the lab starts it unasked."""
        if self.libvirtd_pid() is None:
            self.exec(["/usr/sbin/libvirtd", "-d", "--pid-file", "/run/libvirtd.pid"])
        wait_for(f"libvirtd of {self.name}", self.libvirtd_is_up, 60)

    def libvirtd_kill(self, signal: str = "KILL") -> None:
        pid = self.libvirtd_pid()
        if pid is not None:
            self.exec(["sh", "-c", f"kill -{signal} {pid}"])
            wait_for(f"end of libvirtd on {self.name}", lambda: self.libvirtd_pid() is None, 30)

    def libvirtd_restart(self) -> None:
        self.libvirtd_kill("TERM")
        self.libvirtd_start()

    # -- guests --------------------------------------------------------------------------------------------------

    def guest(self, name: str) -> Guest:
        from .guest import Guest

        return Guest(self, name)

    def guests(self) -> list[Guest]:
        return [self.guest(name) for name in self.virsh("list", "--all", "--name").splitlines() if name]
