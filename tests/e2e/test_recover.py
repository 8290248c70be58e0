# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A hypervisor full of differently broken guests: the playbook heals what can be healed, once, and names the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from conftest import in_parallel
from fleet import Facts, Member, images, kill_jobs, locks, until
from playbook import RECOVER, Controller, Play, RunningPlay
from virtlab import Disk, Hypervisor, Lab, Mark, lost

JOURNAL_URI = "https://virtops.github.io/xmlns/libvirt/journal/1"
COPIED, MERGED, FROZEN, DESTROYED, FOREIGN, HEALTHY = (
    f"rec-{kind}" for kind in ("copied", "merged", "frozen", "destroyed", "foreign", "healthy")
)
NAMES = (COPIED, MERGED, FROZEN, DESTROYED, FOREIGN, HEALTHY)
HEALED = (COPIED, MERGED, FROZEN, DESTROYED)


@dataclass(frozen=True)
class Broken:
    """The guests, what each was before it was broken, and what each had been promised by then."""

    members: dict[str, Member]
    facts: dict[str, Facts]
    marks: dict[str, Mark]
    images: set[str]
    controller: Controller

    def recover(self, *arguments: str) -> Play:
        """Run the playbook on the guests of these tests."""
        return self.controller.run(*arguments, playbook=RECOVER, target=self.hypervisor.name, guests=["rec-*"])

    def line(self, play: Play, name: str) -> str:
        """Return what the closing report says of a guest."""
        (line,) = [line for line in play.lines() if line.startswith(f"{self.members[name].alias}: ")]
        return line.partition(": ")[2]

    @property
    def hypervisor(self) -> Hypervisor:
        """Return where they all run."""
        return self.members[HEALTHY].hypervisor

    def assert_at_rest(self, name: str) -> None:
        """It is as it was before it was broken, whether or not it runs."""
        member, before = self.members[name], self.facts[name]
        found = member.facts()
        assert (found.persistent, found.snapshots, found.journal, found.jobs) == (before.persistent, [], False, [])
        assert images(self.hypervisor) & {path for path in images(self.hypervisor) if f"/{name}.vda." in path} == set()
        if name != DESTROYED:
            assert found == before

    def assert_nothing_lost(self, name: str) -> None:
        """Its disks hold what it was promised before it was broken."""
        guest = self.members[name].guest
        if guest.state() == "running":
            guest.shutdown(timeout=60)
        reports = guest.read_all()
        assert all(report.is_clean for report in reports.values())
        assert lost([report.journal for report in reports.values()], self.marks[name]) == []


@pytest.fixture(scope="module")
def broken(hypervisors: list[Hypervisor], lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broken]:
    """Break each of them but one."""
    host = hypervisors[0]
    members = {name: Member(host.guest(name), (Disk("vda", size_mib=64, fill_mib=24),), rate=2) for name in NAMES}
    for member in members.values():
        member.define()
    try:
        in_parallel(Member.boot, members.values())
        facts = {name: member.facts() for name, member in members.items()}
        before = images(host)
        controllers = [Controller(tmp_path_factory.mktemp(f"controller{n}"), [host.name], lab) for n in range(3)]
        kill_in_copy(controllers[0], [members[COPIED], members[FOREIGN]])
        kill_in_merge(controllers[1], [members[MERGED], members[DESTROYED]])
        marks = {name: member.guest.mark() for name, member in members.items()}
        members[DESTROYED].guest.destroy()
        # Somebody flattens the chain: the base that the journal names is in it no more
        host.virsh("blockpull", FOREIGN, "vda", "--wait")
        freeze_prepared(members[FROZEN])
        yield Broken(members, facts, marks, before, controllers[2])
    finally:
        for member in members.values():
            member.guest.cleanup()


def kill_in_copy(controller: Controller, members: list[Member]) -> None:
    """Kill a run while it copies the bases of all of them."""
    play = controller.start(*only(members), live_backup_rate_limit=1, live_backup_quiesce="never")
    until("copies under way", lambda: all(member.partial() for member in members) or ended(play), 120)
    play.kill()
    kill_jobs(members[0].hypervisor)


