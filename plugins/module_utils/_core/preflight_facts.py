# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: what a preflight knows of a hypervisor and its guests, and the form of its results."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .backup import CopyOrder
from .errors import VirtopsError
from .extras import Lack
from .job_state import JobState
from .journal import Journal, Operation
from .model import DomainView, Layer, SnapshotRecord
from .snapshot import SkippedDisk

OK, WARNING, FAILED = "ok", "warning", "failed"

#: What is looked at, in the order in which results tell it.
JOURNAL, STATE, CAPABILITIES, DISKS, IMAGES, CHAIN, JOBS, AGENT = (
    "journal",
    "state",
    "capabilities",
    "disks",
    "images",
    "chain",
    "jobs",
    "agent",
)
OVERLAY_SPACE, BASE_GROWTH, TARGET, APPARMOR, DEFINITION, CHECKPOINTS, SHARED, OVERLAYS, EXTRAS = (
    "overlay_space",
    "base_growth",
    "target",
    "apparmor",
    "definition",
    "checkpoints",
    "shared",
    "overlays",
    "extras",
)


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `error_code` is the word that the modules themselves would fail with."""

    check: str
    status: str
    message: str
    disk: str | None = None
    remedy: str | None = None
    error_code: str | None = None


@dataclass(frozen=True)
class Reserve:
    """The space that each disk's overlay is to find, in percent of the disk or in MiB."""

    amount: int
    percent: bool

    def of(self, virtual_size: int) -> int:
        """In bytes. An overlay never holds more than its disk."""
        wanted = virtual_size * self.amount // 100 if self.percent else self.amount * 1024 * 1024
        return min(wanted, virtual_size)


@dataclass(frozen=True)
class Limits:
    """What counts as ready. `operation` is the kind of operation that the run would resume. Not `own_copy`: the user's
    own tasks copy, wherever that may be."""

    max_chain: int
    reserve: Reserve
    quiesce: str
    operation: str
    own_copy: bool = True


@dataclass(frozen=True)
class FileSystem:
    """`device` is st_dev, `path` something on it, `free` what may still be written, in bytes."""

    device: int
    path: str
    free: int


@dataclass(frozen=True)
class Capabilities:
    """What libvirt says of the host: virConnectGetCapabilities and virConnectGetLibVersion."""

    disk_snapshots: bool
    libvirt_version: int
    security_models: frozenset[str] = frozenset()
    qemu_ids: tuple[int, int] | None = None


@dataclass(frozen=True)
class Refusal:
    """An error that a module would raise, found while looking."""

    check: str
    error: VirtopsError
    disk: str | None = None


@dataclass(frozen=True)
class DiskFacts:
    """A disk that would be snapshotted, or of a guest that is off: copied as it is.

    `overlay_fs` is None where it needs no overlay, `base_fs` for a block device, which cannot grow, and where nothing
    is merged. `loose`: no lock keeps the guest from writing to the base while it is off.

    `shared_with` are other domains that have the base in a chain; `order` is None where it was refused. `left` are
    overlays, as snapshots of this disk make them, that stand on the base, are in no chain and hold data. `extent` is
    where a qcow2 on a block device ends, and where the device does; None: nothing can lack. `bitmaps` are in the base.
    Into `open_folders`, of the base or the overlay, others than root may write.
    """

    target: str
    chain: tuple[Layer, ...]
    virtual_size: int
    allocation: int
    overlay_fs: FileSystem | None
    base_fs: FileSystem | None = None
    order: CopyOrder | None = None
    shared_with: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    extent: tuple[int, int] | None = None
    bitmaps: tuple[str, ...] = ()
    open_folders: tuple[str, ...] = ()
    loose: bool = False

    @property
    def base(self) -> Layer:
        return self.chain[0]


