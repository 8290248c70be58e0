# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where a fault happens: one hypervisor with a writing guest, the ways to break things there, and to see moments."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from endstate import Before
from fleet import ELSEWHERE, Member, drop_ssh, until
from gate import Gate, gated
from playbook import Controller, Play, RunningPlay
from virtlab import BACKUP, IMAGES, Disk, Hypervisor, Lab, Mark, Volume

from .moments import keep

#: The phases of a live backup, as gates.
SNAPSHOT, COPY, MERGE = "snapshot", "copy", "merge"

#: MiB: of the guest's own data in vda, and of what is written while it stands on its overlays.
FILL = 24
DIRT = 10
#: MiB/s: a copy of vda takes some seconds, a merge of the dirt as well.
SLOW_COPY = 6
SLOW_MERGE = 1
#: The file systems of the images and of the backups are small ones of their own, to be filled and frozen.
IMAGE_VOLUME, BACKUP_VOLUME = Volume(480), Volume(320)
#: A disk with spaces, commas and letters beyond ASCII in its path, reached through a symlink.
ODD_FOLDER = "größe, d 1"
ODD_PATH = f"{IMAGES}/ein link/Platte ü,1.qcow2"


class Stage:
    """The hypervisor of a generation and its guests; after a test that failed, all of it is made anew."""

    def __init__(self, lab: Lab, generation: str, folder: Path) -> None:
        """Nothing is up yet."""
        name = f"faults-{generation}"
        self.hypervisor = lab.hypervisor(name)
        self.controller = Controller(folder, [name], lab)
        self.controller.collections = gated(self.controller.collections, folder / "collections")
        self.generation = generation
        self.members: dict[str, tuple[Member, Before]] = {}
        self.notes: dict[str, Any] = {}

    def up(self) -> None:
        """Bring the hypervisor up, without guests where it was down."""
        self.hypervisor.up(generation=self.generation, images=IMAGE_VOLUME, backup=BACKUP_VOLUME)
        self.hypervisor.exec(["mkdir", "-p", ELSEWHERE])

    def down(self) -> None:
        """Remove it with all it had."""
        self.members.clear()
        self.notes.clear()
        self.hypervisor.down()

    def wake(self) -> None:
        """QEMU stops each guest that meets a full file system, also one that is not in the scene."""
        for member, _unused in self.members.values():
            if member.guest.state() == "paused":
                self.hypervisor.virsh("resume", member.guest.name)

    def member(self, name: str, make: Callable[[Hypervisor], Member]) -> Member:
        """Return a guest, running: the one of an earlier test, if there is one."""
        if name not in self.members:
            self.up()
            made = make(self.hypervisor)
            self.members[name] = (made, Before.of(made))
        return self.members[name][0]

    def web(self) -> Member:
        """Return the guest that most tests use: a raw disk with data, and a qcow2 one."""
        disks = (Disk("vda", format="raw", fill_mib=FILL), Disk("vdb"))

        def make(hypervisor: Hypervisor) -> Member:
            member = Member(hypervisor.guest("web"), disks)
            member.define()
            member.boot()
            return member

        return self.member("web", make)

    def odd(self) -> Member:
        """Return a guest without an agent, on a chain of four layers, an odd path, and disks that stay out."""
        disks = (
            Disk("vda", golden="base", fill_mib=4),
            Disk("vdb", path=ODD_PATH),
            Disk("vdc", size_mib=8, format="raw", blank=True, readonly=True),
            Disk("vdd", size_mib=8, format="raw", blank=True, shareable=True),
            Disk("hda", device="cdrom"),
            Disk("fda", device="floppy"),
        )
        skipped = {"vdc": "read-only", "vdd": "shareable", "hda": "cdrom", "fda": "floppy"}

        def make(hypervisor: Hypervisor) -> Member:
            hypervisor.exec(["mkdir", "-p", "-m", "711", f"{IMAGES}/{ODD_FOLDER}"])
            # Relative, so that it leads to the same place from outside
            hypervisor.exec(["ln", "-sfn", ODD_FOLDER, os.path.dirname(ODD_PATH)])
            member = Member(hypervisor.guest("odd"), disks, skipped, agent=False)
            member.define()
            member.boot()
            for layer in ("second", "third"):
                specs = [f"{disk.target},snapshot=no" for disk in disks if disk.target != "vda"]
                specs.append(f"vda,snapshot=external,file={IMAGES}/odd/{layer}.qcow2")
                options = [word for spec in specs for word in ("--diskspec", spec)]
                hypervisor.virsh("snapshot-create-as", "odd", layer, "--disk-only", "--no-metadata", *options)
            return member

        return self.member("odd", make)


