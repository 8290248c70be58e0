# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: images and files on the hypervisor, through qemu-img(1) and system calls.

Every path is absolute. That makes each one safe as an argument: it cannot be taken for an option, and QEMU looks for a
protocol ("nbd:") only before the first slash. Commas count in option lists alone, so no path stands in one.
What is written to is held by a descriptor meanwhile, with all that is read for it: see held.py.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pwd
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from .._core.errors import VirtopsError
from .._core.images import looped
from .._core.model import FileIdentity, ImageInfo, Layer, Signature, is_local
from .command import WORK, Limits, failing, os_failure, run
from .devices import lasting_name, size_of
from .held import held, is_shared, made, name_of, place_of
from .image_lock import is_being_written, is_lockable
from .procs import file_key, holders
from .qcow2 import backing_layer
from .signature import signature

#: A look at each extent, of the images below as well.
_MAP = Limits(WORK.memory, seconds=600.0)
#: The most that QEMU takes of each, whatever a header says.
_MOST_TABLE, _MOST_OFFSET = 32 << 20, (1 << 63) - 1
_SELINUX = "security.selinux"
#: The least that a header of qcow2 has.
_HEADER_BYTES = 72


class Images:
    """Implements `_core.ports.ImagePort`."""

    def info(self, path: str, image_format: str) -> ImageInfo:
        """`qemu-img info -U` of this image alone."""
        if not image_format:
            raise VirtopsError(
                "backing_format",
                "The format of the image %s is not known" % path,
                "Write it into the header of the image on it with 'qemu-img rebase -u -F', when its domain is off",
            )
        subject = "Reading the image %s" % path
        argv = ["qemu-img", "info", "-U", "--output=json", "-f", image_format, _image(path, subject)]
        return image_info(path, json.loads(run(argv, subject)))

    def chain(self, path: str, image_format: str) -> tuple[Layer, ...]:
        """Not by --backing-chain, which goes wherever a header leads, and guesses formats that no header tells."""
        found = [Layer(path, image_format)]
        while found[-1].format and is_local(found[-1].path):
            info = self.info(found[-1].path, found[-1].format)
            if info.backing_path is None:
                break
            if any(layer.path == info.backing_path for layer in found):
                raise looped(path, info.backing_path)
            found.append(Layer(info.backing_path, info.backing_format or ""))
        return tuple(found)

    def below(self, image: Layer) -> Layer | None:
        """A raw image stands on nothing; of formats other than qcow2 qemu-img tells it."""
        if image.format == "raw":
            return None
        if image.format == "qcow2":
            try:
                return backing_layer(image.path)
            except OSError as error:
                raise os_failure("Reading the image %s" % image.path, error) from error
        info = self.info(image.path, image.format)
        return None if info.backing_path is None else Layer(info.backing_path, info.backing_format or "raw")

    def create_overlay(self, path: str, base: Layer, virtual_size: int, user: int | None = None) -> None:
        """`qemu-img create` truncates what is there, so the name is taken first, exclusively."""
        subject = "Creating the overlay %s" % path
        with _new(path, subject) as new:
            backing = ["-F", base.format, "-b", _absolute(base.path)]
            argv = ["qemu-img", "create", "-q", "-f", "qcow2", *backing, name_of(new), str(virtual_size)]
            run(argv, subject, fds={new: path})
            if os.path.isabs(base.path):
                _give_as(base.path, new, user, subject)

    def holds_data(self, path: str) -> bool:
        """`qemu-img map` of this image alone: what its header names below is not opened (QEMU before 6.1 does not say
        "present": then the table tells it).

        -U because a guest that was not switched goes on. A file without a header, as a death in the middle of
        `create_overlay` leaves it, cannot have been written through.
        """
        with failing("Reading the image %s" % path), _opened(_absolute(path)) as file:
            header = file.read(_HEADER_BYTES)
            if not header.strip(b"\0"):
                return False
            tables = _has_tables(file, header)
        found: list[bool] = []

        def is_own(line: str) -> bool:
            """Each extent is a line of its own. What is there of a big image does not fit into memory at once."""
            extent = json.loads(line.strip("[], ") or "{}")
            found.append(bool(extent) and extent.get("present", tables))
            return found[-1]

        protocol = "host_device" if self.kind(path) == "block" else "file"
        alone = {"driver": "qcow2", "backing": None, "file": {"driver": protocol, "filename": path}}
        argv = ["qemu-img", "map", "-U", "--output=json", "json:%s" % json.dumps(alone)]
        run(argv, "Reading the image %s" % path, limits=_MAP, until=is_own)
        return any(found[-1:])

    def same_content(self, one: Layer, other: Layer) -> bool:
        """`qemu-img compare`; its exit code is 1 where they differ."""
        formats = ["-f", one.format, "-F", other.format]
        subject = "Comparing %s with %s" % (one.path, other.path)
        argv = ["qemu-img", "compare", *formats, _image(one.path, subject), _image(other.path, subject)]
        said = run(argv, subject, tied=True, fine=frozenset({0, 1}))
        return "identical" in said

    def convert(self, source: Layer, path: str) -> None:
        """Without -U: its lock refuses a source that something writes to. Zeros become holes.

        A block device's owner and mode are those of the node, and not an image's.
        """
        subject = "Converting %s into %s" % (source.path, path)
        with _held(source.path, subject) as origin, _new(path, subject) as new:
            argv = ["qemu-img", "convert", "-q", "-f", source.format, "-O", "qcow2", name_of(origin), name_of(new)]
            run(argv, subject, tied=True, fds={origin: source.path, new: path})
            found = os.fstat(origin)
            if stat.S_ISREG(found.st_mode):
                os.fchown(new, found.st_uid, found.st_gid)
                os.fchmod(new, stat.S_IMODE(found.st_mode) & 0o777)

    def rename(self, path: str, name: str) -> None:
        """rename(2) would replace what is there, and link(2) is not everywhere; nobody else gives such names."""
        with failing("Naming the image %s" % name), place_of(_absolute(path)) as old, place_of(_absolute(name)) as new:
            if new.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
            os.rename(old.name, new.name, src_dir_fd=old.folder, dst_dir_fd=new.folder)
            new.sync()

    def commit(self, top: Layer, base: Layer, check: Callable[[], None] | None = None) -> None:
        """`qemu-img commit -d`: the overlays stay as they are, and are still right if we die half-way."""
        subject = "Committing %s into %s" % (top.path, base.path)
        with self._held_chain(top, base, subject) as chain:
            argv = ["qemu-img", "commit", "-q", "-d", "-b", chain.last, chain.name]
            run(argv, subject, tied=True, check=check, fds=chain.fds)

    def rebase(self, path: str, base: Layer | None, check: Callable[[], None] | None = None) -> None:
        """`qemu-img rebase` copies first and changes the header last: still right if we die half-way."""
        subject = "Rebasing %s" % path
        words = None if base is None else self._backing(path, base)
        with self._held_chain(Layer(path, "qcow2"), base, subject) as chain:
            # A relative name means nothing beside the name that qemu-img gets of the image: that comes after it
            backing = ["-b", ""] if base is None else ["-F", base.format, "-b", _absolute(base.path)]
            argv = ["qemu-img", "rebase", "-q", *backing, chain.name]
            run(argv, subject, tied=True, check=check, fds=chain.fds)
        if base is not None and words is not None and words[-1] != base.path:
            self._write_backing(path, words)

    def rebase_unsafe(self, path: str, base: Layer) -> None:
        """`qemu-img rebase -u`; `path` is qcow2, as only that holds a backing file here."""
        self._write_backing(path, self._backing(path, base))

    def _write_backing(self, path: str, words: list[str]) -> None:
        subject = "Rebasing %s" % path
        with _held(path, subject) as fd:
            run(["qemu-img", "rebase", "-q", "-u", "-f", "qcow2", *words, name_of(fd)], subject, fds={fd: path})

    @contextlib.contextmanager
    def _held_chain(self, top: Layer, base: Layer | None, subject: str) -> Iterator[_Chain]:
        """The chain from `top` down to `base` (None: to its end). Where it goes on over the network, QEMU finds the
        rest by what the last header on this host says."""
        layers = list(self.chain(_absolute(top.path), top.format))
        keys = [file_key(layer.path) for layer in layers]
        key = file_key(base.path) if base is not None else None
        count = len(layers)
        if base is not None and key in keys:
            count = keys.index(key) + 1
            layers[count - 1] = replace(layers[count - 1], format=base.format)  # a header may leave it out
        with contextlib.ExitStack() as stack:
            fds = {}
            for layer in layers[:count]:
                if not os.path.isabs(layer.path):
                    break
                fds[stack.enter_context(_held(layer.path, subject))] = layer.path
            yield _Chain(tuple(layers[: len(fds)]), fds, base)

    def _backing(self, path: str, base: Layer) -> list[str]:
        """QEMU puts the folder of `path` before a relative name, which has to give the very words of `base`."""
        folder, name = os.path.join(os.path.dirname(path), ""), _absolute(base.path)
        short = name[len(folder) :] if name.startswith(folder) else name
        # A way through a folder that may go with what was merged would break, and a colon first mean a protocol
        plain = short == os.path.normpath(short) and ":" not in short.split("/")[0]
        return ["-F", base.format, "-b", short if plain and self._is_named_relative(path, name) else name]

    def _is_named_relative(self, path: str, base: str) -> bool:
        """Do the images of this chain, from `path` down to `base`, name each other by relative paths?"""
        found: str | None = path
        with contextlib.suppress(VirtopsError):  # one that is gone, or on the network
            while found is not None and found != base:
                info = self.info(found, "qcow2")
                found = info.backing_path if info.backing_is_relative else None
            return found is not None
        return False

    def keep_time(self, path: str, mtime_ns: int) -> None:
        """utimensat(2): a device's time says nothing of its data."""
        with contextlib.suppress(OSError, VirtopsError), held(_absolute(path)) as fd:
            found = os.fstat(fd)
            if stat.S_ISREG(found.st_mode):
                os.utime(name_of(fd), ns=(found.st_atime_ns, mtime_ns))

    def identity(self, path: str) -> FileIdentity:
        """stat(2), and sysfs(5) for a block device, whose size is 0 there."""
        try:
            found = os.stat(path)
        except OSError as error:
            raise os_failure("Looking at the image %s" % path, error) from error
        if stat.S_ISBLK(found.st_mode):
            return FileIdentity(lasting_name(found.st_rdev), 0, size_of(found.st_rdev), found.st_mtime_ns)
        return FileIdentity("", found.st_ino, found.st_size, found.st_mtime_ns)

    def file_key(self, path: str) -> tuple[int, int] | None:
        """stat(2)."""
        return file_key(path)

    def exists(self, path: str) -> bool:
        """lstat(2)."""
        return os.path.lexists(path)

    def kind(self, path: str) -> str:
        """stat(2)."""
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError:
            return "missing"
        except OSError as error:
            raise os_failure("Looking at %s" % path, error) from error
        return "block" if stat.S_ISBLK(mode) else "file" if stat.S_ISREG(mode) else "other"

    def signature(self, path: str) -> Signature:
        """The first bytes."""
        return signature(path)

    def is_directory(self, path: str) -> bool:
        """stat(2)."""
        return os.path.isdir(path)

    def names(self, directory: str) -> tuple[str, ...]:
        """readdir(3)."""
        try:
            return tuple(sorted(os.listdir(directory)))
        except OSError:
            return ()

    def is_writable(self, path: str) -> bool:
        """access(2) with the effective IDs; it also knows of file systems mounted read-only."""
        return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)

    def may_enter(self, directory: str, user: int, group: int) -> bool:
        """access(2), asked by a process of that user: ACLs and servers have their say."""
        if os.geteuid() != 0:
            return True  # only root can ask for others
        try:
            groups = os.getgrouplist(pwd.getpwuid(user).pw_name, group)
        except KeyError:
            groups = [group]
        try:
            argv = ["test", "-x", os.path.join(directory, "")]
            with subprocess.Popen(  # pylint: disable=ansible-bad-function
                argv, user=user, group=group, extra_groups=groups
            ) as process:
                return process.wait() == 0
        except OSError as error:
            raise os_failure("Looking at %s as user %d" % (directory, user), error) from error

    def extent(self, device: str, virtual_size: int) -> tuple[int, int] | None:
        """`qemu-img check -U` reads all tables, so only where the device may be too small."""
        with failing("Looking at the image %s" % device), _opened(_absolute(device)) as file:
            size = file.seek(0, os.SEEK_END)
        # One entry of 8 and one of 2 bytes for each cluster of 64 KiB, and what comes once
        if size >= virtual_size + virtual_size // 8192 + virtual_size // 32768 + 1024**2:
            return None
        argv = ["qemu-img", "check", "-U", "--output=json", "-f", "qcow2", device]
        found = json.loads(run(argv, "Reading the image %s" % device, fine=frozenset({0, 2, 3}), limits=_MAP))
        return int(found["image-end-offset"]), size

    def others_write(self, folder: str) -> bool:
        """By the owner and the permissions of the folder and of each one above it."""
        with failing("Looking at the folder %s" % folder), place_of(os.path.join(_absolute(folder), "any")) as place:
            return place.shared

    def free_bytes(self, directory: str) -> int:
        """statvfs(3): f_bavail, without the blocks reserved for root."""
        found = self._statvfs(directory)
        return found.f_bavail * found.f_frsize

    def size_bytes(self, directory: str) -> int:
        """statvfs(3): f_blocks."""
        found = self._statvfs(directory)
        return found.f_blocks * found.f_frsize

    def holders(self, path: str) -> tuple[int, ...]:
        """/proc/PID/fd and map_files."""
        return holders(path)

    def is_being_written(self, path: str) -> bool:
        """fcntl(2) F_OFD_GETLK on the bytes that QEMU locks."""
        return is_being_written(path)

    def is_lockable(self, path: str) -> bool:
        """The same call, as QEMU makes it to see whether there are locks."""
        return is_lockable(path)

    def remove(self, path: str) -> None:
        """unlink(2), and fsync(2) of the directory, so that a power loss does not bring it back.

        The node of a block device is not ours to remove, and would free nothing.
        """
        try:
            if self.kind(path) == "block":
                return
            with place_of(_absolute(path)) as place:
                os.unlink(place.name, dir_fd=place.folder)
                place.sync()
        except FileNotFoundError:
            return
        except OSError as error:
            raise os_failure("Removing %s" % path, error) from error

    def _statvfs(self, directory: str) -> os.statvfs_result:
        try:
            return os.statvfs(directory)
        except OSError as error:
            raise os_failure("Looking for space on %s" % directory, error) from error


