# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Pruning snapshots: what goes and what stays, check mode, and every place where the flow may be killed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.convergence import Deadline
from ansible_collections.virtops.libvirt.plugins.module_utils._core.deletion import Point, chained
from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.keep import Keep
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Layer, Outcome, SnapshotRecord
from ansible_collections.virtops.libvirt.plugins.module_utils._service.guest import Guest
from ansible_collections.virtops.libvirt.plugins.module_utils._service.snapshot_prune import (
    SnapshotPrune,
    SnapshotPruneOptions,
)

from .fakes import Died
from .test_snapshot_delete import Lab, Mortal, overlay

DAY = 86400
#: 2026-11-20 12:00:00 UTC, which is the fake clock's time.
NOW = 1795176000


class PruneLab(Lab):
    """A guest with daily snapshots: auto-1 is the oldest, the last one is of today; and mine, the first of all."""

    def __init__(self, count: int = 5) -> None:
        names = ["mine", *("auto-%d" % number for number in range(1, count + 1))]
        super().__init__("")
        for name in names:
            self.snapshot(name)
        for age, name in enumerate(reversed(names)):
            self.take_at(name, NOW - age * DAY)

    def take_at(self, name: str, seconds: int) -> None:
        """As if the snapshot had been taken then."""
        record = self.domain.records[name]
        old, new = ("<creationTime>%d</creationTime>" % time for time in (record.creation_time, seconds))
        self.domain.texts[name] = self.domain.texts[name].replace(old, new)
        self.domain.records[name] = replace(record, creation_time=seconds)

    def prune(self, keep: Keep, check: bool = False, due: Any = None) -> Outcome:
        due = due if due is not None else {"count": 0, "at": 0, "before": False}
        self.domain.ticks_until_ready = 2
        guest = Guest(Mortal(self.domain, due), Mortal(self.images, due), self.clock, self.watchdog)
        return SnapshotPrune(SnapshotPruneOptions("auto-", keep, Deadline()), guest).run(check)


def names(outcome: Outcome, what: str) -> list[str]:
    return [one["name"] for one in outcome.values[what]]  # type: ignore[attr-defined]


@pytest.mark.parametrize("off", [False, True])
@pytest.mark.parametrize(
    ("keep", "left"),
    [
        (Keep(last=2), ["auto-4", "auto-5"]),
        (Keep(last=1, min_age=2 * DAY + 1), ["auto-3", "auto-4", "auto-5"]),
        (Keep(weekly=2), ["auto-5"]),
        (Keep(daily=1, yearly=1), ["auto-5"]),
    ],
)
def test_what_the_policy_does_not_keep_goes_in_one_merge(keep: Keep, left: list[str], off: bool) -> None:
    lab = PruneLab()
    if off:
        lab.turn_off()
    foreseen = lab.prune(keep, check=True)
    assert not lab.domain.calls
    outcome = lab.prune(keep)
    assert (foreseen.steps, foreseen.values) == (outcome.steps, outcome.values)
    assert (foreseen.before, foreseen.after) == (outcome.before, outcome.after)
    assert sorted(names(outcome, "kept")) == left
    gone = [name for name in ("auto-1", "auto-2", "auto-3", "auto-4") if name not in left]
    assert names(outcome, "removed") == gone[::-1]
    assert lab.state()["chains"]["vda"] == [*(overlay(one) for one in left[::-1]), overlay("mine"), "/img/a.raw"]
    assert lab.state()["parents"][left[0]] == "mine"
    assert len([step for step in outcome.steps if step.startswith("commit")]) == 2  # one for each disk
    assert not lab.prune(keep).changed
    assert "mine" in lab.domain.records


def test_layers_that_do_not_stand_on_each_other_go_one_after_the_other() -> None:
    """auto-3 stays between them: as a week's newest it would."""
    lab = PruneLab()
    lab.take_at("auto-3", NOW)
    foreseen = lab.prune(Keep(last=2), check=True)
    outcome = lab.prune(Keep(last=2))
    assert foreseen.steps == outcome.steps
    assert (foreseen.after, foreseen.values) == (outcome.after, outcome.values)
    assert sorted(names(outcome, "kept")) == ["auto-3", "auto-5"]
    assert lab.state()["chains"]["vda"] == [overlay("auto-5"), overlay("auto-3"), overlay("mine"), "/img/a.raw"]


