# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: a backup set, that is its place, its manifest, and what is asked of one that is there."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .backup import (
    DOMAIN_XML,
    SAME,
    BackupOptions,
    Copied,
    CopyOrder,
    Run,
    Selection,
    SetPaths,
    Unfinished,
    Verified,
    VerifyOrder,
)
from .errors import VirtopsError
from .extras import NVRAM, Extras
from .journal import epoch
from .model import DomainView

#: Seconds after which a partial set that nobody changed belongs to no living run. Its writer renews it each minute.
LEASE = 3600

#: Of manifest.json. Raised when a reader of the old one would misunderstand a new one.
SCHEMA_VERSION = 1


def set_paths(dest: str, view: DomainView, started: str) -> SetPaths:
    """DEST/<domain name>/<UTC time>."""
    if view.name in (".", "..") or "/" in view.name:
        raise VirtopsError(
            "unsafe_name",
            "The name of domain %s cannot be the name of a directory" % view.name,
            "Rename the domain (virsh domrename)",
        )
    parent = os.path.join(dest, view.name)
    return SetPaths(parent, os.path.join(parent, started), os.path.join(parent, ".%s.partial" % started))


def removable(unfinished: tuple[Unfinished, ...], uuid: str, instead: str = "") -> tuple[Unfinished, ...]:
    """The partial sets that a backup of this domain removes: its own, unless they are copied and it is not made
    `instead` of them, and those that nobody writes any more."""
    waiting = [partial for partial in awaiting(unfinished, uuid) if partial.path != instead]
    return tuple(
        partial for partial in unfinished if partial not in waiting and (is_own(partial, uuid) or partial.age >= LEASE)
    )


def awaiting(unfinished: tuple[Unfinished, ...], uuid: str) -> tuple[Unfinished, ...]:
    """The partial sets of this domain and host that are copied, and only have to be verified."""
    return tuple(partial for partial in unfinished if partial.copied and is_own(partial, uuid))


def is_own(partial: Unfinished, uuid: str) -> bool:
    """The domain's lock is ours, so no run of this host writes it. One that names no domain died at its birth."""
    return partial.ours and partial.owner in (None, uuid)


def require_own_sets(sets: Mapping[str, str], unfinished: tuple[Unfinished, ...], view: DomainView) -> None:
    """Refuse a folder that another domain of the same name has its sets in: nobody could tell them apart."""
    under_way = {partial.path: partial.owner for partial in unfinished if partial.owner and partial.age < LEASE}
    for path, owner in sorted({**under_way, **sets}.items()):
        if owner != view.uuid:
            raise VirtopsError(
                "set_foreign",
                "The backup %s is another domain's, which has the UUID %s; that of domain %s is %s"
                % (path, owner, view.name, view.uuid),
                "Give each hypervisor a dest of its own, or rename one of the domains (virsh domrename); if the other "
                "domain is gone for good, move its sets to another directory",
            )


def require_nobody_writes(unfinished: tuple[Unfinished, ...], view: DomainView, paths: SetPaths) -> None:
    """Refuse the very set that another host is writing."""
    for partial in unfinished:
        if partial.path == paths.partial and partial not in removable((partial,), view.uuid, partial.path):
            raise under_way(paths.partial, "It was last written to %d s ago" % partial.age)


