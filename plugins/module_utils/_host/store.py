# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: backup sets on the disk.

Directories are 0700 and files 0600: an image holds all that the guest knows. A set has its final name only when all
in it is on the disk, so what has that name survives a power loss as a whole.

`dest` may belong to anybody. What lies below it counts only where it is ours and nobody else may write to it, and is
reached by descriptors (folders.py): a name can be made to mean something else at any moment.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from .._core.backup import DIGESTS, MANIFEST, Run, SetPaths, Unfinished
from .._core.backup_set import lost, under_way
from .._core.errors import VirtopsError
from .._core.manifest import DIGESTS_LIMIT, MANIFEST_LIMIT, parse_digests, parse_manifest
from .command import os_failure
from .folders import (
    held,
    is_at,
    make_own,
    not_private,
    open_plain,
    reach,
    reach_own,
    read_plain,
    require_plain_path,
    shown,
    way_to,
)
from .locks import never_stop
from .transfer import read_back

_PARTIAL = ".partial"
#: The name of a complete set.
_STAMP = re.compile(r"\d{8}T\d{6}Z")
_MACHINE_ID = "/etc/machine-id"
#: Bytes of an NVRAM or a TPM's state, at most: the flash of an ARM machine has 64 MiB.
_PLAIN_LIMIT = 256 << 20
_PLAIN_CHUNK = 1 << 20
_TRIES = 5


@dataclass(frozen=True)
class _Held:
    """A set that we are writing: descriptors of `dest`, of the domain's folder and of the partial set."""

    dest: int
    parent: int
    partial: int