def kill_in_merge(controller: Controller, members: list[Member]) -> None:
    """Kill a run while QEMU merges the overlays of all of them."""
    play = controller.start(
        *only(members), live_backup_rate_limit=4, live_backup_bandwidth=1, live_backup_quiesce="never"
    )
    until("snapshots", lambda: all(member.phase() == "created" for member in members) or ended(play), 120)
    for member in members:
        member.guest.command("dd if=/mnt/vda/fill.bin of=/mnt/vda/copy.bin bs=1M count=12 conv=fsync", timeout=120)

    def merging(member: Member) -> bool:
        if member.phase() != "committing":
            return False
        return "Commit" in member.hypervisor.virsh("blockjob", member.guest.name, "vda", "--raw")

    until("jobs under way", lambda: all(map(merging, members)) or ended(play), 120)
    play.kill()
    kill_jobs(members[0].hypervisor)


def ended(play: RunningPlay) -> bool:
    """Whether a play is over, which a kill then says."""
    return play.process.poll() is not None


def only(members: list[Member]) -> tuple[str, str]:
    """Return the option that limits a play to these guests."""
    return "--limit", ",".join([members[0].hypervisor.name, *(member.alias for member in members)])


def freeze_prepared(member: Member) -> None:
    """Leave what a module leaves whose watchdog was killed with it: the intention, and a frozen guest."""
    (path,) = member.guest.disk_paths().values()
    name = member.guest.name
    operation = (
        "<operation id='2f1c0d6e-8a53-4d8e-9a55-0c9f2b8f7d11' kind='live_backup' name='dead'"
        f" phase='prepared' started='20261120T120000Z'><disk target='vda' base='{path}' base_format='qcow2'"
        f" overlay='{path}.dead.qcow2'/>"
    )
    for where, hold in (("--config", ""), ("--live", "<hold suspended='no' frozen='yes'/>")):
        journal = f"<journal schema='1'>{operation}{hold}</operation></journal>"
        member.hypervisor.virsh(*("metadata", name, f"--uri={JOURNAL_URI}", "--key=virtops", where, f"--set={journal}"))
    member.hypervisor.exec(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", path, f"{path}.dead.qcow2"])
    member.hypervisor.virsh("domfsfreeze", name)


def test_broken_guests(broken: Broken) -> None:
    """The first run heals, the second changes nothing, and what needs a human is named with its words both times."""
    untouched = broken.members[HEALTHY].facts()
    first = broken.recover()
    assert first.rc != 0, first.output
    for name in HEALED:
        assert broken.line(first, name).startswith("healed: "), first.output
        broken.assert_at_rest(name)
    assert "thaw the file systems" in broken.line(first, FROZEN)
    assert "offline" in broken.line(first, DESTROYED)
    assert broken.members[DESTROYED].guest.state() == "shut off"
    assert broken.line(first, HEALTHY) == "nothing to do"
    assert broken.members[HEALTHY].facts() == untouched
    refusal = broken.line(first, FOREIGN)
    assert refusal.startswith("NEEDS A HUMAN (chain_changed): The overlay ")
    assert "block_info" in refusal
    assert broken.members[FOREIGN].facts().journal
    assert {item.split("(")[-1] for item in first.changed()} == {f"{broken.members[name].alias})" for name in HEALED}

    second = broken.recover()
    assert second.rc != 0
    assert second.changed() == []
    assert [broken.line(second, name) for name in HEALED] == ["nothing to do"] * len(HEALED)
    assert broken.line(second, FOREIGN) == refusal
    # Of a copy that was killed: each is only a file, which the next copy takes over
    assert [name for name in locks(broken.hypervisor) if not name.startswith("copy-")] == []
    for name in HEALED:
        broken.assert_nothing_lost(name)


def test_healthy_fleet(broken: Broken) -> None:
    """Once the human has decided, nothing is open, and nothing is changed; --limit has nothing to leave out."""
    broken.hypervisor.virsh("metadata", FOREIGN, f"--uri={JOURNAL_URI}", "--live", "--config", "--remove", check=False)
    facts = {name: member.facts() for name, member in broken.members.items()}
    play = broken.recover("--limit", broken.hypervisor.name)
    assert play.rc == 0, play.output
    assert play.changed() == []
    assert sorted(line.partition(": ")[2] for line in play.lines()) == ["nothing to do"] * len(NAMES)
    assert {name: member.facts() for name, member in broken.members.items()} == facts
    # A guest may be called like a host of the inventory, and gets that one's variables
    told = "Guests with the name of a host of your inventory"
    assert told not in play.output
    alias = broken.members[HEALTHY].alias
    same = broken.recover("-i", f"{alias},", "--limit", broken.hypervisor.name)
    assert same.rc == 0, same.output
    assert [alias in line for line in same.output.splitlines() if told in line] == [True]