def test_without_an_option_nothing_goes() -> None:
    lab = PruneLab()
    outcome = lab.prune(Keep())
    assert not outcome.changed
    assert names(outcome, "removed") == []
    assert len(names(outcome, "kept")) == 5
    assert outcome.warnings


def test_the_current_one_goes_as_any_other() -> None:
    """After a revert it may be the oldest: the guest keeps its data."""
    lab = PruneLab()
    lab.take_at("auto-1", NOW)
    lab.take_at("auto-5", NOW - 9 * DAY)
    outcome = lab.prune(Keep(last=4))
    assert names(outcome, "removed") == ["auto-5"]
    assert lab.state()["chains"]["vda"][0] == overlay("auto-4")


def test_another_operation_is_open() -> None:
    lab = PruneLab()
    with pytest.raises(Died):
        lab.delete("mine", due={"count": 0, "at": 1, "before": False})
    with pytest.raises(VirtopsError) as error:
        lab.prune(Keep(last=1))
    assert error.value.code == "operation_open"


def test_both_kinds_at_once_are_refused() -> None:
    lab = PruneLab()
    internal = SnapshotRecord("auto-0", "shutoff", NOW - 10 * DAY)
    lab.domain.records["auto-0"] = internal
    before = lab.state()
    for check in (True, False):
        with pytest.raises(VirtopsError) as error:
            lab.prune(Keep(last=1), check=check)
        assert error.value.code == "mixed_kinds"
    assert lab.state() == before
    assert names(lab.prune(Keep(last=5)), "removed") == ["auto-0"]


@pytest.mark.parametrize("recovers", [False, True])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("off", [False, True])
def test_killed_at_every_step(before: bool, off: bool, recovers: bool) -> None:
    """Whatever effect was the last: the same task, or recover, comes to the same end. What was begun is finished also
    where the policy would keep it by then."""

    def fresh() -> PruneLab:
        lab = PruneLab(4)
        if off:
            lab.turn_off()
        return lab

    whole = fresh()
    due = {"count": 0, "at": 0, "before": False}
    whole.prune(Keep(last=2), due=due)
    assert due["count"] > 3
    for at in range(1, due["count"] + 1):
        lab = fresh()
        with pytest.raises(Died):
            lab.prune(Keep(last=2), due={"count": 0, "at": at, "before": before})
        begun = any(op.open for op in lab.journal.operations)
        if recovers:
            assert lab.recover().changed == begun
        if begun and not recovers:
            assert lab.prune(Keep(last=9), check=True).changed
        lab.prune(Keep(last=9 if begun else 2))
        assert lab.state() == whole.state(), f"killed at {at}"


def chain(*snapshots: str) -> list[Point]:
    """Each as NAME:DISKS, on the one before that has the disk."""
    found, tops = [], {"vda": "base-vda", "vdb": "base-vdb"}
    for snapshot in snapshots:
        name, disks = snapshot.split(":")
        for disk in disks.split(","):
            found.append(Point(name, disk, Layer(tops[disk], "qcow2"), f"{name}-{disk}"))
            tops[disk] = f"{name}-{disk}"
    return found


@pytest.mark.parametrize(
    ("snapshots", "doomed", "groups"),
    [
        ("a:vda b:vda c:vda", "a b", [("a", "b")]),
        ("a:vda b:vda c:vda d:vda", "a c", [("a",), ("c",)]),
        ("a:vda b:vda c:vda d:vda e:vda", "a b d e", [("a", "b"), ("d", "e")]),
        ("a:vda,vdb b:vda,vdb c:vda", "a b", [("a", "b")]),
        # On vdb, c stands on a: vda would have two merges in one
        ("a:vda,vdb b:vda c:vda,vdb", "a c", [("a",), ("c",)]),
        ("a:vda,vdb b:vda c:vda,vdb", "a b c", [("a", "b", "c")]),
        ("a:vda", "", []),
    ],
)
def test_groups(snapshots: str, doomed: str, groups: list[tuple[str, ...]]) -> None:
    points = chain(*snapshots.split())
    order = [one.split(":")[0] for one in snapshots.split()]
    parents = dict(zip(order, [None, *order]))
    records = [SnapshotRecord(name, "disk-snapshot", 1, parent=parents[name]) for name in doomed.split()]
    assert list(chained(points, records)) == groups
    unknown = [replace(point, base=None) for point in points]
    if "vdb" not in snapshots:
        assert list(chained(unknown, records)) == groups  # volumes of a pool: the records tell
