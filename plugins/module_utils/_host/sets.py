# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the backup sets in a dest: what is there, notes in them, and their removal.

What others may write to counts for nothing, as in store.py, but is named. Each folder is reached once, and what is in
it by its descriptor.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
from collections.abc import Iterator
from dataclasses import replace

from .._core.backup import MANIFEST, SUMS
from .._core.errors import VirtopsError
from .._core.manifest import MANIFEST_LIMIT
from .._core.sets import (
    DAMAGED,
    FOREIGN,
    NOTES,
    NOTES_LIMIT,
    REMOVING,
    STAMP,
    BackupSet,
    Notes,
    OpenSet,
    build_notes,
    is_of,
    is_shaped,
    judge,
    merged_notes,
    parse_notes,
    with_chains,
)
from .command import os_failure
from .folders import held, hold_file, is_at, reach, reach_own, read_plain, require_plain_path, way_to

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
#: Bytes of SHA256SUMS and of a domain's definition, at most.
SUMS_LIMIT = 1 << 20
XML_LIMIT = 16 << 20


class BackupSets:
    """Implements `_core.sets.SetsPort`."""

    def __init__(self) -> None:
        #: Descriptors of the domain's folder and of the set, by its path
        self._open: dict[str, tuple[int, int, int | None]] = {}

    def list(self, dest: str, domain: str | None) -> tuple[BackupSet, ...]:
        """Only folders with a set of ours, or what has the name of one, are looked at closely: a dest may hold
        anything. Where a domain's name has a folder, the others are not read: there may be thousands of sets."""
        require_plain_path(dest)
        found: tuple[BackupSet, ...] = ()
        with held(reach(dest)) as folder:
            try:
                names = sorted(os.listdir(folder))
            except OSError as error:
                raise os_failure("Reading the directory %s" % dest, error, "dest_unsafe") from error
            if domain in names and not _UUID.fullmatch(domain or ""):
                names = [name for name in names if name == domain]
            for name in names:
                inside = with_chains(_of_domain(folder, name, os.path.join(dest, name)))
                if domain is None or name == domain:
                    found += inside
                elif any(is_of(one, domain) for one in inside):
                    found += tuple(one for one in inside if is_of(one, domain) or not one.uuid)
        return found

    def open(self, path: str) -> OpenSet | None:
        """By a descriptor, see `folders.way_to`."""
        with contextlib.ExitStack() as stack:
            parent, fd = stack.enter_context(_opened(path))
            if parent is None or fd is None:
                return None
            try:
                found, files = _read_set(fd, path)
                name = None if found.manifest is None else found.manifest["domain_xml"]
                sums = _readable(fd, SUMS, SUMS_LIMIT)
                domain_xml = None if name is None else _readable(fd, name, XML_LIMIT)
            except OSError as error:
                raise os_failure("Looking at %s" % path, _bare(error), "dest_unsafe") from error
            self.close(path)
            self._open[path] = os.dup(parent), os.dup(fd), in_use(fd)
        return OpenSet(way_to(self._open[path][1]), found, files, sums, domain_xml)

    def close(self, path: str) -> bool:
        """By what the name leads to now."""
        if path not in self._open:
            return False
        parent, fd, lock = self._open.pop(path)
        with held(parent), held(fd):
            if lock is not None:
                os.close(lock)
            return is_at(parent, os.path.basename(path), fd)

    def note(self, path: str, notes: Notes) -> None:
        """Replaced at once, by one after the other."""
        with _opened(path) as (_parent, fd):
            if fd is None:
                raise _gone(path)
            try:
                # Some network file systems lock nothing; then the last one counts
                with contextlib.suppress(OSError):
                    fcntl.flock(fd, fcntl.LOCK_EX)
                _write(fd, NOTES, build_notes(merged_notes(_noted(fd), notes)))
            except OSError as error:
                raise os_failure("Writing %s in %s" % (NOTES, path), _bare(error), "note_failed") from error

    def remove(self, path: str) -> None:
        """It loses its name first, and its manifest last: so what a death leaves is nobody's set, and its owner is
        still known."""
        name = os.path.basename(path)
        leftover = name if name.endswith(REMOVING) else ".%s%s" % (name, REMOVING)
        if not (name == leftover and is_shaped(name)) and not STAMP.fullmatch(name):
            raise VirtopsError(
                "set_foreign", "%s has not the name of a backup set" % path, "Remove it by hand, if it may go"
            )
        try:
            with _opened(path) as (parent, fd):
                if parent is None:
                    return
                _unlink(parent, leftover, path)
                if fd is None or name == leftover:
                    return
                with _not_in_use(fd, path):
                    os.rename(name, leftover, src_dir_fd=parent, dst_dir_fd=parent)
                    os.fsync(parent)
                    files = set(os.listdir(fd))
                    try:
                        _unlink(parent, leftover, path)
                    except OSError:
                        if set(os.listdir(fd)) == files:  # the target lets no file go: it is whole, so keeps its name
                            os.rename(leftover, name, src_dir_fd=parent, dst_dir_fd=parent)
                        raise
        except OSError as error:
            raise os_failure("Removing %s" % path, _bare(error), "remove_failed") from error


def in_use(fd: int) -> int | None:
    """Keep the set of this descriptor from being removed while we read it, until what is returned is closed."""
    with contextlib.suppress(BlockingIOError):  # it is being removed
        return hold_file(fd, MANIFEST)
    return None


