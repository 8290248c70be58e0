# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: is there space for the copies, the overlays and the merges of all guests?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from .backup import REFLINK
from .backup_set import mib, require_space
from .errors import VirtopsError
from .preflight_facts import (
    BASE_GROWTH,
    FAILED,
    OVERLAY_SPACE,
    TARGET,
    WARNING,
    Check,
    DiskFacts,
    FileSystem,
    GuestFacts,
    Limits,
    failed,
    refused,
    resumed,
    warning,
)


@dataclass
class Usage:
    """What the backups would need of one file system, in bytes."""

    path: str
    free: int
    copies: int = 0
    overlays: int = 0


def usage(guests: Sequence[GuestFacts], limits: Limits) -> tuple[Usage, ...]:
    """The sums over all guests of this hypervisor, by file system."""
    found: dict[int, Usage] = {}
    for guest in guests:
        if resumed(guest, limits) is not None:
            continue
        if guest.target is not None:
            _of(found, guest.target).copies += _needs(guest)
        for disk, where in _overlaid(guest):
            _of(found, where).overlays += limits.reserve.of(disk.virtual_size)
    return tuple(sorted(found.values(), key=lambda one: one.path))


def _overlaid(guest: GuestFacts) -> Iterator[tuple[DiskFacts, FileSystem]]:
    """The disks that get an overlay, each with where it grows."""
    for disk in guest.disks:
        if disk.overlay_fs is not None:
            yield disk, disk.overlay_fs


def _of(found: dict[int, Usage], where: FileSystem) -> Usage:
    return found.setdefault(where.device, Usage(where.path, where.free))


def usage_as_dict(one: Usage) -> Mapping[str, object]:
    return asdict(one)


def space_checks(guests: Sequence[GuestFacts], limits: Limits) -> dict[str, tuple[Check, ...]]:
    """Each guest by itself, then beside those that come before it: the later one is what does not fit."""
    copies: dict[int, int] = {}
    overlays: dict[int, int] = {}
    checks = {}
    for guest in guests:
        found = [*_target(guest, copies), *_overlays(guest, limits, copies, overlays)]
        checks[guest.view.uuid] = (*found, *_growth(guest, limits))
    return checks


def _needs(guest: GuestFacts) -> int:
    return guest.beside + sum(disk.order.needs for disk in guest.disks if disk.order is not None)


def _target(guest: GuestFacts, copies: dict[int, int]) -> Iterator[Check]:
    where = guest.target
    if where is None:
        return
    free = where.free + guest.reclaimed
    orders = tuple(disk.order for disk in guest.disks if disk.order is not None)
    try:
        require_space(orders, free, where.path, guest.beside)
    except VirtopsError as error:
        yield refused(TARGET, error, FAILED)
        return
    needs, taken = _needs(guest), copies.get(where.device, 0)
    if needs and taken + needs > free:
        # Their true size is known only once they are made: these may take less.
        unsure = any(order.unsure or order.compress or order.methods[0] == REFLINK for order in orders)
        check = failed(
            TARGET,
            "no_space",
            "The backup may take %d MiB%s, and %s has %d MiB free, of which the backups of the guests before it may "
            "take %d MiB" % (mib(needs), _unsure_words(guest), where.path, free >> 20, mib(taken)),
            "Make space there, or back up fewer guests at a time (guests, exclude)",
        )
        yield replace(check, status=WARNING if unsure else FAILED)
        if not unsure:
            return
    copies[where.device] = taken + needs


def _unsure_words(guest: GuestFacts) -> str:
    devices = [disk.target for disk in guest.disks if disk.order is not None and disk.order.unsure]
    return (
        " (the whole of %s, because it is not known how much data a block device holds)" % ", ".join(devices)
        if devices
        else ""
    )


def _overlays(guest: GuestFacts, limits: Limits, copies: dict[int, int], overlays: dict[int, int]) -> Iterator[Check]:
    own: dict[int, int] = {}
    for disk, where in _overlaid(guest):
        reserve = limits.reserve.of(disk.virtual_size)
        own[where.device] = own.get(where.device, 0) + reserve
        if own[where.device] > where.free:
            yield failed(
                OVERLAY_SPACE,
                "no_space",
                "%s has %d MiB free, but %d MiB are required for what the guest writes during the backup "
                "(overlay_reserve)" % (where.path, where.free >> 20, mib(own[where.device])),
                "Make space there, set overlay_dir to another file system, or lower overlay_reserve",
                disk.target,
            )
            return
    for where in {where.device: where for _disk, where in _overlaid(guest)}.values():
        overlays[where.device] = overlays.get(where.device, 0) + own[where.device]
        together = overlays[where.device] + copies.get(where.device, 0)
        if together > where.free:
            yield warning(
                OVERLAY_SPACE,
                "no_space",
                "%s has %d MiB free, and the copies and overlays of this guest and the guests before it may need %d MiB"
                % (where.path, where.free >> 20, mib(together)),
                "Make space there, or back up fewer guests at a time (forks, guests)",
            )


def _growth(guest: GuestFacts, limits: Limits) -> Iterator[Check]:
    """The merge writes the overlay's data into the base, and the overlay is deleted only after that.

    A thin base grows by at most what the overlay holds, and to at most its virtual size.
    """
    for disk, overlay_fs in _overlaid(guest):
        where, reserve = disk.base_fs, limits.reserve.of(disk.virtual_size)
        used, size = disk.extent or (0, disk.virtual_size)
        growth = min(reserve, max(0, disk.virtual_size - used))
        if disk.extent is not None and used + growth > size:
            yield failed(
                BASE_GROWTH,
                "no_space",
                "The merge may make the image on %s grow by %d MiB, and the device has %d MiB left behind it"
                % (disk.base.path, mib(growth), max(0, size - used) // 1024**2),
                "Enlarge the device (lvextend), or lower overlay_reserve if the guest writes less than that during a "
                "backup",
                disk.target,
            )
        if where is None:
            continue
        growth = min(reserve, max(0, disk.virtual_size - disk.allocation))
        if growth > where.free:
            yield failed(BASE_GROWTH, "no_space", *_growth_words(disk, growth, growth, where.free), disk.target)
        elif where.device == overlay_fs.device and growth + reserve > where.free:
            yield warning(
                BASE_GROWTH, "no_space", *_growth_words(disk, growth, growth + reserve, where.free), disk.target
            )


def _growth_words(disk: DiskFacts, growth: int, needed: int, free: int) -> tuple[str, str]:
    beside = "" if needed == growth else ", %d MiB with the overlay beside it" % mib(needed)
    return (
        "The merge may make the thin image %s grow by %d MiB%s, and its file system has %d MiB free"
        % (disk.base.path, mib(growth), beside, free >> 20),
        "Make space there, or lower overlay_reserve if the guest writes less than that during a backup",
    )
