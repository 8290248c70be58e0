# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A stateful domain and host, so that flows are tested by the state they leave and the calls they made."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any
from xml.etree import ElementTree

from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.journal import Journal
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import (
    BlockJob,
    Creation,
    Disk,
    DomainView,
    FileIdentity,
    Hold,
    ImageInfo,
    Layer,
    OtherImages,
    Signature,
    SnapshotDisk,
    SnapshotRecord,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._core.snapshot import SnapshotOptions
from ansible_collections.virtops.libvirt.plugins.module_utils._core.xml import (
    build_journal,
    build_snapshot,
    parse_journal,
    parse_snapshot,
    snapshot_images,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._service.guest import Guest
from ansible_collections.virtops.libvirt.plugins.module_utils._service.snapshot import ExternalSnapshot

UNREADABLE = VirtopsError("journal_unreadable", "The journal cannot be read: its schema is 99", "Remove it")


class Died(BaseException):
    """The process was killed: nothing after the call runs, not even a handler of errors."""


@dataclass
class FakeClock:
    """Time passes only when somebody waits."""

    seconds: float = 0.0

    def utcnow(self) -> str:
        return "20261120T120000Z"

    def boot(self) -> str:
        return "boot-1"

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


@dataclass
class FakeWatchdog:
    """Remembers what it would let go of."""

    hold: Hold | None = None
    seconds: int = 0
    calls: list[str] = field(default_factory=list)

    @property
    def armed(self) -> bool:
        return self.hold is not None

    def arm(self, uuid: str, seconds: int, hold: Hold) -> None:
        self.hold, self.seconds = hold, seconds
        self.calls.append("arm")

    def disarm(self) -> None:
        self.hold = None
        self.calls.append("disarm")


class FakeImages:
    """Images by path: (format, backing path); `links` are other names of one, which are paths of their own here."""

    def __init__(self, backing: dict[str, tuple[str, str | None]]) -> None:
        self.backing = dict(backing)
        self.folders = {"/img"}
        self.read_only: set[str] = set()
        self.unreadable: set[str] = set()
        self.closed: set[str] = set()
        self.extents: dict[str, tuple[int, int]] = {}
        self.shared_folders: set[str] = set()
        self.dirty: set[str] = set()
        self.open_by: dict[str, tuple[int, ...]] = {}
        self.fail: dict[str, VirtopsError] = {}
        self.written: dict[str, int] = {}
        self.free = 1 << 40
        self.times: dict[str, int] = {}
        self.links: dict[str, str] = {}
        self.same = False
        self.while_copying: Callable[[], None] = lambda: None
        self.kinds: dict[str, str] = {}
        self.written_to: set[str] = set()
        self.without_locks: set[str] = set()
        self.infos: dict[str, ImageInfo] = {}
        self.signatures: dict[str, Signature] = {}
        self.calls: list[str] = []

    def _call(self, name: str, *arguments: str) -> None:
        self.calls.append(" ".join((name, *arguments)))
        if name in self.fail:
            raise self.fail[name]

    def info(self, path: str, image_format: str | None = None) -> ImageInfo:
        if path in self.infos:
            return self.infos[path]
        image, backing = self.backing[path]
        if image_format == "qcow2" != image:
            raise VirtopsError("image_failed", "%s is not in qcow2 format" % path, "Name an image")
        return ImageInfo(path, image, 1 << 30, 1 << 20, backing, self.backing.get(backing or "", (None,))[0])

    def chain(self, path: str, image_format: str | None = None) -> tuple[Layer, ...]:
        self._may_be_read(path)
        image, backing = self.backing[path]
        return (Layer(path, image),) + (self.chain(backing) if backing else ())

    def below(self, image: Layer) -> Layer | None:
        self._may_be_read(image.path)
        backing = self.backing[image.path][1]
        return None if backing is None else Layer(backing, self.backing.get(backing, ("raw",))[0])

    def _may_be_read(self, path: str) -> None:
        if path in self.unreadable:
            raise VirtopsError("image_failed", "Reading the image %s failed" % path, "Mend it.")

    def create_overlay(self, path: str, base: Layer, virtual_size: int, user: int | None = None) -> None:
        self._call("create_overlay", path)
        assert path not in self.backing
        self.backing[path] = ("qcow2", base.path)

    def holds_data(self, path: str) -> bool:
        return path in self.dirty

    def commit(self, top: Layer, base: Layer, check: Callable[[], None] | None = None) -> None:
        self._call("commit", top.path, base.path)
        self._take_time(check)
        self.written[base.path] = self.written.get(base.path, 0) + 1

    def rebase(self, path: str, base: Layer | None, check: Callable[[], None] | None = None) -> None:
        self._call("rebase", path, base.path if base else "-")
        self._take_time(check)
        self.backing[path] = (self.backing[path][0], base.path if base else None)

    def _take_time(self, check: Callable[[], None] | None) -> None:
        self.while_copying()
        if check is not None:
            check()

    def rebase_unsafe(self, path: str, base: Layer) -> None:
        self._call("rebase_unsafe", path, base.path)
        self.backing[path] = (self.backing[path][0], base.path)

    def keep_time(self, path: str, mtime_ns: int) -> None:
        self.times[path] = mtime_ns

    def identity(self, path: str) -> FileIdentity:
        return FileIdentity("", self._inode(path), 1 << 20, self.times.get(path, self.written.get(path, 0)))

    def another_name(self, path: str) -> str:
        """As a symlink gives one."""
        name = "/elsewhere" + path
        self.backing[name], self.links[name] = self.backing[path], path
        return name

    def file_key(self, path: str) -> tuple[int, int] | None:
        return (1, self._inode(path)) if self.exists(path) else None

    def _inode(self, path: str) -> int:
        return zlib.crc32(self.links.get(path, path).encode())

    def same_content(self, one: Layer, other: Layer) -> bool:
        self._call("same_content", one.path, other.path)
        return self.same

    def exists(self, path: str) -> bool:
        return path in self.backing

    def kind(self, path: str) -> str:
        return self.kinds.get(path, "file") if self.exists(path) else "missing"

    def signature(self, path: str) -> Signature:
        if path in self.signatures or not self.exists(path) or self.kind(path) == "block":
            return self.signatures.get(path, Signature(self.kind(path)))
        image, backing = self.backing[path]
        if image == "memory":
            return Signature("memory", domain="uuid-1")
        return Signature(image if image == "qcow2" else "other", backing)

    def is_directory(self, path: str) -> bool:
        return path in self.folders

    def names(self, directory: str) -> tuple[str, ...]:
        found = [path.rpartition("/") for path in sorted(self.backing)]
        return tuple(name for folder, _slash, name in found if folder == directory)

    def is_writable(self, path: str) -> bool:
        return path not in self.read_only

    def may_enter(self, directory: str, user: int, group: int) -> bool:
        return directory not in self.closed

    def extent(self, device: str, virtual_size: int) -> tuple[int, int] | None:
        return self.extents.get(device)

    def others_write(self, folder: str) -> bool:
        return folder in self.shared_folders

    def free_bytes(self, directory: str) -> int:
        return self.free

    def size_bytes(self, directory: str) -> int:
        return 1 << 41

    def holders(self, path: str) -> tuple[int, ...]:
        return self.open_by.get(path, ())

    def is_being_written(self, path: str) -> bool:
        return path in self.written_to

    def is_lockable(self, path: str) -> bool:
        return path not in self.without_locks

    def remove(self, path: str) -> None:
        self._call("remove", path)
        self.backing.pop(path, None)


class FakeDomain:
    """A domain whose chains change as libvirt changes them. `fail[call]` is raised by that call.

    `die_before` and `die_after` name a call around which the process is killed.
    """

    def __init__(self, images: FakeImages, disks: list[Disk], state: str = "running") -> None:
        self.images = images
        self.live = {disk.target: disk for disk in disks}
        self.config = {disk.target: disk.chain[:1] for disk in disks}
        self.state = state
        self.agent = "connected"
        self.frozen = False
        self.filesystems = 2
        self.records: dict[str, SnapshotRecord] = {}
        self.texts: dict[str, str] = {}
        self.version = 9_000_000
        self.readonly = False
        self.journal: str | None = None
        self.lasting_journal: str | None = None
        self.others = OtherImages(frozenset())
        self.fail: dict[str, VirtopsError] = {}
        self.die_in_save = False
        self.die_before: str | None = None
        self.die_after: str | None = None
        self.ticks_until_ready = 2
        self.refuse_pivots = 0
        self.jobs_vanish = False
        self.never_ready = False
        self.tunes: dict[str, dict[str, int]] = {}
        self.paused_by: str | None = None
        self.persistent = True
        self.saved = False
        self.moved = False
        self.job_ends_at: float | None = None
        self.created: list[Creation] = []
        self.dead = False
        self.commits: dict[str, tuple[str, str]] = {}
        self.listens = False
        self.seen = ""
        self.calls: list[str] = []

    def _call(self, name: str, *arguments: object) -> None:
        if self.dead or self.die_before == name:
            self.dead = True
            raise Died(name)
        self.calls.append(" ".join([name, *map(str, arguments)]))
        if name in self.fail:
            raise self.fail[name]

    def _done(self, name: str) -> None:
        if self.die_after == name:
            self.dead = True
            raise Died(name)

    def revive(self) -> None:
        """Another process takes its place."""
        self.dead = self.die_in_save = False
        self.die_before = self.die_after = None

    def end(self) -> None:
        """QEMU ends, and with it what only the running domain has."""
        self.state, self.frozen, self.journal = "shut off", False, self.lasting_journal

    # -- reading

    def view(self) -> DomainView:
        active = self.state != "shut off"
        assert not (active and self.saved)
        disks = tuple(
            disk if active else replace(disk, chain=self.config[name], job=None) for name, disk in self.live.items()
        )
        config = tuple(replace(disk, chain=self.config[name], job=None) for name, disk in self.live.items())
        return DomainView(
            "vm",
            "uuid-1",
            self.state,
            self.persistent,
            disks,
            config,
            self.agent,
            journal_found=parse_journal(self.journal),
            paused_by=self.paused_by if self.state == "paused" else None,
            memory_bytes=1 << 28,
            saved=self.saved,
            moved=self.moved,
        )

    def has_job(self) -> bool:
        """libvirt works until then."""
        return self.job_ends_at is not None and self.clock.monotonic() < self.job_ends_at

    def snapshot(self, name: str) -> SnapshotRecord | None:
        return self.records.get(name)

    def snapshots(self) -> tuple[SnapshotRecord, ...]:
        return tuple(self.records.values())

    def current_snapshot(self) -> str | None:
        return next(reversed(self.records), None)

    def domain_xml(self, secrets: bool = True) -> str:
        return "<domain/>"

    def snapshot_xmls(self, secure: bool) -> tuple[str, ...]:
        if secure and self.readonly:
            raise VirtopsError("libvirt_failed", "A read-only connection tells no secrets.", "Ask for none.")
        return tuple(self.texts.get(name) or _record_xml(record, {}) for name, record in self.records.items())

    def libvirt_version(self) -> int:
        return self.version

    def other_images(self) -> OtherImages:
        return self.others

    # -- journal and records

    def write_journal(self, journal: Journal, lasting: bool = True) -> None:
        self._call("write_journal")
        self.journal = build_journal(journal)
        if lasting:
            self.lasting_journal = self.journal
        self._done("write_journal")

    def delete_snapshot_record(self, name: str, children: str = "keep") -> None:
        self._call("delete_snapshot_record", name)
        gone = self.records.pop(name)
        self.texts.pop(name, None)
        for child in [record for record in self.records.values() if record.parent == name]:
            self._keep(replace(child, parent=gone.parent), snapshot_images(self.texts.get(child.name, "<x/>")))
        self._done("delete_snapshot_record")

    def redefine_snapshot(self, xml: str, current: bool, validate: bool) -> None:
        record = parse_snapshot(xml)
        self._call("redefine_snapshot", record.name)
        self.records[record.name], self.texts[record.name] = record, xml
        self._done("redefine_snapshot")

    def _keep(self, record: SnapshotRecord, images: dict[str, Layer]) -> None:
        self.records[record.name] = record
        self.texts[record.name] = _record_xml(record, images)

    def delete_snapshot(self, name: str, children: str) -> None:
        self._call("delete_snapshot", name, children)
        del self.records[name]

    # -- snapshots

    def agent_ping(self, seconds: int) -> None:
        self._call("agent_ping")
        if self.frozen:
            raise VirtopsError("already_frozen", "It is frozen.", "Thaw it.")

    def freeze(self, seconds: int) -> int:
        self._call("freeze")
        self.frozen = True
        self._done("freeze")
        return self.filesystems

    def thaw(self, seconds: int) -> int:
        self._call("thaw")
        count = self.filesystems if self.frozen else 0
        self.frozen = False
        return count

    def create_snapshot(self, xml: str, how: Creation) -> None:
        self.created.append(how)
        self._call("create_snapshot")
        record = replace(parse_snapshot(xml), parent=self.current_snapshot())
        images = {name: disk.chain[0] for name, disk in self.live.items() if disk.chain}
        assert how.memory == (record.memory == "external")
        if record.memory_file is not None:
            self.images.backing[record.memory_file] = ("memory", None)
        if self.die_in_save:
            self.dead = True
            raise Died("create_snapshot")
        assert {disk.target for disk in record.disks} == set(self.live), "libvirt snapshots what is not named"
        for disk in record.disks:
            if disk.mode == "external":
                assert disk.file is not None
                assert self.images.exists(disk.file) == how.reuse, "REUSE_EXT needs the overlay, libvirt makes no other"
                self._switch(disk)
        if how.metadata:
            self._keep(record, images)
        if how.halt:
            self.state, self.frozen = "shut off", False
        self._done("create_snapshot")

    def _switch(self, disk: SnapshotDisk) -> None:
        layer = Layer(disk.file or "", "qcow2")
        old = self.live[disk.target]
        below = old.chain or (() if old.remote is None else (old.remote,))
        self.images.backing.setdefault(layer.path, ("qcow2", below[0].path))
        self.live[disk.target] = replace(old, chain=(layer, *below), source_type="file", remote=None)
        # As libvirt 9.0: the persistent XML then has the whole chain, and keeps it when a lower layer is merged.
        self.config[disk.target] = (layer, *below)

    # -- brakes

    def watch_activity(self) -> None:
        self.listens = True

    def activity(self) -> str:
        assert self.listens
        return self.seen

    def io_tune(self, disk: str) -> dict[str, int]:
        self._call("io_tune", disk)
        return dict(self.tunes.get(disk, {"total_bytes_sec": 0, "read_bytes_sec": 0, "write_bytes_sec": 0}))

    def set_io_tune(self, disk: str, limits: dict[str, int]) -> None:
        self._call("set_io_tune", disk, limits["write_bytes_sec"])
        self.tunes[disk] = dict(limits)
        self._done("set_io_tune")

    def suspend(self) -> None:
        self._call("suspend")
        self.state, self.paused_by = "paused", "user"
        self._done("suspend")

    def resume(self) -> None:
        self._call("resume")
        self.state, self.paused_by = "running", None

    @property
    def held(self) -> bool:
        return self.state != "running" or any(limits["write_bytes_sec"] for limits in self.tunes.values())

    # -- merges

    def start_pull(self, disk: str, base: str | None, bandwidth: int, relative: bool) -> None:
        self._call("start_pull", disk, base, bandwidth)
        self.live[disk] = replace(self.live[disk], job=BlockJob("pull", 0, 0, bandwidth))
        self.commits[disk] = (base or "", "")
        self._done("start_pull")

    def start_commit(self, disk: str, base: str, top: str, active: bool, bandwidth: int, relative: bool) -> None:
        self._call("start_commit", disk, top, base, bandwidth)
        job = BlockJob("active-commit" if active else "commit", 0, 0, bandwidth, False, base if active else None)
        self.live[disk] = replace(self.live[disk], job=job)
        self.commits[disk] = (base, top)
        self._done("start_commit")

    def pivot(self, disk: str) -> None:
        self._call("pivot", disk)
        if self.refuse_pivots:
            self.refuse_pivots -= 1
            raise VirtopsError("not_ready", "Not ready.", "Wait.")
        job = self.live[disk].job
        assert job is not None
        assert job.ready
        self._merge(disk, job.target or "", None)
        self._done("pivot")

    def set_job_speed(self, disk: str, bandwidth: int) -> None:
        self._call("set_job_speed", disk, bandwidth)
        job = self.live[disk].job
        assert job is not None
        self.live[disk] = replace(self.live[disk], job=replace(job, bandwidth=bandwidth))

    def cancel_job(self, disk: str) -> None:
        self._call("cancel_job", disk)
        self.live[disk] = replace(self.live[disk], job=None)

    def set_config_disks(self, layers: dict[str, Layer]) -> None:
        self._call("set_config_disks", *layers)
        for target, layer in layers.items():
            self.config[target] = (layer,)
            if self.state == "shut off":
                self.live[target] = replace(self.live[target], chain=self.images.chain(layer.path))

    def wait_event(self, seconds: float) -> None:
        self.clock.sleep(seconds)
        self.ticks_until_ready -= 1
        if self.ticks_until_ready > 0:
            return
        for target, disk in list(self.live.items()):
            if disk.job is None:
                continue
            if self.jobs_vanish:
                self.live[target] = replace(disk, job=None)
            elif disk.job.kind == "active-commit" and self.never_ready and not self.slow_enough(target):
                job = replace(disk.job, cur=disk.job.cur + (1 << 20), end=disk.job.cur + (9 << 20))
                self.live[target] = replace(disk, job=job)
            elif disk.job.kind == "active-commit":
                self.live[target] = replace(disk, job=replace(disk.job, cur=10, end=10, ready=True))
            elif disk.job.kind == "pull":
                base = disk.index_of(self.commits[target][0])
                below = () if base is None else disk.chain[base:]
                self.live[target] = replace(disk, chain=disk.chain[:1] + below, job=None)
                self.images.rebase(disk.chain[0].path, below[0] if below else None)
            elif disk.job.kind == "commit":
                self._merge(target, *self.commits[target])

    clock: FakeClock

    def slow_enough(self, target: str) -> bool:
        """Does the guest leave the job the time to catch up? A test says when."""
        return self.state != "running"

    def _merge(self, target: str, base: str, top: str | None) -> None:
        disk = self.live[target]
        first = disk.index_of(top) if top else 0
        last = disk.index_of(base)
        assert first is not None
        assert last is not None
        self.images.written[base] = self.images.written.get(base, 0) + 1
        self.live[target] = replace(disk, chain=disk.chain[:first] + disk.chain[last:], job=None)
        if first == 0:
            self.config[target] = disk.chain[last:]
        else:
            self.images.rebase_unsafe(disk.chain[first - 1].path, disk.chain[last])


def _record_xml(record: SnapshotRecord, images: dict[str, Layer]) -> str:
    """A record as libvirt shows it, with the images of its moment."""
    root = ElementTree.fromstring(build_snapshot(record.name, record.description, record.disks))
    for tag, value in (("state", record.state), ("creationTime", str(record.creation_time))):
        ElementTree.SubElement(root, tag).text = value
    if record.memory_file is not None:
        ElementTree.SubElement(root, "memory", snapshot=record.memory, file=record.memory_file)
    if record.parent is not None:
        ElementTree.SubElement(ElementTree.SubElement(root, "parent"), "name").text = record.parent
    devices = ElementTree.SubElement(ElementTree.SubElement(root, "domain"), "devices")
    for target, layer in images.items():
        disk = ElementTree.SubElement(devices, "disk", type="file", device="disk")
        ElementTree.SubElement(disk, "driver", name="qemu", type=layer.format)
        ElementTree.SubElement(disk, "source", file=layer.path)
        ElementTree.SubElement(disk, "target", dev=target)
    return ElementTree.tostring(root, encoding="unicode")


def running_guest() -> tuple[FakeDomain, FakeImages, FakeClock, FakeWatchdog]:
    """vda raw, vdb qcow2 on a golden image, sda an empty cdrom."""
    images = FakeImages(
        {"/img/a.raw": ("raw", None), "/img/b.qcow2": ("qcow2", "/img/golden.raw"), "/img/golden.raw": ("raw", None)}
    )
    disks = [
        Disk("vda", chain=images.chain("/img/a.raw")),
        Disk("vdb", chain=images.chain("/img/b.qcow2")),
        Disk("sda", device="cdrom", readonly=True),
    ]
    domain = FakeDomain(images, disks)
    clock = FakeClock()
    domain.clock = clock
    return domain, images, clock, FakeWatchdog()


class FakeLab:
    """A running guest on its own images, and what works on it."""

    def __init__(self) -> None:
        self.domain, self.images, self.clock, self.watchdog = running_guest()

    @property
    def guest(self) -> Guest[Any]:
        return Guest(self.domain, self.images, self.clock, self.watchdog)

    @property
    def journal(self) -> Journal:
        return parse_journal(self.domain.journal)

    @property
    def tops(self) -> dict[str, str]:
        return {name: disk.chain[0].path for name, disk in self.domain.live.items() if disk.chain}

    def snapshot(self, name: str, kind: str = "snapshot", **wish: Any) -> None:
        ExternalSnapshot(SnapshotOptions(name, kind=kind, **wish), self.guest).run(False)
        self.domain.calls.clear()
        self.images.calls.clear()
