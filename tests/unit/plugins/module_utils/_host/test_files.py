# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""On a real file system."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.boot import DIRECTORY, Entry
from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._host.files import Files


def test_what_is_put_is_found(tmp_path: Path) -> None:
    files = Files()
    folder, file, link = (str(tmp_path / name) for name in ("d", "d/é", "d/link"))
    umask = os.umask(0)
    try:
        files.put(folder, DIRECTORY)
        files.put(file, Entry("tëxt\r\n"))
        files.put(link, Entry(target="/nowhere"))
    finally:
        os.umask(umask)
    assert files.find(folder) == {folder: DIRECTORY, file: Entry("tëxt\r\n"), link: Entry(target="/nowhere")}
    assert [oct(os.stat(path).st_mode & 0o7777) for path in (folder, file)] == ["0o755", "0o644"]
    for path in (file, link, folder):
        files.remove(path)
        files.remove(path)
    assert files.find(folder) == {}


def test_what_others_may_write_to_is_not_right(tmp_path: Path) -> None:
    files, path = Files(), tmp_path / "d"
    files.put(str(path), DIRECTORY)
    files.put(str(path / "f"), Entry("x"))
    path.chmod(0o777)
    (path / "f").chmod(0o666)
    assert files.find(str(path)) == {str(path): None, str(path / "f"): None}
    files.put(str(path), DIRECTORY)
    files.put(str(path / "f"), Entry("x"))
    assert files.find(str(path)) == {str(path): DIRECTORY, str(path / "f"): Entry("x")}


def test_a_symlink_is_replaced_and_not_followed(tmp_path: Path) -> None:
    files, elsewhere = Files(), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "f").write_text("theirs")
    for name in ("d", "f"):
        os.symlink(elsewhere / ("f" if name == "f" else ""), tmp_path / name)
    files.put(str(tmp_path / "d"), DIRECTORY)
    files.put(str(tmp_path / "f"), Entry("ours"))
    assert files.find(str(tmp_path / "d")) == {str(tmp_path / "d"): DIRECTORY}
    assert (elsewhere / "f").read_text() == "theirs"


def test_a_failure_says_where(tmp_path: Path) -> None:
    with pytest.raises(VirtopsError, match="missing"):
        Files().put(str(tmp_path / "missing" / "f"), Entry("x"))
    assert os.listdir(tmp_path) == []