@dataclass(frozen=True)
class _Chain:
    """Layers that are held, the topmost first, and how qemu-img opens them."""

    layers: tuple[Layer, ...]
    fds: dict[int, str]
    base: Layer | None

    @property
    def name(self) -> str:
        """Each layer by its descriptor, whatever the headers say."""
        below: dict[str, Any] | None = None
        for layer, fd in reversed(list(zip(self.layers, self.fds))):
            driver = "host_device" if stat.S_ISBLK(os.fstat(fd).st_mode) else "file"
            node = {"driver": layer.format, "file": {"driver": driver, "filename": name_of(fd)}}
            below = node if below is None else {**node, "backing": below}
        return "json:" + json.dumps(below)

    @property
    def last(self) -> str:
        """What -b calls the base."""
        if self.base is None or file_key(self.base.path) != file_key(self.layers[-1].path):
            return "" if self.base is None else self.base.path
        return name_of(list(self.fds)[-1])


def image_info(path: str, entry: dict[str, Any]) -> ImageInfo:
    """One entry of `qemu-img info --output=json`."""
    specific = entry.get("format-specific", {}).get("data", {})
    return ImageInfo(
        path=path,
        format=entry["format"],
        virtual_size=entry["virtual-size"],
        allocation=entry.get("actual-size", 0),
        backing_path=_backing_path(entry, path),
        backing_format=entry.get("backing-filename-format"),
        backing_is_relative=_is_relative(entry.get("backing-filename")),
        internal_snapshots=tuple(snapshot["name"] for snapshot in entry.get("snapshots", ())),
        corrupt=bool(specific.get("corrupt", False)),
        bitmaps=tuple(bitmap["name"] for bitmap in specific.get("bitmaps", ())),
        encrypted=bool(entry.get("encrypted", False)),
        beside=_beside(entry, specific),
    )


