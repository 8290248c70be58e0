# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: what the read-only modules tell, as plain data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from .._core.errors import VirtopsError
from .._core.journal import Journal, Operation
from .._core.model import Disk, DomainView, Layer, Outcome
from .._core.ports import BlockInfoPort, ImagePort
from .._core.refusals import require_read
from .away import require_here
from .block_jobs import describe_job
from .observe import FileSet, observe
from .strays import GuestRecords, lost_files, lost_operations, with_bases

# guests_info


def guests(
    domains: Iterable[DomainView],
    patterns: Sequence[str],
    exclude: Sequence[str],
    states: Sequence[str],
    records: GuestRecords,
    images: ImagePort,
) -> Outcome:
    """The guests that a pattern matches and no exclusion, in one of the states (none given: in any)."""
    views = tuple(domains)
    chosen = [view for view in views if is_chosen(view, patterns, exclude) and (not states or view.state in states)]
    found = [
        {**_guest(view, views, records, images), "patterns": [one for one in patterns if _matches(view, [one])]}
        for view in chosen
    ]
    return Outcome(values={"guests": found, "unmatched": unmatched(views, patterns)})


def is_chosen(view: DomainView, patterns: Iterable[str], exclude: Iterable[str]) -> bool:
    """Does a pattern match its name or UUID, and no exclusion?"""
    return _matches(view, patterns) and not _matches(view, exclude)


def unmatched(views: Sequence[DomainView], patterns: Iterable[str]) -> list[str]:
    """The patterns that match nobody."""
    return [pattern for pattern in patterns if not any(_matches(view, [pattern]) for view in views)]


def _matches(view: DomainView, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(view.name, pattern) or view.uuid == pattern.lower() for pattern in patterns)


def _guest(view: DomainView, views: Sequence[DomainView], records: GuestRecords, images: ImagePort) -> dict[str, Any]:
    """One guest's unreadable journal or definition must not hide the others: it is told beside."""
    journal, unreadable = Journal(), None
    try:
        require_read(view)
        journal = view.journal
    except VirtopsError as error:
        unreadable = str(error)
    lost = () if unreadable else _lost(view, views, journal, records, images)
    return {
        "name": view.name,
        "uuid": view.uuid,
        "state": view.state,
        "paused_by": view.paused_by,
        "persistent": view.persistent,
        "autostart": view.autostart,
        "elsewhere": _is_elsewhere(view, images),
        "agent": view.agent,
        "disks": [_disk(disk) for disk in view.disks],
        "journal": [
            *(describe_operation(operation) for operation in journal.operations),
            *(describe_operation(operation, noted=False) for operation in lost),
        ],
        "journal_error": unreadable,
        "journal_of": view.journal_of,
    }


def _is_elsewhere(view: DomainView, images: ImagePort) -> bool:
    """Is it off here, and at another host by now, as far as that can be seen?"""
    try:
        require_here(view, images)
    except VirtopsError as error:
        return error.code == "guest_moved"
    return False


def _lost(
    view: DomainView, views: Sequence[DomainView], journal: Journal, records: GuestRecords, images: ImagePort
) -> tuple[Operation, ...]:
    """What has no journal and should have one: each is told once, by its layers, its record or its file."""
    seen = with_bases(view, images)
    lost = lost_operations(seen, journal, lambda: records(view.uuid))
    names = {operation.name for operation in lost}
    disks = [disk for other in views if other is not view for disk in other.disks + other.config_disks]
    others = FileSet((layer.path for disk in disks for layer in disk.chain), images)
    return lost + tuple(op for op in lost_files(seen, journal, images, lambda: others) if op.name not in names)


def _disk(disk: Disk) -> dict[str, Any]:
    active = disk.active
    return {
        "name": disk.target,
        "bus": disk.bus,
        "device": disk.device,
        "type": disk.source_type,
        "file": None if active is None else active.path,
        "format": None if active is None else active.format,
        "readonly": disk.readonly,
        "shareable": disk.shareable,
        "transient": disk.transient,
    }


def describe_operation(operation: Operation, noted: bool = True) -> dict[str, Any]:
    """What the journal says of it, or should."""
    return {
        "id": operation.id,
        "kind": operation.kind,
        "name": operation.name,
        "phase": operation.phase,
        "started": operation.started,
        "open": operation.open,
        "noted": noted,
        "consistency": operation.consistency,
        "disks": [
            {"name": disk.target, "base": disk.base, "base_format": disk.base_format, "overlay": disk.overlay}
            for disk in operation.disks
        ],
    }


# block_info


def block(domain: BlockInfoPort, images: ImagePort, targets: Sequence[str]) -> Outcome:
    """The disks of a domain (none named: all) with their whole chains, sizes and jobs."""
    warnings: list[str] = []
    view = _observed(domain, images, warnings)
    for target in targets:
        if view.disk(target) is None:
            raise VirtopsError(
                "no_such_disk",
                f"Domain {view.name} has no disk {target}",
                f"Name one of: {', '.join(disk.target for disk in view.disks)}",
            )
    wanted = [disk for disk in view.disks if not targets or disk.target in targets]
    disks = [
        {
            **_disk(disk),
            **_sizes(domain.sizes(disk.target)),
            "chain": [_layer(depth, layer, images, warnings) for depth, layer in enumerate(disk.chain)],
            "job": describe_job(disk.job),
        }
        for disk in wanted
    ]
    return Outcome(values={"disks": disks}, warnings=tuple(warnings))


def _observed(domain: BlockInfoPort, images: ImagePort, warnings: list[str]) -> DomainView:
    """A broken chain is what this module is asked about: it tells what it can see, and warns."""
    try:
        return observe(domain, images)
    except VirtopsError as error:
        if error.code in ("connection_lost", "no_such_domain"):
            raise
        warnings.append(str(error))
        return domain.view()


def _sizes(sizes: tuple[int, int, int] | None) -> dict[str, int | None]:
    capacity, allocation, physical = sizes or (None, None, None)
    return {"capacity": capacity, "allocation": allocation, "physical": physical}


def _layer(depth: int, layer: Layer, images: ImagePort, warnings: list[str]) -> dict[str, Any]:
    """`exists` is None of a layer that is no image of this host."""
    told: dict[str, Any] = {
        "path": layer.path,
        "format": layer.format or None,
        "depth": depth,
        "exists": images.exists(layer.path) if layer.path.startswith("/") else None,
        "size": None,
        "allocation": None,
        "internal_snapshots": [],
    }
    if not told["exists"]:
        return told
    try:
        info = images.info(layer.path, layer.format)
    except VirtopsError as error:
        warnings.append(str(error))
        return told
    internal = list(info.internal_snapshots)
    return {**told, "size": info.virtual_size, "allocation": info.allocation, "internal_snapshots": internal}
