# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Backup sets on a real file system."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.backup import SetPaths, Unfinished
from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._host.store import BackupStore

STORE = BackupStore()


@pytest.fixture
def paths(tmp_path: Path) -> SetPaths:
    parent = str(tmp_path / "web")
    return SetPaths(parent, parent + "/20261120T120000Z", parent + "/.20261120T120000Z.partial")


def mode(path: str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def refused(dest: str) -> str:
    with pytest.raises(VirtopsError) as caught:
        STORE.check_destination(dest)
    return caught.value.code


def test_destinations(tmp_path: Path) -> None:
    (tmp_path / "with space, ü").mkdir()
    STORE.check_destination(str(tmp_path / "with space, ü"))
    STORE.check_destination(str(tmp_path) + "//with space, ü/")
    STORE.check_destination("/")
    (tmp_path / "link").symlink_to(tmp_path / "with space, ü")
    (tmp_path / "with space, ü" / "below").mkdir()
    (tmp_path / "file").write_text("")
    assert refused(str(tmp_path / "none")) == "dest_missing"
    assert refused(str(tmp_path / "link")) == "dest_symlink"
    assert refused(str(tmp_path / "link" / "below")) == "dest_symlink"
    assert refused(str(tmp_path / "file")) == "dest_no_directory"
    assert refused("relative") == "dest_unsafe"
    assert refused(str(tmp_path) + "/with space, ü/..") == "dest_unsafe"


def test_a_destination_that_is_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, wanted: False)
    assert refused(str(tmp_path)) == "dest_not_writable"


def test_a_set_from_begin_to_end(paths: SetPaths, tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        STORE.begin(paths)
        STORE.write(paths.partial, "manifest.json", '{"domain": {"uuid": "u"}}')
        STORE.write(paths.partial, "manifest.json", '{"operation": "ü"}')
        (tmp_path / "vars.fd").write_bytes(b"nvram")
        plain = STORE.copy_plain(str(tmp_path / "vars.fd"), paths.partial, "nvram.fd")
    finally:
        os.umask(old)
    assert plain == (5, hashlib.sha256(b"nvram").hexdigest())
    assert [mode(path) for path in (paths.parent, paths.partial)] == [0o700, 0o700]
    assert {mode(os.path.join(paths.partial, name)) for name in os.listdir(paths.partial)} == {0o600}
    assert STORE.manifest(paths.final) is None
    STORE.finish(paths)
    assert STORE.manifest(paths.final) == {"operation": "ü"}
    assert STORE.file_sizes(paths.final) == {"manifest.json": 19, "nvram.fd": 5}
    assert STORE.unfinished(paths.parent) == ()


def test_a_complete_set_is_never_replaced(paths: SetPaths) -> None:
    os.makedirs(paths.final)
    Path(paths.final, "precious").write_text("")
    STORE.begin(paths)
    with pytest.raises(VirtopsError):
        STORE.finish(paths)
    assert os.listdir(paths.final) == ["precious"]


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_a_directory_without_a_manifest_is_not_taken_for_a_set(paths: SetPaths, text: str | None) -> None:
    os.makedirs(paths.final)
    if text is not None:
        Path(paths.final, "manifest.json").write_text(text)
    with pytest.raises(VirtopsError) as caught:
        STORE.manifest(paths.final)
    assert caught.value.code == "set_damaged"


def test_what_was_left_behind(paths: SetPaths, tmp_path: Path) -> None:
    assert STORE.unfinished(paths.parent) == ()
    STORE.begin(paths)
    assert STORE.unfinished(paths.parent) == (Unfinished(paths.partial, None, 0),)
    STORE.write(paths.partial, "manifest.json", '{"domain": {"uuid": "u"}}')
    os.makedirs(paths.final)
    os.symlink(tmp_path, os.path.join(paths.parent, ".x.partial"))
    (found,) = STORE.unfinished(paths.parent)
    assert (found.path, found.owner) == (paths.partial, "u")
    assert found.allocated > 0
    STORE.remove(paths.partial)
    STORE.remove(paths.partial)
    assert STORE.unfinished(paths.parent) == ()


def test_a_symlink_in_place_of_the_domains_directory(paths: SetPaths, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere", paths.parent)
    for call in (lambda: STORE.unfinished(paths.parent), lambda: STORE.begin(paths)):
        with pytest.raises(VirtopsError) as caught:
            call()
        assert caught.value.code == "dest_symlink"
    assert os.listdir(tmp_path / "elsewhere") == []
