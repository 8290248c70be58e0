# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A hypervisor loses its power in the middle of a backup: once it is back, the unit of the role heals its guests."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import pytest
from conftest import in_parallel
from fleet import Member, images, locks, until
from playbook import Controller
from virtlab import Disk, Hypervisor, Lab, lost

HOST = "e2eboot"
UNIT = "/etc/systemd/system/virtops-libvirt-recover.service"
INSTALL = """
- name: Prepare the hypervisors
  hosts: "{{ target }}"
  gather_facts: false
  roles:
    - role: virtops.libvirt.hypervisor
      hypervisor_update_cache: false
      hypervisor_recover_at_boot: true
"""


@pytest.fixture(scope="module")
def host(lab: Lab) -> Iterator[Hypervisor]:
    """A hypervisor that may lose its power."""
    lab.down([HOST])
    lab.up([HOST])
    yield lab.hypervisor(HOST)
    lab.down([HOST])


@pytest.fixture(scope="module")
def controller(host: Hypervisor, lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Controller:
    """The machine that Ansible runs on."""
    return Controller(tmp_path_factory.mktemp("controller"), [host.name], lab)


def run_unit(host: Hypervisor) -> tuple[int, dict[str, str]]:
    """Run what systemd would; the exit code, and what it says of each guest."""
    lines = host.outside(UNIT).read_text(encoding="utf-8").splitlines()
    settings = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    command = ["env", "-C", "/", *shlex.split(settings["Environment"]), *shlex.split(settings["ExecStart"])]
    done = host.exec(command, check=False, timeout=300)
    return done.returncode, dict(line.split(": ", 1) for line in done.stdout.splitlines())


def test_power_loss_in_the_middle_of_a_backup(host: Hypervisor, controller: Controller) -> None:
    """One guest starts again by itself and is merged live, the other is off and is merged offline."""
    book = controller.folder / "install.yml"
    book.write_text(INSTALL, encoding="utf-8")
    installed = controller.run(playbook=str(book), target=host.name)
    assert installed.rc == 0, installed.output
    disks = (Disk("vda", size_mib=64, fill_mib=24), Disk("vdb", size_mib=32, format="raw"))
    members = {name: Member(host.guest(name), disks) for name in ("auto", "manual")}
    for member in members.values():
        member.define()
    host.virsh("autostart", "auto")
    in_parallel(Member.boot, members.values())
    facts = {name: member.facts() for name, member in members.items()}
    before = images(host)
    assert run_unit(host) == (0, dict.fromkeys(members, "nothing to do"))
    assert {name: member.facts() for name, member in members.items()} == facts

    play = controller.start(target=host.name, live_backup_rate_limit=1, live_backup_quiesce="never")
    until("copies under way", lambda: all(member.partial() for member in members.values()), 120)
    marks = {name: member.guest.mark() for name, member in members.items()}
    host.powerloss()
    play.kill()
    host.up()
    members["auto"].guest.wait()
    assert images(host) != before
    assert all(member.facts().journal for member in members.values())

    code, said = run_unit(host)
    assert code == 0, said
    assert all(line.startswith("healed: ") for line in said.values()), said
    assert "offline" not in said["auto"]
    assert "offline" in said["manual"]
    for name, member in members.items():
        found = member.facts()
        assert (found.persistent, found.snapshots, found.journal, found.jobs) == (facts[name].persistent, [], False, [])
    assert images(host) == before
    assert locks(host) == []
    assert run_unit(host) == (0, dict.fromkeys(members, "nothing to do"))

    # The backup is made anew by the next run, which removes what the interrupted one had written
    members["manual"].boot()
    assert all(member.partial() for member in members.values())
    again = controller.run(target=host.name)
    assert again.rc == 0, again.output
    for name, member in members.items():
        assert member.leftovers() == []
        (found_set,) = member.sets()
        found_set.check(member.targets, marks[name])
        last = member.guest.mark()
        member.guest.shutdown(timeout=60)
        reports = member.guest.read_all()
        assert all(report.is_clean for report in reports.values())
        for mark in (marks[name], last):
            assert lost([report.journal for report in reports.values()], mark) == []
