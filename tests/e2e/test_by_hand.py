# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The guide's recipe without anything of ours: the commands are read from its page, and only names are put in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from endstate import processes
from fleet import Member, images, until
from playbook import RECOVER, Controller
from virtlab import IMAGES, Disk, Hypervisor, lost

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "docsite" / "rst" / "guide_recovery.rst"
# What the guide says to do in the editor
EDITOR = """\
#!/usr/bin/python3
import sys
from xml.etree import ElementTree
bases = {bases!r}
tree = ElementTree.parse(sys.argv[1])
for disk in tree.iterfind("devices/disk"):
    base, base_format = bases[disk.find("target").get("dev")]
    disk.find("source").set("file", base)
    disk.find("driver").set("type", base_format)
    for backing in disk.findall("backingStore"):
        disk.remove(backing)
tree.write(sys.argv[1])
"""


def recipe(step: int) -> list[str]:
    """Return the commands of one step."""
    text = GUIDE.read_text(encoding="utf-8")
    by_hand = text[text.index("\nBy hand\n-------\n") : text.index("\nWhat the guest is, phase by phase\n")]
    section = re.split(r"\n(\d)\. .+\n~+\n", by_hand)
    return re.findall(r"^   # (.+)$", section[section.index(str(step)) + 1], flags=re.MULTILINE)


def ask_qemu(host: Hypervisor, command: str) -> str:
    """Ask a QEMU that libvirt has lost, by the guide's own script."""
    text = GUIDE.read_text(encoding="utf-8")
    found = re.search(r"^   # (cat >/root/ask-qemu <<'END'\n.*?^   END)$", text, flags=re.MULTILINE | re.DOTALL)
    assert found
    script = "\n".join(line.removeprefix("   ") for line in found.group(1).splitlines())
    (asking,) = [line for line in re.findall(r"^   # (.+)$", text, flags=re.MULTILINE) if line.endswith(command)]
    return host.exec(["sh", "-c", f"{script}\n{asking}"]).stdout


class Operator:
    """Somebody at three in the morning, with the page and a shell on the hypervisor."""

    def __init__(self, member: Member) -> None:
        """Look at the journal as the page says."""
        self.member = member
        state, disks, metadata = recipe(1)
        self.state = self.do(state)
        assert ".live-backup-" in self.do(disks)
        journal = ElementTree.fromstring(self.do(metadata))
        operation = journal.find("{*}operation")
        assert operation is not None
        self.snapshot = str(operation.get("name"))
        self.phase = operation.get("phase")
        self.disks = {str(disk.get("target")): dict(disk.attrib) for disk in operation.iterfind("{*}disk")}
        assert self.disks.keys() == member.targets

    def do(self, command: str, target: str = "vda") -> str:
        """Run one command, for one of the guest's disks."""
        command = command.replace("web vda", f"web {target}").replace(".vda.", f".{target}.")
        if hasattr(self, "snapshot"):
            command = command.replace("live-backup-…", self.snapshot)
        assert "…" not in command
        # virsh tells of a job's progress on stderr; on a terminal both are one
        return self.member.hypervisor.exec(["sh", "-c", f"{command} 2>&1"], timeout=300, stdin="").stdout

    def put_right(self, running: bool) -> None:
        """Steps 5 and 6."""
        bases = {disk["base"] for disk in self.disks.values()}
        for command in recipe(5):
            assert {line.split(None, 1)[1].strip() for line in self.do(command).splitlines()[2:] if line} == bases
        records, forget, journal, remove = recipe(6)
        assert self.snapshot in self.do(records)
        self.do(forget)
        self.do(journal if running else journal.replace(" --live", ""))
        self.do(remove)


@pytest.fixture
def web(hypervisors: list[Hypervisor], controller: Controller) -> Iterator[Member]:
    """The guide's guest, whose backup was killed while it was copied."""
    host = hypervisors[1]
    member = Member(host.guest("web"), (Disk("vda", fill_mib=16), Disk("vdb", format="raw")))
    member.define()
    try:
        member.boot()
        yield member
    finally:
        member.guest.cleanup()
        host.exec(["rm", "-rf", "/srv/backup/web"])


def kill_in_copy(member: Member, controller: Controller) -> None:
    """Kill the controller, and with it the module."""
    play = controller.start("--limit", f"{member.hypervisor.name}:{member.alias}", live_backup_rate_limit=1)
    until("a copy under way", lambda: member.partial() is not None or play.process.poll() is not None, 120)
    play.kill()
    until("the end of the module", lambda: processes(member.hypervisor) == [], 60, every=0.5)


def assert_nothing_lost(member: Member, *, boot: bool) -> None:
    """The guest is well, and has all that it was promised."""
    if boot:
        member.boot()
    mark = member.guest.mark()
    member.guest.shutdown(timeout=60)
    reports = member.guest.read_all()
    assert all(report.is_clean for report in reports.values())
    assert lost([report.journal for report in reports.values()], mark) == []