@dataclass
class Scene:
    """One test's view of the stage. Its guest is `member`; the fault number names what is recorded."""

    stage: Stage
    member: Member
    name: str
    records: Path | None = None
    is_long: bool = False
    before: Before = field(init=False)
    plays: list[RunningPlay] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        """Note what the guest is before the fault."""
        self.before = Before.of(self.member)

    @property
    def hypervisor(self) -> Hypervisor:
        """Return the hypervisor."""
        return self.stage.hypervisor

    # -- runs

    def start(
        self, gate: str = "", *, pipelining: bool = True, guests: list[str] | None = None, **role: Any
    ) -> RunningPlay:
        """Start the play on our guest; `role` are variables of the role, without its name. With `gate`, its job waits
        before that phase.

        Without the preflight: it would refuse many a fault before the role's own refusal is reached.
        """
        role.setdefault("preflight", False)
        variables: dict[str, Any] = {f"live_backup_{name}": value for name, value in role.items()}
        names = guests or [self.member.guest.name]
        held = Gate(self.hypervisor, gate) if gate else None
        play = self.stage.controller.start(pipelining=pipelining, guests=names, **variables)
        play.gate = held
        self.plays.append(play)
        if gate:
            play.reach_gate()
        return play

    def run(self, **role: Any) -> Play:
        """Run the play to its end."""
        return self.start(**role).end()

    def go(self, play: RunningPlay) -> Play:
        """Open the play's gate and wait for its end."""
        play.open_gate()
        return play.end()

    def module(self, module: str, /, **options: object) -> dict[str, Any]:
        """Run one module on our guest."""
        play = self.start_module(module, **options).end()
        assert play.results, play.output
        return play.results[-1].result

    def start_module(self, module: str, /, **options: object) -> RunningPlay:
        """Start one module on our guest."""
        domain = {"domain": self.member.guest.name, **options}
        play = self.stage.controller.start_module(self.hypervisor.name, module, **domain)
        self.plays.append(play)
        return play

    def heal(
        self,
        *,
        sets: int | None = 1,
        rebooted: bool = False,
        marks: tuple[Mark, ...] = (),
        resumed: bool = False,
        **role: Any,
    ) -> Play:
        """The same play again: it succeeds, and everything is as it should be.

        Its set has what was durable when it began, but where it is that of the snapshot that it found (`resumed`).
        """
        # One that QEMU has paused says nothing
        mark = self.member.guest.mark() if self.member.guest.state() == "running" else None
        play = self.run(**role)
        self.assert_succeeded(play)
        promised = [*marks, *([mark] if mark else [])]
        newest = None if resumed else mark
        self.before.assert_normal_end(sets=sets, rebooted=rebooted, marks=promised, newest=newest)
        return play

    def next_run(self, *, sets: int | None = 2, rebooted: bool = False) -> None:
        """The same play again after one that came to a normal end: a new backup. Only where there is time for it.

        Else the next test's play, on the same guest, is that run.
        """
        if self.is_long:
            self.heal(sets=sets, rebooted=rebooted)

    def assert_succeeded(self, play: Play, member: Member | None = None) -> None:
        """The play says that the guest was backed up."""
        assert play.rc == 0, play.output
        assert "backed up to" in play.report()[(member or self.member).alias]

    def assert_failed(self, play: Play, *codes: str, member: Member | None = None) -> dict[str, Any]:
        """The play fails, and the first module that did says why by one of these codes. Return that result."""
        alias = (member or self.member).alias
        assert play.rc != 0, play.output
        assert "FAILED" in play.report()[alias]
        failed = [item.result for item in play.of(alias) if item.status == "failed"]
        assert failed[0].get("error_code") in codes, play.output
        return failed[0]

    def kill_all(self, play: RunningPlay) -> None:
        """SIGKILL to the controller, then to the job."""
        play.kill()
        self.kill(self.module_pid())
        play.open_gate()

    def close(self) -> None:
        """End what a test that failed left running."""
        for play in self.plays:
            if play.process.poll() is None:
                play.process.kill()
                play.process.wait(30)
            play.open_gate()

    # -- moments

    def until_copied(self, mib: float) -> None:
        """Wait until so much of the set under way is written."""
        until(f"{mib} MiB copied", lambda: self.copied_mib() > mib, 60)

    def copied_mib(self) -> float:
        """Return how much of the set under way is written."""
        folder = self.member.partial()
        if folder is None:
            return 0
        with suppress(FileNotFoundError):
            return sum(entry.stat().st_blocks for entry in folder.iterdir()) * 512 / (1 << 20)
        return 0

    def until_merging(self, disk: str = "vda") -> None:
        """Wait until QEMU copies the disk's overlay into its base."""
        until(f"the merge of {disk}", lambda: "Commit" in self.job(disk), 60)

    def job(self, disk: str) -> str:
        """Return what virsh says of the disk's block job, nothing if there is none."""
        return self.hypervisor.virsh("blockjob", self.member.guest.name, disk, "--raw", check=False).strip()

    def until_ready(self, disk: str = "vda") -> None:
        """Wait until the disk's mirror is ready for a pivot."""
        ready = "ready='yes'"
        until(f"readiness of {disk}", lambda: ready in self._disk_xml(disk), 60)

    def _disk_xml(self, disk: str) -> str:
        xml = self.hypervisor.virsh("dumpxml", self.member.guest.name)
        return next((part for part in xml.split("<disk ") if f"dev='{disk}'" in part), "")

    def is_frozen(self) -> bool:
        """Whether the guest's agent holds its file systems frozen."""
        return "yes" in self.member.guest.command("[ -e /run/qga.state.isfrozen ] && echo yes; true")

    def overlays(self) -> dict[str, str]:
        """Return the overlay that each disk stands on, where it is not on its own image."""
        live = self.member.facts().live
        return {disk: chain[0] for disk, chain in live.items() if chain != self.before.facts.live[disk]}

    def record(self, moment: str) -> None:
        """Keep what libvirt shows now, if records were asked for."""
        if self.records is not None:
            keep(self.member, self.records / f"{self.stage.generation}-{self.name}-{moment}.xml")

    # -- making faults

    def dirty(self, mib: int = DIRT, disk: str = "vda") -> None:
        """Write so much into the guest's disk, durably: a merge then takes its time."""
        file = f"/mnt/{disk}/dirt.bin"
        copy = f"dd if=/mnt/vda/fill.bin of={file} bs=1M count={mib} conv=fsync 2>&1"
        self.member.guest.command(f"{copy}; rm {file}; sync", timeout=60)

    def start_merging(self, **role: Any) -> RunningPlay:
        """Start the play, and return when vda is being merged, slowly."""
        play = self.start(MERGE, bandwidth=SLOW_MERGE, **role)
        self.dirty()
        play.open_gate()
        self.until_merging()
        return play

    def module_pid(self) -> int:
        """Return the number of the module that holds the guest's lock."""
        (lock,) = self.hypervisor.outside("/run/virtops.libvirt").glob("domain-*.lock")
        return int(lock.read_text(encoding="utf-8"))

    def watchdog_pid(self) -> int:
        """Return the number of the process that would let go of the guest."""
        said = self.hypervisor.exec(["ps", "-eo", "pid=,args="]).stdout
        (line,) = [line for line in said.splitlines() if "guest_watchdog" in line]
        return int(line.split()[0])

    def kill(self, pid: int, signal: str = "KILL") -> None:
        """Send a signal to a process of the hypervisor."""
        self.hypervisor.exec(["sh", "-c", f"kill -{signal} {pid}"])

    def drop_ssh(self) -> None:
        """Cut each connection."""
        drop_ssh(self.hypervisor)

    @contextmanager
    def stuck_in_snapshot(self, start: Callable[[], RunningPlay]) -> Iterator[RunningPlay]:
        """A run that has frozen the guest and waits for libvirt to create the snapshot.

        Its overlays lie on a file system that is itself frozen after they were made: libvirt, which gives them to
        QEMU's user, waits in chown(2) until this context ends.
        """
        folder = self.hypervisor.outside(BACKUP)
        play = start()
        until("the watchdog", lambda: "guest_watchdog" in self.arguments(), 60, every=0.01)
        subprocess.run(["fsfreeze", "--freeze", folder], check=True)
        try:
            until("a frozen guest", self.is_frozen, 30)
            yield play
        finally:
            subprocess.run(["fsfreeze", "--unfreeze", folder], check=True)

    def arguments(self, fields: str = "args=") -> str:
        """Return what ps tells of each process."""
        return self.hypervisor.exec(["ps", "-eo", fields]).stdout

    @contextmanager
    def full(self, folder: str, spare_mib: int = 0) -> Iterator[None]:
        """No space on the file system of a folder of the hypervisor, or no more than this."""
        ballast = self.hypervisor.outside(folder) / "ballast"
        size = 1 << 30
        with ballast.open("wb") as file:
            at = 0
            while size >= 4096:
                try:
                    os.posix_fallocate(file.fileno(), at, size)
                    at += size
                except OSError:
                    size //= 2
            file.truncate(max(0, at - (spare_mib << 20)))
        try:
            yield
        finally:
            ballast.unlink()

    @contextmanager
    def immutable(self, path: str) -> Iterator[None]:
        """Not even root may write to a file, or make one in a folder."""
        outside = self.hypervisor.outside(path)
        subprocess.run(["chattr", "+i", outside], check=True)
        try:
            yield
        finally:
            subprocess.run(["chattr", "-i", outside], check=True)

    @contextmanager
    def reader(self, path: str, image_format: str) -> Iterator[None]:
        """Somebody's forgotten qemu-io reads an image, and so keeps QEMU from writing to it."""
        command = self.hypervisor.enter(["qemu-io", "-r", "-f", image_format, path])
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        try:
            until("the reader", lambda: "qemu-io" in self.arguments(), 20)
            yield
        finally:
            process.communicate(timeout=20)  # the end of its input ends it

    def restart_libvirtd(self) -> None:
        """SIGKILL, and a new one."""
        self.hypervisor.libvirtd_kill()
        self.hypervisor.libvirtd_start()
