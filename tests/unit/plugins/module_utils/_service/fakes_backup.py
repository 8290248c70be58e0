# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A stateful domain, its images and a store of backup sets, for the flow of a backup."""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from ansible_collections.virtops.libvirt.plugins.module_utils._core.backup import (
    DIGESTS,
    Copied,
    CopyOrder,
    Run,
    SetPaths,
    Told,
    Unfinished,
    Verified,
    VerifyOrder,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._core.backup_set import under_way
from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.journal import (
    CREATED,
    KEPT,
    Journal,
    JournalDisk,
    Operation,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._core.manifest import parse_digests
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import (
    Disk,
    DomainView,
    FileIdentity,
    ImageInfo,
    Layer,
)

UUID = "1b4e28ba-2fa1-11d2-883f-0016d3cca427"
TARGETS = ("vda", "vdb")
#: 2026-11-20 11:59:00 UTC, the last write to the bases.
WRITTEN = 1795175940


def base(target: str) -> Layer:
    return Layer("/img/%s.raw" % target, "raw")


def overlay(target: str) -> Layer:
    return Layer("/img/%s.s1.qcow2" % target, "qcow2")


class FakeHost:
    """Images by path, and sets by directory: name to content."""

    def __init__(self) -> None:
        self.backing: dict[str, str | None] = {}
        self.written: dict[str, int] = {}
        self.missing: set[str] = set()
        self.sizes: dict[str, int] = {}
        self.free = 1 << 40
        self.sets: dict[str, dict[str, str]] = {}
        self.folders: dict[str, tuple[str, ...]] = {}
        self.unsteady: set[str] = set()
        self.ages: dict[str, float] = {}
        self.begun: Callable[[], None] = lambda: None
        self.verified: dict[str, VerifyOrder] = {}
        self.on_disk = True
        self.held: set[str] = set()
        self.calls: list[str] = []
        self.fail: dict[str, BaseException] = {}
        self.while_copying: Callable[[], None] = lambda: None
        for target in TARGETS:
            self.backing[base(target).path] = None
            self.backing[overlay(target).path] = base(target).path

    # ImagePort, as far as a backup uses it

    def info(self, path: str, image_format: str | None = None) -> ImageInfo:
        below = self.backing[path]
        told = None if below is None else "raw" if below.endswith(".raw") else "qcow2"
        return ImageInfo(path, image_format or "raw", 1 << 30, 1 << 20, below, told)

    def chain(self, path: str, image_format: str | None = None) -> tuple[Layer, ...]:
        below = self.backing[path]
        return (Layer(path, image_format or "raw"), *(self.chain(below, "qcow2") if below else ()))

    def identity(self, path: str) -> FileIdentity:
        return FileIdentity(
            "", len(path), self.sizes.get(path, 1 << 30), (WRITTEN + self.written.get(path, 0)) * 1_000_000_000
        )

    def exists(self, path: str) -> bool:
        return path in self.backing

    def kind(self, path: str) -> str:
        return "missing" if path in self.missing else "file"

    def names(self, directory: str) -> tuple[str, ...]:
        return self.folders.get(directory, ())

    def file_key(self, path: str) -> tuple[int, int] | None:
        return (1, zlib.crc32(path.encode())) if path in self.backing else None

    def size_bytes(self, directory: str) -> int:
        return 1 << 22

    def free_bytes(self, directory: str) -> int:
        return self.free

    def __getattr__(self, name: str) -> Any:
        raise AssertionError("a backup never calls %s" % name)

    # StorePort

    def check_destination(self, dest: str) -> None:
        self._call("check_destination")

    def hostname(self) -> str:
        return "hv"

    def machine(self) -> str:
        return "0a"

    def is_regular(self, path: str) -> bool:
        return path not in self.missing and not path.startswith("/dev/")

    def manifest(self, directory: str) -> dict[str, Any] | None:
        if directory not in self.sets:
            return None
        found: dict[str, Any] = json.loads(self.sets[directory]["manifest.json"])
        return found

    def file_sizes(self, directory: str) -> dict[str, int]:
        return {name: len(text) for name, text in self.sets[directory].items()}

    def owners(self, parent: str) -> dict[str, str]:
        complete = [path for path in self.sets if not path.endswith(".partial")]
        found = {path: json.loads(self.sets[path]["manifest.json"]).get("domain", {}).get("uuid") for path in complete}
        return {path: owner for path, owner in found.items() if owner}

    def unfinished(self, parent: str) -> tuple[Unfinished, ...]:
        return tuple(
            self._unfinished(path, json.loads(files.get("manifest.json", "{}")))
            for path, files in sorted(self.sets.items())
            if path.endswith(".partial")
        )

    def _unfinished(self, path: str, manifest: dict[str, Any]) -> Unfinished:
        ours = manifest.get("machine") == "0a"
        copied = DIGESTS in self.sets[path]
        return Unfinished(path, manifest.get("domain", {}).get("uuid"), 7, ours, self.ages.get(path, 0), copied)

    def begin(self, paths: SetPaths, manifest: str) -> str:
        self._call("begin")
        if paths.partial in self.sets:
            raise under_way(paths.partial, "")
        self.sets[paths.partial] = {"manifest.json": manifest}
        self.begun()
        return paths.partial

    def resume(self, paths: SetPaths) -> str:
        self._call("resume")
        return paths.partial

    def require_in_place(self, paths: SetPaths) -> None:
        self._call("require_in_place")

    def digests(self, directory: str) -> dict[str, tuple[Run, ...] | None] | None:
        found = self.sets[directory].get(DIGESTS)
        return None if found is None else parse_digests(found.encode())

    def write(self, directory: str, name: str, text: str) -> None:
        self._call("write " + name)
        self.sets[directory][name] = text

    def tpm_root(self) -> str:
        return "/swtpm"

    def copy_plain(self, source: str, directory: str, name: str) -> tuple[int, str, bool]:
        self._call("copy_plain " + name)
        self.sets[directory][name] = "nvram"
        return 5, "sha of nvram", source not in self.unsteady

    def finish(self, paths: SetPaths) -> None:
        self._call("finish")
        self.sets[paths.final] = self.sets.pop(paths.partial)
        del self.sets[paths.final][DIGESTS]

    def remove(self, directory: str, lease: float = 0) -> None:
        self.calls.append("remove %s%s" % (directory, " if expired" if lease else ""))
        if "remove" in self.fail:
            raise self.fail["remove"]
        self.sets.pop(directory, None)

    # CopyPort

    @contextlib.contextmanager
    def hold(self, paths: tuple[str, ...]) -> Iterator[None]:
        self._call("hold")
        self.held = set(paths)
        try:
            yield
        finally:
            self.held = set()

    def copy_all(
        self, orders: tuple[CopyOrder, ...], directory: str, parallel: int, watch: Callable[[], None], told: Told
    ) -> dict[str, Copied]:
        self._call("copy_all")
        watch()
        assert {order.source.path for order in orders if self.is_regular(order.source.path)} <= self.held
        for order in orders:
            self.sets[directory][order.file] = order.source.path
        self.while_copying()
        return {
            order.target: Copied(order.methods[-1], len(order.source.path), 7, ((0, 5, "run"),)) for order in orders
        }

    def verify_all(
        self, orders: tuple[VerifyOrder, ...], directory: str, parallel: int, watch: Callable[[], None], told: Told
    ) -> dict[str, Verified]:
        self._call("verify_all")
        watch()
        assert not self.held
        self.verified = {order.file: order for order in orders}
        return {order.file: Verified("sha of %s" % self.sets[directory][order.file], self.on_disk) for order in orders}

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.fail:
            raise self.fail[name]


class FakeDomain:
    """Two disks that a snapshot switched to overlays."""

    def __init__(self, host: FakeHost) -> None:
        disks = tuple(Disk(target, chain=(overlay(target), base(target))) for target in TARGETS)
        config = tuple(Disk(target, chain=(overlay(target),)) for target in TARGETS)
        self.current = DomainView("web", UUID, "running", True, disks, config)
        self.journal = Journal(
            (
                Operation(
                    "operation-1",
                    KEPT,
                    "s1",
                    CREATED,
                    "20261120T120000Z",
                    tuple(
                        JournalDisk(name, base(name).path, "raw", overlay(name).path, host.identity(base(name).path))
                        for name in TARGETS
                    ),
                    "filesystem",
                ),
            )
        )

    def view(self) -> DomainView:
        return replace(self.current, journal_found=self.journal)

    def snapshot(self, name: str) -> None:
        raise AssertionError("a backup goes by the journal")

    def snapshots(self) -> tuple[()]:
        raise AssertionError("a backup goes by the journal")

    def domain_xml(self, secrets: bool = True) -> str:
        disks = "".join(
            "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='%s'/>"
            "<target dev='%s'/></disk>" % (overlay(target).path, target)
            for target in TARGETS
        )
        return "<domain><name>web</name><metadata>%s</metadata><devices>%s</devices></domain>" % (
            "<v:journal xmlns:v='https://virtops.github.io/xmlns/libvirt/journal/1' schema='1'/>",
            disks,
        )

    def at(self, phase: str) -> None:
        self.journal = Journal(tuple(operation.at(phase) for operation in self.journal.operations))


def no_space() -> VirtopsError:
    return VirtopsError("no_space", "It is full", "Make space")
