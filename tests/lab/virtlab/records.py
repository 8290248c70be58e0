# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading back what the guest's writers witnessed: see guest/writer.c for the record."""

from __future__ import annotations

import re
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ._sys import LabError, run

SIZE = 64
_LAYOUT = struct.Struct("<8sQQQ16s8sII")
_MAGIC = b"VOREC01\n"


@dataclass(frozen=True)
class Record:
    """One record; times in nanoseconds of the guest's clocks (boot_ns stands still while the virtual CPU does)."""

    disk: str
    seq: int
    boot_id: bytes
    boot_ns: int
    real_ns: int

    @classmethod
    def parse(cls, data: bytes) -> Record | None:
        """The record in these 64 bytes, or None if they hold no whole one."""
        if len(data) != SIZE or zlib.crc32(data[: SIZE - 4]) != int.from_bytes(data[SIZE - 4 :], "little"):
            return None
        magic, seq, boot_ns, real_ns, boot_id, disk, _unused, _ignored1 = _LAYOUT.unpack(data)
        if magic != _MAGIC:
            return None
        return cls(disk.rstrip(b"\0").decode(), seq, boot_id, boot_ns, real_ns)


@dataclass(frozen=True)
class Mark:
    """A moment of a guest: its clock, the host's, and the newest record of each disk that was durable by then."""

    host_ns: int
    guest_ns: int
    acked: dict[str, Record]

    def paused_ms(self, later: Mark) -> float:
        """How much longer the host waited than the guest noticed: time that the virtual CPU stood still."""
        return ((later.host_ns - self.host_ns) - (later.guest_ns - self.guest_ns)) / 1e6


@dataclass(frozen=True)
class Journal:
    """The records of one disk, in the order of the file; record N stands at index N - 1 or is missing."""

    disk: str
    records: tuple[Record, ...]
    torn: int

    @classmethod
    def parse(cls, data: bytes, disk: str = "") -> Journal:
        """Zeros at the end are room not yet used, and broken bytes there were never confirmed: neither is torn."""
        data = data.rstrip(b"\0")
        parsed = [Record.parse(data[at : at + SIZE].ljust(SIZE, b"\0")) for at in range(0, len(data), SIZE)]
        while parsed and parsed[-1] is None:
            parsed.pop()
        whole = tuple(record for record in parsed if record is not None)
        return cls(whole[0].disk if whole else disk, whole, len(parsed) - len(whole))

    @property
    def first(self) -> int:
        return self.records[0].seq if self.records else 0

    @property
    def last(self) -> int:
        return self.records[-1].seq if self.records else 0

    @property
    def missing(self) -> int:
        """How many numbers from 1 to the last are not there."""
        return self.last - len({record.seq for record in self.records})

    def holds(self, acked: Record) -> bool:
        """Is this very record here (not merely one with its number, which a forked disk would have too)?"""
        at = acked.seq - 1 - self.missing_before(acked.seq)
        return 0 <= at < len(self.records) and self.records[at] == acked

    def missing_before(self, seq: int) -> int:
        """Normally 0, so that `holds` is a look-up; counted when records are missing."""
        if self.missing == 0:
            return 0
        return seq - 1 - sum(1 for record in self.records if record.seq < seq)

    def longest_stall_ms(self, start: Mark | None = None, end: Mark | None = None) -> float:
        """The longest gap between two durable records, from one mark to another if given; 0 if there are no two.

        A record is stamped after its predecessor became durable and before it is written itself, so a write that
        hangs shows as the gap that follows it. A gap that reaches across a mark counts in full, and the time that a
        guest was off does not count.
        """
        first = start.acked[self.disk].seq if start else 0
        last = end.acked[self.disk].seq if end else self.last
        gaps = [
            after.boot_ns - before.boot_ns
            for before, after in zip(self.records, self.records[1:], strict=False)
            if first <= before.seq <= last and before.boot_id == after.boot_id
        ]
        return max(gaps, default=0) / 1e6

    def summary(self) -> dict[str, str | int | float]:
        return {
            "disk": self.disk,
            "records": len(self.records),
            "first": self.first,
            "last": self.last,
            "missing": self.missing,
            "torn": self.torn,
            "boots": len({record.boot_id for record in self.records}),
            "longest_stall_ms": round(self.longest_stall_ms(), 1),
        }


class BlankImage(LabError):
    """The image carries no file system, and was made so."""


@dataclass(frozen=True)
class ImageReport:
    """What an image holds, found without mounting it.

    `needs_recovery`: its ext4 journal had to be replayed, as after a power cut; a frozen or unmounted one needs not.
    `is_clean`: e2fsck finds nothing to mend after that.
    """

    journal: Journal
    needs_recovery: bool
    is_clean: bool
    fsck: str


def read_image(image: Path, scratch: Path, convert: Callable[[Path, Path], None] | None = None) -> ImageReport:
    """Examine a copy of an image (its backing chain included); the image itself is only read.

    `convert` writes the image as raw: an image inside a hypervisor names its backing files by that host's paths.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        raw = Path(folder) / "image.raw"
        (convert or to_raw)(image, raw)
        with raw.open("rb") as handle:
            if not handle.read(65536).strip(b"\0"):
                raise BlankImage(f"{image} is blank")
        head = run(["dumpe2fs", "-h", raw]).stdout
        needs_recovery = re.search(r"^Filesystem features:.*\bneeds_recovery\b", head, re.MULTILINE) is not None
        if needs_recovery:
            run(["e2fsck", "-y", "-E", "journal_only", raw], check=False, timeout=600)
        fsck = run(["e2fsck", "-f", "-n", raw], check=False, timeout=600)
        records = Path(folder) / "records.bin"
        run(["debugfs", "-R", f"dump /records.bin {records}", raw])
        data = records.read_bytes() if records.exists() else b""
    return ImageReport(Journal.parse(data), needs_recovery, fsck.returncode == 0, (fsck.stdout + fsck.stderr).strip())


def to_raw(image: Path, raw: Path) -> None:
    run(["qemu-img", "convert", "-O", "raw", image, raw], timeout=1800)


def lost(reports: Iterable[Journal], mark: Mark) -> list[str]:
    """The disks that do not hold what the guest had been promised by then; every disk of the mark must be there."""
    by_disk = {journal.disk: journal for journal in reports}
    if missing := mark.acked.keys() - by_disk.keys():
        raise LabError(f"no records were read of {', '.join(sorted(missing))}")
    return [
        f"{disk}: record {acked.seq} was confirmed; the image ends at {by_disk[disk].last}"
        for disk, acked in sorted(mark.acked.items())
        if not by_disk[disk].holds(acked) or by_disk[disk].missing or by_disk[disk].torn
    ]
