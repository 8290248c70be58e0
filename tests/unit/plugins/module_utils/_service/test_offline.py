# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The backup of a guest that is off: its images are copied as they are, and only where it stays off."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.backup import BackupOptions
from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.job_state import Word
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Layer, OtherImages
from ansible_collections.virtops.libvirt.plugins.module_utils._core.snapshot import DiskOptions, SnapshotOptions
from ansible_collections.virtops.libvirt.plugins.module_utils._service.live_backup import KIND

from .fakes import Died
from .fakes_backup import no_space
from .test_live_backup import SET, Lab

PARTIAL = "/srv/backup/vm/.20261120T120000Z.partial"


class OffLab(Lab):
    """The same guest, shut off. No flow here changes its definition, its journal or its images."""

    def __init__(self) -> None:
        super().__init__()
        self.domain.state = "shut off"

    def untouched(self) -> bool:
        calls = [call for call in self.domain.calls if call != "agent_ping"]
        return self.whole() and calls == [] and self.images.calls == []


@pytest.fixture
def lab() -> OffLab:
    return OffLab()


def test_check_mode_foresees_the_whole_run(lab: OffLab) -> None:
    planned = lab.back_up(check=True)
    assert (lab.store.sets, lab.untouched()) == ({}, True)
    done = lab.back_up()
    assert done.steps == planned.steps
    assert (done.before, done.after) == (planned.before, planned.after)
    assert done.values.keys() == planned.values.keys()
    assert lab.store.sets.keys() == {SET}
    assert lab.untouched()
    assert [words.split()[0] for words in done.steps] == ["copy", "copy", "write", "compare", "write"]


def test_what_it_returns_is_what_a_running_guest_gives(lab: OffLab) -> None:
    values = lab.back_up().values
    running = Lab().back_up().values
    assert values.keys() == running.keys()
    assert values["skipped_disks"] == running["skipped_disks"]
    manifest: dict[str, Any] = values["backup"]  # type: ignore[assignment]
    assert (values["consistency"], manifest["consistency"]) == ("offline", "offline")
    assert (values["freeze_ms"], values["window_ms"], values["overlays"]) == (0, None, [])
    assert (manifest["snapshot"], manifest["path"]) == (None, SET)
    assert [disk["source"] for disk in manifest["disks"]] == ["/img/a.raw", "/img/b.qcow2"]
    assert list(values["phases"]) == ["recovery", "preflight", "copy", "verify"]  # type: ignore[call-overload]


def test_each_layer_that_is_read_is_locked(lab: OffLab) -> None:
    held: list[set[str]] = []
    lab.store.while_copying = lambda: held.append(set(lab.store.held))
    lab.back_up()
    assert held == [{"/img/a.raw", "/img/b.qcow2", "/img/golden.raw"}]
    assert not lab.domain.listens


def start(lab: OffLab) -> None:
    """As libvirt tells of it."""
    lab.domain.state, lab.domain.seen = "running", "libvirt has told of its start or its end"


def start_and_stop(lab: OffLab) -> None:
    start(lab)
    lab.domain.state = "shut off"


def lose_libvirt(lab: OffLab) -> None:
    lab.domain.seen = "The connection to libvirt was lost meanwhile"


@pytest.mark.parametrize("happens", [start_and_stop, lose_libvirt])
def test_a_copy_that_no_lock_guards_counts_only_where_the_guest_was_off_all_the_time(lab: OffLab, happens: Any) -> None:
    lab.images.without_locks.add("/img/a.raw")
    lab.store.is_regular = lambda path: path != "/img/a.raw"  # type: ignore[method-assign]
    lab.store.while_copying = lambda: happens(lab)
    error = lab.fails()
    assert error.code == "guest_started"
    assert lab.store.sets == {}


def test_one_that_runs_by_then_is_backed_up_with_a_snapshot(lab: OffLab) -> None:
    lab.images.without_locks.add("/img/a.raw")
    lab.store.is_regular = lambda path: path != "/img/a.raw"  # type: ignore[method-assign]
    copies = iter([True, False])
    lab.store.while_copying = lambda: start(lab) if next(copies) else None
    done = lab.back_up()
    assert done.values["consistency"] == "filesystem"
    assert done.warnings[0].startswith("The guest was started while it was to be backed up")
    assert lab.store.sets.keys() == {SET}
    assert lab.whole()


def test_one_that_runs_before_its_files_are_locked(lab: OffLab) -> None:
    def hold(paths: tuple[str, ...]) -> Any:
        lab.store.hold = held  # type: ignore[method-assign]
        lab.domain.state = "running"
        raise VirtopsError("image_locked", "It runs", "Wait")

    held, lab.store.hold = lab.store.hold, hold  # type: ignore[method-assign]
    assert lab.back_up().values["consistency"] == "filesystem"
    lab.domain.state = "shut off"
    lab.store.fail["hold"] = VirtopsError("image_locked", "Somebody writes", "Wait")
    lab.store.sets.clear()
    assert lab.fails().code == "image_locked"


def test_what_no_lock_guards_may_be_another_domains(lab: OffLab) -> None:
    lab.domain.others = OtherImages(frozenset({"/img/a.raw"}))
    assert lab.back_up().values["consistency"] == "offline"
    lab.store.sets.clear()
    lab.images.without_locks.add("/img/a.raw")
    assert lab.fails(limits=None).code == "base_shared"
    assert lab.store.sets == {}


def test_a_start_that_the_lock_has_foiled_is_none(lab: OffLab) -> None:
    lab.store.while_copying = lambda: start_and_stop(lab)
    lab.back_up()
    assert lab.store.sets.keys() == {SET}