class BackupStore:
    """Implements `_core.backup.StorePort`."""

    def __init__(self) -> None:
        self._held: dict[str, _Held] = {}

    def check_destination(self, dest: str) -> None:
        """A symlink is refused anywhere in the path: whoever may change it could send the images elsewhere."""
        require_plain_path(dest)
        os.close(reach(dest))
        if not os.access(dest, os.W_OK | os.X_OK):
            raise VirtopsError(
                "dest_not_writable",
                "The dest %s cannot be written to" % dest,
                "Run the module with the rights to it (become), or mount it writable",
            )

    def hostname(self) -> str:
        """gethostname(2)."""
        return socket.gethostname()

    def machine(self) -> str:
        """machine-id(5) is not to be told to others as it is, and hosts made from one image may share it: it is hashed
        with the host's name."""
        try:
            with open(_MACHINE_ID, encoding="ascii", errors="replace") as file:
                machine_id = file.read().strip()
        except OSError:
            machine_id = ""
        words = "\0".join(("virtops.libvirt", machine_id, self.hostname()))
        return hashlib.sha256(words.encode("utf-8", "surrogateescape")).hexdigest()[:32]

    def free_bytes(self, dest: str) -> int:
        """f_bavail, without the blocks reserved for root."""
        try:
            found = os.statvfs(dest)
        except OSError as error:
            raise os_failure("Looking for space on %s" % dest, error) from error
        return found.f_bavail * found.f_frsize

    def is_regular(self, path: str) -> bool:
        """stat(2)."""
        try:
            return stat.S_ISREG(os.stat(path).st_mode)
        except OSError:
            return False

    def manifest(self, directory: str) -> dict[str, Any] | None:
        """A directory of that name that is no set is somebody's, and is not touched."""
        with _opened_parent(os.path.dirname(directory)) as parent:
            if parent is None:
                return None
            try:
                folder = reach_own(parent, os.path.basename(directory), directory)
            except FileNotFoundError:
                return None
            with held(folder) as fd:
                try:
                    return _read_manifest(fd)
                except (OSError, ValueError) as error:
                    raise VirtopsError(
                        "set_damaged",
                        "%s is there, but has no %s that could be used (%s)" % (directory, MANIFEST, error),
                        "Move it away, then try again",
                    ) from error

    def owners(self, parent: str) -> dict[str, str]:
        """Directories that are no sets are somebody's."""
        found = {}
        with _opened_parent(parent) as folder:
            if folder is None:
                return {}
            for name in sorted(filter(_STAMP.fullmatch, os.listdir(folder))):
                path = os.path.join(parent, name)
                with contextlib.suppress(OSError, ValueError, VirtopsError), held(reach_own(folder, name, path)) as fd:
                    found[path] = str(_read_manifest(fd)["domain"]["uuid"])
        return found

    def file_sizes(self, directory: str) -> dict[str, int]:
        """lstat(2)."""
        with _opened_parent(os.path.dirname(directory)) as parent:
            if parent is None:
                return {}
            with held(reach_own(parent, os.path.basename(directory), directory)) as fd:
                return {name: found.st_size for name, found in _entries(fd) if stat.S_ISREG(found.st_mode)}

    def unfinished(self, parent: str) -> tuple[Unfinished, ...]:
        """Directories .<time>.partial, and .<time>.<machine>.partial, which has its manifest not yet. Those that are
        not ours alone are somebody's."""
        found = []
        with _opened_parent(parent) as folder:
            if folder is None:
                return ()
            if not os.access(".", os.W_OK | os.X_OK, dir_fd=folder):
                raise VirtopsError(
                    "dest_not_writable",
                    "The directory %s for the domain's backups cannot be written to" % parent,
                    "Correct its permissions or its mount (chmod, chattr, mount), or choose another dest",
                )
            for name in sorted(os.listdir(folder)):
                if name.startswith(".") and name.endswith(_PARTIAL):
                    path = os.path.join(parent, name)
                    with contextlib.suppress(OSError, VirtopsError), held(reach_own(folder, name, path)) as fd:
                        found.append(self._look_at(fd, path))
        return tuple(found)

    def _look_at(self, fd: int, path: str) -> Unfinished:
        try:
            manifest = _read_manifest(fd)
        except (OSError, ValueError):
            manifest = {}
        machine, host = manifest.get("machine"), manifest.get("hypervisor")
        # Earlier releases wrote the host's name only
        is_this = host == self.hostname() if machine is None else machine == self.machine()
        entries = _entries(fd)
        return Unfinished(
            path,
            manifest["domain"]["uuid"] if manifest else None,
            sum(found.st_blocks * 512 for _name, found in entries),
            is_this or path.endswith(self._birth_suffix()),
            max(0.0, time.time() - _newest(fd, entries)),
            any(name == DIGESTS for name, _found in entries),
        )

    def _birth_suffix(self) -> str:
        return ".%s%s" % (self.machine(), _PARTIAL)

    def begin(self, paths: SetPaths, manifest: str) -> str:
        """The set gets its name with the manifest in it, by rename(2), which replaces no directory that has anything
        in it: so whoever finds one knows whose it is, and of two that begin one, one fails."""
        name = os.path.basename(paths.partial)
        birth = name[: -len(_PARTIAL)] + self._birth_suffix()
        folder = os.path.basename(paths.parent)
        dest = reach(os.path.dirname(paths.parent))
        fds = [dest]
        try:
            with contextlib.suppress(FileExistsError):
                make_own(dest, folder)
            fds.append(reach_own(dest, folder, paths.parent))
            make_own(fds[1], birth)
            try:
                fds.append(reach_own(fds[1], birth, paths.partial))
                self.write(way_to(fds[2]), MANIFEST, manifest)
                os.fsync(fds[2])
                os.rename(birth, name, src_dir_fd=fds[1], dst_dir_fd=fds[1])
                os.fsync(fds[1])
            except BaseException:
                _remove(fds[1], birth)
                raise
        except BaseException as error:
            for fd in fds:
                os.close(fd)
            if not isinstance(error, OSError):
                raise
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise under_way(paths.partial, "It was begun just now") from error
            raise os_failure("Making the backup's directory %s" % paths.partial, error, "copy_failed") from error
        self._held[paths.partial] = _Held(*fds)
        return way_to(fds[2])

    def resume(self, paths: SetPaths) -> str:
        """The same descriptors as of one that was begun."""
        if paths.partial in self._held:
            return way_to(self._held[paths.partial].partial)
        dest = reach(os.path.dirname(paths.parent))
        fds = [dest]
        try:
            fds.append(reach_own(dest, os.path.basename(paths.parent), paths.parent))
            fds.append(reach_own(fds[1], os.path.basename(paths.partial), paths.partial))
        except BaseException as error:
            for fd in fds:
                os.close(fd)
            if isinstance(error, OSError):
                raise os_failure("Opening the unfinished set %s" % paths.partial, error, "copy_failed") from error
            raise
        self._held[paths.partial] = _Held(*fds)
        return way_to(fds[2])

    def require_in_place(self, paths: SetPaths) -> None:
        """By the descriptors."""
        ours = self._held[paths.partial]
        if not is_at(ours.parent, os.path.basename(paths.partial), ours.partial):
            raise lost(paths.partial)
        if not is_at(ours.dest, os.path.basename(paths.parent), ours.parent):
            raise not_private(paths.parent, "was moved away while the set in it was written")

    def digests(self, directory: str) -> dict[str, tuple[Run, ...] | None] | None:
        """A symlink or a FIFO in its place is nothing."""
        with contextlib.suppress(OSError, ValueError), _opened_parent(os.path.dirname(directory)) as parent:
            if parent is not None:
                with held(reach_own(parent, os.path.basename(directory), directory)) as folder:
                    return parse_digests(read_plain(folder, DIGESTS, DIGESTS_LIMIT))
        return None

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
            raise os_failure("Writing %s/%s" % (shown(directory), name), _bare(error), "copy_failed") from error

    def tpm_root(self) -> str:
        """The folders of qemu:///system and of qemu:///session; nothing of libvirt's tells them."""
        if os.geteuid() == 0:
            return "/var/lib/libvirt/swtpm"
        config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
        return os.path.join(config, "libvirt/qemu/swtpm")

    def copy_plain(self, source: str, directory: str, name: str) -> tuple[int, str, bool]:
        """QEMU and swtpm may write to it, the one in place: a copy during which that happened is made again."""
        path = os.path.join(directory, name)
        try:
            with held(open_plain(source)) as original:
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                with open(fd, "wb") as file:
                    steady = any(_copy_steady(original, file) for _try in range(_TRIES))
                    file.flush()
                    os.fsync(fd)
            return os.path.getsize(path), read_back(path, None, never_stop, from_disk=False)[0], steady
        except OSError as error:
            raise os_failure(
                "The copy of %s to %s" % (source, shown(directory)), _bare(error), "copy_failed"
            ) from error

    def finish(self, paths: SetPaths) -> None:
        """rename(2) replaces nothing but an empty directory."""
        self.require_in_place(paths)
        ours = self._held[paths.partial]
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(DIGESTS, dir_fd=ours.partial)
            os.fsync(ours.partial)
            names = os.path.basename(paths.partial), os.path.basename(paths.final)
            os.rename(*names, src_dir_fd=ours.parent, dst_dir_fd=ours.parent)
            os.fsync(ours.parent)
            os.fsync(ours.dest)
        except OSError as error:
            raise os_failure("Naming the set %s" % paths.final, error, "copy_failed") from error
        self._let_go(paths.partial)

    def remove(self, directory: str, lease: float = 0) -> None:
        """One that is gone is fine."""
        name = os.path.basename(directory)
        try:
            if directory in self._held:
                _remove(self._held[directory].parent, name)
                self._let_go(directory)
                return
            with _opened_parent(os.path.dirname(directory)) as parent:
                if parent is None or (lease and _is_renewed(parent, name, lease)):
                    return
                _remove(parent, name)
        except FileNotFoundError:
            return
        except OSError as error:
            raise os_failure("Removing %s" % directory, error, "copy_failed") from error

    def _let_go(self, partial: str) -> None:
        ours = self._held.pop(partial)
        for fd in (ours.partial, ours.parent, ours.dest):
            os.close(fd)


