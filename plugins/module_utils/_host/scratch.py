# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: what a trial of a set has on the host: a folder, overlays, and servers of the images.

QEMU never opens the set: it would need the rights to do so, and libvirt would give it the set's files. It reads what a
read-only qemu-nbd serves over a socket that is its own. All of that ends with us, however we end; the folder of one
that was killed is removed by the next.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator

from .._core.drill import CONSOLE_LIMIT, Exported
from .._core.errors import VirtopsError
from .command import failing, run, start_tied
from .folders import held, reach, reach_own, read_plain, require_plain_path, way_to
from .sets import in_use

#: How the folders are named.
_PREFIX = "virtops-drill-"
#: Seconds for a server to listen.
_SERVE_SECONDS = 30.0
_LOOK_SECONDS = 0.02
_GONE_SECONDS = 5.0
#: Bytes of a kernel, an initrd or NVRAM, at most.
_FILE_LIMIT = 1 << 30


class Scratch:
    """Implements `_core.drill.ScratchPort`. `user` is who QEMU runs as, None for us."""

    def __init__(self, folder: str, set_fd: int, user: tuple[int, int] | None) -> None:
        self.folder = folder
        self._set = set_fd
        self._user = user
        self._servers: list[subprocess.Popen[bytes]] = []

    @property
    def console_path(self) -> str:
        return os.path.join(self.folder, "console.log")

    def console(self) -> str:
        with contextlib.suppress(OSError), open(self.console_path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - CONSOLE_LIMIT))
            return file.read(CONSOLE_LIMIT).decode("utf-8", "replace")
        return ""

    def serve(self, image: Exported) -> str:
        socket = os.path.join(self.folder, "%s.nbd" % image.target)
        argv = ["qemu-nbd", "--read-only", "--persistent", "--shared=2", "--format=%s" % image.format]
        argv += ["--socket=%s" % socket, os.path.join(way_to(self._set), image.file)]
        server = start_tied(argv, "Serving %s" % image.file)
        self._servers.append(server)
        deadline = time.monotonic() + _SERVE_SECONDS
        while not os.path.exists(socket):
            if server.poll() is not None or time.monotonic() > deadline:
                raise VirtopsError(
                    "image_failed",
                    "qemu-nbd does not serve %s of the set" % image.file,
                    "Verify the set with backup_verify",
                )
            time.sleep(_LOOK_SECONDS)
        self._give(socket)
        return socket

    def overlay(self, image: Exported, socket: str) -> str:
        path = os.path.join(self.folder, "%s.qcow2" % image.target)
        backing = ["-u", "-b", "nbd+unix:///?socket=%s" % socket, "-F", "raw"]
        run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, path, str(image.virtual_size)], "Making %s" % path)
        self._give(path)
        return path

    def read(self, file: str) -> str:
        with failing("Reading %s" % file, "copy_failed"):
            return read_plain(self._set, file, _FILE_LIMIT).decode("utf-8", "surrogateescape")

    def take_copy(self, file: str) -> str:
        path = os.path.join(self.folder, "file-%s" % file)
        with failing("Copying %s" % file, "copy_failed"):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as target:
                target.write(read_plain(self._set, file, _FILE_LIMIT))
        self._give(path)
        return path

    def _give(self, path: str) -> None:
        """What libvirt gives to QEMU by itself, unless it is told not to; and a socket, which it leaves alone."""
        os.chmod(path, 0o600)
        if self._user is not None and os.geteuid() == 0:
            os.chown(path, *self._user)

    def hand_over(self) -> None:
        os.chmod(self.folder, 0o711)

    def end(self) -> None:
        for server in self._servers:
            server.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(_GONE_SECONDS)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def scratch(parent: str, src: str, user: tuple[int, int] | None) -> Iterator[Scratch]:
    """A folder in `parent` for the trial of the set `src`. Nobody else sees it before all in it is QEMU's own."""
    if not os.path.isdir(parent):
        raise VirtopsError(
            "scratch_missing", "scratch names %s, which is no directory" % parent, "Create it, or name another one"
        )
    _remove_left(parent)
    with contextlib.ExitStack() as stack:
        set_fd = stack.enter_context(_set_at(src))
        lock = in_use(set_fd)
        if lock is not None:
            stack.enter_context(held(lock))
        with failing("Making a folder in %s" % parent, "scratch_failed"):
            folder = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
            fd = stack.enter_context(held(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)))
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        made = Scratch(folder, set_fd, user)
        try:
            yield made
        finally:
            made.end()


@contextlib.contextmanager
def _set_at(path: str) -> Iterator[int]:
    """A descriptor of the set, which nobody else can have put there."""
    require_plain_path(path)
    parent = os.path.dirname(path)
    try:
        with (
            held(reach(os.path.dirname(parent))) as dest,
            held(reach_own(dest, os.path.basename(parent), parent)) as folder,
            held(reach_own(folder, os.path.basename(path), path)) as found,
        ):
            yield found
    except FileNotFoundError as error:
        raise VirtopsError(
            "set_missing", "There is no backup set %s" % path, "Look for its path with backup_info"
        ) from error


def _remove_left(parent: str) -> None:
    """The folders of ours whose process is gone."""
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(parent)):
            if not entry.name.startswith(_PREFIX) or not entry.is_dir(follow_symlinks=False):
                continue
            with contextlib.suppress(OSError):
                fd = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
                with held(fd):
                    if os.fstat(fd).st_uid != os.geteuid():
                        continue
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(entry.path)
