# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The guests of a test, what can be known of one from outside, and what a backup set of one holds."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from virtlab import BACKUP, IMAGES, Disk, Guest, Hypervisor, ImageReport, Mark, lost

#: A second folder for overlays, on the file system of the backups: it can be frozen or filled while images work on.
ELSEWHERE = f"{BACKUP}/overlays"
JOURNAL = "{https://virtops.github.io/xmlns/libvirt/journal/1}journal"
STAMP = re.compile(r"\d{8}T\d{6}Z")
#: What images of sets held, by format and digest: one that was read already is not read again
READ: dict[tuple[str, str], ImageReport] = {}


@dataclass(frozen=True)
class Facts:
    """What a backup must leave as it was. Chains are paths, the guest's own layer first."""

    boot_id: str
    id: str
    live: dict[str, list[str]]
    persistent: dict[str, list[str]]
    snapshots: list[str]
    journal: bool
    jobs: list[str]
    #: The state, and both definitions as they were told
    state: str = field(compare=False)
    xml: tuple[str, str] = field(compare=False, repr=False)


@dataclass(frozen=True)
class Set:
    """One backup set, as the machine sees it; `folder` is its path on the hypervisor."""

    hypervisor: Hypervisor
    folder: str

    def path(self, name: str = "") -> Path:
        """Return where the machine finds a file of the set."""
        return self.hypervisor.outside(f"{self.folder}/{name}")

    @property
    def manifest(self) -> dict[str, Any]:
        """Return manifest.json."""
        found: dict[str, Any] = json.loads(self.path("manifest.json").read_text(encoding="utf-8"))
        return found

    def files(self) -> dict[str, int]:
        """Return the permissions of each file in it."""
        return {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in os.scandir(self.path())}

    def check(self, targets: set[str], *marks: Mark) -> None:
        """It is whole, it stands alone, and it holds every record that was durable at each mark."""
        manifest = self.manifest
        assert {disk["target"] for disk in manifest["disks"]} == targets
        images = {disk["file"] for disk in manifest["disks"]}
        assert images == {f"{disk['target']}.{disk['format']}" for disk in manifest["disks"]}
        extras = {extra["file"] for extra in manifest["extras"]}
        noted = {"notes.json"} & self.files().keys()  # by a verification
        files = {"SHA256SUMS", "manifest.json", "domain.xml"} | images | extras | noted
        assert self.files() == dict.fromkeys(files, 0o600)
        sums = self.path("SHA256SUMS").read_text(encoding="utf-8")
        checked = subprocess.run(
            ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=self.path(), check=True, stdout=subprocess.PIPE
        )
        assert checked.stdout.count(b": OK") == len(images | extras) + 2
        for disk in manifest["disks"]:
            assert self.path(disk["file"]).stat().st_size == disk["bytes"]
            assert f"{disk['sha256']}  {disk['file']}\n" in sums
            told = json.loads(self._qemu_img("info", "--output=json", disk["file"]))
            assert told["format"] == disk["format"]
            assert told["virtual-size"] == disk["virtual_size"]
            assert "backing-filename" not in told
            if disk["format"] == "qcow2":
                self._qemu_img("check", "-f", "qcow2", disk["file"])
        for disk in manifest["disks"]:
            if (disk["format"], disk["sha256"]) not in READ:
                READ[disk["format"], disk["sha256"]] = self.read(disk["file"])
        reports = {disk["target"]: READ[disk["format"], disk["sha256"]] for disk in manifest["disks"]}
        assert [(target, report.fsck) for target, report in reports.items() if not report.is_clean] == []
        for mark in marks:
            assert lost([report.journal for report in reports.values()], mark) == []

    def read(self, name: str) -> ImageReport:
        """Return the records of one image."""
        return self.hypervisor.guest("any").read(f"{self.folder}/{name}")

    def _qemu_img(self, verb: str, *arguments: str) -> str:
        *options, name = arguments
        return self.hypervisor.exec(["qemu-img", verb, *options, f"{self.folder}/{name}"]).stdout