def test_a_guest_that_runs(web: Member, controller: Controller) -> None:
    """One disk without a job, one with one; held back, as by a merge that died with its watchdog."""
    facts, before = web.facts(), images(web.hypervisor)
    kill_in_copy(web, controller)
    virsh = web.hypervisor.virsh
    virsh("blockcommit", "web", "vdb", "--active", "--shallow")
    virsh("blkdeviotune", "web", "vda", "--live", "--write-bytes-sec", "65536")
    virsh("suspend", "web")

    operator = Operator(web)
    assert operator.phase == "created"
    assert operator.state.strip() == "paused (user)"
    thaw, limits, resume = recipe(2)
    operator.do(f"{thaw} || echo")  # "an error here is fine"
    operator.do(limits)
    operator.do(resume)
    assert web.guest.state() == "running"
    assert "65536" not in virsh("blkdeviotune", "web", "vda")
    info, commit, pivot = recipe(3)
    assert "No current block job" in operator.do(info)
    operator.do(commit)
    until("the other disk's job", lambda: "100" in operator.do(info, "vdb"), 60, every=0.5)
    operator.do(pivot, "vdb")
    operator.put_right(running=True)

    assert web.facts() == facts
    assert images(web.hypervisor) == before
    assert_nothing_lost(web, boot=False)


def test_a_guest_that_is_off(web: Member, controller: Controller) -> None:
    """It went off while it was on its overlays."""
    facts, before = web.facts(), images(web.hypervisor)
    kill_in_copy(web, controller)
    mark = web.guest.mark()
    web.guest.destroy()

    operator = Operator(web)
    merge, edit = recipe(4)
    for target in sorted(operator.disks):
        operator.do(merge, target)
    bases = {target: (disk["base"], disk["base_format"]) for target, disk in operator.disks.items()}
    script = web.hypervisor.outside(IMAGES) / "editor"
    script.write_text(EDITOR.format(bases=bases), encoding="utf-8")
    script.chmod(0o755)
    operator.do(f"EDITOR={IMAGES}/editor {edit}")
    script.unlink()
    operator.put_right(running=False)

    found = web.facts()
    assert (found.persistent, found.snapshots, found.journal) == (facts.persistent, [], False)
    assert images(web.hypervisor) == before
    reports = web.guest.read_all()
    assert lost([report.journal for report in reports.values()], mark) == []
    assert_nothing_lost(web, boot=True)


def test_a_guest_that_libvirt_has_lost(web: Member, controller: Controller) -> None:
    """libvirtd was killed while it ended a pivot, and cannot read what it had written of the guest."""
    host, facts, before = web.hypervisor, web.facts(), images(web.hypervisor)
    kill_in_copy(web, controller)
    # A merge whose first disk is done
    merged = controller.module(host.name, "block_commit", domain="web", snapshot=Operator(web).snapshot, disks=["vdb"])
    assert merged["changed"], merged
    host.virsh("blockcommit", "web", "vda", "--active", "--shallow")
    until("the job", lambda: "ready='yes'" in host.virsh("dumpxml", "web"), 60, every=0.2)
    mark = web.guest.mark()
    host.libvirtd_kill()
    status = host.outside("/run/libvirt/qemu/web.xml")
    text = status.read_text(encoding="utf-8")
    assert "job='active-commit' ready='yes'" in text
    status.write_text(text.replace("job='active-commit' ready='yes'", "job=''"), encoding="utf-8")
    host.libvirtd_start()
    assert web.guest.state() == "shut off"

    refused = controller.run(playbook=RECOVER, target=host.name, guests=["web"])
    assert refused.rc != 0
    assert "NEEDS A HUMAN (guest_lost)" in refused.lines()[0]
    assert refused.changed() == []
    used = [line.split(None, 1)[1] for line in ask_qemu(host, "query-block").splitlines() if "virtio-disk" in line]
    assert ".live-backup-" in used[0]
    assert used[1:] == facts.persistent["vdb"]
    ask_qemu(host, "system_powerdown")
    until("its shutdown", lambda: "'shutdown'" in ask_qemu(host, "query-status"), 60, every=0.5)
    ask_qemu(host, "quit")
    assert [line.split()[1] for line in host.virsh("domblklist", "web", "--inactive").splitlines()] == used

    healed = controller.run(playbook=RECOVER, target=host.name, guests=["web"])
    assert healed.rc == 0, healed.output
    found = web.facts()
    assert (found.persistent, found.snapshots, found.journal) == (facts.persistent, [], False)
    assert images(host) == before
    assert lost([report.journal for report in web.guest.read_all().values()], mark) == []
    forget_users(web)
    assert_nothing_lost(web, boot=True)


def forget_users(member: Member) -> None:
    """Start the guest, and make libvirt forget the lost QEMU as the user of each file that it names."""
    (forget,) = re.findall(r"^   # (python3 .+) FILE$", GUIDE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for _file in range(10):
        said = member.hypervisor.exec(["sh", "-c", "virsh start web 2>&1"], check=False).stdout
        named = re.search(r"on (/.+) which is already in use", said)
        if not named:
            break
        member.hypervisor.exec(["sh", "-c", f"{forget} '{named.group(1)}'"])
    member.guest.destroy()
