# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller is killed in the middle of a run; then the same play again ends as a normal one does."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from fleet import Facts, Member, images, locks, until
from playbook import Controller, Play, RunningPlay
from virtlab import Disk, Hypervisor, Mark, lost

# Slow enough for a kill in the middle, in MiB/s: of a disk with 40 MiB of data, and of an overlay with 12 MiB at least.
COPY_RATE = 4
MERGE_RATE = 1
DIRTY_MIB = 12


@dataclass(frozen=True)
class Victim:
    """A guest whose run is interrupted, and what it was before."""

    member: Member
    controller: Controller
    mark: Mark
    facts: Facts
    images: set[str]

    def start(self, *, pipelining: bool = False, copy_rate: int = COPY_RATE) -> RunningPlay:
        """Start the play."""
        return self.controller.start(
            *("--limit", f"{self.member.hypervisor.name}:{self.member.alias}"),
            pipelining=pipelining,
            live_backup_rate_limit=copy_rate,
            live_backup_bandwidth=MERGE_RATE,
        )

    def kill_when(self, play: RunningPlay, what: str, is_so: Callable[[], bool]) -> None:
        """Kill the controller at a moment that is seen from outside."""
        until(what, lambda: is_so() or play.process.poll() is not None, 120)
        play.kill()

    def copied_mib(self) -> float:
        """Return how much of the set under way is written."""
        folder = self.member.partial()
        if folder is None:
            return 0
        try:
            return sum(entry.stat().st_blocks for entry in folder.iterdir()) * 512 / (1 << 20)
        except FileNotFoundError:
            return 0

    def overlays(self) -> set[str]:
        """Return the images that were not there before."""
        return images(self.member.hypervisor) - self.images

    def merging(self) -> bool:
        """Whether QEMU copies the first disk's overlay into its base right now."""
        if self.member.phase() != "committing":
            return False
        return "Commit" in self.member.hypervisor.virsh("blockjob", self.member.guest.name, "vda", "--raw")

    def assert_normal_end(self, play: Play) -> None:
        """One complete set, nothing else, and the guest as it was."""
        assert play.rc == 0, play.output
        assert "backed up to" in play.report()[self.member.alias]
        assert self.member.leftovers() == []
        (found,) = self.member.sets()
        found.check(self.mark, self.member.targets)
        assert self.member.facts() == self.facts
        assert not self.facts.journal
        assert images(self.member.hypervisor) == self.images
        assert locks(self.member.hypervisor) == []

    def assert_nothing_lost(self) -> None:
        """The guest's own disks hold what it was promised, up to the very end."""
        guest = self.member.guest
        mark = guest.mark()
        assert all(mark.acked[target].seq > self.mark.acked[target].seq for target in self.member.targets)
        guest.shutdown(timeout=60)
        reports = guest.read_all()
        self.member.boot()
        assert all(report.is_clean for report in reports.values())
        for moment in (self.mark, mark):
            assert lost([report.journal for report in reports.values()], moment) == []


@pytest.fixture(scope="module")
def big(hypervisors: list[Hypervisor]) -> Iterator[Member]:
    """A guest with enough data to be interrupted."""
    member = Member(hypervisors[0].guest("big"), (Disk("vda", size_mib=96, format="raw", fill_mib=40), Disk("vdb")))
    member.define()
    member.boot()
    yield member
    member.guest.cleanup()


@pytest.fixture
def victim(big: Member, controller: Controller) -> Iterator[Victim]:
    """The guest, running and without a backup."""
    big.guest.write(rate=20)
    yield Victim(big, controller, big.guest.mark(), big.facts(), images(big.hypervisor))
    for found in big.sets():
        big.hypervisor.exec(["rm", "-rf", found.folder])


def test_killed_during_the_copy(victim: Victim) -> None:
    """The bases are untouched, so the next run finishes the backup of the same moment."""
    member = victim.member
    victim.kill_when(victim.start(), "a copy under way", lambda: victim.copied_mib() > 4)
    partial = member.partial()
    assert partial is not None
    assert member.sets() == []
    assert member.phase() == "created"
    assert len(victim.overlays()) == 2
    _assert_private(victim)

    victim.assert_normal_end(victim.start().end())
    # The set is the interrupted snapshot's: its time is what the partial folder was named after
    assert [f".{found.folder.rpartition('/')[2]}.partial" for found in member.sets()] == [partial.name]
    victim.assert_nothing_lost()


def test_killed_during_the_merge(victim: Victim) -> None:
    """The next run adopts QEMU's job, and does not copy the base again, which is no longer the snapshot."""
    member = victim.member
    play = victim.start()
    until("the snapshot", lambda: member.phase() == "created", 60)
    copy = f"dd if=/mnt/vda/fill.bin of=/mnt/vda/copy.bin bs=1M count={DIRTY_MIB} conv=fsync"
    member.guest.command(f"{copy}; rm /mnt/vda/copy.bin", timeout=120)
    assert member.phase() == "created", "the copy ended before the guest had written; make it slower"
    victim.kill_when(play, "a job under way", victim.merging)
    (finished,) = member.sets()
    made = finished.path().stat().st_ino
    assert member.phase() == "committing"
    assert victim.overlays()

    victim.assert_normal_end(victim.start().end())
    assert [found.path().stat().st_ino for found in member.sets()] == [made]
    victim.assert_nothing_lost()


def test_killed_between_snapshot_and_copy(victim: Victim) -> None:
    """The guest is on its overlays, and no copy was begun."""
    member = victim.member
    victim.kill_when(victim.start(), "the snapshot", lambda: member.phase() == "created")
    assert (member.sets(), member.leftovers()) == ([], [])
    assert member.phase() == "created"
    assert len(victim.overlays()) == 2

    victim.assert_normal_end(victim.start().end())
    victim.assert_nothing_lost()


def test_killed_while_the_module_works_on(victim: Victim) -> None:
    """With pipelining, a module does not notice that its controller is gone: the next run waits for it."""
    member = victim.member
    slow = 1
    orphaned = victim.start(pipelining=True, copy_rate=slow)
    victim.kill_when(orphaned, "a copy under way", lambda: victim.copied_mib() > 1)
    partial = member.partial()
    assert partial is not None
    began = victim.copied_mib()

    again = victim.start(pipelining=True, copy_rate=slow)
    # It is the first run's module that goes on: the second run has not begun anything when the copy grows
    until("growth of the orphan's copy", lambda: victim.copied_mib() > began + 2, 60)
    assert "Take the snapshot" not in again.output.read_text(encoding="utf-8")
    victim.assert_normal_end(again.end())
    assert [f".{found.folder.rpartition('/')[2]}.partial" for found in member.sets()] == [partial.name]


def _assert_private(victim: Victim) -> None:
    """Overlays and images under way hold all that the guest knows: nobody else may read them."""
    folder = victim.member.partial()
    assert folder is not None
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(entry.stat().st_mode) for entry in folder.iterdir()} == {0o600}
    root = victim.member.hypervisor.outside("/var/lib/libvirt/images")
    assert {stat.S_IMODE((root / name).stat().st_mode) for name in victim.overlays()} == {0o600}
