# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Listing backup sets on a real file system, noting in them and removing them."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.sets import BackupSet, Note, Notes
from ansible_collections.virtops.libvirt.plugins.module_utils._host.helper import backup_sets
from ansible_collections.virtops.libvirt.plugins.module_utils._host.sets import BackupSets

SETS = BackupSets()
STAMPS = ("20261120T120000Z", "20261121T120000Z")


def make(dest: Path, folder: str, stamp: str, uuid: str = "u", **fields: Any) -> Path:
    """A set as short as it can be."""
    path = dest / folder / stamp
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.mkdir(mode=0o700)
    iso = "%s-%s-%sT%s:%s:%sZ" % (stamp[:4], stamp[4:6], stamp[6:8], stamp[9:11], stamp[11:13], stamp[13:15])
    manifest = {
        "schema_version": 1,
        "operation": "o",
        "snapshot": None,
        "domain": {"name": folder, "uuid": uuid},
        "hypervisor": "hv",
        "times": {"snapshot": iso, "started": iso, "finished": iso},
        "consistency": "crash",
        "domain_xml": "domain.xml",
        "nvram": None,
        "disks": [],
        "verified": True,
        **fields,
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    (path / "domain.xml").write_text("<domain/>")
    (path / "SHA256SUMS").write_text("")
    return path


def states(dest: Path, domain: str | None = None) -> dict[str, str]:
    return {os.path.relpath(found.path, dest): found.state for found in SETS.list(str(dest), domain)}


def refused(path: Path, *more: Notes) -> str:
    with pytest.raises(VirtopsError) as caught:
        SETS.note(str(path), *more) if more else SETS.remove(str(path))
    assert caught.value.remedy
    return caught.value.code


def test_all_and_some(tmp_path: Path) -> None:
    """What has nothing of ours in it may be anything."""
    for stamp in reversed(STAMPS):
        make(tmp_path, "web", stamp)
    make(tmp_path, "db", STAMPS[0], uuid="v")
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "other" / "things").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    web = {"web/" + stamp: "complete" for stamp in STAMPS}
    assert list(states(tmp_path).items()) == [("db/" + STAMPS[0], "complete"), *web.items()]
    assert states(tmp_path, "web") == states(tmp_path, "u") == web
    assert states(tmp_path, "none") == {}
    found = SETS.list(str(tmp_path), "db")[0]
    assert (found.size, found.allocated > 0, found.is_verified) == (
        sum(file.stat().st_size for file in (tmp_path / "db" / STAMPS[0]).iterdir()),
        True,
        True,
    )


def test_what_is_beside_them_is_named(tmp_path: Path) -> None:
    make(tmp_path, "web", STAMPS[0])
    folder = tmp_path / "web"
    (folder / "things").mkdir(mode=0o700)
    (folder / "file").write_text("")
    (folder / ("." + STAMPS[1] + ".partial")).mkdir(mode=0o700)
    (folder / ("." + STAMPS[1] + ".removing")).mkdir(mode=0o700)
    (folder / STAMPS[1]).symlink_to(folder / STAMPS[0])
    assert states(tmp_path) == {
        "web/" + STAMPS[0]: "complete",
        "web/.%s.partial" % STAMPS[1]: "unfinished",
        "web/.%s.removing" % STAMPS[1]: "unfinished",
        "web/" + STAMPS[1]: "foreign",
        "web/file": "foreign",
        "web/things": "foreign",
    }
    # Whose it is, nothing tells
    assert states(tmp_path, "u") == states(tmp_path)


def test_what_others_may_write_to_is_foreign(tmp_path: Path) -> None:
    make(tmp_path, "web", STAMPS[0]).chmod(0o770)
    assert states(tmp_path) == {"web/" + STAMPS[0]: "foreign"}
    (tmp_path / "web").chmod(0o707)
    assert states(tmp_path) == {"web": "foreign"}
    assert "may be written to by others" in SETS.list(str(tmp_path), None)[0].why


def test_by_name_only_its_folder_is_read(tmp_path: Path) -> None:
    """By UUID all are, and where no folder has the name."""
    make(tmp_path, "web", STAMPS[0])
    (tmp_path / "web").rename(tmp_path / "aside")
    assert states(tmp_path, "web") == states(tmp_path, "u") == {"aside/" + STAMPS[0]: "complete"}
    make(tmp_path, "web", STAMPS[1])
    assert states(tmp_path, "web") == {"web/" + STAMPS[1]: "complete"}
    assert len(states(tmp_path, "u")) == 2


def test_two_domains_of_one_name(tmp_path: Path) -> None:
    for stamp, uuid in zip(STAMPS, "uv"):
        make(tmp_path, "web", stamp, uuid)
    assert len(states(tmp_path, "web")) == 2
    assert states(tmp_path, "v") == {"web/" + STAMPS[1]: "complete"}


@pytest.mark.parametrize("kind", ["symlink", "fifo", "folder"])
def test_a_manifest_that_is_no_file(tmp_path: Path, kind: str) -> None:
    manifest = make(tmp_path, "web", STAMPS[0]) / "manifest.json"
    manifest.rename(manifest.with_name("real"))
    if kind == "symlink":
        manifest.symlink_to("real")
    elif kind == "fifo":
        os.mkfifo(manifest)
    else:
        manifest.mkdir()
    assert states(tmp_path) == {"web/" + STAMPS[0]: "damaged"}


def test_an_increment_whose_base_is_gone(tmp_path: Path) -> None:
    base = make(tmp_path, "web", STAMPS[0])
    make(tmp_path, "web", STAMPS[1], base=STAMPS[0])
    assert set(states(tmp_path).values()) == {"complete"}
    SETS.remove(str(base))
    assert states(tmp_path) == {"web/" + STAMPS[1]: "damaged"}