@contextlib.contextmanager
def _opened_parent(parent: str) -> Iterator[int | None]:
    """The folder of a domain's sets; None where there is none."""
    with held(reach(os.path.dirname(parent))) as dest:
        try:
            fd = reach_own(dest, os.path.basename(parent), parent)
        except FileNotFoundError:
            yield None
            return
        with held(fd):
            yield fd


def _copy_steady(source: int, target: BinaryIO) -> bool:
    """Copy all of it; was it the same file from the first byte to the last?"""
    before = os.fstat(source)
    if before.st_size > _PLAIN_LIMIT:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    target.seek(0)
    target.truncate()
    offset = 0
    while offset < before.st_size:
        data = os.pread(source, min(_PLAIN_CHUNK, before.st_size - offset), offset)
        if not data:
            break
        target.write(data)
        offset += len(data)
    after = os.fstat(source)
    return (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns) and offset == before.st_size


def _read_manifest(folder: int) -> dict[str, Any]:
    return parse_manifest(read_plain(folder, MANIFEST, MANIFEST_LIMIT))


def _entries(folder: int) -> list[tuple[str, os.stat_result]]:
    with os.scandir(folder) as entries:
        return [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]


def _newest(folder: int, entries: list[tuple[str, os.stat_result]]) -> float:
    return max(os.fstat(folder).st_mtime, *(found.st_mtime for _name, found in entries), 0.0)


def _is_renewed(parent: int, name: str, lease: float) -> bool:
    """By the clock of the file system's server: this host's may be wrong by days."""
    with held(reach_own(parent, name, name)) as fd:
        newest = _newest(fd, _entries(fd))
    probe = ".%s.clock" % os.getpid()
    fd = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=parent)
    try:
        return os.fstat(fd).st_mtime - newest < lease
    finally:
        os.close(fd)
        os.unlink(probe, dir_fd=parent)


def _remove(parent: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(os.path.join(way_to(parent), name))
        os.fsync(parent)


def _bare(error: OSError) -> OSError:
    """Without its path, which would be that of a descriptor."""
    return OSError(error.errno, error.strerror)
