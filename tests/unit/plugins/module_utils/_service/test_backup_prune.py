# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Pruning backup sets: which go, which never do, and what is told of each."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.keep import Keep
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Outcome
from ansible_collections.virtops.libvirt.plugins.module_utils._core.sets import BackupSet, Note, Notes
from ansible_collections.virtops.libvirt.plugins.module_utils._host.sets import BackupSets
from ansible_collections.virtops.libvirt.plugins.module_utils._service.backup_prune import (
    BackupPrune,
    BackupPruneOptions,
    prune_after,
)

from .fakes import Died, FakeClock

ONE, TWO = "uuid-1", "uuid-2"
VERIFIED = Notes(when_made=True)
FAILED = Notes(Note("20261119T000000Z", False, "vda.raw differs"), when_made=True)


def backup(day: int, uuid: str = ONE, folder: str = "web1", **fields: Any) -> BackupSet:
    """A complete set of November, read back when it was made."""
    name = "202611%02dT020000Z" % day
    told = {"state": "complete", "domain": folder, "uuid": uuid, "taken": name, "notes": VERIFIED}
    return BackupSet(f"/srv/{folder}/{name}", **{**told, **fields})


class FakeSets:
    """The sets in a dest; those of `stubborn` cannot be removed."""

    def __init__(self, sets: Sequence[BackupSet], stubborn: str = "") -> None:
        self.sets = list(sets)
        self.stubborn = stubborn
        self.removed: list[str] = []

    def list(self, dest: str, domain: str | None) -> tuple[BackupSet, ...]:
        assert dest == "/srv"
        return tuple(found for found in self.sets if domain is None or domain in (found.domain, found.uuid, ""))

    def remove(self, path: str) -> None:
        if self.stubborn:
            raise VirtopsError(self.stubborn, "Removing %s failed: no" % path, "Do something")
        self.removed.append(path)
        self.sets = [found for found in self.sets if found.path != path]


def prune(sets: FakeSets, domain: str | None = None, check: bool = False, **keep: Any) -> Outcome:
    options = BackupPruneOptions("/srv", Keep(**keep), domain)
    return BackupPrune(options, sets, FakeClock()).run(check)  # type: ignore[arg-type]


def days(outcome: Outcome, what: str) -> list[str]:
    """The days of these sets."""
    return [one["path"][-10:-8] for one in outcome.values[what]]  # type: ignore[attr-defined]


def test_each_domain_by_itself() -> None:
    """By its UUID: also where two share a name, or one was renamed."""
    sets = FakeSets(
        [
            *(backup(day) for day in (1, 2, 3)),
            backup(4, folder="web1-renamed"),
            *(backup(day, TWO) for day in (5, 6)),
        ]
    )
    foreseen = prune(sets, check=True, last=2)
    assert not sets.removed
    outcome = prune(sets, last=2)
    assert (foreseen.steps, foreseen.values) == (outcome.steps, outcome.values)
    assert (foreseen.before, foreseen.after) == (outcome.before, outcome.after)
    assert days(outcome, "removed") == ["02", "01"]
    assert days(outcome, "kept") == ["04", "03", "06", "05"]
    assert sets.removed == ["/srv/web1/20261102T020000Z", "/srv/web1/20261101T020000Z"]
    assert not prune(sets, last=2).changed


def test_one_domain() -> None:
    sets = FakeSets([*(backup(day) for day in (1, 2)), *(backup(day, TWO, "db") for day in (1, 2))])
    assert [one["domain"] for one in prune(sets, "db", last=1).values["removed"]] == ["db"]  # type: ignore[attr-defined]
    assert days(prune(sets, "web1", check=True, last=1), "removed") == ["01"]
    with pytest.raises(VirtopsError) as caught:
        prune(sets, "nobody", last=1)
    assert caught.value.code == "set_missing"
    assert "nobody" in str(caught.value)


def test_without_a_keep_option_nothing_goes() -> None:
    sets = FakeSets([backup(day) for day in (1, 2)])
    outcome = prune(sets)
    assert not outcome.changed
    assert outcome.warnings


@pytest.mark.parametrize(
    ("sets", "kept"),
    [
        # The newest verified one stays beyond what the policy keeps
        ([backup(1), backup(2), backup(3, notes=Notes()), backup(4, notes=Notes())], {"02", "04"}),
        # None is verified, as of an earlier release
        ([backup(day, notes=Notes()) for day in (1, 2, 3)], {"03"}),
        # A verification later counts as well as one when it was made
        ([backup(1), backup(2, notes=Notes(Note("20261119T000000Z", True))), backup(3, notes=Notes())], {"02", "03"}),
    ],
)
def test_never_the_newest_verified_one(sets: list[BackupSet], kept: set[str]) -> None:
    outcome = prune(FakeSets(sets), last=1)
    assert set(days(outcome, "kept")) == kept


