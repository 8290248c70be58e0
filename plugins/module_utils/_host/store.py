# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: backup sets on the disk.

Directories are 0700 and files 0600: an image holds all that the guest knows. A set has its final name only when all
in it is on the disk, so what has that name survives a power loss as a whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import stat
from typing import Any

from .._core.backup import MANIFEST, SetPaths, Unfinished
from .._core.errors import VirtopsError
from .command import os_failure
from .images import sync_directory
from .transfer import sha256

_PARTIAL = ".partial"


class BackupStore:
    """Implements `_core.backup.StorePort`."""

    def check_destination(self, dest: str) -> None:
        """A symlink is refused anywhere in the path: whoever may change it could send the images elsewhere."""
        if not os.path.isabs(dest) or ".." in dest.split("/"):
            raise VirtopsError(
                "dest_unsafe",
                "The dest %r is not an absolute path, or goes through '..'" % dest,
                "Give the directory's own path from the root on",
            )
        for path in _prefixes(dest):
            _require_directory(path)
        if not os.access(dest, os.W_OK | os.X_OK):
            raise VirtopsError(
                "dest_not_writable",
                "The dest %s cannot be written to" % dest,
                "Run the module with the rights to it (become), or mount it writable",
            )

    def hostname(self) -> str:
        """gethostname(2)."""
        return socket.gethostname()

    def is_regular(self, path: str) -> bool:
        """stat(2)."""
        try:
            return stat.S_ISREG(os.stat(path).st_mode)
        except OSError:
            return False

    def manifest(self, directory: str) -> dict[str, Any] | None:
        """A directory of that name that is no set is somebody's, and is not touched."""
        if not os.path.lexists(directory):
            return None
        _require_directory(directory)
        found = _read_manifest(directory)
        if found is None:
            raise VirtopsError(
                "set_damaged",
                "%s is there, but has no readable %s" % (directory, MANIFEST),
                "Move it away, then try again",
            )
        return found

    def file_sizes(self, directory: str) -> dict[str, int]:
        """lstat(2)."""
        with os.scandir(directory) as entries:
            return {entry.name: entry.stat(follow_symlinks=False).st_size for entry in entries}

    def unfinished(self, parent: str) -> tuple[Unfinished, ...]:
        """Directories .<time>.partial; a manifest that is not readable yet names no owner."""
        if not os.path.lexists(parent):
            return ()
        _require_directory(parent)
        names = [name for name in os.listdir(parent) if name.startswith(".") and name.endswith(_PARTIAL)]
        paths = [os.path.join(parent, name) for name in sorted(names)]
        return tuple(
            Unfinished(path, _owner(path), _allocated(path))
            for path in paths
            if os.path.isdir(path) and not os.path.islink(path)
        )

    def begin(self, paths: SetPaths) -> None:
        """mkdir(2); fails where the partial set is there."""
        try:
            with contextlib.suppress(FileExistsError):
                _make_directory(paths.parent)
            _require_directory(paths.parent)
            _make_directory(paths.partial)
        except OSError as error:
            raise os_failure("Making the backup's directory", error, "copy_failed") from error

    def write(self, directory: str, name: str, text: str) -> None:
        """Replaces what is there. The directory is synced by `finish`."""
        path = os.path.join(directory, name)
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with open(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(text)
                file.flush()
                os.fsync(fd)
        except OSError as error:
            raise os_failure("Writing %s" % path, error, "copy_failed") from error

    def copy_plain(self, source: str, directory: str, name: str) -> tuple[int, str]:
        """Of a few MiB at most: read at once."""
        path = os.path.join(directory, name)
        try:
            with open(source, "rb") as original:
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                with open(fd, "wb") as file:
                    shutil.copyfileobj(original, file)
                    file.flush()
                    os.fsync(fd)
            return os.path.getsize(path), sha256(path, lambda: None)
        except OSError as error:
            raise os_failure("The copy of %s" % source, error, "copy_failed") from error

    def finish(self, paths: SetPaths) -> None:
        """rename(2) replaces nothing but an empty directory."""
        try:
            sync_directory(paths.partial)
            os.rename(paths.partial, paths.final)
            sync_directory(paths.parent)
            sync_directory(os.path.dirname(paths.parent))
        except OSError as error:
            raise os_failure("Naming the set %s" % paths.final, error, "copy_failed") from error

    def remove(self, directory: str) -> None:
        """One that is gone is fine."""
        try:
            shutil.rmtree(directory)
            sync_directory(os.path.dirname(directory))
        except FileNotFoundError:
            return
        except OSError as error:
            raise os_failure("Removing %s" % directory, error, "copy_failed") from error


def _make_directory(path: str) -> None:
    os.mkdir(path, 0o700)
    sync_directory(os.path.dirname(path))


def _prefixes(path: str) -> list[str]:
    """/a/b as /a, /a/b."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return ["/" + "/".join(parts[: count + 1]) for count in range(len(parts))]


def _require_directory(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        raise VirtopsError(
            "dest_missing", "The directory %s for the backup does not exist" % path, "Create it, or mount its storage"
        ) from None
    except OSError as error:
        raise os_failure("Looking at %s" % path, error, "dest_unsafe") from error
    if stat.S_ISLNK(mode):
        raise VirtopsError(
            "dest_symlink", "%s, in the backup's path, is a symlink" % path, "Give the path that it points to"
        )
    if not stat.S_ISDIR(mode):
        raise VirtopsError("dest_no_directory", "%s, in the backup's path, is no directory" % path, "Choose another")


def _read_manifest(directory: str) -> dict[str, Any] | None:
    try:
        with open(os.path.join(directory, MANIFEST), encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _owner(directory: str) -> str | None:
    domain = (_read_manifest(directory) or {}).get("domain")
    return domain.get("uuid") if isinstance(domain, dict) else None


def _allocated(directory: str) -> int:
    with os.scandir(directory) as entries:
        return sum(entry.stat(follow_symlinks=False).st_blocks * 512 for entry in entries)
