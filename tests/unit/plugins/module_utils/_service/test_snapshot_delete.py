# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Deleting external snapshots: the end state, what is refused, and every place where the flow may be killed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.convergence import Deadline
from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.journal import Journal
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import (
    BlockJob,
    Disk,
    Layer,
    OtherImages,
    Outcome,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._core.xml import (
    build_journal,
    snapshot_images,
    with_snapshot_files,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._service.guest import Guest
from ansible_collections.virtops.libvirt.plugins.module_utils._service.merge import Merge
from ansible_collections.virtops.libvirt.plugins.module_utils._service.merge_plan import MergeOptions
from ansible_collections.virtops.libvirt.plugins.module_utils._service.observe import observe
from ansible_collections.virtops.libvirt.plugins.module_utils._service.recover import RecoverOptions, Recovery
from ansible_collections.virtops.libvirt.plugins.module_utils._service.snapshot_delete import SnapshotDeletion

from .fakes import Died, FakeLab

#: What changes something, in the order of no run in particular.
EFFECTS = {
    *("write_journal", "start_commit", "pivot", "set_config_disks", "redefine_snapshot", "delete_snapshot_record"),
    *("delete_snapshot", "commit", "rebase", "rebase_unsafe", "remove", "keep_time"),
}


class Mortal:
    """Passes each call on and counts the effects; dies before or after the one that is due."""

    def __init__(self, port: Any, due: dict[str, Any]) -> None:
        self._port, self._due = port, due

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._port, name)
        if name not in EFFECTS:
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            self._due["count"] += 1
            is_due = self._due["count"] == self._due["at"]
            if is_due and self._due["before"]:
                raise Died(name)
            result = found(*arguments, **options)
            if is_due:
                raise Died(name)
            return result

        return call


class Lab(FakeLab):
    """A guest with snapshots a, b and c, one on the other."""

    def __init__(self, names: str = "abc") -> None:
        super().__init__()
        for name in names:
            self.snapshot(name)

    def delete(self, name: str, children: str = "keep", check: bool = False, due: Any = None) -> Outcome:
        due = due if due is not None else {"count": 0, "at": 0, "before": False}
        self.domain.ticks_until_ready = 2
        flow = SnapshotDeletion(
            name,
            children,
            Deadline(),
            Guest(Mortal(self.domain, due), Mortal(self.images, due), self.clock, self.watchdog),
        )
        return flow.run(check)

    def recover(self) -> Outcome:
        self.domain.ticks_until_ready = 2
        return Recovery(RecoverOptions(), self.guest).run(False)

    def turn_off(self) -> None:
        self.domain.state = "shut off"
        for name in self.domain.live:
            self.domain.config[name] = self.domain.live[name].chain

    def state(self) -> dict[str, Any]:
        """All that a deletion may change."""
        return {
            "chains": {
                disk.target: [layer.path for layer in disk.chain] for disk in observe(self.domain, self.images).disks
            },
            "config": {name: [layer.path for layer in chain[:1]] for name, chain in self.domain.config.items()},
            "files": dict(self.images.backing),
            "parents": {name: record.parent for name, record in self.domain.records.items()},
            "bases": {
                name: {target: layer.path for target, layer in snapshot_images(text).items()}
                for name, text in self.domain.texts.items()
            },
            "journal": [
                (op.name, op.phase, [(disk.base, disk.overlay) for disk in op.disks]) for op in self.journal.operations
            ],
        }


def overlay(name: str, disk: str = "vda") -> str:
    return f"/img/vm.{disk}.{name}.qcow2"


def test_in_the_middle() -> None:
    lab = Lab()
    outcome = lab.delete("b")
    found = lab.state()
    assert found["chains"]["vda"] == [overlay("c"), overlay("a"), "/img/a.raw"]
    assert found["chains"]["vdb"] == [overlay("c", "vdb"), overlay("a", "vdb"), "/img/b.qcow2", "/img/golden.raw"]
    assert found["parents"] == {"a": None, "c": "a"}
    assert found["bases"]["c"] == {"vda": overlay("a"), "vdb": overlay("a", "vdb")}
    assert not {overlay("b"), overlay("b", "vdb")} & set(found["files"])
    assert [name for name, _phase, _disks in found["journal"]] == ["a", "c"]
    assert found["journal"][1][2] == [(overlay("a"), overlay("c")), (overlay("a", "vdb"), overlay("c", "vdb"))]
    assert "/img/golden.raw" not in lab.images.written
    assert outcome.steps[0].startswith("begin to delete snapshot b by merges of this collection")
    assert outcome.values["disks"][0]["merged"] == [overlay("b")]  # type: ignore[index]
    assert not lab.delete("b").changed


def test_the_base_of_a_snapshot_above_is_known_for_untouched() -> None:
    """It was written by the merge, and has the time and in the journal the identity that a revert compares."""
    lab = Lab()
    lab.images.times[overlay("b")] = 7
    lab.delete("b")
    assert lab.images.times[overlay("a")] == 7
    operation = lab.journal.of_snapshot("c")
    assert operation is not None
    assert operation.disks[0].identity == lab.images.identity(overlay("a"))


@pytest.mark.parametrize(("name", "children", "left"), [("a", "keep", "bc"), ("c", "keep", "ab"), ("a", "only", "a")])
@pytest.mark.parametrize("off", [False, True])
def test_others(name: str, children: str, left: str, off: bool) -> None:
    lab = Lab()
    if off:
        lab.turn_off()
    foreseen = lab.delete(name, children, check=True)
    assert not lab.domain.calls
    outcome = lab.delete(name, children)
    assert foreseen.steps == outcome.steps
    assert (foreseen.before, foreseen.after, foreseen.values) == (outcome.before, outcome.after, outcome.values)
    found = lab.state()
    assert "".join(sorted(found["parents"])) == left
    assert sorted(path for path in found["files"] if "vm." in path) == sorted(
        overlay(one, disk) for one in left for disk in ("vda", "vdb")
    )
    assert found["config"]["vda"] == found["chains"]["vda"][:1]
    assert len(found["chains"]["vda"]) == len(left) + 1


def test_all_of_them() -> None:
    lab = Lab()
    lab.delete("a", "delete")
    found = lab.state()
    assert found["chains"]["vdb"] == ["/img/b.qcow2", "/img/golden.raw"]
    assert found["parents"] == {}
    assert found["journal"] == []
    assert set(found["files"]) == {"/img/a.raw", "/img/b.qcow2", "/img/golden.raw"}


def test_without_a_record() -> None:
    lab = Lab("")
    lab.snapshot("a", metadata=False)
    lab.delete("a")
    assert lab.state()["chains"]["vda"] == ["/img/a.raw"]
    assert lab.domain.journal is None


def test_memory_without_a_record() -> None:
    lab = Lab("")
    lab.snapshot("a", metadata=False)
    journal = lab.journal
    lab.domain.journal = build_journal(journal.put(replace(journal.operations[0], memory="/img/a.mem")))
    lab.images.backing["/img/a.mem"] = ("memory", None)
    lab.delete("a")
    assert "/img/a.mem" not in lab.images.backing


def test_an_image_that_is_not_on_this_host_without_a_record() -> None:
    lab = Lab("")
    lab.snapshot("a", metadata=False)
    journal = lab.journal
    operation = journal.operations[0]
    disks = (replace(operation.disks[0], base="nbd://host/a"),)
    lab.domain.journal = build_journal(journal.put(replace(operation, disks=disks)))
    with pytest.raises(VirtopsError) as error:
        lab.delete("a")
    assert error.value.code == "unsupported"


def test_one_that_is_not_there() -> None:
    lab = Lab()
    outcome = lab.delete("x", "delete")
    assert not outcome.changed
    assert outcome.values["snapshot"] == {"name": "x", "kind": "external"}


def branched() -> Lab:
    """Taken back to a: the guest is on new overlays, b and c are another branch."""
    lab = Lab()
    for target in ("vda", "vdb"):
        base = lab.domain.live[target].chain[3:]
        path = overlay("a.revert", target)
        lab.images.backing[path] = ("qcow2", base[0].path)
        lab.domain.live[target] = replace(lab.domain.live[target], chain=(Layer(path, "qcow2"), *base))
        lab.domain.config[target] = lab.domain.live[target].chain
    overlays = {target: overlay("a.revert", target) for target in ("vda", "vdb")}
    lab.domain.redefine_snapshot(with_snapshot_files(lab.domain.texts["a"], overlays), True, False)
    journal = lab.journal
    operation = journal.operations[0]
    disks = tuple(replace(disk, overlay=overlays[disk.target]) for disk in operation.disks)
    lab.domain.journal = build_journal(Journal((replace(operation, disks=disks),)))
    lab.domain.calls.clear()
    return lab


def test_what_only_looks_needs_no_secrets() -> None:
    """journal_info has a read-only connection, and tells what recover would do."""
    lab = Lab()
    with pytest.raises(Died):
        lab.delete("b", due={"count": 0, "at": 1, "before": False})
    lab.domain.readonly = True
    assert lab.delete("b", check=True).steps
    wish = MergeOptions(snapshot="a")
    whole = Lab()
    whole.domain.readonly = True
    assert Merge(wish, whole.guest).run(True).steps


def test_in_another_branch() -> None:
    lab = branched()
    before = lab.state()
    lab.delete("b")
    found = lab.state()
    assert (found["chains"], found["config"]) == (before["chains"], before["config"])
    assert not [call for call in lab.domain.calls if call.startswith(("start_commit", "pivot", "set_config_disks"))]
    assert f"commit {overlay('b')} {overlay('a')}" in lab.images.calls
    assert lab.images.backing[overlay("c")] == ("qcow2", overlay("a"))
    assert found["bases"]["c"]["vda"] == overlay("a")
    assert overlay("b") not in found["files"]


def test_a_branch_that_was_left() -> None:
    lab = branched()
    lab.delete("b", "delete")
    found = lab.state()
    assert not [path for path in found["files"] if ".a.qcow2" in path or ".b." in path or ".c." in path]
    assert lab.images.written == {}
    assert found["parents"] == {"a": None}


def test_two_branches_on_it() -> None:
    lab = branched()
    before = lab.state()
    with pytest.raises(VirtopsError) as error:
        lab.delete("a")
    assert error.value.code == "branches_above"
    assert lab.state() == before


@pytest.mark.parametrize("wish", [{"snapshot": "a"}, {"base": "/img/a.raw"}])
def test_no_other_merge_changes_what_a_branch_stands_on(wish: dict[str, str]) -> None:
    lab = branched()
    before = lab.state()
    with pytest.raises(VirtopsError) as error:
        Merge(MergeOptions(**wish), lab.guest).run(False)  # type: ignore[arg-type]
    assert error.value.code == "branches_above"
    assert lab.state() == before


def test_a_merge_by_name_keeps_the_records_in_step_too() -> None:
    lab = Lab()
    lab.images.times[overlay("b")] = 7
    wish = MergeOptions(snapshot="b", delete_merged=True)
    foreseen = Merge(wish, lab.guest).run(True)
    outcome = Merge(wish, lab.guest).run(False)
    assert foreseen.steps == outcome.steps
    merged = lab.state()
    assert lab.images.times[overlay("a")] == 7
    other = Lab()
    other.delete("b")
    assert merged == other.state()


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("job_running", lambda lab: lab.domain.live.update(vda=replace(lab.domain.live["vda"], job=BlockJob("copy")))),
        ("base_shared", lambda lab: setattr(lab.domain, "others", OtherImages(frozenset({overlay("a")})))),
        (
            "base_shared",
            lambda lab: setattr(lab.domain, "others", OtherImages(frozenset({lab.images.another_name(overlay("a"))}))),
        ),
    ],
)
def test_refusals(code: str, change: Any) -> None:
    lab = Lab()
    change(lab)
    before = lab.state()
    for check in (True, False):
        with pytest.raises(VirtopsError) as error:
            lab.delete("b", check=check)
        assert error.value.code == code
    assert lab.state() == before