def under_way(path: str, told: str) -> VirtopsError:
    """The error for a partial set that is not ours to touch."""
    return VirtopsError(
        "set_under_way",
        "Another host is writing the backup %s. %s" % (path, told),
        "Wait for its end. If that host is gone, run this again %d minutes after the last write, or take a new snapshot"
        % (LEASE // 60),
    )


def lost(path: str) -> VirtopsError:
    """The error for a partial set that is gone while it is ours."""
    return VirtopsError(
        "copy_failed",
        "The unfinished set %s was moved or removed while it was written" % path,
        "Find out who does that, then try again",
    )


def require_same_set(
    found: dict[str, Any], sizes: dict[str, int], selection: Selection, options: BackupOptions, path: str, uuid: str
) -> None:
    """A complete set that is there must be the one that is asked for, and whole."""
    if found["operation"] != selection.operation or found["domain"]["uuid"] != uuid:
        raise VirtopsError(
            "set_exists",
            "The backup %s is there already, and holds something else" % path,
            "Choose another dest, or move that set away",
        )
    if not has_same_disks(found, selection, options):
        raise VirtopsError(
            "set_exists",
            "The backup %s of this snapshot is there already, with other disks or in another format" % path,
            "Move that set away, or ask for what it holds",
        )
    files = [*found["disks"], *found.get("extras", ())]
    damaged = [entry["file"] for entry in files if sizes.get(entry["file"], -1) != entry["bytes"]]
    if damaged:
        raise VirtopsError(
            "set_damaged",
            "The backup %s is damaged: %s is missing or has another length" % (path, ", ".join(sorted(damaged))),
            "Move that set away, then try again",
        )


def has_same_disks(found: dict[str, Any], selection: Selection, options: BackupOptions) -> bool:
    """Does a set hold what is asked for?"""
    disks = {disk["target"]: disk for disk in found["disks"]}
    wanted = {source.target for source in selection.sources}
    return set(disks) == wanted and all(options.format in (SAME, disk["format"]) for disk in disks.values())


def verify_orders(
    manifest: dict[str, Any], digests: Mapping[str, tuple[Run, ...] | None], verify: bool
) -> tuple[VerifyOrder, ...]:
    """How the files of a partial set are read back. Without `verify` only for their SHA-256."""
    plain = [VerifyOrder(manifest["domain_xml"], from_disk=verify)]
    plain += [
        VerifyOrder(extra["file"], extra["bytes"], sha256=extra["sha256"], from_disk=verify)
        for extra in manifest.get("extras", ())
    ]
    images = [
        VerifyOrder(
            disk["file"],
            disk["bytes"],
            disk["target"],
            disk["format"] if verify else "",
            digests.get(disk["file"]) if verify else None,
            from_disk=verify,
        )
        for disk in manifest["disks"]
    ]
    return (*images, *plain)


def finished(
    manifest: dict[str, Any], read: Mapping[str, Verified], stamp: str, verified: bool = True
) -> dict[str, Any]:
    """The manifest of a set whose files were read, and where `verified` compared with what was written."""
    disks = [{**disk, "sha256": read[disk["file"]].sha256} for disk in manifest["disks"]]
    times = {**manifest["times"], "finished": iso8601(stamp)}
    return {**manifest, "disks": disks, "times": times, "verified": verified}


def build_sums(digests: Mapping[str, str]) -> str:
    """As sha256sum(1) writes and reads it."""
    lines = []
    for file, digest in sorted(digests.items()):
        name = file.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
        lines.append("%s%s  %s\n" % ("" if name == file else "\\", digest, name))
    return "".join(lines)


def require_space(orders: tuple[CopyOrder, ...], free: int, dest: str, beside: int = 0) -> None:
    """`free` includes what the removal of unfinished sets gives back, `beside` is for what is no image.

    How much data a block device holds only the copy tells: one that holds too much ends it, and the guest's overlays
    are merged.
    """
    needed = beside + sum(order.needs for order in orders if not order.unsure)
    if needed > free:
        raise VirtopsError(
            "no_space",
            "The backup may take %d MiB, and %s has %d MiB free" % (mib(needed), dest, free >> 20),
            "Make space there, or choose another dest",
        )


def mib(count: int) -> int:
    """Bytes in MiB, rounded up."""
    return -(-count // (1024 * 1024))


@dataclass(frozen=True)
class Manifest:
    """manifest.json and the result's `backup`. What is not known yet is None: in check mode, and before the copies are
    read back (see `finished`)."""

    selection: Selection
    domain: str
    uuid: str
    hypervisor: str
    machine: str
    orders: tuple[CopyOrder, ...]
    copied: dict[str, Copied]
    extras: Extras = field(default_factory=Extras)
    autostart: bool = False
    begun: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "operation": self.selection.operation,
            "snapshot": self.selection.snapshot,
            "domain": {"name": self.domain, "uuid": self.uuid},
            "hypervisor": self.hypervisor,
            "machine": self.machine,
            "times": {
                "snapshot": iso8601(self.selection.started),
                "started": iso8601(self.begun),
                "finished": None,
            },
            "consistency": self.selection.consistency,
            "domain_xml": DOMAIN_XML,
            "autostart": self.autostart,
            "verified": False,
            "nvram": self._nvram(),
            "extras": [{**asdict(file), "taken": iso8601(file.taken)} for file in self.extras.files],
            "lacks": [asdict(lack) for lack in self.extras.lacks],
            "disks": [self._disk(order) for order in self.orders],
        }

    def _nvram(self) -> dict[str, Any] | None:
        """The same file as in extras; earlier releases wrote no such list."""
        found = next((asdict(file) for file in self.extras.files if file.kind == NVRAM), None)
        return None if found is None else {name: found[name] for name in ("source", "file", "bytes", "sha256")}

    def _disk(self, order: CopyOrder) -> dict[str, Any]:
        copied = self.copied.get(order.target)
        return {
            "target": order.target,
            "source": order.source.path,
            "source_format": order.source.format,
            "format": order.format,
            "virtual_size": order.virtual_size,
            "file": order.file,
            "bytes": None if copied is None else copied.bytes,
            "allocated": None if copied is None else copied.allocated,
            "sha256": None,
            "method": None if copied is None else copied.method,
            "backing": None if order.backing is None else {"path": order.backing.path, "format": order.backing.format},
        }

    def complete(self, copied: dict[str, Copied], extras: Extras) -> Manifest:
        return replace(self, copied=copied, extras=extras)


def iso8601(stamp: str | None) -> str | None:
    """20261120T120000Z as 2026-11-20T12:00:00Z."""
    if stamp is None:
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(epoch(stamp)))


def stamp_of_iso(text: str) -> str:
    """The reverse."""
    return text.replace("-", "").replace(":", "")
