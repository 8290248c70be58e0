# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Backup sets on a real file system."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.backup import SetPaths
from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.manifest import build_digests
from ansible_collections.virtops.libvirt.plugins.module_utils._host import folders, store
from ansible_collections.virtops.libvirt.plugins.module_utils._host.store import BackupStore

STORE = BackupStore()
#: A manifest as short as it can be.
MANIFEST: dict[str, Any] = {
    "schema_version": 1,
    "operation": "ü",
    "snapshot": None,
    "domain": {"name": "web", "uuid": "u"},
    "hypervisor": "hv",
    "times": {"snapshot": None, "started": None, "finished": None},
    "consistency": "crash",
    "domain_xml": "domain.xml",
    "nvram": None,
    "disks": [],
}


def text(**fields: Any) -> str:
    return json.dumps({**MANIFEST, **fields}, ensure_ascii=False)


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
        way = STORE.begin(paths, text(operation="first"))
        STORE.write(way, "manifest.json", text())
        (tmp_path / "vars.fd").write_bytes(b"nvram")
        plain = STORE.copy_plain(str(tmp_path / "vars.fd"), way, "nvram.fd")
    finally:
        os.umask(old)
    assert plain == (5, hashlib.sha256(b"nvram").hexdigest(), True)
    assert [mode(path) for path in (paths.parent, paths.partial)] == [0o700, 0o700]
    assert {mode(os.path.join(paths.partial, name)) for name in os.listdir(paths.partial)} == {0o600}
    assert STORE.manifest(paths.final) is None
    assert STORE.owners(paths.parent) == {}
    STORE.finish(paths)
    assert STORE.manifest(paths.final) == MANIFEST
    assert STORE.owners(paths.parent) == {paths.final: "u"}
    assert STORE.file_sizes(paths.final) == {"manifest.json": len(text().encode()), "nvram.fd": 5}
    assert STORE.unfinished(paths.parent) == ()
    assert os.listdir(paths.parent) == [os.path.basename(paths.final)]


def test_a_complete_set_is_never_replaced(paths: SetPaths) -> None:
    os.makedirs(paths.final)
    Path(paths.final, "precious").write_text("")
    STORE.begin(paths, text())
    with pytest.raises(VirtopsError):
        STORE.finish(paths)
    assert os.listdir(paths.final) == ["precious"]
    STORE.remove(paths.partial)
    assert os.listdir(paths.parent) == [os.path.basename(paths.final)]


def test_a_set_that_another_began(paths: SetPaths) -> None:
    STORE.begin(paths, text())
    with pytest.raises(VirtopsError) as caught:
        BackupStore().begin(paths, text(operation="later"))
    assert caught.value.code == "set_under_way"
    assert os.listdir(paths.parent) == [os.path.basename(paths.partial)]
    assert "later" not in Path(paths.partial, "manifest.json").read_text()
    STORE.remove(paths.partial)


@pytest.mark.parametrize("content", [None, "{", "[]", text(disks=None), "[" * 100000])
def test_a_directory_without_a_manifest_is_not_taken_for_a_set(paths: SetPaths, content: str | None) -> None:
    make(paths.final)
    if content is not None:
        Path(paths.final, "manifest.json").write_text(content)
    assert STORE.owners(paths.parent) == {}
    with pytest.raises(VirtopsError) as caught:
        STORE.manifest(paths.final)
    assert caught.value.code == "set_damaged"


def make(folder: str) -> None:
    os.makedirs(os.path.dirname(folder), 0o700, exist_ok=True)
    os.mkdir(folder, 0o700)


