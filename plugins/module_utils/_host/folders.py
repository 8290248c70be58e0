# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: folders that are ours, below one that others may write to, held by descriptors."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator

from .._core.errors import VirtopsError
from .command import os_failure

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: File systems whose server decides who we are there. Only root mounts them.
_REMOTE = frozenset({"nfs", "nfs4", "cifs", "smb3", "ceph", "9p"})
#: Who root is on such a server, as a rule (root_squash).
_NOBODY = 65534


@contextlib.contextmanager
def held(fd: int) -> Iterator[int]:
    """Close it in the end."""
    try:
        yield fd
    finally:
        os.close(fd)


def require_plain_path(path: str) -> None:
    """Refuse one that is not the way from the root."""
    if not os.path.isabs(path) or ".." in path.split("/"):
        raise VirtopsError(
            "dest_unsafe",
            "The dest %r is not an absolute path, or goes through '..'" % path,
            "Give the directory's own path from the root on",
        )


def reach(path: str) -> int:
    """A descriptor of a directory, reached over no symlink."""
    fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    shown = ""
    try:
        for part in [part for part in path.split("/") if part not in ("", ".")]:
            shown += "/" + part
            # With O_PATH no right to read is needed on the way
            below = _open(part, os.O_PATH | _FOLDER, fd, shown)
            os.close(fd)
            fd = below
        return _open(".", _FOLDER, fd, shown or "/")
    finally:
        os.close(fd)


def _open(name: str, flags: int, folder: int, shown: str) -> int:
    try:
        return os.open(name, flags, dir_fd=folder)
    except FileNotFoundError:
        raise VirtopsError(
            "dest_missing", "The directory %s for the backup does not exist" % shown, "Create it, or mount its storage"
        ) from None
    except NotADirectoryError:
        raise _no_directory(name, folder, shown) from None
    except OSError as error:
        raise os_failure("Looking at %s" % shown, error, "dest_unsafe") from error


def _no_directory(name: str, folder: int, shown: str) -> VirtopsError:
    if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        return VirtopsError(
            "dest_symlink", "%s, in the backup's path, is a symlink" % shown, "Give the path that it points to"
        )
    return VirtopsError("dest_no_directory", "%s, in the backup's path, is no directory" % shown, "Choose another")


def reach_own(folder: int, name: str, shown: str) -> int:
    """A descriptor of a directory in `folder` that is ours, and that nobody else may write to. FileNotFoundError where
    there is none."""
    try:
        fd = os.open(name, _FOLDER, dir_fd=folder)
    except FileNotFoundError:
        raise
    except NotADirectoryError:
        raise _no_directory(name, folder, shown) from None
    except OSError as error:
        raise os_failure("Looking at %s" % shown, OSError(error.errno, error.strerror), "dest_unsafe") from error
    try:
        _require_own(os.fstat(fd), shown, _we(folder))
    except BaseException:
        os.close(fd)
        raise
    return fd


def _require_own(found: os.stat_result, shown: str, we: frozenset[int]) -> None:
    if found.st_uid not in we:
        raise not_private(shown, "belongs to the user %d" % found.st_uid)
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise not_private(shown, "may be written to by others (its mode is %04o)" % stat.S_IMODE(found.st_mode))


def not_private(shown: str, why: str) -> VirtopsError:
    """The error for a folder of sets that others have their hands in."""
    return VirtopsError(
        "dest_not_private",
        "%s, in the backup's path, %s" % (shown, why),
        "Look at what is in it and move it away; or, if it can be trusted, make it yours alone (chown, chmod go-w)",
    )


def _we(folder: int) -> frozenset[int]:
    """The user IDs that our own directories have in this one."""
    own = {os.geteuid()}
    found = os.fstat(folder)
    if found.st_uid != os.geteuid() and _is_remote(found.st_dev):
        own |= {found.st_uid, _NOBODY}
    return frozenset(own)


def _is_remote(device: int) -> bool:
    """proc_pid_mountinfo(5): the third field is the device, the first one after the hyphen the type."""
    wanted = "%d:%d" % (os.major(device), os.minor(device))
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        mounts = [line.split() for line in file]
    return any(mount[2] == wanted and mount[mount.index("-") + 1] in _REMOTE for mount in mounts)


def make_own(folder: int, name: str) -> None:
    """mkdir(2), and it is on the disk."""
    os.mkdir(name, 0o700, dir_fd=folder)
    os.fsync(folder)


def is_at(folder: int, name: str, fd: int) -> bool:
    """Does this name still mean what we have open?"""
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(fd))


def way_to(fd: int) -> str:
    """A path to an open directory that no rename leads elsewhere, for our own programs as well: proc_pid_fd(5)."""
    return "/proc/%d/fd/%d" % (os.getpid(), fd)


def shown(directory: str) -> str:
    """Where a directory is that `way_to` leads to, for words only."""
    try:
        return os.readlink(directory)
    except OSError:
        return directory


def read_plain(folder: int, name: str, limit: int) -> bytes:
    """A regular file; ValueError where it is none. One byte more than the limit, so that it shows."""
    # O_NONBLOCK: a FIFO in its place would never open
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("it is no regular file")
        return file.read(limit + 1)


def shown_file(path: str) -> str:
    """The same of a file in such a directory."""
    folder, name = os.path.split(path)
    return os.path.join(shown(folder), name)


def hold_file(folder: int, name: str, alone: bool = False) -> int | None:
    """flock(2) on a regular file, shared or `alone`, until the descriptor is closed. BlockingIOError where another
    process's lock does not allow that; None where there is no such file, or the file system has no locks."""
    how = os.O_RDWR if alone else os.O_RDONLY  # NFS locks nothing alone that is open for reading only
    try:
        fd = os.open(name, how | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return None
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return fd


def open_plain(path: str) -> int:
    """A descriptor of a regular file. A symlink counts only where it is root's or ours: in the folders of NVRAM and of
    TPMs, QEMU's user and swtpm's may make others, and would have us read for them."""
    at = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    with held(at):
        found = os.fstat(at)
        if stat.S_ISLNK(found.st_mode):
            if found.st_uid not in (0, os.geteuid()):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            path = os.path.join(os.path.dirname(path), os.readlink("", dir_fd=at))
    # O_NONBLOCK: a FIFO would never open
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "It is no regular file", path)
    return fd