def _beside(entry: dict[str, Any], specific: dict[str, Any]) -> tuple[str, ...]:
    """The data file of a qcow2, the extents of a VMDK that is only their list."""
    extents = [extent.get("filename") for extent in specific.get("extents", ())]
    return tuple(name for name in (specific.get("data-file"), *extents) if name and name != entry["filename"])


def _backing_path(entry: dict[str, Any], owner: str) -> str | None:
    """The backing file as an absolute path; one that is not a plain file stays as QEMU says it."""
    name = entry.get("full-backing-filename") or entry.get("backing-filename")
    if name and name.startswith("file:"):
        name = name[len("file:") :]
    if not name or name.startswith("/") or ":" in name.split("/")[0]:  # QEMU takes it for a protocol
        return name
    # Left relative by QEMU only where it could not tell: it means relative to the image that says so.
    return os.path.normpath(os.path.join(os.path.dirname(owner), name))


def _is_relative(name: str | None) -> bool:
    return name is not None and not name.startswith(("/", "json:", "file:")) and "://" not in name


def _has_tables(file: BinaryIO, header: bytes) -> bool:
    """docs/interop/qcow2.txt: l1_size at 36, l1_table_offset at 40. Each write, of zeros too, needs an entry there."""
    if len(header) < _HEADER_BYTES:
        return True
    size, offset = struct.unpack(">IQ", header[36:48])
    file.seek(min(offset, _MOST_OFFSET))
    return bool(file.read(min(8 * size, _MOST_TABLE)).strip(b"\0"))