def test_what_was_never_verified_may_be_kept() -> None:
    sets = [backup(1, notes=Notes()), backup(2), backup(3)]
    assert days(prune(FakeSets(sets), last=1), "removed") == ["02", "01"]
    assert days(prune(FakeSets(sets), last=1, keep_unverified=True), "removed") == ["02"]


@pytest.mark.parametrize(
    "odd",
    [
        backup(9, state="unfinished", why="Its backup runs"),
        backup(1, state="foreign", why="It has no manifest.json", uuid=""),
        backup(1, state="damaged", why="vda.raw is missing"),
        backup(9, state="unknown", why="Its manifest.json has a later schema", uuid=""),
        backup(1, notes=FAILED),
    ],
)
def test_what_is_not_whole_is_named_and_never_touched(odd: BackupSet) -> None:
    """Nor does it count: of the whole ones as many stay as without it."""
    sets = FakeSets([odd, backup(2), backup(3), backup(4)])
    outcome = prune(sets, last=2)
    assert days(outcome, "removed") == ["02"]
    assert [one["path"] for one in outcome.values["left"]] == [odd.path]  # type: ignore[attr-defined]
    assert odd in sets.sets


@pytest.mark.parametrize(
    "bad",
    [
        backup(9, notes=FAILED),
        backup(9, state="damaged", why="vda.raw is missing"),
        backup(9, state="damaged", why="manifest.json is missing", uuid="", domain=""),
    ],
)
def test_nothing_goes_while_the_newest_is_not_good(bad: BackupSet) -> None:
    """Of other domains it does; then the task fails, in check mode as well."""
    sets = FakeSets([backup(1), backup(2), bad, backup(1, TWO, "db"), backup(2, TWO, "db")])
    for check in (True, False):
        with pytest.raises(VirtopsError) as error:
            prune(sets, check=check, last=1)
        assert error.value.code == "newest_set_bad"
        assert bad.path in error.value.cause
        assert error.value.actions == ("remove the backup /srv/db/20261101T020000Z",)
    assert sets.removed == ["/srv/db/20261101T020000Z"]
    sets.sets.append(backup(10))
    assert days(prune(sets, last=1), "removed") == ["02", "01"]


def test_nothing_goes_that_an_increment_stands_on() -> None:
    full, one, two = backup(1), backup(2, base="20261101T020000Z"), backup(3, base="20261102T020000Z")
    sets = FakeSets([full, one, two, backup(4)])
    assert days(prune(sets, check=True, last=2), "removed") == []
    reasons = {item["path"][-10:-8]: item["reason"] for item in prune(sets, last=2).values["kept"]}  # type: ignore[attr-defined]
    assert reasons["01"] == f"{one.path} stands on it"
    assert prune(sets, last=1).steps == tuple(f"remove the backup {found.path}" for found in (two, one, full))
    broken = replace(one, state="damaged", why="vda.qcow2 is missing")
    assert days(prune(FakeSets([full, broken, backup(4)]), last=1), "removed") == []


def test_a_removal_that_was_interrupted_is_finished() -> None:
    half = replace(backup(1), path="/srv/web1/.20261101T020000Z.removing", state="unfinished", why="Its removal ...")
    sets = FakeSets([half, backup(2), backup(3)])
    assert prune(sets, check=True, last=2).steps == (f"finish the removal of the backup {half.path}",)
    prune(sets, last=2)
    assert sets.removed == [half.path]


@pytest.mark.parametrize("code", ["permission_denied", "not_writable", "remove_failed"])
def test_a_target_that_lets_nothing_go(code: str) -> None:
    sets = FakeSets([backup(day) for day in (1, 2, 3)], stubborn=code)
    with pytest.raises(VirtopsError) as error:
        prune(sets, last=1)
    assert error.value.code == ("remove_failed" if code == "remove_failed" else "remove_refused")
    assert error.value.actions == ()
    if code != "remove_failed":
        assert "2 would go: /srv/web1/20261102T020000Z, /srv/web1/20261101T020000Z" in error.value.cause
    assert prune(sets, check=True, last=1).changed


