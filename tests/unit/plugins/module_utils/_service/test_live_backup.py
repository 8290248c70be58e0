# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The live backup as a whole: what it foresees, how it ends after each failure, and what it makes of an earlier run."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.backup import BackupOptions
from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.job_state import JobState, UnderWay, Word
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import BlockJob, FileIdentity, Outcome
from ansible_collections.virtops.libvirt.plugins.module_utils._core.ports import Silent
from ansible_collections.virtops.libvirt.plugins.module_utils._core.preflight_facts import Limits, Reserve
from ansible_collections.virtops.libvirt.plugins.module_utils._core.sets import COMPLETE, BackupSet, Notes
from ansible_collections.virtops.libvirt.plugins.module_utils._core.snapshot import SnapshotOptions
from ansible_collections.virtops.libvirt.plugins.module_utils._service.live_backup import (
    KIND,
    LiveBackup,
    LiveBackupOptions,
    Tools,
    foreseen,
)

from . import test_merge
from .fakes import Died
from .fakes_backup import FakeHost as FakeStore
from .fakes_backup import no_space
from .test_preflight import Host

LIMITS = Limits(25, Reserve(5, True), "preferred", KIND)
SET = "/srv/backup/vm/20261120T120000Z"


class Progress(Silent):
    """Remembers the phases; `stops` says whether the job is told to end, `says` the word on the user's copy."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.stops: Callable[[], bool] = lambda: False
        self.says: Callable[[], Word | None] = lambda: None
        self.handed: dict[str, Any] | None = None
        self.waits = False

    def hand_over(self, values: Mapping[str, Any]) -> None:
        self.handed, self.waits = dict(values), True

    def word(self) -> Word | None:
        return self.says()

    def take_back(self) -> Word | None:
        self.waits = False
        return None

    def phase(self, name: str) -> None:
        self.phases.append(name)

    def is_stopping(self) -> bool:
        return self.stops()


class NoProcesses:
    """Nothing outlived its module."""

    def emulators(self, uuid: str, images: object) -> tuple[int, ...]:
        return ()

    def orphans(self, uuid: str) -> tuple[int, ...]:
        return ()

    def reap(self, uuid: str, pid: int) -> None:
        raise AssertionError


class Sets:
    """Only lists what is there."""

    def __init__(self, there: tuple[BackupSet, ...]) -> None:
        self._there = there

    def list(self, dest: str, domain: str | None) -> tuple[BackupSet, ...]:
        assert (dest, domain) == ("/srv/backup", "vm")
        return self._there

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


class Lab(test_merge.MergeLab):
    """A running guest on its own images, on a host of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.images.folders |= {"/srv/backup"}
        self.store, self.progress = FakeStore(), Progress()
        self.there: tuple[BackupSet, ...] = ()
        self.host = Host(self.images)  # type: ignore[arg-type]
        self.domain.domain_xml = self._definition  # type: ignore[method-assign]

    def _definition(self, secrets: bool = True) -> str:
        disks = "".join(
            "<disk type='file' device='disk'><driver name='qemu' type='%s'/><source file='%s'/>"
            "<target dev='%s'/></disk>" % (chain[0].format, chain[0].path, target)
            for target, chain in self.domain.config.items()
            if chain
        )
        return "<domain><name>vm</name><devices>%s</devices></domain>" % disks

    def back_up(self, check: bool = False, **options: Any) -> Outcome:
        self.host.views = [self.domain.view()]
        usual = {
            "snapshot": SnapshotOptions("", quiesce="preferred", kind=KIND),
            "backup": BackupOptions("/srv/backup"),
            "limits": LIMITS,
        }
        wish = LiveBackupOptions(**{**usual, **options})
        tools = Tools(self.host, self.store, self.store, NoProcesses(), lambda _uuid: "", Sets(self.there))
        return LiveBackup(wish, replace(self.guest, progress=self.progress), tools).run(check)

    def fails(self, **options: Any) -> VirtopsError:
        with pytest.raises(VirtopsError) as caught:
            self.back_up(**options)
        return caught.value

    def die(self, call: str) -> None:
        """Kill a run right after this call."""
        self.domain.die_after = call
        with pytest.raises(Died):
            self.back_up()
        self.domain.revive()

    def die_in_the_copy(self) -> None:
        self.store.fail["copy_all"] = Died("copy_all")
        with pytest.raises(Died):
            self.back_up()
        self.store.fail.clear()
        self.domain.revive()


