# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""One normal run of the playbook over two hypervisors with three guests each, judged from outside."""

from __future__ import annotations

import json
import stat
from dataclasses import dataclass
from xml.etree import ElementTree

import pytest
from conftest import every_guest, in_parallel
from fleet import Facts, Member, Set, carry, chains, images, locks, sha256
from playbook import GUESTS_PLAYS, VERIFY, Controller, Play
from virtlab import BACKUP, IMAGES, Hypervisor, Mark, lost

GOLDEN = f"{IMAGES}/golden/base.qcow2"


@dataclass(frozen=True)
class Seen:
    """What was there at one moment, by guest or hypervisor."""

    marks: dict[str, Mark]
    facts: dict[str, Facts]
    images: dict[str, set[str]]
    #: A module that an earlier test killed has left its own
    locks: dict[str, list[str]]
    golden: str


@dataclass(frozen=True)
class Run:
    """The run, and the moments before and after it."""

    before: Seen
    play: Play
    after: Seen


def look(fleet: dict[str, Member], hypervisors: list[Hypervisor]) -> Seen:
    """Look at everything."""
    marks = in_parallel(lambda member: member.guest.mark(), fleet.values())
    facts = in_parallel(Member.facts, fleet.values())
    return Seen(
        marks=dict(zip(fleet, marks, strict=True)),
        facts=dict(zip(fleet, facts, strict=True)),
        images={hypervisor.name: images(hypervisor) for hypervisor in hypervisors},
        locks={hypervisor.name: locks(hypervisor) for hypervisor in hypervisors},
        golden=sha256(hypervisors[0].outside(GOLDEN)),
    )


@pytest.fixture(scope="module")
def run(fleet: dict[str, Member], hypervisors: list[Hypervisor], controller: Controller) -> Run:
    """The normal run, as Ansible connects where nothing is configured."""
    before = look(fleet, hypervisors)
    play = controller.run("--forks", "4", pipelining=False)
    return Run(before, play, look(fleet, hypervisors))


def the_set(member: Member) -> Set:
    """Return the guest's only set."""
    (found,) = member.sets()
    return found


def test_play_succeeds(run: Run) -> None:
    """No task fails, for no guest."""
    assert run.play.rc == 0, run.play.output
    assert [item for item in run.play.results if item.status not in ("ok", "skipped")] == []


def test_every_guest_is_a_host(run: Run, fleet: dict[str, Member]) -> None:
    """Guests of one name on two hypervisors are two hosts."""
    assert run.play.guests() == set(fleet)


@every_guest
def test_few_tasks(run: Run, member: Member) -> None:
    """Each task costs the controller time, skipped ones too. Two compare the variables with what they may be, and the
    user has no tasks of his own."""
    tasks = [(item.task, item.status) for item in run.play.of(member.alias)]
    assert len(tasks) == 4, tasks
    assert tasks[-1] == ("Let your own tasks copy, and merge", "skipped")


@every_guest
def test_report_line(run: Run, member: Member) -> None:
    """The closing report has one line for each guest, which says where its backup is."""
    line = run.play.report()[member.alias]
    assert f"backed up to {the_set(member).folder}" in line
    assert "filesystem-consistent" in line


@every_guest
def test_guest_as_before(run: Run, member: Member) -> None:
    """It ran throughout; its chains, live and persistent, are as before; no record, journal or job is left."""
    before, after = run.before.facts[member.alias], run.after.facts[member.alias]
    assert after == before
    assert before.boot_id
    assert (after.snapshots, after.journal, after.jobs) == ([], False, [])


@every_guest
def test_guest_wrote_on(run: Run, member: Member) -> None:
    """Each disk has newer records than before, durable in the guest's own eyes."""
    before, after = run.before.marks[member.alias].acked, run.after.marks[member.alias].acked
    assert before.keys() == after.keys() == member.targets
    assert all(after[target].seq > before[target].seq for target in before)


def test_no_file_left(run: Run) -> None:
    """Neither overlays nor locks."""
    assert run.after.images == run.before.images
    assert run.after.locks == run.before.locks


def test_golden_image_untouched(run: Run, fleet: dict[str, Member]) -> None:
    """Two guests stand on it; not one of its bytes has changed."""
    assert run.after.golden == run.before.golden
    for alias in ("web1@e2e1", "web2@e2e1"):
        assert run.after.facts[alias].live["vda"] == [f"{IMAGES}/{fleet[alias].guest.name}/vda.qcow2", GOLDEN]


