# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What deleting snapshots does to the images, by tables: trees of images, the snapshots that go, what follows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.deletion import (
    OURS,
    Forest,
    ImagePlan,
    Merging,
    Point,
    begun,
    memory_files,
    operation_of,
    plan_images,
    plan_of,
    settled,
    stranded,
    way_of,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.journal import Journal, JournalDisk, Operation
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import FileIdentity, Layer, SnapshotRecord


def forest(*chains: str, active: str = "", others: str = "", inside: str = "", written: str = "") -> Forest:
    """Chains as "top mid base"; the first one is the guest's."""
    below: dict[str, Layer | None] = {}
    for chain in chains:
        paths = chain.split()
        for path, under in zip(paths, [*paths[1:], None]):
            below[path] = None if under is None else Layer(under, "qcow2")
    tips = frozenset((active or chains[0].split()[0]).split())
    return Forest(below, tips, frozenset(others.split()), frozenset(inside.split()), frozenset(written.split()))


def points(text: str) -> list[Point]:
    """Snapshots as "name:base:overlay"; without an overlay an internal one."""
    found = []
    for one in text.split():
        name, base, overlay = one.split(":")
        found.append(Point(name, "vda", Layer(base, "qcow2"), overlay or None))
    return found


LINE = "s:base:os t:os:ot u:ot:ou"

#: Snapshots, the images, those that go, merges (what into what), images that go.
CASES = {
    "top": (LINE, forest("ou ot os base"), "u", "ou>ot", ""),
    "middle": (LINE, forest("ou ot os base"), "t", "ot>os", ""),
    "root": (LINE, forest("ou ot os base"), "s", "os>base", ""),
    "root on a golden image": (LINE, forest("ou ot os base golden"), "s", "os>base", ""),
    "all": (LINE, forest("ou ot os base"), "s t u", "ou,ot,os>base", ""),
    "descendants": (LINE, forest("ou ot os base"), "t u", "ou,ot>os", ""),
    "two apart": (LINE, forest("ou ot os base"), "s u", "os>base ou>ot", ""),
    # The guest was taken back to s: ou is what it left, os and ot are the states of t and u
    "left leaf": (LINE, forest("os2 base", "ou ot os base"), "u", "", "ou ot"),
    "left middle": (LINE, forest("os2 base", "ou ot os base"), "t", "ot>os", ""),
    "left branch": (LINE, forest("os2 base", "ou ot os base"), "t u", "", "ou ot os"),
    "left branch and its root": (LINE, forest("os2 base", "ou ot os base"), "s t u", "os2>base", "ou ot os"),
    "child beside": ("s:base:os2 v:os2:ov t:os:ot", forest("ov os2 base", "ot os base"), "v", "ov>os2", ""),
    # libvirt takes away the layer that a revert left
    "left leaf, cleaned": ("s:base:os t:os:ot", forest("os2 base", "os base"), "t", "", "os"),
    # The guest writes below the snapshot: a merge by hand, or a start from an old definition
    "stale record": ("s:base:os", forest("base"), "s", "", ""),
    "merged by hand": ("s:base:os", forest("base", "os base"), "s", "", "os"),
    "an original that the guest left": ("s:base:os", forest("elsewhere", "os base"), "s", "", "os"),
    "into the image of an internal one": ("s:base:os i:os: t:os:ot", forest("ot os base"), "t", "ot>os", ""),
}


@pytest.mark.parametrize("case", CASES)
def test_images(case: str) -> None:
    snapshots, images, doomed, merges, unused = CASES[case]
    plan = plan_images(points(snapshots), frozenset(doomed.split()), images)
    assert [",".join(merge.merged) + ">" + merge.into.path for merge in plan.merges] == merges.split()
    assert [path for _target, path in plan.unused] == unused.split()
    assert plan.kept == ()