def test_what_was_left_behind(paths: SetPaths, tmp_path: Path) -> None:
    assert STORE.unfinished(paths.parent) == ()
    make(paths.partial)
    (found,) = STORE.unfinished(paths.parent)
    assert (found.path, found.owner, found.allocated, found.ours) == (paths.partial, None, 0, False)
    STORE.write(STORE.begin(paths, text(machine=STORE.machine())), "vda.raw", "x")
    make(paths.final)
    os.symlink(tmp_path, os.path.join(paths.parent, ".x.partial"))
    os.mkdir(os.path.join(paths.parent, ".y.partial"))
    os.chmod(os.path.join(paths.parent, ".y.partial"), 0o777)
    (found,) = STORE.unfinished(paths.parent)
    assert (found.path, found.owner, found.ours) == (paths.partial, "u", True)
    assert found.allocated > 0
    STORE.remove(paths.partial)
    STORE.remove(paths.partial)
    assert STORE.unfinished(paths.parent) == ()


@pytest.mark.parametrize(
    ("manifest", "ours"),
    [
        ({"machine": STORE.machine()}, True),
        ({"machine": "another"}, False),
        ({"hypervisor": socket.gethostname()}, True),  # of an earlier release
        ({}, False),
    ],
)
def test_whose_it_is(paths: SetPaths, manifest: dict[str, str], ours: bool) -> None:
    make(paths.partial)
    Path(paths.partial, "manifest.json").write_text(text(**manifest))
    (found,) = STORE.unfinished(paths.parent)
    assert found.ours == ours


def test_one_that_died_at_its_birth_is_this_hosts(paths: SetPaths) -> None:
    make("%s/.20261120T120000Z.%s.partial" % (paths.parent, STORE.machine()))
    make("%s/.20261120T120000Z.another.partial" % paths.parent)
    assert sorted(found.ours for found in STORE.unfinished(paths.parent)) == [False, True]


def test_a_lease(paths: SetPaths, tmp_path: Path) -> None:
    """The newest change in it counts, and it is looked at once more before the removal."""
    make(paths.partial)
    image = Path(paths.partial, "vda.raw")
    image.write_text("")
    for path in (image, Path(paths.partial)):
        os.utime(path, (1, 1))
    (found,) = STORE.unfinished(paths.parent)
    assert found.age > 1 << 30
    os.utime(image)
    assert STORE.unfinished(paths.parent)[0].age < 100
    STORE.remove(paths.partial, 3600)
    assert image.exists()
    os.utime(image, (1, 1))
    STORE.remove(paths.partial, 3600)
    assert os.listdir(paths.parent) == []
    STORE.begin(paths, text())
    STORE.require_in_place(paths)
    os.rename(paths.partial, tmp_path / "away")
    assert code_of(lambda: STORE.require_in_place(paths)) == "copy_failed"
    STORE.remove(paths.partial)


RUNS = {"vda.raw": ((0, 4096, "a"), (8192, 8193, "b")), "vdb.raw": None}


def test_one_that_is_copied_is_taken_up_by_another_process(paths: SetPaths) -> None:
    way = STORE.begin(paths, text(machine=STORE.machine()))
    assert not STORE.unfinished(paths.parent)[0].copied
    assert STORE.digests(paths.partial) is None
    STORE.write(way, "digests.json", build_digests(RUNS))
    other = BackupStore()
    assert other.unfinished(paths.parent)[0].copied
    assert other.digests(paths.partial) == RUNS
    assert other.resume(paths) == other.resume(paths)
    other.finish(paths)
    assert os.listdir(paths.final) == ["manifest.json"]
    assert code_of(lambda: BackupStore().resume(paths)) == "no_image"
    STORE.remove(paths.partial)


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"a": [[1, 1, ""]]}', '{"a": [[0, 2, ""], [1, 3, ""]]}', '{"../a": null}']
)
def test_digests_that_are_none(paths: SetPaths, content: str) -> None:
    way = STORE.begin(paths, text())
    STORE.write(way, "digests.json", content)
    assert STORE.digests(paths.partial) is None
    STORE.remove(paths.partial)


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(VirtopsError) as caught:
        call()
    return caught.value.code