@pytest.fixture
def lab() -> Lab:
    return Lab()


def test_check_mode_foresees_the_whole_run(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = itertools.count()
    with monkeypatch.context() as patch:
        # The guest writes all the time, to its bases
        patch.setattr(lab.images, "identity", lambda path: FileIdentity("", len(path), 1, next(writes)))
        planned = lab.back_up(check=True)
    assert [call for call in lab.domain.calls if call != "agent_ping"] == []
    assert (lab.images.calls, lab.store.sets, lab.watchdog.calls) == ([], {}, [])
    done = lab.back_up()
    assert done.steps == planned.steps
    assert (done.before, done.after) == (planned.before, planned.after)
    assert done.values.keys() == planned.values.keys()
    assert lab.whole()
    assert lab.store.sets.keys() == {SET}


def test_what_it_returns(lab: Lab) -> None:
    values = lab.back_up().values
    assert values["backup"]["path"] == SET  # type: ignore[index]
    assert values["consistency"] == "filesystem"
    assert values["skipped_disks"] == [{"disk": "sda", "reason": "it is a cdrom drive"}]
    assert isinstance(values["window_ms"], int)
    assert list(values["phases"]) == lab.progress.phases  # type: ignore[call-overload]
    assert lab.progress.phases == ["recovery", "preflight", "snapshot", "copy", "merge", "verify"]
    assert values["recovered"] == []


def test_a_verification_that_goes_on_is_a_phase(lab: Lab) -> None:
    lab.store.fail["verify_all"] = Died("verify_all")
    with pytest.raises(Died):
        lab.back_up()
    lab.store.fail.clear()
    lab.domain.revive()
    lab.progress.phases.clear()
    assert list(lab.back_up().values["phases"]) == ["recovery", "preflight", "verify"]  # type: ignore[call-overload]
    assert lab.progress.phases == ["recovery", "preflight", "verify"]


@pytest.mark.parametrize(
    ("same", "steps"),
    [
        (True, ["follow the %s, which makes this backup already, and return its result"]),
        (False, ["wait for the end of the %s", "then back up the domain"]),
    ],
)
def test_check_mode_names_the_job_that_works_on_the_guest(lab: Lab, same: bool, steps: list[str]) -> None:
    state = JobState("1f", "live_backup", "vm", "20261120T120000Z", "uuid", phase="copy", disks={"vda": (1, 4)})
    found = foreseen(UnderWay(state, same))
    named = "live_backup (job 1f, since 20261120T120000Z, phase copy, 25 %)"
    assert found.steps == tuple(step.replace("%s", named) for step in steps)
    assert found.values.keys() - lab.back_up(check=True).values.keys() == {"under_way"}


def test_the_guest_is_off_its_overlays_before_the_copies_are_verified(lab: Lab) -> None:
    seen = []
    real = lab.store.verify_all

    def verify_all(*arguments: Any) -> Any:
        seen.append(lab.whole())
        lab.clock.sleep(100)
        return real(*arguments)

    lab.store.verify_all = verify_all  # type: ignore[method-assign]
    done = lab.back_up()
    assert seen == [True]
    assert done.values["window_ms"] < 100_000  # type: ignore[operator]


@pytest.mark.parametrize(("now", "copies"), [("20261120T121000Z", 1), ("20261120T140000Z", 2)])
def test_a_death_between_the_merge_and_the_verification(lab: Lab, now: str, copies: int) -> None:
    """What was copied is finished without another copy, and counts as this backup where it is young enough."""
    lab.store.fail["verify_all"] = Died("verify_all")
    with pytest.raises(Died):
        lab.back_up()
    lab.store.fail.clear()
    lab.domain.revive()
    assert lab.whole()
    assert list(lab.store.sets) == ["/srv/backup/vm/.20261120T120000Z.partial"]
    lab.clock.utcnow = lambda: now  # type: ignore[method-assign]
    planned = lab.back_up(check=True)
    done = lab.back_up()
    assert done.steps == planned.steps
    assert SET in lab.store.sets
    assert len(lab.store.sets) == lab.store.calls.count("copy_all") == copies
    assert (done.values["backup"]["path"] == SET) == (copies == 1)  # type: ignore[index]


def test_a_copy_that_is_not_what_was_written(lab: Lab) -> None:
    lab.store.fail["verify_all"] = VirtopsError("verify_failed", "The bytes 1 to 2 differ", "Look")
    error = lab.fails()
    assert error.code == "verify_failed"
    assert lab.whole()
    assert lab.store.sets == {}


def test_a_guest_that_is_not_ready_is_not_touched(lab: Lab) -> None:
    job = BlockJob("copy", target="/elsewhere.raw")
    lab.domain.live["vdb"] = replace(lab.domain.live["vdb"], job=job)
    for check in (True, False):
        error = lab.fails(check=check)
        assert error.code == "job_running"
        assert str(error).startswith("The preflight found, and nothing was touched: vdb: A block job (copy)")
        assert lab.domain.calls == []


def test_a_failed_copy_is_followed_by_the_merge(lab: Lab) -> None:
    lab.store.fail["copy_all"] = no_space()
    error = lab.fails()
    assert error.code == "no_space"
    assert str(error) == "It is full. Make space. The guest is on its own images, no overlay is left."
    assert [words.split()[0] for words in error.actions or ()] == [
        *("create", "create", "freeze", "take", "thaw"),
        *("commit", "pivot", "commit", "pivot", "delete", "delete", "delete", "remove"),
    ]
    assert lab.whole()
    assert lab.store.sets == {}


def test_a_bug_is_followed_by_the_merge_and_stays_one(lab: Lab) -> None:
    lab.store.fail["copy_all"] = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        lab.back_up()
    assert lab.whole()


def test_what_cannot_be_put_right_is_told(lab: Lab) -> None:
    lab.store.fail["copy_all"] = no_space()
    lab.domain.fail["start_commit"] = VirtopsError("job_running", "It is busy", "Wait")
    error = lab.fails()
    assert error.code == "no_space"
    assert str(error) == "It is full. Make space. What was left could not be put right: It is busy. Wait."


def test_a_failed_merge_does_not_cost_the_backup(lab: Lab) -> None:
    lab.domain.fail["start_commit"] = VirtopsError("job_running", "It is busy", "Wait")
    error = lab.fails()
    assert error.code == "job_running"
    assert str(error).endswith("Its backup is complete all the same: %s." % SET)
    assert (error.actions or ())[-1].startswith("write SHA256SUMS")
    assert SET in lab.store.sets


def test_a_copy_whose_merge_failed_waits_for_its_verification(lab: Lab) -> None:
    lab.domain.fail["start_commit"] = VirtopsError("job_running", "It is busy", "Wait")
    lab.store.fail["verify_all"] = VirtopsError("copy_stalled", "It hangs", "Mend it")
    assert str(lab.fails()).endswith("Its backup was not verified: It hangs. Mend it.")
    lab.domain.fail.clear()
    lab.store.fail.clear()
    lab.back_up()
    assert lab.whole()
    assert SET in lab.store.sets


def test_a_failed_snapshot_leaves_the_guest_as_it_was(lab: Lab) -> None:
    lab.domain.fail["create_snapshot"] = VirtopsError("libvirt_error", "No", "Look")
    assert str(lab.fails()).startswith("No. Look. The guest is on its own images")
    assert lab.whole()
    assert not lab.domain.frozen


@pytest.mark.parametrize(("seconds", "sets"), [(3600, 1), (-1, 2)], ids=["is recent", "is too old"])
def test_an_interrupted_backup_is_completed(lab: Lab, seconds: int, sets: int) -> None:
    lab.die_in_the_copy()
    planned = lab.back_up(check=True, resume_within=seconds)
    assert lab.domain.view().journal.operations != ()
    # Time stands still here, so that the second set would be the first one again
    lab.clock.utcnow = lambda: "20261120T120001Z"  # type: ignore[method-assign]
    done = lab.back_up(resume_within=seconds)
    assert lab.whole()
    assert len(lab.store.sets) == sets
    recovered = done.values["recovered"]
    assert recovered == planned.values["recovered"]
    assert [operation["phase"] for operation in recovered] == ["created"]  # type: ignore[attr-defined]
    assert planned.values.keys() == done.values.keys()
    if sets == 1:
        assert planned.steps == done.steps
        assert (done.values["consistency"], done.values["window_ms"]) == ("filesystem", None)
    else:
        assert planned.steps[-1] == "then back up the domain anew"


def test_an_interrupted_backup_that_cannot_be_completed_is_merged(lab: Lab) -> None:
    lab.die_in_the_copy()
    lab.store.fail["copy_all"] = no_space()
    assert str(lab.fails()).endswith("The guest is on its own images, no overlay is left.")
    assert lab.whole()


@pytest.mark.parametrize("call", ["create_snapshot", "start_commit", "pivot"])
def test_the_next_run_finds_what_a_kill_left(lab: Lab, call: str) -> None:
    lab.die(call)
    lab.back_up()
    assert lab.whole()
    assert SET in lab.store.sets


def test_a_stop_before_the_snapshot_touches_nothing(lab: Lab) -> None:
    lab.progress.stops = lambda: True
    assert lab.fails().code == "stopped"
    assert [call for call in lab.domain.calls if call != "agent_ping"] == []


def test_a_stop_in_the_copy_is_followed_by_the_merge(lab: Lab) -> None:
    lab.progress.stops = lambda: "copy" in lab.progress.phases
    error = lab.fails()
    assert error.code == "stopped"
    assert "no overlay is left" in str(error)
    assert lab.whole()
    assert lab.store.sets == {}


def test_a_snapshot_that_the_user_keeps_is_not_merged(lab: Lab) -> None:
    lab.snapshot("live-backup-20261120T120000Z")
    assert lab.fails().code == "snapshot_differs"
    assert lab.domain.calls == []
    assert lab.store.sets == {}


# The user's own copy


def users(lab: Lab, says: Callable[[], Word | None] = lambda: Word(True), check: bool = False) -> Outcome:
    lab.progress.says = says
    return lab.back_up(check, users_copy=60)


def users_failure(lab: Lab, says: Callable[[], Word | None]) -> VirtopsError:
    with pytest.raises(VirtopsError) as caught:
        users(lab, says)
    assert lab.whole()
    assert lab.store.sets == {}
    assert not lab.progress.waits
    assert lab.store.held == set()
    return caught.value


def test_the_users_copy(lab: Lab) -> None:
    """The bases stand still and are locked while they are handed over; no set is made."""
    seen: list[object] = []

    def says() -> Word | None:
        chains = {target: [layer.path for layer in disk.chain] for target, disk in lab.domain.live.items()}
        bases = {base["disk"]: base["path"] for base in (lab.progress.handed or {})["bases"]}
        seen.append(all(chains[target][1] == path for target, path in bases.items()))
        seen.append(set(bases.values()) <= lab.store.held)
        return Word(True) if lab.clock.seconds > 30 else None

    planned = users(lab, says, check=True)
    assert (lab.progress.handed, lab.domain.calls) == (None, ["agent_ping"])
    done = users(lab, says)
    assert all(seen)
    assert done.steps == planned.steps
    assert (done.before, done.after) == (planned.before, planned.after)
    assert done.values.keys() == planned.values.keys()
    assert (done.values["copied"], planned.values["copied"], done.values["backup"]) == (True, False, None)
    handed = lab.progress.handed
    assert handed is not None
    assert handed["bases"] == done.values["bases"] == planned.values["bases"]
    assert [sorted(base) for base in handed["bases"]] == [
        ["disk", "format", "needs", "path", "size", "virtual_size"] for _unused in range(2)
    ]
    assert (handed["copied"], handed["taken"], handed["consistency"]) == (False, "20261120T120000Z", "filesystem")
    assert set(handed["actions"]) < set(done.steps)
    assert "overlay" not in handed["domain_xml"]
    assert json.loads(json.dumps(handed)) == handed
    assert lab.whole()
    assert lab.store.sets == {}


def test_the_users_copy_failed(lab: Lab) -> None:
    error = users_failure(lab, lambda: Word(False, "Run rsync: no route."))
    assert error.code == "copy_failed"
    assert "failed: Run rsync: no route. " in str(error)
    assert "no overlay is left" in str(error)


def test_nobody_says_that_the_bases_are_copied(lab: Lab) -> None:
    """The controller died, or the tasks take too long."""
    error = users_failure(lab, lambda: None)
    assert error.code == "copy_unreported"
    assert 60 <= lab.clock.seconds < 70


def test_a_stop_while_the_user_copies(lab: Lab) -> None:
    lab.progress.stops = lambda: lab.progress.waits
    assert users_failure(lab, lambda: None).code == "stopped"


def test_the_overlays_come_before_the_users_copy(lab: Lab) -> None:
    def says() -> Word | None:
        lab.images.free = 1
        return None

    assert users_failure(lab, says).code == "overlay_space"


def test_a_base_that_was_written_to_is_no_copy(lab: Lab) -> None:
    def says() -> Word | None:
        lab.images.written |= {base["path"]: 1 for base in (lab.progress.handed or {})["bases"]}
        return Word(True)

    assert users_failure(lab, says).code == "base_modified"


def test_a_kill_while_the_user_copies(lab: Lab) -> None:
    """There is nobody any more who would copy what was left: it is merged, and begun anew."""

    def says() -> Word | None:
        raise Died("says")

    with pytest.raises(Died):
        users(lab, says)
    lab.domain.revive()
    assert not lab.whole()
    planned = users(lab, check=True)
    assert planned.steps[-1] == "then back up the domain anew"
    done = users(lab)
    assert done.values["copied"]
    assert [operation["phase"] for operation in done.values["recovered"]] == ["created"]  # type: ignore[attr-defined]
    assert lab.whole()


def test_the_users_copy_outlives_a_failed_merge(lab: Lab) -> None:
    """The bases were its point in time until the merge began."""
    lab.progress.says = lambda: Word(True)
    lab.domain.fail["start_commit"] = VirtopsError("job_running", "It is busy", "Wait")
    error = lab.fails(users_copy=60)
    assert error.code == "job_running"
    assert str(error).endswith("What your own tasks have copied is complete all the same.")


def set_of(lab: Lab, taken: str, *targets: str) -> BackupSet:
    disks = [{"target": target, "format": "raw", "backing": None} for target in targets]
    manifest = {"disks": disks, "consistency": "filesystem"}
    uuid = lab.domain.view().uuid
    return BackupSet("/b/vm/" + taken, COMPLETE, uuid=uuid, taken=taken, manifest=manifest, notes=Notes(when_made=True))


@pytest.mark.parametrize("check", [False, True])
def test_a_set_that_is_young_enough_does(lab: Lab, check: bool) -> None:
    """Before the preflight, which would find that there is no space for another one."""
    lab.there = (set_of(lab, "20261120T110000Z", "vda", "vdb"),)
    lab.host.views = []
    done = lab.back_up(check, max_age=3600)
    assert (done.changed, done.values["up_to_date"]) == (False, True)
    assert done.values["backup"] == {**(lab.there[0].manifest or {}), "path": "/b/vm/20261120T110000Z"}
    assert done.values["consistency"] == "filesystem"
    assert (lab.store.sets, "preflight" in lab.progress.phases) == ({}, False)
    assert done.values.keys() == lab.back_up(check).values.keys()


def test_another_set_does_not(lab: Lab) -> None:
    lab.there = (set_of(lab, "20261120T110000Z", "vda"), set_of(lab, "20261120T105959Z", "vda", "vdb"))
    done = lab.back_up(max_age=3600)
    assert (done.changed, done.values["up_to_date"]) == (True, False)
    assert done.values["backup"]["path"] == SET  # type: ignore[index]


def test_what_is_open_is_finished_all_the_same(lab: Lab) -> None:
    lab.die("start_commit")
    lab.there = (set_of(lab, "20261120T115959Z", "vda", "vdb"),)
    lab.store.sets.clear()
    planned = lab.back_up(check=True, resume_within=-1, max_age=3600)
    done = lab.back_up(resume_within=-1, max_age=3600)
    assert lab.whole()
    assert done.steps == planned.steps != ()
    assert (done.values["up_to_date"], planned.values["up_to_date"]) == (True, True)
