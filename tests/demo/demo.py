# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""`./dev demo`: back a running guest up, live, and prove it. Exits 1 unless everything that it says holds.

A lab hypervisor `demo` runs a guest with three disks, in which a writer per disk appends numbered, fsynced records. The
playbook runs against it over SSH. Then `demo-spare`, which has nothing but the backup's files, boots a guest of them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "lab")]

from virtlab import BACKUP, IMAGES, Disk, Guest, Hypervisor, Lab, LabError, Mark, lost  # noqa: E402

from tests.tools import playbook, tree  # noqa: E402

GUEST = "shop"
DISKS = (
    Disk("vda", format="raw", size_mib=256, fill_mib=96),
    Disk("vdb", format="qcow2", size_mib=256, fill_mib=96),
    Disk("vdc", golden="debian", size_mib=256, fill_mib=96),
)
FREEZE_LIMIT_MS = 10_000  # an agent without hooks freezes at once; a longer stall would be a hang
NAMESPACE = "virtops"  # in the URI of our journal's element; nothing else in the guest's definition has it
BEGAN = time.monotonic()


def say(text: str) -> None:
    print(f"[demo {time.monotonic() - BEGAN:3.0f}s] {text}", flush=True)


class Proof:
    """What was found, in plain words; kept for the end, so that it stands below Ansible's output."""

    def __init__(self) -> None:
        self.holds = True
        self._lines: list[str] = []

    def add(self, holds: bool, claim: str, found: str = "") -> None:
        self.holds = self.holds and holds
        self._lines.append(f"  {'yes' if holds else 'NO '}  {claim}{': ' + found if found else ''}")

    def show(self) -> None:
        print(f"\nThe proof, after {time.monotonic() - BEGAN:.0f} s:")
        print("\n".join(self._lines))
        print("All of it holds." if self.holds else "This backup is NOT proven.", flush=True)


@dataclass(frozen=True)
class Look:
    """A guest as the outside sees it. `live` and `config` are each disk's images, active layer first."""

    live: dict[str, list[str]]
    config: dict[str, list[str]]
    files: list[str]
    traces: list[str]

    @classmethod
    def at(cls, guest: Guest) -> Look:
        virsh = guest.hypervisor.virsh
        live, config = virsh("dumpxml", guest.name), virsh("dumpxml", guest.name, "--inactive")
        traces = [f"snapshot {name}" for name in virsh("snapshot-list", guest.name, "--name").split()]
        traces += ["the journal"] if NAMESPACE in live + config else []
        traces += [f"job on {disk.target}" for disk in DISKS if virsh("blockjob", guest.name, disk.target).strip()]
        files = guest.hypervisor.exec(["find", IMAGES, "-type", "f"]).stdout.splitlines()
        return cls(chains(live), chains(config), sorted(files), traces)


def chains(xml: str) -> dict[str, list[str]]:
    """Each disk's images in a domain's XML, active layer first."""
    found = {}
    for disk in ElementTree.fromstring(xml).iterfind("devices/disk"):
        layers, layer = [], disk if disk.find("source") is not None else None
        while layer is not None and (source := layer.find("source")) is not None:
            layers.append(source.get("file", ""))
            layer = layer.find("backingStore")
        found[disk.find("target").get("dev", "")] = layers  # type: ignore[union-attr]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev demo", description=__doc__.splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="leave the hypervisors up, to look around")
    keep = parser.parse_args().keep
    tree.sync()
    proof = Proof()
    with hypervisors(keep) as (demo, spare):
        say(f"starting the guest {GUEST}: vda raw, vdb qcow2, vdc qcow2 on a golden image; a writer on each")
        guest = demo.guest(GUEST).define(DISKS, rate=50)
        say(f"it is up after {guest.start():.1f} s; it writes for 3 s, then the backup begins")
        time.sleep(3)
        prove(guest, spare, proof)
    proof.show()
    return 0 if proof.holds else 1


@contextmanager
def hypervisors(keep: bool) -> Iterator[tuple[Hypervisor, Hypervisor]]:
    """Two hosts of the lab, new; also where an earlier demo was killed."""
    lab = Lab()
    names = ["demo", "demo-spare"]
    lab.down(names)
    try:
        say(f"bringing up the lab hypervisors {' and '.join(names)} in {lab.dir}")
        demo, spare = lab.up(names)
        yield demo, spare
    finally:
        if keep:
            say(f"kept: {ROOT / 'tests/lab/lab'} exec demo; to remove them: tests/lab/lab down {' '.join(names)}")
        else:
            say("taking the lab hypervisors down")
            lab.down(names)


def prove(guest: Guest, spare: Hypervisor, proof: Proof) -> None:
    before, start = Look.at(guest), guest.mark()
    golden = sha256(guest.hypervisor, f"{IMAGES}/golden/debian.qcow2")
    last = run_playbook(guest)
    end, after = guest.mark(), Look.at(guest)
    if last is None:
        proof.add(False, "the playbook ended well")
        return
    prove_guest_ran(proof, guest, start, end)
    proof.add(after.files == before.files, "the overlays are gone, no file beside the images is new or missing")
    proof.add(after.live == before.live, "each disk's chain is as before in the running guest", words(after.live))
    proof.add(after.config == before.config, "and in its persistent definition")
    proof.add(not after.traces, "no snapshot record, journal or block job is left", ", ".join(after.traces))
    proof.add(sha256(guest.hypervisor, f"{IMAGES}/golden/debian.qcow2") == golden, "the golden image is untouched")

    (folder,) = guest.hypervisor.outside(f"{BACKUP}/{GUEST}").glob("*")
    backup = f"{BACKUP}/{GUEST}/{folder.name}"
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    prove_images(proof, guest, backup, manifest, last)
    prove_restored(proof, spare, folder, manifest, last)
    say("shutting the guest down, to read its own records")
    guest.shutdown()
    reports = guest.read_all()
    stalls = {disk: report.journal.longest_stall_ms(start, end) for disk, report in sorted(reports.items())}
    worst = ", ".join(f"{disk} {stall:.0f} ms" for disk, stall in stalls.items())
    proof.add(max(stalls.values()) < FREEZE_LIMIT_MS, "longest stall between two fsynced writes during the run", worst)
    gone = lost([report.journal for report in reports.values()], end)
    proof.add(not gone, "after it the guest's own disks hold every record, none lost or torn", "; ".join(gone))


