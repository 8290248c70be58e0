# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Deleting records: what goes, what stays, what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core import xml
from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.journal import COMMITTING, CREATED, PREPARED
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Outcome, SnapshotDisk, SnapshotRecord
from ansible_collections.virtops.libvirt.plugins.module_utils._service.records import delete_record

from .fakes import FakeDomain, FakeLab, running_guest


class RecordedDomain(FakeDomain):
    """With records that have children."""

    def delete_snapshot_record(self, name: str, children: str = "keep") -> None:
        self._call("delete_snapshot_record", name, children)
        family = {name}
        for record in self.records.values():
            if record.parent in family:
                family.add(record.name)
        gone = {"keep": {name}, "delete": family, "only": family - {name}}[children]
        parent = self.records[name].parent
        left = {key: record for key, record in self.records.items() if key not in gone}
        self.records = {
            key: record if record.parent in left else replace(record, parent=parent if children == "keep" else None)
            for key, record in left.items()
        }


class Lab(FakeLab):
    """Internal snapshots root > child > leaf and root > other, on a running guest."""

    def __init__(self) -> None:
        made, self.images, self.clock, self.watchdog = running_guest()
        self.domain = RecordedDomain(self.images, list(made.live.values()))
        self.domain.clock = self.clock
        for name, parent in (("root", None), ("child", "root"), ("leaf", "child"), ("other", "root")):
            disks = (SnapshotDisk("vda", "internal"),)
            self.domain.records[name] = SnapshotRecord(name, "running", 1, disks, parent=parent)

    def delete(self, name: str, children: str = "keep", check: bool = False) -> Outcome:
        return delete_record(self.guest, name, children, check)

    @property
    def operations(self) -> list[str]:
        return [operation.name for operation in self.journal.operations]


@pytest.mark.parametrize(
    ("children", "gone", "left"),
    [
        ("keep", ["child"], ["root", "leaf", "other"]),
        ("delete", ["child", "leaf"], ["root", "other"]),
        ("only", ["leaf"], ["root", "child", "other"]),
    ],
)
def test_a_record_goes_once(children: str, gone: list[str], left: list[str]) -> None:
    lab = Lab()
    checked = lab.delete("child", children, check=True)
    assert lab.domain.calls == []
    done = lab.delete("child", children)
    assert checked == done
    assert done.steps == tuple(f"delete the record of snapshot {name}, not its data" for name in gone)
    assert list(lab.domain.records) == left
    assert done.before == {"snapshots": ["root", "child", "leaf", "other"]}
    assert done.after == {"snapshots": left}
    assert lab.domain.calls == [f"delete_snapshot_record child {children}"]
    assert lab.images.calls == []
    assert not lab.delete("child", children).changed
    assert not lab.delete("child", children, check=True).changed


def test_what_the_record_said_is_returned() -> None:
    lab = Lab()
    assert lab.delete("leaf", check=True).values == {
        "snapshot": {
            "name": "leaf",
            "description": None,
            "parent": "child",
            "children": [],
            "creation_time": 1,
            "state": "running",
            "kind": "internal",
            "memory": {"snapshot": "no", "file": None},
            "disks": [{"name": "vda", "snapshot": "internal", "file": None, "format": None}],
            "current": False,
            "metadata": True,
        }
    }
    assert lab.delete("nothing").values == {"snapshot": None}


@pytest.mark.parametrize("phase", [PREPARED, CREATED, COMMITTING])
@pytest.mark.parametrize("name", ["nightly", "root"])
def test_nothing_goes_while_an_operation_is_open(phase: str, name: str) -> None:
    lab = Lab()
    lab.snapshot("nightly", kind="live_backup")
    journal = lab.journal
    lab.domain.journal = xml.build_journal(journal.put(journal.operations[0].at(phase)))
    records, written = dict(lab.domain.records), lab.domain.journal
    for check in (True, False):
        with pytest.raises(VirtopsError) as caught:
            lab.delete(name, check=check)
        assert caught.value.code == "operation_open"
        assert "nightly" in caught.value.cause
        assert "block_commit" in caught.value.remedy
    assert (lab.domain.records, lab.domain.journal, lab.domain.calls) == (records, written, [])
    assert not lab.delete("not there").changed


def test_layers_in_use_stay_in_the_journal() -> None:
    lab = Lab()
    lab.snapshot("kept")
    lab.delete("kept")
    assert "kept" not in lab.domain.records
    assert lab.operations == ["kept"]
    assert lab.domain.calls == ["delete_snapshot_record kept keep"]


@pytest.mark.parametrize("state", ["running", "shut off"])
def test_an_operation_whose_layers_are_gone_leaves_the_journal_first(state: str) -> None:
    lab = Lab()
    lab.snapshot("merged by hand")
    for target, layer in (("vda", "/img/a.raw"), ("vdb", "/img/b.qcow2")):
        disk = lab.domain.live[target]
        lab.domain.live[target] = replace(disk, chain=disk.chain[1:])
        lab.domain.config[target] = lab.images.chain(layer)
    lab.domain.state = state
    lab.delete("merged by hand")
    assert lab.domain.journal is None
    assert lab.domain.calls == ["write_journal", "delete_snapshot_record merged by hand keep"]


def test_an_unreadable_journal_is_respected() -> None:
    lab = Lab()
    lab.domain.journal = "<journal schema='99'/>"
    with pytest.raises(VirtopsError) as caught:
        lab.delete("root")
    assert caught.value.code == "journal_unreadable"
    assert "root" in lab.domain.records