def _opened(path: str) -> BinaryIO:
    """A FIFO would wait for its writer."""
    return open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")


@contextlib.contextmanager
def _held(path: str, subject: str) -> Iterator[int]:
    """An image, held while it is used."""
    with failing(subject), held(_absolute(path)) as fd:
        yield fd


@contextlib.contextmanager
def _new(path: str, subject: str) -> Iterator[int]:
    """A file that was not there, held while it is written, and on the disk at the end."""
    with failing(subject):
        try:
            with made(_absolute(path)) as fd:
                yield fd
        except FileExistsError:
            raise VirtopsError(
                "overlay_exists",
                "The file %s is there already" % path,
                "Choose another name; remove that file only once you know that no domain uses it",
            ) from None


def _image(path: str, subject: str) -> str:
    """A path that a program is given by its name: that of a FIFO would make it wait for ever."""
    with failing(subject):
        mode = os.stat(_absolute(path)).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        raise VirtopsError("no_image", "%s is neither a file nor a block device" % path, "Check the path")
    return path


def _give_as(base: str, new: int, user: int | None, subject: str) -> None:
    """Owner, permissions and SELinux label of the base: libvirt chowns no image where dynamic_ownership is 0, or where
    a server does not let it.

    In a folder that others write to, the base may be a file that such a user has put there just now, to get the guest's
    data: there only QEMU's own user is believed.
    """
    with _held(base, subject) as fd:
        found = os.fstat(fd)
        if is_shared(base) and found.st_uid != user:
            return
        # Where the server forbids it, QEMU says whether it can live with that
        with contextlib.suppress(OSError):
            os.fchown(new, found.st_uid, found.st_gid)
        if stat.S_ISREG(found.st_mode):
            os.fchmod(new, stat.S_IMODE(found.st_mode) & 0o777)
            with contextlib.suppress(OSError):
                os.setxattr(new, _SELINUX, os.getxattr(name_of(fd), _SELINUX))


def _absolute(path: str) -> str:
    if not os.path.isabs(path):
        raise VirtopsError("relative_path", "The path %r is not absolute" % path, "Give it from the root on")
    return path
