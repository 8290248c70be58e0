# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: which processes of this host use a file, or run a domain, by proc(5)."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import signal
import stat
from collections.abc import Iterable

from .command import os_failure

#: Who runs guests where that is not the default of the packages.
_QEMU_CONF = "/etc/libvirt/qemu.conf"
_USER = re.compile(r'\s*user\s*=\s*"([^"]+)"')

#: The states of what has ended, and is only waited for; none is what is gone.
_ENDED = frozenset({"Z", "X", "x", ""})
#: File systems that ask a server.
_REMOTE = frozenset({"nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "afs", "lustre", "gpfs", "fuse"})
#: What a process has open, and mapped.
_OPEN = ("fd", "map_files")


def holders(path: str) -> tuple[int, ...]:
    """The PIDs that have `path` open or mapped, whatever name they opened it by; none where it is gone.

    Compared by what the file is, so a bind mount, a hard link or another mount namespace hides nobody. A process that
    ends meanwhile is passed over, and so is one that we may not look into: as root none, as a user those of others.
    """
    try:
        key = key_of(os.stat(path))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise os_failure("Looking for the users of %s" % path, error) from error
    pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
    return tuple(sorted(pid for pid in pids if _holds(pid, key)))


def file_key(path: str) -> tuple[int, int] | None:
    """The same for every name of a file; None where it is gone, or is not ours to look at."""
    try:
        return key_of(os.stat(path))
    except OSError:
        return None


def key_of(found: os.stat_result) -> tuple[int, int]:
    """A block device may have several nodes, also one in /dev of the mount namespace that libvirt gives each QEMU: they
    share the device's number alone."""
    return (-1, found.st_rdev) if stat.S_ISBLK(found.st_mode) else (found.st_dev, found.st_ino)


def emulators(uuid: str, images: Iterable[str]) -> tuple[int, ...]:
    """The PIDs of the QEMU processes that run the domain of this UUID, by libvirt's command lines.

    A command line can be anybody's invention. So the program that runs has to be QEMU, too, and its owner one that
    libvirt runs guests as; else it has to have one of the domain's `images` open.
    """
    pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
    named = sorted(pid for pid in pids if _emulates(pid, uuid.encode()))
    unsure = [pid for pid in named if not _is_libvirts(pid)]
    holding = {pid for path in images for pid in holders(path)} if unsure else set()
    return tuple(pid for pid in named if pid not in unsure or pid in holding)


def living(pid: int) -> str | None:
    """Where proc(5) tells of this process: its own folder or, where its first thread has ended, that of one that lives.

    None where all have ended. A process that was killed looks like a zombie, with nothing open, although a thread of it
    waits in the kernel for storage (state D), and all its files and locks with it.
    """
    folder = "/proc/%d" % pid
    threads = [os.path.join(folder, "task", name) for name in _names(os.path.join(folder, "task"))]
    return next((one for one in (folder, *threads) if _state(one) not in _ENDED), None)


def stuck_thread(pid: int) -> int | None:
    """The thread that keeps a killed process from ending; None where nobody killed it, and where it has ended."""
    found = living(pid)
    if found is None:
        return None
    if found != "/proc/%d" % pid:
        return int(os.path.basename(found))
    return pid if _is_killed(found) else None


def _is_killed(folder: str) -> bool:
    """Is SIGKILL on its way to it? It is 9, the ninth bit."""
    try:
        with open(os.path.join(folder, "status"), encoding="ascii", errors="replace") as file:
            pending = [line.split()[1] for line in file if line.startswith(("SigPnd:", "ShdPnd:"))]
    except OSError:
        return False
    return any(int(mask, 16) >> (signal.SIGKILL - 1) & 1 for mask in pending)


def _state(folder: str) -> str:
    """Its letter; empty where it is gone."""
    try:
        with open(os.path.join(folder, "stat"), "rb") as file:
            return file.read().rpartition(b")")[2].split()[0].decode("ascii", "replace")
    except (OSError, IndexError):
        return ""


def _emulates(pid: int, uuid: bytes) -> bool:
    try:
        with open("/proc/%d/cmdline" % pid, "rb") as file:
            words = file.read().split(b"\0")
    except OSError:
        return False
    return b"qemu" in os.path.basename(words[0]) and (b"-uuid", uuid) in zip(words, words[1:])


def _is_libvirts(pid: int) -> bool:
    try:
        program = os.path.basename(os.readlink("/proc/%d/exe" % pid))
        owner = os.stat("/proc/%d" % pid).st_uid
    except OSError:
        return False
    return any(word in program for word in ("qemu", "kvm")) and owner in _owners()


def _owners() -> frozenset[int]:
    """Root and we ourselves, and the users that packages make and qemu.conf names for QEMU."""
    names = {"libvirt-qemu", "qemu"}
    with contextlib.suppress(OSError), open(_QEMU_CONF, encoding="utf-8", errors="replace") as file:
        names |= {found[1] for found in map(_USER.match, file) if found}
    users = {0, os.geteuid()} | {int(name) for name in names if name.isdigit()}
    for name in names:
        with contextlib.suppress(KeyError):
            users.add(pwd.getpwnam(name.lstrip("+")).pw_uid)
    return frozenset(users)


def _holds(pid: int, key: tuple[int, int]) -> bool:
    folder = living(pid)
    if folder is None:
        return False
    remote = _remote_mounts(folder, key[0])
    return any(_any_link(os.path.join(folder, kind), key, remote) for kind in _OPEN)


def _remote_mounts(folder: str, device: int) -> frozenset[str]:
    """What a process has mounted whose server may be gone: stat(2) of a file there would never return. Not the file
    system of the file that is looked for. proc_pid_mountinfo(5)."""
    own = "" if device < 0 else "%d:%d" % (os.major(device), os.minor(device))
    try:
        with open(os.path.join(folder, "mountinfo"), encoding="utf-8", errors="surrogateescape") as file:
            mounts = [line.split() for line in file]
    except OSError:
        return frozenset()
    return frozenset(
        mount[0] for mount in mounts if mount[2] != own and mount[mount.index("-") + 1].partition(".")[0] in _REMOTE
    )


def _any_link(directory: str, key: tuple[int, int], remote: frozenset[str]) -> bool:
    return any(
        not _is_on(directory, name, remote) and file_key(os.path.join(directory, name)) == key
        for name in _names(directory)
    )


def _is_on(directory: str, name: str, mounts: frozenset[str]) -> bool:
    """Is what a process has open on one of its mounts? proc_pid_fdinfo(5)."""
    if not mounts or not directory.endswith("/fd"):
        return False
    try:
        with open("%sinfo/%s" % (directory, name), encoding="ascii", errors="replace") as file:
            found = re.search(r"^mnt_id:\s*(\d+)$", file.read(), re.MULTILINE)
    except OSError:
        return False
    return found is not None and found[1] in mounts


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []
