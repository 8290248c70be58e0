# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The role guarded_change on a running guest: a change is kept, or none of it is left, and the role's own failures."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from endstate import Before
from fleet import Member, until
from playbook import Controller, Play
from virtlab import IMAGES, Disk, Hypervisor

KINDS = pytest.mark.parametrize("kind", ["external", "internal"])
NAME = "guarded"
COPY = f"{IMAGES}/foreign-copy.qcow2"
PLAYBOOK = """
- name: Make a host of the guest
  hosts: "{{ target }}"
  gather_facts: false
  tasks:
    - name: Add it
      ansible.builtin.add_host: "{{ guest }}"
      changed_when: false

- name: Change it
  hosts: guests
  gather_facts: false
  handlers:
    - name: Restart the service
      ansible.builtin.include_tasks: handler.yml
  tasks:
    - name: Guard the change
      block:
        - name: Change
          ansible.builtin.include_role:
            name: virtops.libvirt.guarded_change
      always:
        - name: Say the result
          ansible.builtin.debug:
            var: guarded_change_result
"""
WRITE = """
- name: Write in the guest
  ansible.builtin.command:
    argv: [virsh, qemu-agent-command, {guest}, {request}]
  delegate_to: {host}
  changed_when: true
{more}
"""
BREAK = """
- name: Ask the service
  ansible.builtin.shell: echo 'It is broken.' >&2; exit 7
  delegate_to: {host}
"""
UNNAMED = BREAK.replace("name: Ask the service\n  ", "")
SECRET = """
- name: Log in
  ansible.builtin.shell: echo 'sesame' >&2; exit 7
  delegate_to: {host}
  no_log: true
"""
JOB = """
- name: Begin a foreign job
  ansible.builtin.command:
    argv: [virsh, blockcopy, {guest}, vdb, {copy}, --format, qcow2, --transient-job, --bandwidth, "1"]
  delegate_to: {host}
  changed_when: true
"""
PASS = """
- name: Look at the change
  ansible.builtin.command: "true"
  delegate_to: {host}
  changed_when: false
"""
# The agent starts what it is told, and waits for nothing.
MOMENT = """
- name: Wait for it
  ansible.builtin.command: sleep 2
  delegate_to: {host}
  changed_when: false
"""
CUT_OFF = """
- name: Restart the network
  ansible.builtin.command: "true"
- name: Go on
  ansible.builtin.debug:
    msg: This needs no connection
"""


@dataclass(frozen=True)
class Guarded:
    """A guest, and a play that changes it."""

    member: Member
    controller: Controller

    def play(self, *arguments: str, gate: str = "", pipelining: bool = False, **variables: Any) -> Any:
        """Start it; the values of `tasks` and `checks` are what these files hold."""
        host, folder = self.member.hypervisor.name, self.controller.folder
        for name in ("tasks", "checks"):
            if name in variables:
                (folder / f"{name}.yml").write_text(self.fill(variables.pop(name)), "utf-8")
                variables[f"guarded_change_{name}"] = f"{name}.yml"
        (folder / "handler.yml").write_text(self.writing("handled"), "utf-8")
        (folder / "guarded.yml").write_text(PLAYBOOK, "utf-8")
        role = {"guarded_change_domain": NAME, "guarded_change_hypervisor": host}
        nowhere = {"ansible_host": "127.0.0.1", "ansible_port": 1}
        guest = {"name": f"{NAME}@{host}", "groups": ["guests"], **role, **nowhere}
        given = {"target": host, "guest": guest, "guarded_change_connect_timeout": 0, **variables}
        playbook = str(folder / "guarded.yml")
        return self.controller.start(*arguments, pipelining=pipelining, gate=gate, playbook=playbook, **given)

    def run(self, *arguments: str, **variables: Any) -> Play:
        """Run it to its end."""
        found: Play = self.play(*arguments, pipelining=True, **variables).end()
        return found

    def fill(self, text: str) -> str:
        """Put our names into tasks; other braces stay."""
        names = {"{host}": self.member.hypervisor.name, "{guest}": NAME, "{copy}": COPY}
        for name, value in names.items():
            text = text.replace(name, value)
        return text

    def writing(self, word: str, more: str = "") -> str:
        """Return a task that writes a file on each disk of the guest."""
        script = f"for d in /mnt/vd?; do echo {word} >$d/{word}; done; sync; echo {word} >/run/{word}"
        request = {"execute": "guest-exec", "arguments": {"path": "/bin/sh", "arg": ["-c", script]}}
        return self.fill(WRITE).replace("{request}", json.dumps(json.dumps(request))).replace("{more}", more)

    def written(self) -> set[str]:
        """Return the files that are on both disks of the guest, and none that are on one of them only."""
        guest = self.member.guest
        guest.command("echo 3 >/proc/sys/vm/drop_caches")
        each = [
            set(guest.command(f"cd /mnt/{disk}; for f in *ed; do [ ! -e $f ] || cat $f; done").split())
            for disk in ("vda", "vdb")
        ]
        assert each[0] == each[1]
        return each[0]

    def wait_for_write(self, word: str) -> None:
        """The agent starts what it is told and does not wait for its end."""
        until(f"the file {word}", lambda: word in self.member.guest.command("ls /run"), 20, every=0.2)


def result(play: Play) -> dict[str, str]:
    """Return the fact in which the role says how it ended."""
    (said,) = [item.result for item in play.results if item.task == "Say the result"]
    found: dict[str, str] = said["guarded_change_result"]
    return found


def cause(play: Play) -> str:
    """Return the message that the role failed with."""
    assert play.rc != 0, play.output
    return str([item.result for item in play.results if item.status == "failed"][-1]["msg"])


@pytest.fixture(scope="module")
def writing(hypervisors: list[Hypervisor]) -> Iterator[Member]:
    """A guest that writes on two disks, for all tests."""
    member = Member(hypervisors[0].guest(NAME), (Disk("vda"), Disk("vdb", golden="base", fill_mib=8)))
    try:
        yield member
    finally:
        member.guest.cleanup()


@pytest.fixture
def guarded(writing: Member, controller: Controller) -> Iterator[Guarded]:
    """The guest as it was before any change; made anew where a test has left it otherwise."""
    if is_as_made(writing):
        writing.guest.command("rm -f /mnt/vd?/*ed /run/*ed; sync")
    else:
        writing.guest.cleanup()
        writing.define()
        writing.boot()
    yield Guarded(writing, controller)
    writing.hypervisor.exec(["rm", "-f", COPY])


def is_as_made(member: Member) -> bool:
    """Whether it runs, on its own images, and nothing is open."""
    if member.guest.state() != "running":
        return False
    facts = member.facts()
    images = {disk.target: member.guest.path_of(disk) for disk in member.disks}
    at_rest = (facts.snapshots, facts.journal, facts.jobs) == ([], False, [])
    return at_rest and {target: chain[0] for target, chain in facts.live.items()} == images


@KINDS
def test_a_good_change_is_kept(guarded: Guarded, kind: str) -> None:
    """Its data are there, its handlers ran, the guest ran on, and chains, records and files are as before."""
    before = Before.of(guarded.member)
    tasks = guarded.writing("changed", more="  notify: Restart the service")
    foreseen = guarded.run("--check", tasks=tasks, checks=BREAK, guarded_change_kind=kind)
    assert foreseen.rc == 0, foreseen.output
    assert result(foreseen) == {"outcome": "kept", "cause": "", "snapshot": ""}
    assert guarded.written() == set()
    before.assert_normal_end(sets=0)

    play = guarded.run(tasks=tasks, checks=PASS, guarded_change_kind=kind)
    assert play.rc == 0, play.output
    assert result(play) == {"outcome": "kept", "cause": "", "snapshot": ""}
    guarded.wait_for_write("handled")
    order = [item.task.split(" : ")[-1] for item in play.results if item.action.endswith("command")]
    assert order == ["Write in the guest", "Write in the guest", "Look at the change"]
    assert guarded.written() == {"changed", "handled"}
    before.assert_normal_end(sets=0)


@KINDS
@pytest.mark.parametrize("fails", ["tasks", "checks"])
def test_a_bad_change_is_undone(guarded: Guarded, kind: str, fails: str) -> None:
    """Nothing of it is left on the disks, the guest runs, nothing else is left, and the role says what failed."""
    before = Before.of(guarded.member)
    parts = {"tasks": guarded.writing("changed") + MOMENT, "checks": PASS}
    parts[fails] += SECRET if kind == "internal" else BREAK
    play = guarded.run(**parts, guarded_change_kind=kind)
    said = cause(play)
    assert result(play)["outcome"] == "reverted"
    assert result(play)["snapshot"] == ""
    assert result(play)["cause"] in said
    assert "The guest is as it was before the change. No snapshot is left." in said
    if kind == "internal":
        assert '"Log in": what it said is hidden by no_log' in said
        assert "sesame" not in play.output
    else:
        assert '"Ask the service": non-zero return code: It is broken' in said
        guarded.member.guest.wait()
    assert guarded.written() == set()
    files = guarded.member.guest.command("ls /run")
    assert "changed" not in files
    # QEMU is a new one in each case; only a memory snapshot has the guest go on as if nothing had been
    assert (guarded.member.facts().boot_id == before.facts.boot_id) == (kind == "internal")
    before.assert_normal_end(sets=0, rebooted=True)


def test_a_guest_that_cuts_itself_off(guarded: Guarded) -> None:
    """Ansible cannot reach it, and the hypervisor takes it back."""
    before = Before.of(guarded.member)
    tasks = guarded.writing("changed") + CUT_OFF
    play = guarded.run(tasks=tasks, guarded_change_connect_timeout=2, guarded_change_fail=False)
    assert play.rc == 0, play.output
    assert [item.task for item in play.results if item.status == "unreachable"] == ["Restart the network"]
    assert result(play)["outcome"] == "reverted"
    assert "See that the host can be reached" in result(play)["cause"]
    guarded.member.guest.wait()
    assert guarded.written() == set()
    before.assert_normal_end(sets=0, rebooted=True)


def test_a_guest_that_cannot_be_taken_back(guarded: Guarded) -> None:
    """The role says so and how to go on; the next run refuses until it is told what to do, and then does it."""
    member = guarded.member
    before, virsh = Before.of(member), member.hypervisor.virsh
    play = guarded.run(tasks=guarded.writing("changed") + JOB, checks=BREAK)
    said = cause(play)
    assert '"Ask the service": non-zero return code: It is broken. And the guest could not be taken back: ' in said
    assert "Its snapshot guarded-change is left." in said
    assert "guarded_change_resume=revert" in said
    assert {**result(play), "cause": ""} == {"outcome": "failed", "cause": "", "snapshot": "guarded-change"}
    assert virsh("snapshot-list", NAME, "--name").split() == ["guarded-change"]
    assert guarded.written() == {"changed"}
    virsh("blockjob", NAME, "vdb", "--abort")

    refused = guarded.run(tasks=guarded.writing("repeated"), checks=PASS)
    assert "was not begun: An earlier run was interrupted" in cause(refused)
    assert {**result(refused), "cause": ""} == {"outcome": "unchanged", "cause": "", "snapshot": "guarded-change"}
    assert refused.changed() == []
    assert guarded.written() == {"changed"}

    ended = guarded.run(tasks=PASS, guarded_change_resume="revert")
    assert ended.rc == 0, ended.output
    assert result(ended) == {"outcome": "kept", "cause": "", "snapshot": ""}
    member.guest.wait()
    assert guarded.written() == set()
    member.hypervisor.exec(["rm", "-f", COPY])
    before.assert_normal_end(sets=0, rebooted=True)


