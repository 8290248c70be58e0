# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the two ends of a restore: the set that is read, and the places of its files.

`SetReader` runs in the helper (helper.py), as the sets' storage may stop answering. `Places` runs beside libvirt: the
folders of images are held by descriptors, and the helper writes through these.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator

from .._core.backup import MANIFEST, SUMS
from .._core.errors import VirtopsError
from .._core.manifest import MANIFEST_LIMIT
from .._core.restore import FileLook, OpenSet, RestoreOrder, damaged, image_exists, not_complete, parse_sums
from .._core.sets import NOTES, NOTES_LIMIT, STAMP, BackupSet, judge
from .command import failing
from .copy import ImageCopier
from .folders import held as _closing
from .folders import reach, reach_own, read_plain, require_plain_path, way_to
from .held import Place, place_of
from .locks import never_stop
from .sets import in_use
from .transfer import read_back

#: Bytes of a domain.xml, at most: that of a domain with thousands of devices.
_XML_LIMIT = 16 << 20
_LOOKED_AT = {MANIFEST: MANIFEST_LIMIT, NOTES: NOTES_LIMIT}


class SetReader:
    """The helper's part of `_core.restore.SetPort`. A set that was opened is held to the end."""

    def __init__(self, copier: ImageCopier) -> None:
        self._copier = copier
        self._held: dict[str, int] = {}

    def newest(self, src: str) -> tuple[str, tuple[str, ...]]:
        """One that was found damaged when it was read back is not taken, nor one of another domain."""
        require_plain_path(src)
        path = "/" + "/".join(part for part in src.split("/") if part not in ("", "."))
        passed: list[str] = []
        with _closing(_reach(path)) as folder:
            names = os.listdir(folder)
            if MANIFEST in names or STAMP.fullmatch(os.path.basename(path)):
                return path, ()
            for name in sorted(filter(STAMP.fullmatch, names), reverse=True):
                why = self._why_not(folder, name, path)
                if not why:
                    return os.path.join(path, name), tuple(passed)
                passed.append("%s (%s)" % (name, why))
        if passed:
            raise _no_set("No backup in %s can be restored: %s" % (path, ", ".join(passed)))
        raise _no_set("There is no complete backup in %s" % path)

    def _why_not(self, folder: int, name: str, path: str) -> str:
        """Why the set of this name is not taken, in words."""
        one = os.path.join(path, name)
        try:
            with _closing(reach_own(folder, name, one)) as fd:
                found = _judged(fd, one)
        except VirtopsError as error:
            return error.cause
        except (OSError, ValueError) as error:
            return str(error)
        if not found.is_complete:
            return "%s: %s" % (found.state, found.why)
        if found.notes.is_failed:
            return "its verification failed"
        return "" if found.domain == os.path.basename(path) else "it is of the domain %s" % found.domain

    def open_set(self, path: str) -> OpenSet:
        fd = self._held[path] = _reach(path)
        in_use(fd)
        found = _judged(fd, path)
        if not found.is_complete or found.manifest is None:
            raise not_complete(found)
        try:
            definition = read_plain(fd, found.manifest["domain_xml"], _XML_LIMIT)
            data = read_plain(fd, MANIFEST, MANIFEST_LIMIT)
            sums = None
            with contextlib.suppress(FileNotFoundError):
                sums = parse_sums(read_plain(fd, SUMS, MANIFEST_LIMIT).decode("utf-8", "replace"))
            text = definition.decode("utf-8", "replace")
        except (OSError, ValueError) as error:
            raise damaged(path, str(error)) from error
        return OpenSet(
            path,
            found.manifest,
            text,
            sums,
            {MANIFEST: _sha256(data), found.manifest["domain_xml"]: _sha256(definition)},
        )

    def sha256_of(self, path: str) -> str:
        with failing("Reading %s" % path, "restore_failed"):
            return read_back(path, None, never_stop, from_disk=False)[0]

    def restore_all(self, orders: tuple[RestoreOrder, ...], path: str, parallel: int) -> dict[str, int]:
        """By the descriptor of the set that was opened."""
        return self._copier.restore_all(orders, way_to(self._held[path]), parallel)


def _reach(path: str) -> int:
    """A folder of sets or a set is ours, and nobody else may write to it: who may, could give us any image."""
    with _closing(reach(os.path.dirname(path))) as parent:
        try:
            return reach_own(parent, os.path.basename(path), path)
        except FileNotFoundError:
            raise _no_set("The backup %s does not exist" % path) from None


