# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a guest and its hypervisor were at one moment, and that after a fault and a run all of it is so again."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from xml.etree import ElementTree

from fleet import Facts, Member, images, locks, sha256, until
from virtlab import Hypervisor, Mark, lost

#: Programs that a run starts on a hypervisor: modules, the watchdog, copiers.
PROGRAMS = ("python3", "qemu-img", "qemu-io", "qemu-nbd")


@dataclass(frozen=True)
class Before:
    """One moment before the fault: what must be so again in the end."""

    member: Member
    mark: Mark
    facts: Facts
    live: str
    persistent: str
    images: set[str]
    sets: frozenset[str]

    @classmethod
    def of(cls, member: Member) -> Before:
        """Look at a guest that runs and is well."""
        facts = member.facts()
        assert (facts.snapshots, facts.journal, facts.jobs) == ([], False, [])
        sets = frozenset(found.folder for found in member.sets())
        live, persistent = map(comparable, facts.xml)
        return cls(member, member.guest.mark(), facts, live, persistent, images(member.hypervisor), sets)

    def assert_normal_end(
        self,
        *,
        rebooted: bool = False,
        sets: int | None = 1,
        marks: Iterable[Mark] = (),
        newest: Mark | None = None,
    ) -> None:
        """The guest as before and writing, `sets` new complete ones (None: at least one), and nothing else at all.

        `rebooted`: the fault ended the guest, so it has another boot ID. `marks`: later moments whose records it was
        promised, too. `newest`: a moment that the last of the sets has to hold.
        """
        member = self.member
        self.assert_guest_as_before(rebooted=rebooted)
        assert images(member.hypervisor) == self.images
        until("the end of our processes", lambda: processes(member.hypervisor) == [], 15, every=0.2)
        assert locks(member.hypervisor) == []
        assert member.leftovers() == []
        new = [found for found in member.sets() if found.folder not in self.sets]
        assert len(new) == (max(1, len(new)) if sets is None else sets)
        for found in new:
            found.check(member.targets, self.mark, *([newest] if newest and found is new[-1] else []))
        self.assert_nothing_lost(marks)

    def assert_guest_as_before(self, *, rebooted: bool = False) -> None:
        """Chains, both definitions, no record, no journal, no job; and it runs, neither frozen nor throttled."""
        member = self.member
        facts = member.facts()
        assert facts.state == "running"
        expected = replace(self.facts, boot_id=facts.boot_id, id=facts.id) if rebooted else self.facts
        # What the persistent XML says below the layer that the guest writes to, libvirt itself reads from the images
        assert replace(facts, persistent=tops(facts)) == replace(expected, persistent=tops(expected))
        assert [disk for disk, chain in facts.persistent.items() if chain != facts.live[disk][: len(chain)]] == []
        live, persistent = map(comparable, facts.xml)
        assert difference(self.persistent, persistent) == []
        assert "<metadata/>" not in facts.xml[1]
        if not rebooted:
            assert difference(self.live, live) == []
        self.assert_writes()

    def assert_writes(self, seconds: float = 20) -> None:
        """Each disk gets new durable records."""
        guest, targets = self.member.guest, self.member.targets
        now = guest.mark().acked

        def has_written() -> bool:
            later = guest.mark().acked
            return later.keys() == targets and all(later[t].seq > (now[t].seq if t in now else 0) for t in targets)

        until(f"new records of {self.member.alias}", has_written, seconds, every=0.1)

    def assert_nothing_lost(self, marks: Iterable[Mark] = ()) -> None:
        """The guest reads back from its disks, not from its memory, each record that it was promised."""
        guest = self.member.guest
        latest = guest.mark()
        guest.command("echo 3 >/proc/sys/vm/drop_caches")
        journals = guest.journals()
        assert journals.keys() == self.member.targets
        for mark in (self.mark, *marks, latest):
            assert lost(journals.values(), mark) == []


def tops(facts: Facts) -> dict[str, list[str]]:
    """Return what the persistent XML names as each disk's source."""
    return {disk: chain[:1] for disk, chain in facts.persistent.items()}


def sha256_of(hypervisor: Hypervisor, path: str) -> str:
    """Return the digest of a file of a hypervisor."""
    return sha256(hypervisor.outside(path))


def comparable(xml: str) -> str:
    """Return a definition without what changes by itself: the names that libvirt gives, and layers, which Facts has."""
    domain = ElementTree.fromstring(xml)
    for device in domain.iterfind("devices/*"):
        for alias in device.findall("alias"):  # not all of them come back after a restart of libvirtd
            device.remove(alias)
    for disk in domain.iterfind("devices/disk"):
        for backing in disk.findall("backingStore"):
            disk.remove(backing)
        for source in disk.iter("source"):
            source.attrib.pop("index", None)
    for metadata in domain.findall("metadata"):
        if len(metadata) == 0:  # libvirt leaves the element where the last thing in it was removed
            domain.remove(metadata)
    for element in domain.iter():
        element.text = (element.text or "").strip()
        element.tail = None
    ElementTree.indent(domain)
    return ElementTree.tostring(domain, encoding="unicode")


def difference(before: str, after: str) -> list[str]:
    """Return the lines that are not the same."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), "before", "after", lineterm="", n=1)
    return list(lines)


def processes(hypervisor: Hypervisor) -> list[str]:
    """Return the processes on the hypervisor that only a run starts, with their arguments."""
    said = hypervisor.exec(["ps", "-eo", "comm=,pid=,args="]).stdout
    return [line for line in said.splitlines() if line.split()[0] in PROGRAMS]


def all_lost_nothing(befores: Iterable[Before]) -> None:
    """At the very end: the guests off, their images read, file systems and records whole."""
    for before in befores:
        guest = before.member.guest
        mark = guest.mark()
        guest.shutdown(mode="agent" if before.member.agent else "acpi", timeout=60)
        reports = guest.read_all()
        assert reports.keys() == before.member.targets
        assert [(target, report.fsck) for target, report in reports.items() if not report.is_clean] == []
        for moment in (before.mark, mark):
            assert lost([report.journal for report in reports.values()], moment) == []