@contextlib.contextmanager
def _not_in_use(fd: int, path: str) -> Iterator[None]:
    """Nobody begins to read it meanwhile."""
    try:
        lock = hold_file(fd, MANIFEST, alone=True)
    except BlockingIOError:
        raise VirtopsError(
            "set_in_use",
            "The backup set %s is being read: somebody restores, verifies or boots it" % path,
            "Wait for its end (see job_info), then run this again",
        ) from None
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def _of_domain(dest: int, name: str, path: str) -> Iterator[BackupSet]:
    """What is in a domain's folder, where there is anything that could be a set."""
    try:
        # It may be anybody's: only names are read, until it is known to be ours
        with held(os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dest)) as folder:
            names = sorted(os.listdir(folder), key=lambda entry: (entry.lstrip("."), entry))
    except OSError:
        return
    if not any(is_shaped(entry) for entry in names):
        return
    try:
        parent = reach_own(dest, name, path)
    except FileNotFoundError:
        return
    except VirtopsError as error:
        yield BackupSet(path, FOREIGN, error.cause)
        return
    with held(parent):
        for entry in names:
            found = _look_at(parent, entry, os.path.join(path, entry))
            if found is not None:
                yield found


def _look_at(parent: int, name: str, path: str) -> BackupSet | None:
    """None where it is gone meanwhile."""
    try:
        with held(reach_own(parent, name, path)) as fd:
            return _read_set(fd, path)[0]
    except FileNotFoundError:
        return None
    except VirtopsError as error:
        return BackupSet(path, FOREIGN, error.cause)
    except OSError as error:
        return BackupSet(path, FOREIGN, "It cannot be read: %s" % error.strerror)


def _read_set(fd: int, path: str) -> tuple[BackupSet, dict[str, int]]:
    """What it is, and the bytes of each file in it."""
    with os.scandir(fd) as entries:
        stats = {entry.name: entry.stat(follow_symlinks=False) for entry in entries}
    files = {entry: found.st_size for entry, found in stats.items() if stat.S_ISREG(found.st_mode)}
    allocated = sum(found.st_blocks * 512 for found in stats.values())
    return replace(_judged(fd, path, files), size=sum(files.values()), allocated=allocated), files


def _readable(fd: int, name: str, limit: int) -> bytes | None:
    with contextlib.suppress(OSError, ValueError):
        data = read_plain(fd, name, limit)
        return data if len(data) <= limit else None
    return None


def _judged(fd: int, path: str, files: dict[str, int]) -> BackupSet:
    """A symlink or a FIFO is no manifest, and no notes."""
    manifest = notes = None
    try:
        with contextlib.suppress(FileNotFoundError):
            manifest = read_plain(fd, MANIFEST, MANIFEST_LIMIT)
    except (OSError, ValueError) as error:
        return BackupSet(path, DAMAGED, "Its %s cannot be read: %s" % (MANIFEST, _said(error)))
    try:
        with contextlib.suppress(FileNotFoundError):
            notes = read_plain(fd, NOTES, NOTES_LIMIT)
    except (OSError, ValueError):
        notes = b""
    return judge(path, files, manifest, notes)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[tuple[int | None, int | None]]:
    """Descriptors of a domain's folder and of the set in it; None where there is none."""
    require_plain_path(path)
    parent = os.path.dirname(path)
    with contextlib.ExitStack() as stack:
        dest = stack.enter_context(held(reach(os.path.dirname(parent))))
        folder = fd = None
        with contextlib.suppress(FileNotFoundError):
            folder = stack.enter_context(held(reach_own(dest, os.path.basename(parent), parent)))
            fd = stack.enter_context(held(reach_own(folder, os.path.basename(path), path)))
        yield folder, fd


def _noted(fd: int) -> Notes:
    """What cannot be read is lost."""
    try:
        return parse_notes(read_plain(fd, NOTES, NOTES_LIMIT))
    except (OSError, ValueError):
        return Notes()


def _write(folder: int, name: str, text: str) -> None:
    new = ".%s.new" % name
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new, dir_fd=folder)  # a death's
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
    with open(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
        file.flush()
        os.fsync(fd)
    os.rename(new, name, src_dir_fd=folder, dst_dir_fd=folder)
    os.fsync(folder)


def _unlink(parent: int, name: str, path: str) -> None:
    """What was renamed to be removed, its manifest last."""
    try:
        folder = reach_own(parent, name, path)
    except FileNotFoundError:
        return
    with held(folder) as fd:
        for entry in sorted(os.listdir(fd), key=lambda found: found == MANIFEST):
            if stat.S_ISDIR(os.stat(entry, dir_fd=fd, follow_symlinks=False).st_mode):
                shutil.rmtree(os.path.join(way_to(fd), entry))
            else:
                os.unlink(entry, dir_fd=fd)
    os.rmdir(name, dir_fd=parent)
    os.fsync(parent)


def _gone(path: str) -> VirtopsError:
    return VirtopsError("set_missing", "There is no backup set %s" % path, "Look for its path with backup_info")


def _said(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _bare(error: OSError) -> OSError:
    """Without its path, which would be that of a descriptor."""
    return OSError(error.errno, error.strerror)