@pytest.mark.parametrize(
    ("dest", "code"),
    [("none", "dest_missing"), ("link", "dest_symlink"), ("file", "dest_no_directory"), ("../x", "dest_unsafe")],
)
def test_a_dest_that_is_none(tmp_path: Path, dest: str, code: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(VirtopsError) as caught:
        SETS.list("%s/%s" % (tmp_path, dest), None)
    assert caught.value.code == code


def test_notes(tmp_path: Path) -> None:
    path = make(tmp_path, "web", STAMPS[0])
    (path / ".notes.json.new").write_text("a death's")
    SETS.note(str(path), Notes(booted=Note(STAMPS[1], True)))
    SETS.note(str(path), Notes(verified=Note(STAMPS[1], False, "ü\ud800")))
    found = SETS.list(str(tmp_path), None)[0]
    assert found.notes == Notes(Note(STAMPS[1], False, "ü\ud800"), Note(STAMPS[1], True), when_made=True)
    assert (found.state, found.is_verified) == ("complete", False)
    assert stat.S_IMODE((path / "notes.json").stat().st_mode) == 0o600
    assert not (path / ".notes.json.new").exists()


def test_notes_go_nowhere_else(tmp_path: Path) -> None:
    path = make(tmp_path, "web", STAMPS[0])
    (path / "notes.json").symlink_to(tmp_path / "elsewhere")
    SETS.note(str(path), Notes(verified=Note(STAMPS[1], True)))
    assert (path / "notes.json").is_file()
    assert not (tmp_path / "elsewhere").exists()
    assert refused(tmp_path / "web" / STAMPS[1], Notes()) == "set_missing"
    assert refused(tmp_path / "none" / STAMPS[1], Notes()) == "set_missing"


def test_removal(tmp_path: Path) -> None:
    path = make(tmp_path, "web", STAMPS[0])
    (path / "below").mkdir()
    (path / "below" / "file").write_text("")
    make(tmp_path, "web", STAMPS[1])
    SETS.remove(str(path))
    SETS.remove(str(path))
    SETS.remove(str(tmp_path / "none" / STAMPS[0]))
    assert os.listdir(tmp_path / "web") == [STAMPS[1]]


def test_a_set_that_is_read_is_not_removed(tmp_path: Path) -> None:
    """By another process, as flock(2) sees it: another descriptor."""
    path, reader = make(tmp_path, "web", STAMPS[0]), BackupSets()
    assert reader.open(str(path)) is not None
    assert refused(path) == "set_in_use"
    assert reader.close(str(path))
    assert states(tmp_path) == {"web/" + STAMPS[0]: "complete"}
    SETS.remove(str(path))
    assert states(tmp_path) == {}


def test_a_removal_that_was_interrupted_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the next of the same name, or by its own; until then it says whose it is."""
    path, unlink = make(tmp_path, "web", STAMPS[0]), os.unlink

    def killed(name: str, *, dir_fd: int) -> None:
        if name == "manifest.json":
            raise KeyboardInterrupt
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        SETS.remove(str(path))
    monkeypatch.undo()
    left = SETS.list(str(tmp_path), None)[0]
    assert (left.state, left.uuid, left.is_half_removed) == ("unfinished", "u", True)
    make(tmp_path, "web", STAMPS[0])
    SETS.remove(left.path)
    assert states(tmp_path) == {"web/" + STAMPS[0]: "complete"}
    monkeypatch.setattr(os, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        SETS.remove(str(path))
    monkeypatch.undo()
    make(tmp_path, "web", STAMPS[0])
    SETS.remove(str(path))
    assert os.listdir(tmp_path / "web") == []


def test_a_set_whose_files_cannot_be_removed_keeps_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on storage that keeps each file for a time (WORM), or with chattr +i."""
    path = make(tmp_path, "web", STAMPS[0])

    def refuse(*_arguments: Any, **_options: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        assert refused(path) == "permission_denied"
    assert states(tmp_path) == {"web/" + STAMPS[0]: "complete"}


@pytest.mark.parametrize("name", ["things", ".%s.partial" % STAMPS[0], "..", STAMPS[0] + "x"])
def test_only_sets_are_removed(tmp_path: Path, name: str) -> None:
    make(tmp_path, "web", STAMPS[0])
    assert refused(tmp_path / "web" / name) in ("set_foreign", "dest_unsafe")
    assert refused(tmp_path / "web" / name, Notes()) in ("set_missing", "dest_unsafe")


def test_what_is_not_ours_is_neither_removed_nor_noted_in(tmp_path: Path) -> None:
    path = make(tmp_path, "web", STAMPS[0])
    (tmp_path / "web" / STAMPS[1]).symlink_to(path)
    link = tmp_path / "web" / STAMPS[1]
    assert (refused(link), refused(link, Notes())) == ("dest_symlink", "dest_symlink")
    path.chmod(0o770)
    assert (refused(path), refused(path, Notes())) == ("dest_not_private", "dest_not_private")
    assert path.exists()


def test_through_the_helper(tmp_path: Path) -> None:
    path = make(tmp_path, "web", STAMPS[0])
    with backup_sets(20) as (sets, _copier):
        sets.note(str(path), Notes(verified=Note(STAMPS[1], True)))
        found: tuple[BackupSet, ...] = sets.list(str(tmp_path), "web")
        assert found == SETS.list(str(tmp_path), "web")
        sets.remove(str(path))
    assert os.listdir(tmp_path / "web") == []
