# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's own test: what the other tests take for granted. Needs root; about a minute. `pytest tests/lab`"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from virtlab import IMAGES, Disk, Guest, Lab, LabError, Volume, lost
from virtlab.cli import main
from virtlab.roots import GENERATIONS

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the lab needs root")
ODD_PATH = f"{IMAGES}/ö dir, x/d isk,1.qcow2"
DISKS = (Disk("vda", format="raw", fill_mib=8), Disk("vdb", path=ODD_PATH), Disk("vdc", golden="base"))


def leftovers(folder: Path) -> dict[str, list[str]]:
    """What of a lab is there on the machine: mounts, loop devices, namespaces and processes."""
    mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    loops = subprocess.run(["losetup", "-a"], capture_output=True, text=True, check=True).stdout.splitlines()
    foreign = [str(path) for path in Path("/proc").glob("[0-9]*") if _mentions(path, str(folder))]
    return {
        "mounts": [line for line in mounts if str(folder) in line],
        "loops": [line for line in loops if str(folder) in line],
        "processes": foreign,
    }


def _mentions(process: Path, folder: str) -> bool:
    try:
        return folder in (process / "mountinfo").read_text(encoding="utf-8")
    except OSError:
        return False


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    # Not below pytest's folder: its numbered folders are removed by pytest, mounts or not.
    folder = Path(f"/var/tmp/virtops-lab-test-{os.getpid()}")
    shared = Lab().cache
    shared.mkdir(parents=True, exist_ok=True)
    folder.mkdir()
    (folder / "cache").symlink_to(shared)
    lab = Lab(folder)
    yield lab
    lab.down()
    assert os.listdir(folder) == ["cache"]
    (folder / "cache").unlink()
    folder.rmdir()
    assert leftovers(folder) == {"mounts": [], "loops": [], "processes": []}


@pytest.fixture
def guest(lab: Lab) -> Iterator[Guest]:
    guest = lab.hypervisor("hv1").up().guest("web")
    guest.cleanup()
    guest.define(DISKS)
    guest.start()
    yield guest
    lab.hypervisor("hv1").up()
    guest.cleanup()


def test_two_hypervisors_are_two_hosts(lab: Lab) -> None:
    first, second = lab.up(["hv1", "hv2"])
    inits = [first.init(), second.init()]
    assert lab.up(["hv1", "hv2"])[0].init() == inits[0], "a second `up` changed something"
    names = [host.exec(["hostname"]).stdout.strip() for host in (first, second)]
    assert names == ["hv1", "hv2"]
    (second.outside("/etc") / "of-hv2").write_text("x", encoding="utf-8")
    assert not first.outside("/etc/of-hv2").exists()
    assert not Path("/etc/of-hv2").exists()
    second.guest("only-here").define([Disk(blank=True)])
    assert [guest.name for guest in first.guests()] == []


