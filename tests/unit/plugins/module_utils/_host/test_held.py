# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._host.held import held, made, name_of, place_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of ours alone, with a symlink in it, and one that others may write to, with one as well."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs").chmod(0o777)
    for where in (tmp_path, tmp_path / "theirs"):
        (where / "image").write_bytes(where.name.encode())
        (where / "link").symlink_to(tmp_path / "image")
        (where / "way").symlink_to(tmp_path)
    return tmp_path


def content(path: Path) -> bytes:
    with held(str(path)) as fd:
        return Path(name_of(fd)).read_bytes()


def test_a_symlink_of_ours_is_followed(folder: Path) -> None:
    assert content(folder / "link") == content(folder / "way" / "image") == content(folder / "image")
    assert content(folder / "theirs" / "image") == b"theirs"
    assert content(folder / "way" / "theirs" / ".." / "image") == content(folder / "image")


@pytest.mark.parametrize("name", ["link", "way/image", "way/theirs/image"])
def test_another_users_symlink_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(VirtopsError) as caught, held(str(folder / "theirs" / name)):
        pass
    assert caught.value.code == "path_unsafe"
    assert name.partition("/")[0] in str(caught.value)


def test_in_a_sticky_folder_what_is_ours_is_ours(folder: Path) -> None:
    (folder / "theirs").chmod(0o1777)
    assert content(folder / "theirs" / "link") == content(folder / "image")


def test_a_hard_link_is_refused_where_another_user_may_have_made_it(folder: Path) -> None:
    os.link(folder / "image", folder / "second")
    assert content(folder / "second") == content(folder / "image")
    os.link(folder / "image", folder / "theirs" / "second")
    with pytest.raises(VirtopsError) as caught, held(str(folder / "theirs" / "second")):
        pass
    assert caught.value.code == "path_unsafe"


def test_what_is_no_image_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with pytest.raises(VirtopsError) as caught, held(str(folder / "pipe")):
        pass
    assert caught.value.code == "no_image"


def test_links_without_end(folder: Path) -> None:
    (folder / "round").symlink_to("round")
    with pytest.raises(OSError, match="symbolic links"), held(str(folder / "round")):
        pass


def test_what_was_held_is_what_is_written(folder: Path) -> None:
    path = folder / "theirs" / "new"

    def write() -> None:
        with made(str(path)) as fd:
            os.rename(path, folder / "theirs" / "elsewhere")
            path.symlink_to(folder / "image")
            Path(name_of(fd)).write_bytes(b"new")

    with pytest.raises(VirtopsError) as caught:
        write()
    assert caught.value.code == "path_unsafe"
    assert (folder / "image").read_bytes() != b"new"
    assert (folder / "theirs" / "elsewhere").read_bytes() == b"new"


@pytest.mark.parametrize("swapped", [False, True])
def test_after_a_failure_only_what_is_ours_is_removed(folder: Path, swapped: bool) -> None:
    path = folder / "theirs" / "new"

    def fail() -> None:
        if swapped:
            os.rename(path, folder / "theirs" / "elsewhere")
            path.write_bytes(b"another's")
        raise KeyError

    with pytest.raises(KeyError), made(str(path)):
        fail()
    assert path.exists() == swapped


def test_a_place_is_a_folder_and_not_a_name(folder: Path) -> None:
    (folder / "theirs" / "sub").mkdir()
    (folder / "theirs" / "sub" / "image").write_bytes(b"one")
    with place_of(str(folder / "theirs" / "sub" / "image")) as place:
        os.rename(folder / "theirs" / "sub", folder / "theirs" / "moved")
        (folder / "theirs" / "sub").symlink_to(folder)
        assert place.exists()
        os.unlink(place.name, dir_fd=place.folder)
        assert not place.exists()
    assert (folder / "image").exists()


def test_a_directory_that_is_held_is_not_looked_up_again(folder: Path) -> None:
    fd = os.open(folder / "theirs", os.O_RDONLY)
    os.rename(folder / "theirs", folder / "moved")
    with held("/proc/%d/fd/%d/image" % (os.getpid(), fd)) as image:
        assert Path(name_of(image)).read_bytes() == b"theirs"
    os.close(fd)