@dataclass(frozen=True)
class GuestFacts:
    """Everything that is known of one guest.

    `job` is virDomainGetJobStats' operation, `checkpoints` their number (None: unknown), `incremental` whether block
    jobs keep them, `reclaimed` the bytes on the target that unfinished sets of this guest hold, `denied` the images
    that AppArmor lets it not write to. `agent` is None where it answered, or was not asked. `unseen` are other domains
    whose chains nobody can tell, and why. `lacks` is what its sets will not hold, `beside` the bytes of what they hold
    besides images. `at_work` is the job of this collection that works on it.
    """

    view: DomainView
    journal: Journal = field(default_factory=Journal)
    skipped: tuple[SkippedDisk, ...] = ()
    disks: tuple[DiskFacts, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    job: str | None = None
    checkpoints: int | None = 0
    incremental: bool = True
    agent: VirtopsError | None = None
    target: FileSystem | None = None
    reclaimed: int = 0
    denied: frozenset[str] = frozenset()
    unseen: tuple[tuple[str, str], ...] = ()
    lacks: tuple[Lack, ...] = ()
    beside: int = 0
    at_work: JobState | None = None


class HostPort(Protocol):
    """What a preflight asks of libvirt."""

    def domains(self) -> tuple[DomainView, ...]:
        """virConnectListAllDomains, by name."""

    def records(self, uuid: str, wanted: Callable[[str], bool]) -> tuple[SnapshotRecord, ...]:
        """virDomainListAllSnapshots, and virDomainSnapshotGetXMLDesc of those with a wanted name."""

    def capabilities(self) -> Capabilities:
        """virConnectGetCapabilities, virConnectGetLibVersion."""

    def job(self, uuid: str) -> str | None:
        """virDomainGetJobStats: the operation of the job that runs on the whole domain."""

    def checkpoints(self, uuid: str) -> int | None:
        """virDomainListAllCheckpoints; None where this libvirt has no such call."""

    def keeps_checkpoints(self, uuid: str) -> bool:
        """virConnectGetDomainCapabilities, `<backup>`: without it libvirt refuses snapshots beside checkpoints."""

    def deaf_agents(self, views: Sequence[DomainView], seconds: int) -> dict[str, VirtopsError]:
        """Ask the agents of all these, at the same time: by UUID, why one does not answer within `seconds`."""


def parse_reserve(text: str) -> Reserve:
    """10% or, in MiB, 2048."""
    found = re.fullmatch(r"\s*(\d+)\s*(%?)\s*", text)
    if found is None or (found[2] and int(found[1]) > 100):
        raise VirtopsError(
            "bad_option", "overlay_reserve is %r" % text, "Give a number of MiB, or percent of the disk as '10%'"
        )
    return Reserve(int(found[1]), bool(found[2]))


def denied_writes(rules: str) -> frozenset[str]:
    """The paths that the rules of virt-aa-helper, libvirt-UUID.files, deny writes to: `deny "/path" w,`."""
    return frozenset(re.findall(r'^\s*(?:audit\s+)?deny\s+"([^"]+)"\s+\w*w\w*,', rules, flags=re.MULTILINE))


def resumed(guest: GuestFacts, limits: Limits) -> Operation | None:
    """The interrupted operation that the run would finish first, whatever else is wrong with the guest."""
    return next((op for op in guest.journal.operations if op.open and op.kind == limits.operation), None)


def is_fresh(guest: GuestFacts, limits: Limits) -> bool:
    """Does a run begin with it as it is now? Of any other, what there is now says nothing."""
    return guest.at_work is None and resumed(guest, limits) is None


def refused(check: str, error: VirtopsError, status: str, disk: str | None = None) -> Check:
    """What a module would fail with."""
    return Check(check, status, error.cause, disk, error.remedy, error.code)


def failed(check: str, code: str, message: str, remedy: str, disk: str | None = None) -> Check:
    """What would fail only later, or leave the guest worse off."""
    return Check(check, FAILED, message, disk, remedy, code)


def warning(check: str, code: str, message: str, remedy: str, disk: str | None = None) -> Check:
    """What a human should weigh."""
    return Check(check, WARNING, message, disk, remedy, code)