def test_a_host_is_reached_over_ssh_as_the_inventory_says(lab: Lab) -> None:
    host = lab.hypervisor("hv1").up()
    assert f"ansible_port: {host.port}" in lab.inventory()
    said = subprocess.run(
        ["ssh", *lab.ssh_args(), "-i", lab.key, "-p", str(host.port), "root@127.0.0.1", "hostname; virsh uri"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.split() == ["hv1", "qemu:///system"]


def test_freeze_holds_the_writers_and_can_be_watched(guest: Guest) -> None:
    before = guest.mark()
    assert set(before.acked) == {"vda", "vdb", "vdc"}
    assert guest.agent("guest-fsfreeze-freeze") == 3
    frozen = guest.mark()
    time.sleep(0.5)
    assert guest.mark().acked == frozen.acked
    assert guest.agent("guest-fsfreeze-thaw") == 3
    time.sleep(0.5)
    after = guest.mark()
    assert all(journal.longest_stall_ms(before, after) >= 500 for journal in guest.journals().values())
    guest.shutdown()
    for report in guest.read_all().values():
        assert (report.is_clean, report.needs_recovery) == (True, False)
        assert report.journal.longest_stall_ms(before, after) >= 500
    assert lost([report.journal for report in guest.read_all().values()], after) == []


def test_a_deaf_agent_and_a_dead_one(guest: Guest) -> None:
    guest.agent_service("hang")
    assert not guest.agent_answers()
    guest.agent_service("resume")
    guest.wait()
    guest.agent_service("kill")
    assert not guest.agent_answers()
    guest.agent_service("start")
    guest.wait()


def test_a_pause_shows_in_the_marks(guest: Guest) -> None:
    before = guest.mark()
    guest.hypervisor.virsh("suspend", guest.name)
    time.sleep(1)
    guest.hypervisor.virsh("resume", guest.name)
    assert before.paused_ms(guest.mark()) >= 900


def test_no_promised_record_is_lost_with_the_power(guest: Guest) -> None:
    host = guest.hypervisor
    boot_id = host.exec(["cat", "/proc/sys/kernel/random/boot_id"]).stdout
    guest.write(rate=0, bulk_kib=64)
    time.sleep(1)
    promised = guest.mark()
    host.powerloss()
    assert not host.is_on()
    host.up()
    assert host.exec(["cat", "/proc/sys/kernel/random/boot_id"]).stdout != boot_id
    assert guest.state() == "shut off"
    reports = guest.read_all()
    assert lost([report.journal for report in reports.values()], promised) == []
    assert all(report.is_clean and report.needs_recovery for report in reports.values())
    guest.start()
    assert all(record.seq > promised.acked[disk].seq for disk, record in guest.mark().acked.items())


def test_a_lost_write_is_found(guest: Guest) -> None:
    early = guest.disk_paths()["vda"] + ".early"
    guest.hypervisor.exec(["cp", "--sparse=always", guest.disk_paths()["vda"], early])
    time.sleep(1)
    promised = guest.mark()
    guest.destroy()
    reports = [guest.read(path).journal for path in guest.disk_paths().values()]
    assert lost(reports, promised) == []
    assert len(lost([guest.read(early).journal, *reports[1:]], promised)) == 1
    with pytest.raises(LabError, match="vda"):
        lost(reports[1:], promised)


def test_libvirtd_dies_and_comes_back_by_command_only(guest: Guest) -> None:
    host = guest.hypervisor
    host.libvirtd_kill()
    time.sleep(0.5)
    assert not host.libvirtd_is_up()
    host.libvirtd_start()
    assert guest.state() == "running"
    host.libvirtd_restart()
    guest.wait()


def test_small_and_reflinking_file_systems(lab: Lab) -> None:
    host = lab.hypervisor("hv3").up(images=Volume(512, "xfs"), backup=Volume(32))
    size = host.exec(["df", "--output=size,fstype", "-BM", "/srv/backup"]).stdout.split()
    assert size[3] == "ext4"
    assert int(size[2].rstrip("M")) <= 32
    host.exec(["dd", "if=/dev/urandom", f"of={IMAGES}/a", "bs=1M", "count=1"])
    host.exec(["cp", "--reflink=always", f"{IMAGES}/a", f"{IMAGES}/b"])
    host.powerloss()
    host.up()
    assert host.outside(f"{IMAGES}/b").exists()
    host.down()
    assert not any(leftovers(lab.dir / "hosts/hv3").values())


@pytest.mark.long
@pytest.mark.parametrize("generation", sorted(GENERATIONS))
def test_another_generation(lab: Lab, generation: str) -> None:
    host = lab.hypervisor(generation).up(generation=generation)
    guest = host.guest("web").define(DISKS)
    guest.start()
    promised = guest.mark()
    host.powerloss()
    host.up()
    assert lost([report.journal for report in guest.read_all().values()], promised) == []
    guest.start()
    host.down()


def test_down_after_a_killed_up(lab: Lab) -> None:
    """A hypervisor without its config.json is what a SIGKILL in the middle of `up` leaves."""
    host = lab.hypervisor("hv4").up()
    (host.dir / "config.json").unlink()
    lab.down(["hv4"])
    assert not any(leftovers(host.dir).values())
    assert not host.exists()


def test_cli(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    def call(*words: str) -> str:
        assert main(["--dir", str(lab.dir), *words]) == 0
        return capsys.readouterr().out

    call("up", "hv1")
    call("guest", "hv1", "define", "cli", "--disk", "target=vda format=raw", "--disk", 'target=vdb path="/srv/a b,c"')
    call("guest", "hv1", "start", "cli")
    assert "vdb" in call("guest", "hv1", "mark", "cli")
    assert call("guest", "hv1", "list") == "cli: running\n"
    state = json.loads(call("status", "--json"))
    assert {"cli": "running"} in [host["guests"] for host in state["hypervisors"]]
    call("guest", "hv1", "shutdown", "cli")
    read = json.loads(call("records", "--json", "--on", "hv1", f"{IMAGES}/cli/vda.raw", "/srv/a b,c"))
    assert [entry["torn"] for entry in read.values()] == [0, 0]
    call("guest", "hv1", "cleanup", "cli")
    assert main(["--dir", str(lab.dir), "guest", "nowhere", "list"]) == 1
