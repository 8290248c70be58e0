# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A live backup whose journal is gone: nothing is backed up on top of it, and a recovery ends it or names it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.journal import PREPARED, Journal
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Outcome, SnapshotRecord
from ansible_collections.virtops.libvirt.plugins.module_utils._core.snapshot import SnapshotOptions
from ansible_collections.virtops.libvirt.plugins.module_utils._core.strays import snapshot_of, strays
from ansible_collections.virtops.libvirt.plugins.module_utils._service import info, journal_info
from ansible_collections.virtops.libvirt.plugins.module_utils._service.recover import RecoverOptions, Recovery
from ansible_collections.virtops.libvirt.plugins.module_utils._service.snapshot import ExternalSnapshot
from ansible_collections.virtops.libvirt.plugins.module_utils._service.strays import lost_operations

from .fakes import Died, FakeLab

FIRST, SECOND = "live-backup-20261120T120000Z", "live-backup-20261120T130000Z"
VDA = "/img/vm.vda.%s.qcow2"


class Lab(FakeLab):
    """A running guest on its own images."""

    def snapshot(self, name: str, kind: str = "live_backup", metadata: bool = True) -> None:
        wish = SnapshotOptions(name, kind=kind, metadata=metadata)
        ExternalSnapshot(wish, self.guest).run(check=False)

    def forget(self) -> None:
        """Somebody removes the domain's metadata."""
        self.domain.journal = self.domain.lasting_journal = None

    def recover(self, check: bool = False, backup: bool = False) -> Outcome:
        back_up = self.back_up if backup else None
        return Recovery(RecoverOptions(), self.guest, back_up).run(check)

    def back_up(self, snapshot: str) -> Outcome:
        raise AssertionError("nothing tells what the base was")

    def told(self) -> list[tuple[str, bool, bool]]:
        records = self.domain.snapshots()
        values = info.guests([self.domain.view()], ["*"], [], [], lambda _uuid: records, self.images).values
        (guest,) = values["guests"]  # type: ignore[misc,attr-defined]
        return [(found["name"], found["open"], found["noted"]) for found in guest["journal"]]


@pytest.fixture
def lab() -> Lab:
    return Lab()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/img/vm.vda.live-backup-1.qcow2", "live-backup-1"),
        ("/img/vm.vda.nightly.qcow2", None),
        ("/img/vm.vdb.live-backup-1.qcow2", None),
        ("/img/other.vda.live-backup-1.qcow2", None),
        ("/img/vm.vda.live-backup-1", None),
    ],
)
def test_names(path: str, name: str | None) -> None:
    assert snapshot_of(path, "vm", "vda") == name


@pytest.mark.parametrize("record", [True, False])
def test_one_in_the_chain_is_told_refused_and_merged(lab: Lab, record: bool) -> None:
    before = lab.domain.view().disks
    lab.snapshot(FIRST, metadata=record)
    assert lab.told() == [(FIRST, True, True)]
    lab.forget()
    assert lab.told() == [(FIRST, True, False)]
    (operation,) = journal_info.journal(lab.guest).values["operations"]  # type: ignore[misc,attr-defined]
    assert (operation["noted"], operation["open"]) == (False, True)
    assert "take up" in operation["recovery"]
    for kind in ("live_backup", "snapshot"):
        with pytest.raises(VirtopsError, match="its journal is gone") as caught:
            lab.snapshot(SECOND, kind)
        assert caught.value.code == "operation_open"
    foreseen = lab.recover(check=True)
    done = lab.recover(backup=True)
    assert foreseen.steps == done.steps
    assert foreseen.after == done.after
    assert done.steps[0].startswith("take up %s" % FIRST)
    assert "cannot be finished" in done.warnings[0]
    assert lab.domain.view().disks == before
    assert (lab.domain.journal, lab.domain.records) == (None, {})
    assert VDA % FIRST not in lab.images.backing
    assert lab.recover().steps == ()
    lab.snapshot(SECOND)