def run_playbook(guest: Guest) -> Mark | None:
    """Run it with its output visible; return what was durable last before the snapshot, None if it failed."""
    lab = guest.hypervisor.lab
    inventory = lab.dir / "demo.inventory.yml"
    inventory.write_text(lab.inventory(), encoding="utf-8")
    variables = {"target": guest.hypervisor.name, "guests": [GUEST], "live_backup_dest": BACKUP}
    command = playbook.command("live_backup", inventory, **variables)
    say("ansible-playbook virtops.libvirt.live_backup, over SSH; its output:\n")
    folder = guest.hypervisor.outside(f"{IMAGES}/{GUEST}")
    images = set(folder.iterdir())
    last = guest.mark()
    with subprocess.Popen(command, env=playbook.environment(), stdin=subprocess.DEVNULL) as play:
        while play.poll() is None:
            now = guest.mark()
            # Overlays are made before the snapshot: without one, this mark came before it.
            if set(folder.iterdir()) != images:
                break
            last = now
            time.sleep(0.05)
    say(f"ansible-playbook ended with {play.returncode}")
    return last if play.returncode == 0 else None


def prove_guest_ran(proof: Proof, guest: Guest, start: Mark, end: Mark) -> None:
    boots = {record.boot_id for mark in (start, end) for record in mark.acked.values()}
    written = sum(record.seq for record in end.acked.values()) - sum(record.seq for record in start.acked.values())
    stopped = max(0.0, start.paused_ms(end))
    found = f"same boot, {written} records written meanwhile, its CPU stopped for {stopped:.0f} ms"
    proof.add(guest.state() == "running" and len(boots) == 1, "the guest ran throughout", found)


def prove_images(proof: Proof, guest: Guest, backup: str, manifest: dict[str, Any], last: Mark) -> None:
    say(f"checking the images of {backup}")
    hypervisor, journals = guest.hypervisor, []
    for disk in manifest["disks"]:
        path = f"{backup}/{disk['file']}"
        name = f"{disk['file']} ({disk['bytes'] >> 20} MiB, {disk['allocated'] >> 20} MiB allocated)"
        info = json.loads(hypervisor.exec(["qemu-img", "info", "--output=json", path]).stdout)
        checked = "a raw image has no structure of its own to check"
        if disk["format"] == "qcow2":
            checked = hypervisor.exec(["qemu-img", "check", "-f", "qcow2", path], check=False).stdout.splitlines()[0]
        sound = disk["format"] == "raw" or checked == "No errors were found on the image."
        proof.add(sound and "backing-filename" not in info, f"backup {name}: qemu-img check, stands alone", checked)
        report = guest.read(path)
        replay = "its journal had to be replayed" if report.needs_recovery else "not even its journal was open"
        proof.add(report.is_clean, f"backup {disk['file']}: e2fsck finds nothing to mend", replay)
        proof.add(sha256(hypervisor, path) == disk["sha256"], f"backup {disk['file']}: SHA-256 as in the manifest")
        journals.append(report.journal)
    gone = lost(journals, last)
    held = ", ".join(f"{journal.disk} {last.acked[journal.disk].seq} of {journal.last}" for journal in journals)
    proof.add(not gone, "the backup holds each record that was durable before the snapshot", "; ".join(gone) or held)
    proof.add(manifest["consistency"] == "filesystem", "its file systems were frozen", manifest["consistency"])


def prove_restored(proof: Proof, spare: Hypervisor, folder: Path, manifest: dict[str, Any], last: Mark) -> None:
    """Put the backup's files, and nothing else, where the backup's domain.xml looks for them on another host."""
    say(f"booting a guest from the backup alone on {spare.name}")
    for disk in manifest["disks"]:
        target = spare.outside(disk["source"])
        target.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        subprocess.run(["cp", "--sparse=always", folder / disk["file"], target], check=True)
    spare.virsh("define", "/dev/stdin", stdin=(folder / manifest["domain_xml"]).read_text(encoding="utf-8"))
    restored = spare.guest(GUEST)
    try:
        took = restored.start()
        time.sleep(1)
        moved = all(restored.mark().acked[disk].seq > record.seq for disk, record in last.acked.items())
        restored.shutdown()
        gone = lost([report.journal for report in restored.read_all().values()], last)
    except LabError as error:
        proof.add(False, "a guest made from the backup alone works", str(error))
        return
    proof.add(True, "a guest made from the backup alone boots and its agent answers", f"after {took:.1f} s")
    proof.add(moved, "it mounts its disks and goes on writing after the last record")
    proof.add(not gone, "it holds each record that was durable before the snapshot", "; ".join(gone))


def sha256(hypervisor: Hypervisor, path: str) -> str:
    return hypervisor.exec(["sha256sum", "--", path]).stdout.split()[0]


def words(chain: dict[str, list[str]]) -> str:
    return "; ".join(f"{disk} {' on '.join(Path(p).name for p in paths)}" for disk, paths in sorted(chain.items()))


if __name__ == "__main__":
    sys.exit(main())