def test_no_deletion_in_another_branch_while_a_job_runs() -> None:
    lab = branched()
    lab.domain.live["vda"] = replace(lab.domain.live["vda"], job=BlockJob("copy"))
    with pytest.raises(VirtopsError) as error:
        lab.delete("b")
    assert error.value.code == "job_running"
    assert not lab.images.calls


def test_a_pivot_that_libvirt_did_not_note() -> None:
    """The persistent XML names the overlay still: the guest may have been started on it since."""
    lab = Lab()
    with pytest.raises(Died):
        lab.delete("c", due={"count": 0, "at": 6, "before": False})
    assert [call for call in lab.domain.calls if call == "pivot vda"]
    lab.domain.config["vda"] = (Layer(overlay("c"), "qcow2"), *lab.domain.live["vda"].chain)
    outcome = lab.delete("c")
    assert lab.domain.config["vda"] == (Layer(overlay("b"), "qcow2"),)
    assert overlay("c") in lab.images.backing
    assert [text for text in outcome.warnings if overlay("c") in text]


def test_another_operation_is_open() -> None:
    lab = Lab()
    with pytest.raises(Died):
        lab.delete("b", due={"count": 0, "at": 1, "before": False})
    with pytest.raises(VirtopsError) as error:
        lab.delete("b", "delete")
    assert error.value.code == "operation_open"