@dataclass(frozen=True)
class Member:
    """One guest. `skipped` are the disks that no snapshot can hold, and a word of the reason.

    `rate`: durable records a second, of each disk.
    """

    guest: Guest
    disks: tuple[Disk, ...]
    skipped: dict[str, str] = field(default_factory=dict)
    agent: bool = True
    rate: int = 10

    @property
    def alias(self) -> str:
        """Return its name in Ansible's inventory."""
        return f"{self.guest.name}@{self.hypervisor.name}"

    @property
    def hypervisor(self) -> Hypervisor:
        """Return where it runs."""
        return self.guest.hypervisor

    @property
    def targets(self) -> set[str]:
        """Return the disks that a backup holds."""
        return {disk.target for disk in self.disks} - self.skipped.keys()

    def define(self) -> None:
        """Make its disks and its definition. One guest after another: golden images are made by the first."""
        self.guest.define(self.disks, agent=self.agent, rate=self.rate)

    def boot(self) -> None:
        """Start it, and wait for its first records."""
        self.guest.start()
        until(f"records of {self.alias}", lambda: self.guest.mark().acked.keys() == self.targets, 60, every=0.2)

    def facts(self) -> Facts:
        """Look at it."""
        name = self.guest.name
        looks = (("dumpxml", name), ("dumpxml", "--inactive", name), ("domid", name), ("domstate", name))
        told = self.hypervisor.virsh_each(*looks, ("snapshot-list", name, "--name"))
        live, config = (ElementTree.fromstring(xml) for xml in told[:2])
        state, disks = told[3].strip(), list(chains(live))
        running = state == "running"
        asked = [("blockjob", name, disk, "--raw") for disk in disks] if running else []
        jobs = self.hypervisor.virsh_each(*asked, check=False) if asked else []
        return Facts(
            boot_id=self.guest.command("cat /proc/sys/kernel/random/boot_id").strip() if running else "",
            id=told[2].strip(),
            live=chains(live),
            persistent=chains(config),
            snapshots=told[4].split(),
            journal=any(tree.find(f"metadata/{JOURNAL}") is not None for tree in (live, config)),
            jobs=[disk for disk, job in zip(disks, jobs, strict=False) if "type=" in job],
            state=state,
            xml=(told[0], told[1]),
        )

    def phase(self) -> str:
        """Return the journal's phase, empty without one: from libvirt's own status file, so asking costs nothing."""
        status = self.hypervisor.outside(f"/run/libvirt/qemu/{self.guest.name}.xml")
        try:
            found = ElementTree.fromstring(status.read_text(encoding="utf-8")).find(f".//{JOURNAL}")
        except (FileNotFoundError, ElementTree.ParseError):
            return ""
        return "" if found is None else str(found[0].get("phase"))

    def noted(self) -> list[str]:
        """Return the phases of the journal in libvirt's file of the definition, which survives the host."""
        config = self.hypervisor.outside(f"/etc/libvirt/qemu/{self.guest.name}.xml").read_text(encoding="utf-8")
        journals = ElementTree.fromstring(config).iter(JOURNAL)
        return [str(operation.get("phase")) for journal in journals for operation in journal]

    def sets(self) -> list[Set]:
        """Return its complete backup sets, the oldest first."""
        return [Set(self.hypervisor, f"{self._sets}/{name}") for name in self._set_names() if STAMP.fullmatch(name)]

    def leftovers(self) -> list[str]:
        """Return what lies beside the complete sets."""
        return [name for name in self._set_names() if not STAMP.fullmatch(name)]

    def partial(self) -> Path | None:
        """Return the folder of the set under way."""
        (name, *_unused) = [*(name for name in self.leftovers() if name.endswith(".partial")), ""]
        return self.hypervisor.outside(f"{self._sets}/{name}") if name else None

    @property
    def _sets(self) -> str:
        return f"{BACKUP}/{self.guest.name}"

    def _set_names(self) -> list[str]:
        folder = self.hypervisor.outside(self._sets)
        return sorted(os.listdir(folder)) if folder.exists() else []


def chains(domain: ElementTree.Element) -> dict[str, list[str]]:
    """Return the chain of each disk of a definition; the persistent one of most domains names the first layer only."""
    found = {}
    for disk in domain.iterfind("devices/disk"):
        layers = [disk.find("source"), *(layer.find("source") for layer in disk.iter("backingStore"))]
        target = disk.find("target")
        assert target is not None
        found[target.get("dev", "")] = [str(layer.get("file")) for layer in layers if layer is not None]
    return found


def images(hypervisor: Hypervisor) -> set[str]:
    """Return all that lies in the folder for images, and the paths of what lies ELSEWHERE: a stray overlay shows."""
    return below(hypervisor.outside(IMAGES)) | {f"{ELSEWHERE}/{name}" for name in below(hypervisor.outside(ELSEWHERE))}


def below(root: Path) -> set[str]:
    """Return the files in and below a folder, none where there is no such folder."""
    return {
        os.path.relpath(os.path.join(folder, name), root) for folder, _unused, names in os.walk(root) for name in names
    }


def locks(hypervisor: Hypervisor) -> list[str]:
    """Return the locks that somebody holds, or has left."""
    folder = hypervisor.outside("/run/virtops.libvirt")
    return sorted(set(os.listdir(folder)) - {"jobs"}) if folder.exists() else []


def drop_ssh(hypervisor: Hypervisor) -> None:
    """SIGKILL to each SSH session of a hypervisor; its sshd goes on listening."""
    said = hypervisor.exec(["ps", "-eo", "pid=,comm=,args="]).stdout
    for line in said.splitlines():
        pid, comm, args = line.split(None, 2)
        if comm.startswith("sshd") and "listener" not in args and "/usr/sbin/sshd" not in args:
            hypervisor.exec(["kill", "-KILL", pid], check=False)


def kill_jobs(hypervisor: Hypervisor) -> None:
    """SIGKILL to whatever holds a guest's lock."""
    for lock in hypervisor.outside("/run/virtops.libvirt").glob("domain-*.lock"):
        hypervisor.exec(["kill", "-KILL", lock.read_text(encoding="utf-8").strip()], check=False)


def sha256(path: Path) -> str:
    """Return the digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def until(what: str, is_so: Callable[[], object], seconds: float, every: float = 0.02) -> None:
    """Wait until something is so, and fail with words where it never is."""
    # A machine that does much else is slow; one that comes early costs nothing
    deadline = time.monotonic() + 3 * seconds
    while not is_so():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {3 * seconds:g} s")
        time.sleep(every)


def carry(source: Path, target: Path) -> None:
    """Copy a file from one hypervisor to the other, holes included."""
    subprocess.run(["cp", "--sparse=always", source, target], check=True)