def test_two_on_each_other(lab: Lab) -> None:
    """As earlier releases backed up on top of one."""
    before = lab.domain.view().disks
    lab.snapshot(FIRST)
    lab.forget()
    lab.domain.records.clear()
    chain = lab.domain.live
    lab.domain.live = {name: replace(disk, chain=disk.chain) for name, disk in chain.items()}
    for target in ("vda", "vdb"):
        overlay = "/img/vm.%s.%s.qcow2" % (target, SECOND)
        disk = lab.domain.live[target]
        lab.images.backing[overlay] = ("qcow2", disk.chain[0].path)
        lab.domain.live[target] = replace(disk, chain=(replace(disk.chain[0], path=overlay), *disk.chain))
        lab.domain.config[target] = lab.domain.live[target].chain
    found = strays(lab.domain.view(), (), Journal())
    assert [operation.name for operation in found] == [SECOND, FIRST]
    lab.recover()
    assert lab.domain.view().disks == before


def test_a_record_alone(lab: Lab) -> None:
    """Merged by hand, and the overlays removed."""
    lab.snapshot(FIRST)
    lab.forget()
    for target, layers in (("vda", "/img/a.raw"), ("vdb", "/img/b.qcow2")):
        lab.domain.live[target] = replace(lab.domain.live[target], chain=lab.images.chain(layers))
        lab.domain.config[target] = lab.domain.live[target].chain
        del lab.images.backing["/img/vm.%s.%s.qcow2" % (target, FIRST)]
    assert lab.told() == [(FIRST, True, False)]
    lab.recover()
    assert (lab.domain.records, lab.told()) == ({}, [])


@pytest.mark.parametrize("record", [True, False])
def test_a_guest_that_was_started_from_older_xml(lab: Lab, record: bool) -> None:
    """Its newest data may be in the overlay."""
    lab.snapshot(FIRST, metadata=record)
    lab.forget()
    for target, layers in (("vda", "/img/a.raw"), ("vdb", "/img/b.qcow2")):
        lab.domain.live[target] = replace(lab.domain.live[target], chain=lab.images.chain(layers))
        lab.domain.config[target] = lab.domain.live[target].chain
    lab.images.dirty.add(VDA % FIRST)
    assert lab.told() == [(FIRST, True, False)]
    for run in (lab.recover, lambda: lab.snapshot(SECOND)):
        with pytest.raises(VirtopsError) as caught:
            run()
        assert caught.value.code == "overlay_in_use" if run == lab.recover or not record else "operation_open"
    assert VDA % FIRST in lab.images.backing


def test_what_is_at_rest_is_none(lab: Lab) -> None:
    """A snapshot that a user keeps, a layer that a pull made whole, and another domain's image of such a name."""
    lab.snapshot("before-update", "snapshot")
    lab.forget()
    assert (lab.told(), lab.recover().steps) == ([], ())
    lab = Lab()
    lab.snapshot(FIRST)
    lab.forget()
    for target in ("vda", "vdb"):
        disk = lab.domain.live[target]
        lab.domain.live[target] = replace(disk, chain=disk.chain[:1])
        lab.images.backing[disk.chain[0].path] = ("qcow2", None)
    assert (lab.told(), lab.recover().steps) == ([], ())


def test_a_run_that_begins_meanwhile(lab: Lab) -> None:
    """Its record was not there when its journal was not."""
    view = lab.domain.view()
    lab.snapshot(FIRST)
    looks = iter([(), lab.domain.snapshots()])
    values = info.guests([view], ["*"], [], [], lambda _uuid: next(looks), lab.images).values
    assert values["guests"][0]["journal"] == []  # type: ignore[index]


def test_records_are_not_asked_for_while_libvirt_may_work_at_a_snapshot(lab: Lab) -> None:
    """It lists none meanwhile, and fails."""
    lab.domain.die_before = "create_snapshot"
    with pytest.raises(Died):
        lab.snapshot(FIRST)
    lab.domain.revive()
    journal = lab.journal

    def records() -> tuple[SnapshotRecord, ...]:
        raise AssertionError("name in virGetDomainSnapshot must not be NULL")

    assert [operation.phase for operation in journal.operations] == [PREPARED]
    assert lost_operations(lab.domain.view(), journal, records) == ()