@every_guest
def test_skipped_disks(run: Run, member: Member) -> None:
    """Disks that no snapshot can hold are left alone, and the result says why."""
    (result,) = run.play.of(member.alias, "live_backup")
    reasons = {item["disk"]: item["reason"] for item in result.result["skipped_disks"]}
    assert reasons.keys() == member.skipped.keys()
    assert all(word in reasons[target] for target, word in member.skipped.items())


@every_guest
def test_backup_set(run: Run, member: Member) -> None:
    """The set is whole, it stands alone, its file systems are clean, and it lacks no durable record."""
    found = the_set(member)
    found.check(member.targets, run.before.marks[member.alias])
    manifest = found.manifest
    assert manifest["domain"]["name"] == member.guest.name
    assert manifest["hypervisor"] == member.hypervisor.name
    assert manifest["consistency"] == "filesystem"
    sources = {disk["target"]: disk["source"] for disk in manifest["disks"]}
    assert sources == {target: run.before.facts[member.alias].live[target][0] for target in member.targets}


@every_guest
def test_backup_was_frozen(run: Run, member: Member) -> None:
    """A file system that was frozen for the snapshot needs no journal replay; else "filesystem" was a lie."""
    found = the_set(member)
    for disk in found.manifest["disks"]:
        assert not found.read(disk["file"]).needs_recovery


@every_guest
def test_domain_xml_names_the_images(run: Run, member: Member) -> None:
    """The definition in the set is the one without the snapshot, and without the journal."""
    xml = the_set(member).path("domain.xml").read_text(encoding="utf-8")
    persistent = run.before.facts[member.alias].persistent
    assert chains(ElementTree.fromstring(xml)) == persistent
    assert "virtops" not in xml


@every_guest
def test_backup_folders(run: Run, member: Member) -> None:
    """An image holds all that the guest knows, so nobody else may look; and no partial set is left."""
    found = the_set(member)
    assert stat.S_IMODE(found.path().stat().st_mode) == 0o700
    assert stat.S_IMODE(found.path().parent.stat().st_mode) == 0o700
    assert member.leftovers() == []


@pytest.mark.parametrize("alias", ["db@e2e1", "web2@e2e1"])
def test_restore(run: Run, fleet: dict[str, Member], hypervisors: list[Hypervisor], alias: str) -> None:
    """On another hypervisor, which has nothing but the set, the guest boots and has its records."""
    origin, other = fleet[alias], hypervisors[1]
    found = the_set(origin)
    for disk in found.manifest["disks"]:
        target = other.outside(disk["source"])
        other.exec(["mkdir", "-p", "-m", "711", str(target.parent).removeprefix(str(other.outside("")))])
        carry(found.path(disk["file"]), target)
    xml = found.path("domain.xml").read_text(encoding="utf-8")
    other.virsh("define", "/dev/stdin", stdin=xml)
    restored = other.guest(origin.guest.name)
    try:
        restored.start()
        assert restored.agent_answers()
        restored.shutdown()
        reports = restored.read_all()
        assert reports.keys() == origin.targets
        assert all(report.is_clean for report in reports.values())
        assert lost([report.journal for report in reports.values()], run.before.marks[alias]) == []
    finally:
        restored.cleanup()
        folders = {disk["source"].rpartition("/")[0] for disk in found.manifest["disks"]}
        other.exec(["rm", "-rf", *folders])


def test_guests_lost_nothing(run: Run, fleet: dict[str, Member]) -> None:
    """The guests' own disks, read after a shutdown: no record is missing or torn, whatever happened in between."""

    def lost_by(member: Member) -> list[str]:
        mark = member.guest.mark()
        member.guest.shutdown(timeout=60)
        reports = member.guest.read_all()
        member.boot()
        assert all(report.is_clean for report in reports.values())
        return lost([report.journal for report in reports.values()], run.after.marks[member.alias]) + lost(
            [report.journal for report in reports.values()], mark
        )

    assert in_parallel(lost_by, fleet.values()) == [[]] * len(fleet)


