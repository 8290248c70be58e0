# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The recipes without anything of ours: the commands are read from the pages, and only names are put in."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from conftest import ODD_NAME
from endstate import processes
from fleet import Member, images, kill_jobs, until
from playbook import RECOVER, Controller
from virtlab import IMAGES, Disk, Hypervisor, lost

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "docsite" / "rst" / "guide_recovery.rst"
RESTORE_GUIDE = ROOT / "docs" / "docsite" / "rst" / "guide_restore.rst"
# The name of another guest, which runs beside it, ends in this one's.
NAME = "my web"
OTHER = f"old-{NAME}"
BARE = """
<domain type="qemu"><name>{name}</name><memory unit="MiB">64</memory><os><type arch="x86_64">hvm</type></os>
<devices><controller type="usb" model="none"/><memballoon model="none"/></devices></domain>
"""
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


def command_with(word: str) -> str:
    """Return the one command of the guide, outside of its steps, that has this word."""
    (found,) = re.findall(rf"^   # (.*{word}.*)$", GUIDE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return str(found)


def readme(title: str) -> list[list[str]]:
    """Return the commands of a part of the README, step by step."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    part = text[text.index(title) :]
    part = part[: part.index("\n## ")]
    _before, *steps = re.split(r"^\d\. ", "0. " + part, flags=re.MULTILINE)
    found = [re.findall(r"^(?: {4}| {7})(\S.*)$", said, flags=re.MULTILINE) for said in steps]
    return [[re.sub(r" {2,}# .*", "", command) for command in commands] for commands in found]


def put_in(command: str, target: str, snapshot: str) -> str:
    """Return a command of the recipe with the names of our guest instead of its own."""
    words = []
    for word in shlex.split(command):
        named = {"web": NAME, "vda": target}.get(word, word)
        named = named.replace("guest=web,", f"guest={NAME},").replace("/web/web.vda.", f"/{NAME}/{NAME}.{target}.")
        words.append(named.replace("live-backup-…", snapshot))
    return shlex.join(words)


def ask_qemu(host: Hypervisor, command: str, name: str = NAME, check: bool = True) -> str:
    """Ask a QEMU that libvirt has lost, by the guide's own script."""
    text = GUIDE.read_text(encoding="utf-8")
    found = re.search(r"^   # (cat >/root/ask-qemu <<'END'\n.*?^   END)$", text, flags=re.MULTILINE | re.DOTALL)
    assert found
    script = "\n".join(line.removeprefix("   ") for line in found.group(1).splitlines())
    (asking,) = [line for line in re.findall(r"^   # (.+)$", text, flags=re.MULTILINE) if line.endswith(command)]
    asking = asking.replace(" web ", f" {shlex.quote(name)} ")
    return host.exec(["sh", "-c", f"{script}\n{asking} 2>&1"], check=check).stdout


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

    def do(self, command: str, target: str = "vda", before: str = "", after: str = "") -> str:
        """Run one command, for one of the guest's disks."""
        command = put_in(command, target, getattr(self, "snapshot", "live-backup-…"))
        assert "…" not in command
        # virsh tells of a job's progress on stderr; on a terminal both are one
        command = f"{before} {command} 2>&1 {after}"
        return self.member.hypervisor.exec(["sh", "-c", command], timeout=300, stdin="").stdout

    def put_right(self, running: bool) -> None:
        """Steps 5 and 6."""
        bases = {disk["base"] for disk in self.disks.values()}
        for command in recipe(5):
            assert {line.split(None, 1)[1].strip() for line in self.do(command).splitlines()[2:] if line} == bases
        records, forget, journal, remove = recipe(6)
        assert self.snapshot in self.do(records)
        self.do(forget)
        self.do(journal if running else journal.replace(" --live", ""))
        for target in self.disks:
            self.do(remove, target)


@pytest.fixture
def web(hypervisors: list[Hypervisor], controller: Controller) -> Iterator[Member]:
    """The guide's guest, whose backup was killed while it was copied."""
    host = hypervisors[1]
    member = Member(host.guest(NAME), (Disk("vda", fill_mib=16), Disk("vdb", format="raw")))
    member.define()
    try:
        member.boot()
        host.virsh("create", "/dev/stdin", stdin=BARE.format(name=OTHER))
        yield member
        assert host.virsh("domstate", OTHER).strip() == "running"
    finally:
        host.virsh("destroy", OTHER, check=False)
        member.guest.cleanup()
        host.exec(["rm", "-rf", f"/srv/backup/{NAME}"])


def kill_in_copy(member: Member, controller: Controller) -> None:
    """Kill the controller and the job."""
    play = controller.start("--limit", f"{member.hypervisor.name},{member.alias}", live_backup_rate_limit=1)
    until("a copy under way", lambda: member.partial() is not None or play.process.poll() is not None, 120)
    play.kill()
    kill_jobs(member.hypervisor)
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
    virsh("blockcommit", NAME, "vdb", "--active", "--shallow")
    virsh("blkdeviotune", NAME, "vda", "--live", "--write-bytes-sec", "65536")
    virsh("suspend", NAME)

    operator = Operator(web)
    assert operator.phase == "created"
    assert operator.state.strip() == "paused (user)"
    assert f"{NAME}.vda.{operator.snapshot}" in operator.do(command_with("qemu-monitor-command"))
    thaw, limits, resume = recipe(2)
    operator.do(thaw, after="|| echo")  # "an error here is fine"
    operator.do(limits)
    operator.do(resume)
    assert web.guest.state() == "running"
    assert "65536" not in virsh("blkdeviotune", NAME, "vda")
    info, commit, pivot = recipe(3)
    assert "No current block job" in operator.do(info)
    operator.do(commit)
    until("the other disk's job", lambda: "100" in operator.do(info, "vdb"), 60, every=0.5)
    waited = wait_for_a_job(web, controller)
    assert waited["disks"][0]["job"]["ready"]
    assert "libvirt holds its monitor" in ask_qemu(web.hypervisor, "quit", check=False)
    operator.do(pivot, "vdb")
    operator.put_right(running=True)

    assert web.facts() == facts
    assert images(web.hypervisor) == before
    assert_nothing_lost(web, boot=False)


def wait_for_a_job(member: Member, controller: Controller) -> dict[str, Any]:
    """Run the module's own example, and return what it ended with."""
    text = (ROOT / "plugins" / "modules" / "block_info.py").read_text(encoding="utf-8")
    examples = re.search(r'EXAMPLES = r"""\n(.*?)"""', text, flags=re.DOTALL)
    assert examples
    (task,) = [task for task in yaml.safe_load(examples.group(1)) if "until" in task]
    task["virtops.libvirt.block_info"].update(domain=member.guest.name, disks=["vdb"])
    path = controller.folder / "wait.yml"
    play = {"name": "Wait", "hosts": member.hypervisor.name, "gather_facts": False, "tasks": [{**task, "retries": 2}]}
    path.write_text(yaml.safe_dump([play]), encoding="utf-8")
    ended = controller.run(playbook=str(path))
    assert ended.rc == 0, ended.output
    return ended.results[-1].result


def test_a_guest_that_is_off(web: Member, controller: Controller) -> None:
    """It went off while it was on its overlays."""
    facts, before = web.facts(), images(web.hypervisor)
    kill_in_copy(web, controller)
    mark = web.guest.mark()
    web.guest.destroy()

    operator = Operator(web)
    assert "master-key" not in operator.do(command_with("pgrep"), after="|| true")
    merge, edit = recipe(4)
    for target in sorted(operator.disks):
        operator.do(merge, target)
    bases = {target: (disk["base"], disk["base_format"]) for target, disk in operator.disks.items()}
    script = web.hypervisor.outside(IMAGES) / "editor"
    script.write_text(EDITOR.format(bases=bases), encoding="utf-8")
    script.chmod(0o755)
    operator.do(edit, before=f"EDITOR={IMAGES}/editor")
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
    operator = Operator(web)
    merged = controller.module(host.name, "block_commit", domain=NAME, snapshot=operator.snapshot, disks=["vdb"])
    assert merged["changed"], merged
    host.virsh("blockcommit", NAME, "vda", "--active", "--shallow")
    until("the job", lambda: "ready='yes'" in host.virsh("dumpxml", NAME), 60, every=0.2)
    mark = web.guest.mark()
    host.libvirtd_kill()
    status = host.outside(f"/run/libvirt/qemu/{NAME}.xml")
    text = status.read_text(encoding="utf-8")
    assert "job='active-commit' ready='yes'" in text
    status.write_text(text.replace("job='active-commit' ready='yes'", "job=''"), encoding="utf-8")
    host.libvirtd_start()
    assert web.guest.state() == "shut off"

    refused = controller.run(playbook=RECOVER, target=host.name, guests=[NAME])
    assert refused.rc != 0
    assert "NEEDS A HUMAN (guest_lost)" in refused.lines()[0]
    assert refused.changed() == []
    assert "master-key" in operator.do(command_with("pgrep"))
    used = [line.split(None, 1)[1] for line in ask_qemu(host, "query-block").splitlines() if "virtio-disk" in line]
    assert ".live-backup-" in used[0]
    assert used[1:] == facts.persistent["vdb"]
    assert "has not shut down yet" in ask_qemu(host, "quit", check=False)
    ask_qemu(host, "system_powerdown")
    until("its shutdown", lambda: "'shutdown'" in ask_qemu(host, "query-status"), 60, every=0.5)
    ask_qemu(host, "quit")
    shown = host.virsh("domblklist", NAME, "--inactive").splitlines()
    assert [line.split(None, 1)[1].strip() for line in shown] == used

    healed = controller.run(playbook=RECOVER, target=host.name, guests=[NAME])
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
        said = member.hypervisor.exec(["sh", "-c", f"virsh start {shlex.quote(NAME)} 2>&1"], check=False).stdout
        named = re.search(r"on (/.+) which is already in use", said)
        if not named:
            break
        member.hypervisor.exec(["sh", "-c", f"{forget} '{named.group(1)}'"])
    member.guest.destroy()


def test_the_readme_says_the_same_as_the_guides() -> None:
    """Its commands are those of the guides, which the other tests run."""
    guides = {command for step in range(1, 7) for command in recipe(step)}
    by_hand = {command for commands in readme("**By hand**") for command in commands}
    assert len(by_hand) >= 12
    assert by_hand - guides == set()
    (restore,) = readme("To put a guest *web* back")
    assert set(restore) - set(restoring()) == {"""grep -E '"(file|source|format|source_format)"' manifest.json"""}


def restoring() -> list[str]:
    """Return the guide's commands that restore a guest."""
    text = RESTORE_GUIDE.read_text(encoding="utf-8")
    return re.findall(r"^   # (.+)$", text[text.index("\nBy hand\n-------\n") :], flags=re.MULTILINE)


def test_restore(fleet: dict[str, Member], controller: Controller) -> None:
    """A guest of a name that no shell likes, from its backup set."""
    member = fleet[f"{ODD_NAME}@e2e2"]
    host, name = member.hypervisor, shlex.quote(ODD_NAME)
    mark = member.guest.mark()
    play = controller.run(target="second", guests=["odd*"])
    assert play.rc == 0, play.output
    newest = member.sets()[-1]
    script = "\n".join(["set -e", *restoring()])
    script = script.replace("/srv/backup/web/20261120T120000Z", shlex.quote(newest.folder))
    script = re.sub(rf"{IMAGES}/web/(\S+)", lambda path: shlex.quote(f"{IMAGES}/{ODD_NAME}/{path[1]}"), script)
    script = re.sub(r"^(virsh \w+) web\b", lambda call: f"{call[1]} {name}", script, flags=re.MULTILINE)
    host.exec(["sh", "-c", script], timeout=120)
    member.guest.wait()
    until("records", lambda: member.guest.mark().acked.keys() == member.targets, 60, every=0.2)
    assert lost(member.guest.journals().values(), mark) == []
    host.exec(["sh", "-c", f"rm {IMAGES}/{name}/*.old"])
