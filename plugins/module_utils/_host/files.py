# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: files of the hypervisor's own, which only their owner may write to."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable

from .._core.boot import DIRECTORY, Entry
from .command import os_failure

_FOLDER_MODE = 0o755
_FILE_MODE = 0o644


class Files:
    """Implements `_core.boot.FilesPort`; the owner is whoever we are."""

    def find(self, path: str) -> dict[str, Entry | None]:
        try:
            found = {path: _look(path)}
            if stat.S_ISDIR(os.lstat(path).st_mode):
                for name in sorted(os.listdir(path)):
                    found.update(self.find(os.path.join(path, name)))
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise os_failure("Reading %s" % path, error) from error
        return found

    def put(self, path: str, entry: Entry) -> None:
        try:
            if entry == DIRECTORY:
                _make_folder(path)
            elif entry.target is not None:
                _replace(path, lambda new: os.symlink(entry.target or "", new))
            else:
                _replace(path, lambda new: _write(new, entry.text or ""))
        except OSError as error:
            raise os_failure("Writing %s" % path, error) from error

    def remove(self, path: str) -> None:
        try:
            if stat.S_ISDIR(os.lstat(path).st_mode):
                os.rmdir(path)
            else:
                os.unlink(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise os_failure("Removing %s" % path, error) from error


def _look(path: str) -> Entry | None:
    found = os.lstat(path)
    if stat.S_ISLNK(found.st_mode):
        return Entry(target=os.readlink(path))
    if found.st_uid != os.geteuid():
        return None
    if stat.S_ISDIR(found.st_mode):
        return DIRECTORY if stat.S_IMODE(found.st_mode) == _FOLDER_MODE else None
    if not stat.S_ISREG(found.st_mode) or stat.S_IMODE(found.st_mode) != _FILE_MODE:
        return None
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        return Entry(file.read())


def _make_folder(path: str) -> None:
    if os.path.islink(path) or os.path.isfile(path):
        os.unlink(path)
    os.makedirs(path, exist_ok=True)
    os.chown(path, os.geteuid(), os.getegid())
    os.chmod(path, _FOLDER_MODE)


def _replace(path: str, make: Callable[[str], None]) -> None:
    """Made beside it under another name, then renamed: nobody ever sees half of it."""
    with tempfile.TemporaryDirectory(dir=os.path.dirname(path), prefix=".virtops-") as folder:
        new = os.path.join(folder, "new")
        make(new)
        os.rename(new, path)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fchmod(file.fileno(), _FILE_MODE)
        os.fsync(file.fileno())