def test_an_image_that_is_in_use_is_deleted_by_the_next_run() -> None:
    lab = Lab()
    lab.images.open_by[overlay("b")] = (42,)
    outcome = lab.delete("b")
    assert [text for text in outcome.warnings if overlay("b") in text and "42" in text]
    assert overlay("b") in lab.images.backing
    assert "b" not in lab.domain.records
    lab.images.open_by.clear()
    assert lab.delete("b").changed
    assert overlay("b") not in lab.images.backing
    assert not lab.delete("b").changed


def test_data_that_nobody_merged_are_kept() -> None:
    """The guest was started from an older definition: its newest data may be in the overlay."""
    lab = Lab("a")
    lab.domain.live["vda"] = Disk("vda", chain=lab.images.chain("/img/a.raw"))
    lab.domain.config["vda"] = lab.images.chain("/img/a.raw")
    lab.images.dirty.add(overlay("a"))
    outcome = lab.delete("a")
    assert overlay("a") in lab.images.backing
    assert [text for text in outcome.warnings if overlay("a") in text]
    assert "/img/a.raw" not in lab.images.written


def test_memory_goes_with_its_snapshot() -> None:
    lab = Lab("")
    lab.images.backing["/img/a.mem"] = ("memory", None)
    lab.snapshot("a")
    images = snapshot_images(lab.domain.texts["a"])
    lab.domain._keep(replace(lab.domain.records["a"], memory="external", memory_file="/img/a.mem"), images)
    lab.delete("a")
    assert "/img/a.mem" not in lab.images.backing


