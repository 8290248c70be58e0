# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The tree of snapshots, and the filters of `virsh snapshot-list` and their combinations."""

from __future__ import annotations

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import SnapshotDisk, SnapshotRecord
from ansible_collections.virtops.libvirt.plugins.module_utils._core.snapshot_tree import (
    Filters,
    selected,
    tree_data,
    tree_text,
)


def record(name: str, parent: str | None, state: str = "running", external: bool = False) -> SnapshotRecord:
    disks = (SnapshotDisk("vda", "external" if external else "internal"),)
    return SnapshotRecord(name, state, 0, disks, parent=parent, memory="no" if external else "internal")


RECORDS = (
    record("a", None, "shutoff"),
    record("b", "a"),
    record("c", "b", "disk-snapshot", external=True),
    record("f", "b"),
    record("d", "a", "paused"),
    record("e", "d", "shutoff", external=True),
)


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        (Filters(), "abcfde"),
        (Filters(name="c"), "c"),
        (Filters(name="nobody"), ""),
        (Filters(current=True), "f"),
        (Filters(roots=True), "a"),
        (Filters(leaves=True), "cfe"),
        (Filters(has_children=True), "abd"),
        (Filters(leaves=True, has_children=True), ""),
        (Filters(active=True), "bfd"),
        (Filters(inactive=True), "ae"),
        (Filters(disk_only=True), "c"),
        (Filters(active=True, disk_only=True), "bcfd"),
        (Filters(internal=True), "abfd"),
        (Filters(external=True), "ce"),
        (Filters(internal=True, external=True), "abcfde"),
        (Filters(external=True, inactive=True), "e"),
        (Filters(metadata=True), "abcfde"),
        (Filters(metadata=False), ""),
        (Filters(start="a"), "bd"),
        (Filters(start="a", descendants=True), "bcfde"),
        (Filters(start="b", descendants=True, leaves=True, internal=True), "f"),
        (Filters(start="e"), ""),
    ],
)
def test_filters(filters: Filters, names: str) -> None:
    assert "".join(found.name for found in selected(RECORDS, "f", filters)) == names


def test_no_snapshot_is_current() -> None:
    assert selected(RECORDS, None, Filters(current=True)) == ()


def test_the_tree_is_drawn_as_virsh_does() -> None:
    assert (tree_text(RECORDS) or "").split("\n") == [
        *("a", "  |", "  +- b", "  |   |", "  |   +- c", "  |   +- f", "  |", "  +- d", "      |", "      +- e", ""),
    ]


def test_two_roots_and_no_children() -> None:
    assert tree_text((record("a", None), record("b", "somebody"))) == "a\n\nb\n"
    assert tree_text(()) == ""


def test_siblings_are_drawn_in_the_order_of_virsh() -> None:
    siblings = [record(name, "off") for name in ("e", "b", "Ä", "C")]
    nodes = tree_data((record("off", None), *siblings, record("a", None)))
    assert [node["name"] for node in nodes] == ["a", "off", "b", "C", "e", "Ä"]
    assert (tree_text(siblings) or "").split() == ["b", "C", "e", "Ä"]


def test_a_tree_that_is_too_deep_to_be_drawn() -> None:
    chain = tuple(record(f"s{number}", f"s{number - 1}" if number else None) for number in range(3000))
    assert tree_text(chain) is None
    assert (tree_text(chain[:100]) or "").count("+- s") == 99
    assert tree_data(chain)[-1] == {"name": "s2999", "depth": 2999}


def test_the_tree_as_data() -> None:
    found = [(node["name"], node["depth"]) for node in tree_data((*RECORDS[1:], record("z", None)))]
    assert found == [("b", 0), ("c", 1), ("f", 1), ("d", 0), ("e", 1), ("z", 0)]
