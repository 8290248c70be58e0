# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: files held by a descriptor, so that nobody can put another in their place meanwhile.

Images may lie in a folder that another user may write to. Between two looks that user can put a symlink where a file
was, and what root then writes, chowns or removes by name is another's. So a path is walked once, from folder to folder,
and what it leads to is used by its descriptor from then on; programs get it as /proc/self/fd/N. A symlink or a hard
link is followed only where nobody but root (or we) could have made it.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from .._core.errors import VirtopsError

_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_PRIVATE = 0o600
#: See `folders.way_to`.
_DESCRIPTOR = re.compile(r"/proc/(?:self|\d+)/fd/\d+(?=/)")
#: As many as Linux follows in one path, path_resolution(7).
_MOST_LINKS = 40


@dataclass(frozen=True)
class Place:
    """Where a file is, or would be: its folder as a descriptor, and its name there. It may be a symlink."""

    folder: int
    name: str
    path: str
    #: May another user put something else there, in this folder or in one on the way?
    shared: bool

    def sync(self) -> None:
        """fsync(2) of the folder: what was made, renamed or removed in it is then on the disk."""
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.folder)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def exists(self) -> bool:
        """lstat(2)."""
        with suppress(FileNotFoundError):
            self._look()
            return True
        return False

    def has(self, fd: int) -> bool:
        """Is what we hold what is there?"""
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(fd), self._look())
        return False

    def _look(self) -> os.stat_result:
        return os.stat(self.name, dir_fd=self.folder, follow_symlinks=False)


@contextmanager
def place_of(path: str) -> Iterator[Place]:
    """Raises OSError where a folder is missing, and `path_unsafe` for a symlink that another user may have made."""
    folder, name, shared = _walk(path, follow=False)
    try:
        yield Place(folder, name, path, shared)
    finally:
        os.close(folder)


@contextmanager
def held(path: str) -> Iterator[int]:
    """The file or block device that is there, opened O_PATH, which neither reads nor waits. Symlinks: `place_of`."""
    folder, name, _shared = _walk(path, follow=True)
    try:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            _require_own_name(path, os.fstat(folder), os.fstat(fd))
            yield fd
        finally:
            os.close(fd)
    finally:
        os.close(folder)


@contextmanager
def made(path: str) -> Iterator[int]:
    """A new, empty file of ours (0600), open for writing. Where the block fails it is removed.

    Raises FileExistsError where the name is taken, also by a dangling symlink. At the end the file and its name are on
    the disk.
    """
    with place_of(path) as place:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(place.name, flags, _PRIVATE, dir_fd=place.folder)
        try:
            os.fchmod(fd, _PRIVATE)
            yield fd
            os.fsync(fd)
            place.sync()
            if not place.has(fd):
                raise VirtopsError(
                    "path_unsafe",
                    "While %s was written, somebody put something else in its place" % path,
                    "Find out who may write to that folder, and let only root write to it, or choose another",
                )
        except BaseException:
            with suppress(OSError):
                if place.has(fd):
                    os.unlink(place.name, dir_fd=place.folder)
            raise
        finally:
            os.close(fd)


def name_of(fd: int) -> str:
    """How a program opens what we hold; it needs the descriptor, see `command.run`."""
    return "/proc/self/fd/%d" % fd


def is_shared(path: str) -> bool:
    """May another user put something else there? Raises as `held` does."""
    folder, _name, shared = _walk(path, follow=True)
    os.close(folder)
    return shared


def _others_write(folder: os.stat_result) -> bool:
    """May somebody else make files in this folder? An ACL's mask shows as the group's permissions."""
    return folder.st_uid not in _ours() or bool(folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _ours() -> tuple[int, int]:
    return 0, os.geteuid()


def _may_be_swapped(folder: os.stat_result, entry: os.stat_result) -> bool:
    """In a sticky folder of ours, as /tmp, nobody else replaces what is ours."""
    if not _others_write(folder):
        return False
    return folder.st_uid not in _ours() or not folder.st_mode & stat.S_ISVTX or entry.st_uid not in _ours()


def _walk(path: str, follow: bool) -> tuple[int, str, bool]:
    """The folder that the path leads to, as a descriptor, the last name (`follow`: that is no symlink then), and
    whether another user may put something else there."""
    start, way = _start(path)
    left, links, shared = _parts(way), 0, False
    at = os.open(start, _FOLDER)
    try:
        while left:
            name = left.pop()
            if not left and not follow:
                return at, name, shared or _others_write(os.fstat(at))
            found = os.stat(name, dir_fd=at, follow_symlinks=False)
            if stat.S_ISLNK(found.st_mode):
                links += 1
                if links > _MOST_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                _require_own_link(path, name, os.fstat(at), found)
                target = os.readlink(name, dir_fd=at)
                left += _parts(target)
                if target.startswith("/"):
                    at = _enter("/", at)
            elif not left:
                return at, name, shared or _others_write(os.fstat(at))
            else:
                shared |= _may_be_swapped(os.fstat(at), found)
                at = _enter(name, at)
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    except BaseException as error:
        os.close(at)
        if isinstance(error, OSError) and error.filename != path:
            raise OSError(error.errno, error.strerror, path) from error
        raise


def _start(path: str) -> tuple[str, str]:
    """Where the walk begins, and the rest: a directory that is held already is no name to be looked up again."""
    found = _DESCRIPTOR.match(path)
    return (found.group(), path[found.end() :]) if found else ("/", path)


def _enter(name: str, at: int) -> int:
    """O_NOFOLLOW: what was a folder a moment ago may be a symlink now."""
    new = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=at)
    os.close(at)
    return new


def _parts(path: str) -> list[str]:
    """The last one first."""
    return [part for part in path.split("/") if part not in ("", ".")][::-1]


def _require_own_link(path: str, name: str, folder: os.stat_result, link: os.stat_result) -> None:
    if _may_be_swapped(folder, link):
        raise VirtopsError(
            "path_unsafe",
            "In the path %s, %r is a symlink in a folder that another user may write to (%s): it may lead to anybody's "
            "file" % (path, name, _who(folder)),
            "Name the file that it leads to in the domain's XML, or let only root write to the folder",
        )


def _require_own_name(path: str, folder: os.stat_result, found: os.stat_result) -> None:
    if stat.S_ISBLK(found.st_mode):
        return
    if not stat.S_ISREG(found.st_mode):
        raise VirtopsError("no_image", "%s is neither a file nor a block device" % path, "Check the path")
    if found.st_nlink > 1 and _may_be_swapped(folder, found):
        raise VirtopsError(
            "path_unsafe",
            "The file %s has %d names (hard links) and lies in a folder that another user may write to (%s): it may be "
            "anybody's file" % (path, found.st_nlink, _who(folder)),
            "Find the others with 'find -samefile', and remove them or copy the image, or let only root write to the "
            "folder",
        )


def _who(folder: os.stat_result) -> str:
    return "owner %d, group %d, mode %04o" % (folder.st_uid, folder.st_gid, stat.S_IMODE(folder.st_mode))