def test_by_libvirt_where_the_image_is_not_on_this_host() -> None:
    lab = Lab("")
    remote = (Layer("nbd://host/a", "raw"),)
    lab.domain.live = {"vda": Disk("vda", chain=remote)}
    lab.domain.config = {"vda": remote}
    lab.images.backing["nbd://host/a"] = ("raw", None)
    lab.domain.live["vda"] = replace(lab.domain.live["vda"], chain=(Layer(overlay("a"), "qcow2"), *remote))
    lab.images.backing[overlay("a")] = ("qcow2", "nbd://host/a")
    lab.domain._keep(_record("a"), {})
    outcome = lab.delete("a")
    assert lab.domain.calls == ["write_journal", "delete_snapshot a keep", "write_journal"]
    assert lab.domain.journal is None
    assert "not on this host" in outcome.steps[0]
    # Killed meanwhile: libvirt's job runs on, and the next run ends it before it asks again
    lab.domain._keep(_record("a"), {})
    with pytest.raises(Died):
        lab.delete("a", due={"count": 0, "at": 2, "before": True})
    lab.domain.live["vda"] = replace(lab.domain.live["vda"], job=BlockJob("active-commit"))
    lab.domain.calls.clear()
    lab.delete("a")
    assert lab.domain.calls == ["cancel_job vda", "delete_snapshot a keep", "write_journal"]
    assert lab.domain.journal is None


def _record(name: str) -> Any:
    lab = Lab(name)
    record = lab.domain.records[name]
    return replace(record, disks=tuple(disk for disk in record.disks if disk.target == "vda"))


SCENES = {
    "middle": (Lab, "b", "keep", False),
    "top": (Lab, "c", "keep", False),
    "all": (Lab, "a", "delete", False),
    "middle, off": (Lab, "b", "keep", True),
    "top, off": (Lab, "c", "keep", True),
    "other branch": (branched, "b", "keep", False),
    "left branch": (branched, "b", "delete", False),
}


@pytest.mark.parametrize("recovers", [False, True])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("scene", SCENES)
def test_killed_at_every_step(scene: str, before: bool, recovers: bool) -> None:
    """Whatever effect was the last: the same task, or recover, comes to the same end."""
    make, name, children, off = SCENES[scene]

    def fresh() -> Lab:
        lab = make()
        if off:
            lab.turn_off()
        return lab

    whole = fresh()
    due = {"count": 0, "at": 0, "before": False}
    whole.delete(name, children, due=due)
    assert due["count"] > 3
    for at in range(1, due["count"] + 1):
        lab = fresh()
        with pytest.raises(Died):
            lab.delete(name, children, due={"count": 0, "at": at, "before": before})
        if recovers:
            begun = any(op.open for op in lab.journal.operations)
            assert lab.recover().changed == begun
            if not begun:
                lab.delete(name, children)
        else:
            lab.delete(name, children)
        assert lab.state() == whole.state(), f"killed at {at}"