def test_folders_of_others(paths: SetPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither read nor written: the other user is played for real in tests/faults."""
    make(paths.final)
    Path(paths.final, "manifest.json").write_text(text())
    for folder in (paths.parent, paths.final):
        os.chmod(folder, 0o720)
        assert code_of(lambda: STORE.manifest(paths.final)) == "dest_not_private"
        os.chmod(folder, 0o755)
    assert STORE.manifest(paths.final) == MANIFEST
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    for call in (
        lambda: STORE.manifest(paths.final),
        lambda: STORE.unfinished(paths.parent),
        lambda: STORE.owners(paths.parent),
        lambda: STORE.begin(paths, text()),
    ):
        assert code_of(call) == "dest_not_private"
    # On a file system whose server decides who we are, the folder's owner is us
    monkeypatch.setattr(folders, "_is_remote", lambda device: True)
    assert STORE.manifest(paths.final) == MANIFEST


def test_a_folder_that_we_may_not_look_into(paths: SetPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    make(paths.parent)
    real = os.open

    def deny(path: str, flags: int, *rest: Any, **options: Any) -> int:
        if path == "web":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", deny)
    assert code_of(lambda: STORE.unfinished(paths.parent)) == "permission_denied"


def test_the_kind_of_a_file_system() -> None:
    assert not folders._is_remote(os.stat("/").st_dev)


def test_a_set_that_is_moved_while_it_is_written(paths: SetPaths, tmp_path: Path) -> None:
    """Nothing goes where the name leads now."""
    way = STORE.begin(paths, text())
    os.rename(paths.parent, tmp_path / "away")
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere", paths.parent)
    STORE.write(way, "domain.xml", "<domain/>")
    assert code_of(lambda: STORE.finish(paths)) == "dest_not_private"
    STORE.remove(paths.partial)
    assert os.listdir(tmp_path / "elsewhere") == os.listdir(tmp_path / "away") == []


def test_a_symlink_in_place_of_the_domains_directory(paths: SetPaths, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere", paths.parent)
    for call in (lambda: STORE.unfinished(paths.parent), lambda: STORE.begin(paths, text())):
        with pytest.raises(VirtopsError) as caught:
            call()
        assert caught.value.code == "dest_symlink"
    assert os.listdir(tmp_path / "elsewhere") == []


def test_a_file_that_something_writes_to(paths: SetPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is copied anew until nothing did, or often enough."""
    source = tmp_path / "vars.fd"
    source.write_bytes(b"old")
    real, reads = os.pread, []

    def pread(fd: int, count: int, offset: int) -> bytes:
        reads.append(offset)
        data = real(fd, count, offset)
        if len(reads) < stop:
            source.write_bytes(b"new, and longer %d" % len(reads))
        return data

    monkeypatch.setattr(os, "pread", pread)
    way = STORE.begin(paths, text())
    for stop, steady in ((2, True), (100, False)):
        reads.clear()
        name = "nvram%d" % stop
        assert STORE.copy_plain(str(source), way, name)[2] == steady
    assert Path(way, "nvram2").read_bytes() == b"new, and longer 1"
    monkeypatch.setattr("%s._PLAIN_LIMIT" % store.__name__, 3)
    assert code_of(lambda: STORE.copy_plain(str(source), way, "big")) == "copy_failed"
    STORE.remove(paths.partial)


def test_files_that_are_none(paths: SetPaths, tmp_path: Path) -> None:
    """A link of ours counts, and a FIFO is never waited for."""
    (tmp_path / "real").write_text("x")
    (tmp_path / "link").symlink_to("real")
    os.mkfifo(tmp_path / "fifo")
    way = STORE.begin(paths, text())
    assert STORE.copy_plain(str(tmp_path / "link"), way, "a")[0] == 1
    assert code_of(lambda: STORE.copy_plain(str(tmp_path / "fifo"), way, "b")) == "copy_failed"
    STORE.remove(paths.partial)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_link_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    os.lchown(tmp_path / "link", 4711, 4711)
    with pytest.raises(OSError, match="symbolic"):
        folders.open_plain(str(tmp_path / "link"))


def test_where_the_state_of_tpms_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert STORE.tpm_root() == "/var/lib/libvirt/swtpm"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_CONFIG_HOME", "/home/u/.config")
    assert STORE.tpm_root() == "/home/u/.config/libvirt/qemu/swtpm"