class TestAfterABackup:
    """The last step of a live backup."""

    @staticmethod
    def run(sets: FakeSets, made: BackupSet | None, check: bool = False) -> Outcome:
        manifest = None
        if made is not None and made.taken is not None:
            manifest = {"path": made.path, "times": {"snapshot": f"2026-11-{made.taken[6:8]}T02:00:00Z"}}
        backup = Outcome(("copy",), {"disks": 1}, {"disks": 2}, {"backup": manifest}, ("slow",))
        prune_flow = BackupPrune(BackupPruneOptions("/srv", Keep(last=2), ONE), sets, FakeClock())  # type: ignore[arg-type]
        return prune_after(backup, prune_flow, check, backup_of_now())

    def test_the_new_set_counts(self) -> None:
        new = backup(20)
        sets = FakeSets([*(backup(day) for day in (1, 2, 3)), new])
        outcome = self.run(sets, new)
        assert outcome.steps == ("copy", *(f"remove the backup /srv/web1/202611{day}T020000Z" for day in ("02", "01")))
        assert days(outcome, "kept") == ["20", "03"]
        assert outcome.warnings == ("slow",)
        assert (outcome.before["disks"], outcome.after["disks"]) == (1, 2)
        assert outcome.after["sets"] == [backup(3).path, new.path]

    @pytest.mark.parametrize("finishes", [False, True])
    def test_check_mode_counts_the_set_that_is_not_there(self, finishes: bool) -> None:
        """One that it would make, or that an interrupted run has copied."""
        sets = FakeSets([backup(day) for day in (1, 2, 3)])
        made = backup(20) if finishes else None
        outcome = self.run(sets, made, check=True)
        assert [one["path"] for one in outcome.values["kept"]] == [  # type: ignore[attr-defined]
            (made or backup_of_now()).path,
            backup(3).path,
        ]
        assert days(outcome, "removed") == ["02", "01"]
        assert not sets.removed

    def test_without_a_set_of_ours_nothing_goes(self) -> None:
        sets = FakeSets([backup(day) for day in (1, 2, 3)])
        assert "removed" not in self.run(sets, None).values
        assert not sets.removed

    def test_a_failure_says_that_the_backup_is_there(self) -> None:
        new = backup(20)
        sets = FakeSets([*(backup(day) for day in (1, 2, 3)), new], stubborn="not_writable")
        with pytest.raises(VirtopsError) as error:
            self.run(sets, new)
        assert error.value.code == "remove_refused"
        assert error.value.cause.startswith(f"The backup {new.path} is complete and verified")
        assert error.value.actions == ("copy",)


def backup_of_now() -> BackupSet:
    return replace(backup(20), path="/srv/web1/20261120T120000Z", taken="20261120T120000Z")


def on_disk(dest: Path, day: int) -> Path:
    """A set as short as it can be, with two files."""
    path = dest / "web1" / ("202611%02dT020000Z" % day)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.mkdir(mode=0o700)
    time = "2026-11-%02dT02:00:00Z" % day
    manifest = {
        "schema_version": 1,
        "operation": "o",
        "snapshot": None,
        "domain": {"name": "web1", "uuid": ONE},
        "hypervisor": "hv",
        "times": {"snapshot": time, "started": time, "finished": time},
        "consistency": "crash",
        "domain_xml": "domain.xml",
        "nvram": None,
        "disks": [],
        "verified": True,
    }
    for name, text in (("manifest.json", json.dumps(manifest)), ("domain.xml", "<domain/>"), ("SHA256SUMS", "")):
        (path / name).write_text(text)
    return path


def contents(path: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.iterdir()}


@pytest.mark.parametrize("before", [True, False])
def test_killed_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool) -> None:
    """Whatever was the last that it did: each set that has a name is whole, and the next run removes the rest."""
    count = at = 0

    def mortal(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == at and before:
                raise Died(name)
            result = real(*arguments, **options)
            if count == at:
                raise Died(name)
            return result

        monkeypatch.setattr(os, name, call)

    for name in ("rename", "unlink", "rmdir"):
        mortal(name)
    options = BackupPruneOptions("{}", Keep(last=1))
    steps = None
    while steps is None or at < steps:
        at += 1
        dest = tmp_path / str(at)
        dest.mkdir()
        made = [on_disk(dest, day) for day in (1, 2, 3)]
        whole = contents(made[2])
        flow = BackupPrune(replace(options, dest=str(dest)), BackupSets(), FakeClock())
        count = 0
        try:
            flow.run(False)
        except Died:
            named = [path for path in made if path.exists()]
            assert all(contents(path).keys() == whole.keys() for path in named)
        else:
            steps = count
        count = 1 << 20
        flow.run(False)
        assert [path.name for path in (dest / "web1").iterdir()] == [made[2].name]
        assert contents(made[2]) == whole
        assert not flow.run(False).changed
    assert at > 10