def test_second_run_makes_a_second_set(run: Run, fleet: dict[str, Member], controller: Controller) -> None:
    """`--limit`, a serial and another strategy work per guest; others are left alone; the first set stays."""
    first = {alias: the_set(member) for alias, member in fleet.items()}
    play = controller.run(
        *("--limit", "e2e1:web*@e2e1"), live_backup_strategy="ansible.builtin.linear", live_backup_serial=1
    )
    assert play.rc == 0, play.output
    assert play.guests() == {"web1@e2e1", "web2@e2e1"}
    for alias, member in fleet.items():
        sets = [found.folder for found in member.sets()]
        assert sets[0] == first[alias].folder
        assert len(sets) == (2 if alias in play.guests() else 1)
    # One after another: the first guest's merge has ended before the second's snapshot begins
    order = [item.host for item in play.results if item.play in GUESTS_PLAYS and item.host in play.guests()]
    assert order == sorted(order, key=order.index)


def test_target_guests_exclude(run: Run, fleet: dict[str, Member], controller: Controller) -> None:
    """The play's own variables choose the hypervisors and the guests. The policy holds for these, and is a text."""
    before = {alias: [found.folder for found in member.sets()] for alias, member in fleet.items()}
    play = controller.run(
        target="second",
        guests=["web?", "[of]*"],
        exclude=["odd*"],
        live_backup_keep_last="1",
        live_backup_keep_daily="",
    )
    assert play.rc == 0, play.output
    assert play.guests() == {"web1@e2e2", "files@e2e2"}
    after = {alias: [found.folder for found in member.sets()] for alias, member in fleet.items()}
    assert {alias for alias in fleet if after[alias] != before[alias]} == play.guests()
    for alias in play.guests():
        assert len(after[alias]) == 1
        assert after[alias][0] not in before[alias]
        line = play.report()[alias]
        assert after[alias][0] in line
        assert line.endswith(f", {len(before[alias])} older removed, 1 kept")


def test_a_damaged_set_is_named_and_only_its_guest_is_backed_up_again(
    run: Run, fleet: dict[str, Member], controller: Controller
) -> None:
    """Every set is read, on both hypervisors, after one was found to be damaged. A play with max_age then makes up for
    that one alone."""
    before = {alias: [found.folder for found in member.sets()] for alias, member in fleet.items()}
    (damaged,) = fleet["db@e2e1"].sets()
    names = {
        f"{member.guest.name}/{folder.rpartition('/')[2]}@{member.hypervisor.name}": folder
        for alias, member in fleet.items()
        for folder in before[alias]
    }
    image = damaged.path(damaged.manifest["disks"][-1]["file"])
    with image.open("r+b") as file:
        file.seek(70000)
        old = file.read(1)
        file.seek(70000)
        file.write(bytes([old[0] ^ 1]))

    play = controller.run(playbook=VERIFY, verify_dest=BACKUP)
    assert play.rc != 0
    lines = {line.split(": ", 1)[0]: line for line in play.lines()}
    assert names.keys() <= lines.keys()
    assert [names[name] for name in names if ": whole (" not in lines[name]] == [damaged.folder]
    (line,) = [line for line in lines.values() if "DAMAGED" in line]
    assert image.name in line
    assert f"Not whole: {damaged.folder}." in play.output
    noted = [json.loads((member.sets()[0].path("notes.json")).read_text())["verified"] for member in fleet.values()]
    assert [note["ok"] for note in noted] == [member.alias != "db@e2e1" for member in fleet.values()]

    play = controller.run(live_backup_max_age=86400)
    assert play.rc == 0, play.output
    grown = [alias for alias, member in fleet.items() if len(member.sets()) > len(before[alias])]
    assert grown == ["db@e2e1"]
    report = play.report()
    assert [alias for alias in fleet if ": up to date, no new backup. " not in report[alias]] == grown
    assert {item.host for item in play.results if item.result.get("changed")} == set(grown)


def test_verify_fails_where_there_is_nothing_to_verify(
    run: Run, fleet: dict[str, Member], controller: Controller
) -> None:
    """What was asked for is named; and a value that cannot be meant is one before anything is read."""
    play = controller.run("--check", playbook=VERIFY, verify_dest=BACKUP, verify_guests="web2, typo", target="e2e1")
    assert play.rc != 0
    assert "No backup set is there of typo." in play.output
    assert [line for line in play.lines() if line.startswith("web2/") and "would be verified" in line]
    play = controller.run(playbook=VERIFY, verify_dest=BACKUP, verify_newest="perhaps", target="e2e1")
    assert play.rc != 0
    (line,) = play.lines()
    assert line.startswith("e2e1: FAILED. A variable has a value that cannot be meant, and nothing was read: ")