def test_a_file_that_was_written_to_meanwhile(lab: OffLab) -> None:
    lab.store.while_copying = lambda: lab.images.written.update({"/img/a.raw": 1})
    assert lab.fails().code == "base_modified"
    assert lab.store.sets == {}


def test_a_definition_that_names_another_image_by_then(lab: OffLab) -> None:
    def change() -> None:
        lab.images.backing["/img/new.raw"] = ("raw", None)
        lab.domain.config["vda"] = (Layer("/img/new.raw", "raw"),)

    lab.store.while_copying = change
    assert lab.fails().code == "chain_changed"
    assert lab.store.sets == {}


@pytest.mark.parametrize(("attribute", "code"), [("saved", "memory_saved"), ("moved", "guest_moved")])
@pytest.mark.parametrize("limits", [None, "the preflight"])
def test_one_that_goes_on_elsewhere_or_later_is_refused(lab: OffLab, attribute: str, code: str, limits: Any) -> None:
    setattr(lab.domain, attribute, True)
    assert (lab.fails() if limits else lab.fails(limits=None)).code == code
    assert lab.store.sets == {}


def test_a_failed_copy_leaves_nothing(lab: OffLab) -> None:
    lab.store.fail["copy_all"] = no_space()
    assert str(lab.fails()) == "It is full. Make space."
    assert lab.store.sets == {}
    assert lab.untouched()


def test_a_run_that_was_killed_in_the_copy(lab: OffLab) -> None:
    lab.store.fail["remove"] = Died("remove")  # nothing is removed by one that is dead
    lab.die_in_the_copy()
    assert list(lab.store.sets) == [PARTIAL]
    lab.clock.utcnow = lambda: "20261120T120001Z"  # type: ignore[method-assign]
    planned = lab.back_up(check=True)
    done = lab.back_up()
    assert done.steps == planned.steps
    assert done.steps[0].startswith("remove the unfinished set " + PARTIAL)
    assert list(lab.store.sets) == ["/srv/backup/vm/20261120T120001Z"]


@pytest.mark.parametrize(("now", "copies"), [("20261120T121000Z", 1), ("20261120T140000Z", 2)])
def test_a_run_that_was_killed_in_the_verification(lab: OffLab, now: str, copies: int) -> None:
    lab.store.fail["verify_all"] = Died("verify_all")
    with pytest.raises(Died):
        lab.back_up()
    lab.store.fail.clear()
    lab.clock.utcnow = lambda: now  # type: ignore[method-assign]
    done = lab.back_up()
    assert SET in lab.store.sets
    assert len(lab.store.sets) == lab.store.calls.count("copy_all") == copies
    assert done.values["consistency"] == "offline"


def test_one_that_an_earlier_run_left_on_its_overlays_is_merged_first(lab: OffLab) -> None:
    lab.domain.state = "running"
    lab.die_in_the_copy()
    lab.domain.end()
    done = lab.back_up()
    assert [operation["kind"] for operation in done.values["recovered"]] == [KIND]  # type: ignore[attr-defined]
    assert lab.whole()


def test_a_disk_that_is_left_out(lab: OffLab) -> None:
    options = SnapshotOptions("", kind=KIND, disks=(DiskOptions("vda", "no"),))
    done = lab.back_up(snapshot=options)
    assert {"disk": "vda", "reason": "excluded by the request"} in done.values["skipped_disks"]  # type: ignore[operator]
    backup: dict[str, Any] = done.values["backup"]  # type: ignore[assignment]
    assert [disk["target"] for disk in backup["disks"]] == ["vdb"]


@pytest.mark.parametrize(("keep", "backing"), [(True, "/img/golden.raw"), (False, None)])
def test_a_chain_is_copied_as_the_options_say(lab: OffLab, keep: bool, backing: str | None) -> None:
    done = lab.back_up(backup=replace(BackupOptions("/srv/backup"), keep_backing=keep))
    disks = {disk["target"]: disk for disk in done.values["backup"]["disks"]}  # type: ignore[index]
    assert (disks["vdb"]["backing"] or {}).get("path") == backing


def test_a_stop_is_heeded(lab: OffLab) -> None:
    lab.progress.stops = lambda: "copy_all" in lab.store.calls
    assert lab.fails().code == "stopped"
    assert lab.store.sets == {}
    lab.progress.stops = lambda: True
    assert lab.fails().code == "stopped"
    assert lab.store.calls.count("copy_all") == 1


def test_the_users_copy(lab: OffLab) -> None:
    held: list[set[str]] = []

    def says() -> Word:
        held.append(set(lab.store.held))
        return Word(True)

    lab.progress.says = says
    planned = lab.back_up(check=True, users_copy=60)
    done = lab.back_up(users_copy=60)
    assert done.steps == planned.steps
    assert done.values.keys() == planned.values.keys()
    assert (done.values["copied"], done.values["consistency"], done.values["overlays"]) == (True, "offline", [])
    handed = lab.progress.handed or {}
    assert (handed["consistency"], handed["freeze_ms"], handed["bases"]) == ("offline", 0, done.values["bases"])
    assert held == [{"/img/a.raw", "/img/b.qcow2", "/img/golden.raw"}]
    assert (lab.store.sets, lab.store.held, lab.untouched()) == ({}, set(), True)


@pytest.mark.parametrize("happens", [start, start_and_stop])
def test_the_users_copy_of_one_that_was_started_meanwhile(lab: OffLab, happens: Any) -> None:
    """Nobody would copy it again, with a snapshot: this job has told what it hands over."""
    lab.images.without_locks.add("/img/a.raw")

    def says() -> Word:
        happens(lab)
        return Word(True)

    lab.progress.says = says
    assert lab.fails(users_copy=60).code == "guest_started"
    assert (lab.store.held, lab.progress.waits) == (set(), False)