REFUSED = {
    "two branches on it": (LINE, forest("os2 base", "ot os base"), "s", "branches_above"),
    "a clone on what is written": (LINE, forest("ou ot os base", others="os"), "t", "base_shared"),
    "a clone on what goes": (LINE, forest("ou ot os base", others="ot"), "t", "base_shared"),
    "an internal one inside": (LINE, forest("ou ot os base", inside="ot"), "t", "internal_inside"),
    "the record of one inside": (LINE + " i:ot:", forest("ou ot os base"), "t", "internal_inside"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str) -> None:
    snapshots, images, doomed, code = REFUSED[case]
    with pytest.raises(VirtopsError) as error:
        plan_images(points(snapshots), frozenset(doomed.split()), images)
    assert error.value.code == code


def test_the_only_copy_of_data_is_kept() -> None:
    """The guest writes below an overlay that has data."""
    plan = plan_images(points("s:base:os t:os:ot"), frozenset("st"), forest("base", "ot os base", written="os"))
    assert plan == ImagePlan((), (("vda", "ot"),), ("os",))


def test_an_overlay_on_an_image_out_of_sight_is_kept_where_it_has_data() -> None:
    """After `virsh blockcommit`, or a start from an old definition: nothing tells which. Nor is libvirt needed."""
    snapshots = [Point("s", "vda", None, "/img/os"), Point("t", "vdb", None, "/img/ot")]
    found = forest("/img/os nbd://host/a", "/img/ot nbd://host/b", written="/img/os")
    left = replace(found, active=frozenset())
    assert way_of(snapshots, left, frozenset("st"), "delete", 7_000_000) == OURS
    assert plan_images(snapshots, frozenset("st"), left) == ImagePlan((), (("vdb", "/img/ot"),), ("/img/os",))


def test_images_of_others_and_with_data_inside_stay() -> None:
    left = forest("os2 base", "ou ot os base", others="os", inside="ot")
    assert plan_images(points(LINE), frozenset("tu"), left).unused == (("vda", "ou"),)


@pytest.mark.parametrize(
    ("base", "children", "version", "code"),
    [
        ("/img/a", "delete", 7_000_000, None),
        ("nbd://host/a", "keep", 9_000_000, None),
        ("nbd://host/a", "keep", 8_999_999, "unsupported"),
        ("nbd://host/a", "only", 11_003_000, "unsupported"),
    ],
)
def test_way(base: str, children: str, version: int, code: str | None) -> None:
    """Ours wherever it can; libvirt's alone reaches images that are not on this host."""
    found = forest("/img/os " + base)
    snapshots = [Point("s", "vda", None, "/img/os")]
    if code is not None:
        with pytest.raises(VirtopsError) as error:
            way_of(snapshots, found, frozenset("s"), children, version)
        assert error.value.code == code
        return
    way = way_of(snapshots, found, frozenset("s"), children, version)
    assert way.by_libvirt == (not base.startswith("/"))
    assert (way == OURS) == base.startswith("/")


def test_the_journal_has_the_whole_plan() -> None:
    plan = ImagePlan((Merging("vda", Layer("base", "raw"), ("ot", "os")),), (("vdb", "x"),))
    operation = operation_of(plan, "s", "only", "1", "20261120T120000Z")
    assert plan_of(operation) == plan
    journal = Journal((operation,))
    assert begun("s", "only", journal) == operation
    assert begun("s", "keep", journal) is None


def test_a_snapshot_of_that_name_is_no_deletion() -> None:
    taken = Operation("1", "snapshot", "s", "created", "20261120T120000Z", ())
    deletion = operation_of(ImagePlan(), "s", "keep", "2", "20261120T120000Z")
    assert begun("s", "keep", Journal((taken,))) is None
    both = Journal((deletion, taken))
    assert (both.of_snapshot("s"), begun("s", "keep", both)) == (taken, deletion)


def test_stranded() -> None:
    """What stands on a merged layer in another branch; not what is merged itself, nor the guest's own."""
    merges = (Merging("vda", Layer("base", "raw"), ("ot", "os")),)
    images = forest("live ot os base", "left ot os base", "far left ot os base")
    assert stranded(merges, images, ["live", "ot", "os", "base"]) == (("left", Layer("base", "raw")),)


def test_the_journal_afterwards() -> None:
    known, now = FileIdentity("", 1, 1, 1), FileIdentity("", 2, 2, 2)

    def kept(name: str, base: str, overlay: str) -> Operation:
        return Operation(
            name, "snapshot", name, "created", "20261120T120000Z", (JournalDisk("vda", base, "qcow2", overlay, known),)
        )

    plan = ImagePlan((Merging("vda", Layer("base", "raw"), ("os",)),))
    operation = operation_of(plan, "s", "keep", "1", "20261120T120000Z")
    before = Journal((kept("s", "base", "os"), kept("t", "os", "ot"), kept("u", "ot", "ou"), operation))
    after = settled(before, operation, frozenset("s"), {"base": now}.get)
    assert [op.name for op in after.operations] == ["t", "u"]
    assert after.operations[0].disks == (JournalDisk("vda", "base", "raw", "ot", now),)
    assert after.operations[1].disks == before.operations[2].disks


def test_memory_files() -> None:
    def record(name: str, file: str | None) -> SnapshotRecord:
        return SnapshotRecord(name, "running", 1, memory="no" if file is None else "external", memory_file=file)

    gone = [record("a", "/m/a"), record("b", "/m/b"), record("c", None)]
    assert memory_files(gone, [record("d", "/m/b")]) == ("/m/a",)
