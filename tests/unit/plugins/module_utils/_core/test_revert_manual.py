# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""When libvirt may be asked to go back to an external snapshot, as a table: what it would do is known of 11.3."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import (
    Disk,
    DomainView,
    Layer,
    SnapshotDisk,
    SnapshotRecord,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._core.revert_manual import why_not_by_libvirt


def disk(target: str, *paths: str, **more: Any) -> Disk:
    return Disk(target, chain=tuple(Layer(path, "qcow2") for path in paths), **more)


def record(name: str, **files: str) -> SnapshotRecord:
    """What is not named is left out."""
    made = tuple(SnapshotDisk(target, "external", path) for target, path in files.items())
    left = tuple(SnapshotDisk(target, "no") for target in ("vda", "vdb", "hda") if target not in files)
    return SnapshotRecord(name, "running", 1, (*made, *left))


def view(*disks: Disk, **more: Any) -> DomainView:
    return replace(DomainView("web", "uuid", "running", True, disks, disks), **more)


EMPTY = Disk("hda", device="cdrom", readonly=True)
ISO = disk("hda", "/iso/a.iso", device="cdrom", readonly=True)
#: s is of /i/a and /i/b; the guest writes to the overlays that it made.
S = record("s", vda="/i/a.s", vdb="/i/b.s")
THEN = (disk("vda", "/i/a"), disk("vdb", "/i/b"), EMPTY)
NOW = (disk("vda", "/i/a.s", "/i/a"), disk("vdb", "/i/b.s", "/i/b"), EMPTY)
#: n was taken above it.
N = record("n", vda="/i/a.n", vdb="/i/b.n")
ABOVE = (disk("vda", "/i/a.n", "/i/a.s", "/i/a"), disk("vdb", "/i/b.n", "/i/b.s", "/i/b"), EMPTY)
#: And the overlays of a revert to s, which its record does not name.
AGAIN = (disk("vda", "/i/a.r", "/i/a"), disk("vdb", "/i/b.r", "/i/b"), EMPTY)
OF_N = {"snapshot 'n'": frozenset({"/i/a.s", "/i/b.s", "/i/a.n", "/i/b.n"})}
VDB_ON_DEVICE = (disk("vda", "/i/a.s", "/i/a"), disk("vdb", "/dev/x", "/i/b", source_type="block"), EMPTY)
OTHERS = "and the disks write to others"


def odd(**more: Any) -> tuple[Disk, ...]:
    return (replace(NOW[0], **more), *NOW[1:])


@pytest.mark.parametrize(
    ("to", "current", "saved", "now", "users", "why"),
    [
        pytest.param(S, S, [THEN], view(*NOW), {}, None, id="what libvirt is for"),
        pytest.param(S, S, [THEN, THEN], view(*NOW, state="shut off"), {}, None, id="off"),
        pytest.param(S, S, [THEN], view(*NOW, persistent=False, config_disks=()), {}, None, id="transient"),
        pytest.param(S, N, [THEN], view(*ABOVE), {"snapshot 's'": frozenset({"/i/a", "/i/a.s"})}, None, id="older one"),
        # What libvirt deletes
        pytest.param(N, S, [NOW], view(*AGAIN), OF_N, OTHERS, id="a and b: forgotten overlays"),
        pytest.param(S, S, [THEN], view(*AGAIN), {}, OTHERS, id="an earlier revert"),
        pytest.param(N, S, [NOW], view(*ABOVE), OF_N, OTHERS, id="c: made current, with another above"),
        pytest.param(S, S, [THEN], view(*ABOVE), {}, OTHERS, id="d: one without a record above"),
        pytest.param(S, None, [THEN], view(*NOW), {}, "no current snapshot", id="e: no current one"),
        pytest.param(S, S, [THEN], view(*NOW, config_disks=ABOVE), {}, OTHERS, id="definition on others"),
        pytest.param(S, record("m", vda="/i/a.s"), [THEN], view(*NOW), {}, OTHERS, id="current without a disk"),
        pytest.param(S, S, [THEN], view(*NOW), OF_N, "/i/a.s, which snapshot 'n' needs", id="moment of another"),
        pytest.param(
            S, S, [THEN], view(*NOW), {"the journal": frozenset({"/i/b.s"})}, "the journal needs", id="journal"
        ),
        pytest.param(S, S, [THEN], view(*NOW), {"another domain": frozenset({"/i/b.s"})}, "another domain", id="other"),
        # What it puts on overlays
        pytest.param(record("s", vda="/i/a.s"), S, [THEN], view(*NOW), {}, "vdb", id="excluded disk"),
        pytest.param(S, S, [THEN], view(*NOW[:2], ISO), {}, "hda", id="ISO now"),
        pytest.param(S, S, [(*THEN[:2], ISO)], view(*NOW), {}, "hda", id="ISO then"),
        pytest.param(S, S, [THEN, (*THEN[:2], ISO)], view(*NOW), {}, "hda", id="ISO in the persistent definition then"),
        pytest.param(S, S, [THEN], view(*NOW, config_disks=(*NOW[:2], ISO)), {}, "hda", id="ISO at the next start"),
        pytest.param(S, S, [THEN], view(*NOW, disk("vdc", "/i/c")), {}, "vdc", id="new disk"),
        pytest.param(S, S, [(*THEN, disk("vdc", "/i/c"))], view(*NOW), {}, "vdc", id="disk that went"),
        pytest.param(S, S, [THEN], view(*NOW, Disk("vdc", source_type="network")), {}, "vdc", id="disk on the network"),
        pytest.param(S, S, [(disk("vda", "/dev/x"), *THEN[1:])], view(*NOW), {}, "vda", id="block device as a file"),
        pytest.param(
            S, S, [(disk("vda", "/x", source_type="block"), *THEN[1:])], view(*NOW), {}, "vda", id="block device then"
        ),
        pytest.param(S, S, [THEN], view(*VDB_ON_DEVICE), {}, "vdb", id="block device now"),
        pytest.param(S, S, [THEN], view(*odd(shareable=True)), {}, "vda", id="shareable"),
        pytest.param(S, S, [THEN], view(*odd(readonly=True)), {}, "vda", id="read-only"),
        pytest.param(S, S, [THEN], view(*odd(transient=True)), {}, "vda", id="transient disk"),
        pytest.param(S, S, [THEN], view(*odd(device="lun")), {}, "vda", id="LUN"),
        pytest.param(S, S, [THEN], view(*odd(source_type="volume")), {}, "vda", id="volume"),
        pytest.param(S, S, [(disk("vda", "/q,r/a"), *THEN[1:])], view(*NOW), {}, "comma", id="comma in the folder"),
        pytest.param(S, S, [(disk("vda", "/i/a,b"), *THEN[1:])], view(*NOW), {}, None, id="comma in the name"),
    ],
)
def test_when_libvirt_may(
    to: SnapshotRecord, current: Any, saved: Any, now: DomainView, users: Any, why: str | None
) -> None:
    found = why_not_by_libvirt(to, current, saved, now, users, lambda path: not path.startswith("/dev/"))
    assert (found is None) if why is None else (found is not None and why in found), found