def _judged(fd: int, path: str) -> BackupSet:
    """By what is there, without its images' bytes."""
    with os.scandir(fd) as entries:
        found = {entry.name: entry.stat(follow_symlinks=False) for entry in entries}
    files = {name: one.st_size for name, one in found.items() if stat.S_ISREG(one.st_mode)}
    texts = {name: read_plain(fd, name, limit) for name, limit in _LOOKED_AT.items() if name in files}
    return judge(path, files, texts.get(MANIFEST), texts.get(NOTES))


def _no_set(cause: str) -> VirtopsError:
    return VirtopsError(
        "set_missing",
        cause,
        "Give the path of a set, or of the folder with a domain's sets: DEST/DOMAIN/TIME or DEST/DOMAIN",
    )


class Places:
    """Implements `_core.restore.PlacePort`."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._places: dict[str, Place] = {}

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Each place is looked up once, and held."""
        with self._stack:
            yield
        self._places.clear()

    def look(self, path: str) -> FileLook | None:
        place = self._place(path)
        try:
            found = os.stat(place.name, dir_fd=place.folder, follow_symlinks=False)
        except FileNotFoundError:
            return None
        kind = "file" if stat.S_ISREG(found.st_mode) else "block" if stat.S_ISBLK(found.st_mode) else "other"
        owner = found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)
        return FileLook(kind, *owner, found.st_blocks * 512, (found.st_dev, found.st_ino))

    def way(self, path: str) -> str:
        place = self._place(path)
        return os.path.join(way_to(place.folder), place.name)

    def give(self, path: str, like: FileLook | None) -> None:
        place = self._place(path)
        with failing("Preparing %s" % path, "restore_failed"):
            if like is not None:
                fd = os.open(place.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place.folder)
                with _closing(fd):
                    # Where the server forbids it, QEMU says whether it can live with that
                    with contextlib.suppress(OSError):
                        os.fchown(fd, like.user, like.group)
                    os.fchmod(fd, like.mode & 0o777)
                    os.fsync(fd)
            place.sync()

    def put(self, waiting: str, path: str) -> None:
        """link(2) replaces nothing, so the second name is made beside, and renamed."""
        source, place = self._place(waiting), self._place(path)
        with failing("Putting %s in its place" % path, "restore_failed"):
            if not source.exists():
                return
            aside = source.name + ".link"
            with contextlib.suppress(FileNotFoundError):
                os.unlink(aside, dir_fd=source.folder)
            try:
                os.link(source.name, aside, src_dir_fd=source.folder, dst_dir_fd=source.folder, follow_symlinks=False)
            except OSError:  # a file system without hard links
                aside = source.name
            os.rename(aside, place.name, src_dir_fd=source.folder, dst_dir_fd=place.folder)
            with contextlib.suppress(FileNotFoundError):  # rename(2) of two names of one file does nothing
                if aside != source.name:
                    os.unlink(aside, dir_fd=source.folder)
            place.sync()

    def put_new(self, waiting: str, path: str) -> None:
        place = self._place(path)
        with failing("Putting %s in its place" % path, "restore_failed"):
            if place.exists():
                raise image_exists(path)
        self.put(waiting, path)
        self.remove(waiting)

    def make_folder(self, path: str) -> None:
        """As libvirt makes them; it gives all of it to swtpm's user when the guest starts."""
        with failing("Making the folder %s" % path, "restore_failed"):
            for folder, mode in (
                (os.path.dirname(os.path.dirname(path)), 0o711),
                (os.path.dirname(path), 0o711),
                (path, 0o700),
            ):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(folder, mode)

    def drop_folder(self, path: str) -> None:
        for folder in (path, os.path.dirname(path)):
            with contextlib.suppress(OSError):
                os.rmdir(folder)

    def names(self, folder: str) -> tuple[str, ...]:
        try:
            return tuple(sorted(os.listdir(folder)))
        except OSError:
            return ()

    def remove(self, path: str) -> None:
        place = self._place(path)
        with failing("Removing %s" % path, "restore_failed"), contextlib.suppress(FileNotFoundError):
            os.unlink(place.name, dir_fd=place.folder)
            place.sync()

    def _place(self, path: str) -> Place:
        if path not in self._places:
            try:
                self._places[path] = self._stack.enter_context(place_of(path))
            except FileNotFoundError:
                raise VirtopsError(
                    "dest_missing",
                    "The folder of %s does not exist" % path,
                    "Create it, or mount its storage, or give another folder for the images with dest",
                ) from None
            except OSError as error:
                with failing("Looking at %s" % path, "restore_failed"):
                    raise error
        return self._places[path]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
