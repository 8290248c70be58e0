# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: a backup set, that is its place, its manifest, and what is asked of one that is there."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from .backup import DOMAIN_XML, SAME, BackupWish, Copied, CopyOrder, PlainFile, Selection, SetPaths
from .errors import VirtopsError
from .journal import epoch
from .model import DomainView

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


def require_same_set(
    found: dict[str, Any], sizes: dict[str, int], selection: Selection, wish: BackupWish, path: str
) -> None:
    """A complete set that is there must be the one that is asked for, and whole."""
    if found.get("operation") != selection.operation:
        raise VirtopsError(
            "set_exists",
            "The backup %s is there already, and holds something else" % path,
            "Choose another dest, or move that set away",
        )
    disks = {disk["target"]: disk for disk in found.get("disks", ())}
    wanted = {source.target for source in selection.sources}
    if set(disks) != wanted or any(wish.format not in (SAME, disk["format"]) for disk in disks.values()):
        raise VirtopsError(
            "set_exists",
            "The backup %s of this snapshot is there already, with other disks or in another format" % path,
            "Move that set away, or ask for what it holds",
        )
    damaged = [disk["file"] for disk in disks.values() if sizes.get(disk["file"]) != disk["bytes"]]
    if damaged:
        raise VirtopsError(
            "set_damaged",
            "The backup %s is damaged: %s is missing or has another length" % (path, ", ".join(sorted(damaged))),
            "Move that set away, then try again",
        )


def require_space(orders: tuple[CopyOrder, ...], free: int, dest: str) -> None:
    """`free` includes what the removal of unfinished sets gives back."""
    needed = sum(order.needs for order in orders)
    if needed > free:
        raise VirtopsError(
            "no_space",
            "The backup may take %d MiB, and %s has %d MiB free" % (mib(needed), dest, mib(free)),
            "Make space there, or choose another dest",
        )


def mib(count: int) -> int:
    """Bytes in MiB, rounded up."""
    return -(-count // (1024 * 1024))


@dataclass(frozen=True)
class Manifest:
    """manifest.json and the result's `backup`. What is not known yet (check mode) is None."""

    selection: Selection
    domain: str
    uuid: str
    hypervisor: str
    orders: tuple[CopyOrder, ...]
    copied: dict[str, Copied]
    nvram: PlainFile | None = None
    begun: str | None = None
    finished: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "operation": self.selection.operation,
            "snapshot": self.selection.snapshot,
            "domain": {"name": self.domain, "uuid": self.uuid},
            "hypervisor": self.hypervisor,
            "times": {
                "snapshot": iso8601(self.selection.started),
                "started": iso8601(self.begun),
                "finished": iso8601(self.finished),
            },
            "consistency": self.selection.consistency,
            "domain_xml": DOMAIN_XML,
            "nvram": None if self.nvram is None else asdict(self.nvram),
            "disks": [self._disk(order) for order in self.orders],
        }

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
            "sha256": None if copied is None else copied.sha256,
            "method": None if copied is None else copied.method,
            "backing": None if order.backing is None else asdict(order.backing),
        }

    def complete(self, copied: dict[str, Copied], nvram: PlainFile | None, finished: str) -> Manifest:
        return replace(self, copied=copied, nvram=nvram, finished=finished)


def iso8601(stamp: str | None) -> str | None:
    """20261120T120000Z as 2026-11-20T12:00:00Z."""
    if stamp is None:
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(epoch(stamp)))