def test_a_snapshot_that_cannot_be_deleted(guarded: Guarded) -> None:
    """The change is kept, and the next run deletes the snapshot unasked."""
    member = guarded.member
    before = Before.of(member)
    play = guarded.run(tasks=guarded.writing("changed"), checks=JOB)
    said = cause(play)
    assert "succeeded and is kept, but its snapshot guarded-change could not be deleted" in said
    assert {**result(play), "cause": ""} == {"outcome": "kept", "cause": "", "snapshot": "guarded-change"}
    member.hypervisor.virsh("blockjob", NAME, "vdb", "--abort")
    member.hypervisor.exec(["rm", "-f", COPY])

    again = guarded.run(tasks=guarded.writing("repeated"), checks=PASS)
    assert again.rc == 0, again.output
    guarded.wait_for_write("repeated")
    assert guarded.written() == {"changed", "repeated"}
    before.assert_normal_end(sets=0)


def test_a_merge_that_is_denied_while_the_guest_runs(guarded: Guarded) -> None:
    """As AppArmor does: what the message tells to do while the guest is off ends it."""
    member = guarded.member
    before, virsh = Before.of(member), member.hypervisor.virsh
    bases = [member.hypervisor.outside(path) for path in member.guest.disk_paths().values()]
    running = guarded.play(
        tasks=guarded.writing("changed"), checks=UNNAMED, gate="Merge the external snapshot", pipelining=True
    )
    running.reach_gate()
    subprocess.run(["chattr", "+i", *bases], check=True)
    try:
        running.open_gate()
        said = cause(running.end())
    finally:
        subprocess.run(["chattr", "-i", *bases], check=True)
    assert 'failed at "ansible.builtin.shell": non-zero return code: It is broken. The guest is as it was' in said
    assert "could not be deleted" in said
    assert ".." not in said
    (command,) = re.findall(r'run "(ansible .*?)", and start it again', said)
    assert f"virsh shutdown {NAME}" in said
    virsh("destroy", NAME)
    ended = guarded.controller.by_hand(command)
    assert ended.returncode == 0, ended.stdout
    assert "No snapshot guarded-change of guarded is left." in ended.stdout
    member.boot()
    assert guarded.written() == set()
    before.assert_normal_end(sets=0, rebooted=True)


@KINDS
def test_a_controller_that_dies(guarded: Guarded, kind: str) -> None:
    """In the middle of the change: refused the next time, and kept or undone as the user says."""
    before = Before.of(guarded.member)
    running = guarded.play(
        tasks=guarded.writing("changed"), checks=PASS, gate="Look at the change", guarded_change_kind=kind
    )
    running.reach_gate()
    running.kill()
    guarded.wait_for_write("changed")

    refused = guarded.run(tasks=guarded.writing("repeated"), guarded_change_kind=kind)
    assert "was not begun: An earlier run was interrupted" in cause(refused)
    resume = {"external": "keep", "internal": "revert"}[kind]
    ended = guarded.run(tasks=guarded.writing("repeated"), guarded_change_kind=kind, guarded_change_resume=resume)
    assert ended.rc == 0, ended.output
    guarded.wait_for_write("repeated")
    assert guarded.written() == {"repeated"} | ({"changed"} if resume == "keep" else set())
    before.assert_normal_end(sets=0, rebooted=resume == "revert")


def test_a_snapshot_of_somebody_else(guarded: Guarded) -> None:
    """It is never taken for one of the role's."""
    virsh = guarded.member.hypervisor.virsh
    virsh("snapshot-create-as", NAME, "guarded-change", "--disk-only")
    chains = guarded.member.facts()
    play = guarded.run(tasks=guarded.writing("changed"), guarded_change_resume="revert")
    assert "that this role did not take" in cause(play)
    assert guarded.member.facts() == chains
