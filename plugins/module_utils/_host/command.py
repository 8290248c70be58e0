# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: running one program on the hypervisor, and what its failure means."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping

from .._core.errors import VirtopsError

# A child must not outlive us: a `qemu-img` that goes on after our SIGKILL holds QEMU's lock on the image, and so makes
# every later merge fail for as long as it runs. prctl(2) PR_SET_PDEATHSIG does that, but it must be set in the child.
# `preexec_fn` would do it between fork and exec of a process with threads, which may deadlock; so a program of
# its own does. PR_SET_PDEATHSIG survives execve(2). It means the death of the *thread* that started the child: each
# thread here waits for the child that it started. The parent may be dead before prctl: hence the look at getppid(2).
_TRAMPOLINE = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""

#: The variable in the environment of all programs that work for a domain, whose UUID is its value: see reaper.py.
MARK = "VIRTOPS_LIBVIRT_DOMAIN"
# A mapping rather than os.environ: a daemon that libvirt starts for us (qemu:///session) would pass it on to its own.
_marks: dict[str, str] = {}

#: How held.py calls what a program gets as a descriptor.
_FD_NAME = re.compile(r"/proc/self/fd/(\d+)")

#: Between two calls of `check`.
_CHECK_SECONDS = 0.2

_MAKE_SPACE = "Make space on that file system, then try again"
#: errno(3), what a program says for it in the C locale, and the code and the remedy that this stands for.
_MEANINGS = (
    (errno.ENOSPC, "No space left on device", "no_space", _MAKE_SPACE),
    (errno.EDQUOT, "Disk quota exceeded", "no_space", _MAKE_SPACE),
    (0, '" lock', "image_locked", "Another process uses the image: wait for its block job or end it, then try again"),
    (errno.EACCES, "Permission denied", "permission_denied", "Run the module with the rights to it (become)"),
    (errno.EPERM, "Operation not permitted", "permission_denied", "Run the module with the rights to it (become)"),
    (errno.EROFS, "Read-only file system", "not_writable", "Make the file system writable"),
    (errno.ENOENT, "No such file or directory", "no_image", "Check the path, and that its storage is mounted"),
)


@contextlib.contextmanager
def marked(uuid: str) -> Iterator[None]:
    """Programs that are run meanwhile, by whichever thread, carry the mark of this domain. Its lock is held."""
    _marks[MARK] = uuid
    try:
        yield
    finally:
        del _marks[MARK]


def run(
    argv: list[str],
    subject: str,
    tied: bool = False,
    fine: frozenset[int] = frozenset({0}),
    check: Callable[[], None] | None = None,
    fds: Mapping[int, str] | None = None,
) -> str:
    """Run a program without a shell and return what it printed.

    `subject` is what the error is about, as "The copy of /a.img". `tied`: a long one, that dies with us. `fine`: the
    exit codes of success. `check` is called now and then; it raises to stop the program. `fds`: descriptors that it
    gets under their numbers, and how a message calls the files.
    """
    if shutil.which(argv[0]) is None:
        raise VirtopsError(
            "missing_program",
            "%s is not installed on this host" % argv[0],
            "Install it (Debian: qemu-utils, RHEL: qemu-img, SUSE: qemu-tools)",
        )
    if tied:
        argv = [sys.executable, "-I", "-S", "-c", _TRAMPOLINE, str(os.getpid()), *argv]
    env = {**os.environ, "LC_ALL": "C", **_marks}
    # run_command would need an AnsibleModule, which this layer does not know, and cannot be stopped midway.
    with subprocess.Popen(  # pylint: disable=ansible-bad-function
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
        pass_fds=tuple(fds or ()),
    ) as process:
        out, err = _communicate(process, check)
    if process.returncode not in fine:
        said = _text(err) or _text(out) or "exit code %d" % process.returncode
        raise failure(subject, _FD_NAME.sub(lambda found: (fds or {}).get(int(found[1]), found[0]), said))
    return _text(out)


def _communicate(process: subprocess.Popen[bytes], check: Callable[[], None] | None) -> tuple[bytes, bytes]:
    try:
        while True:
            try:
                return process.communicate(timeout=None if check is None else _CHECK_SECONDS)
            except subprocess.TimeoutExpired:
                if check is not None:
                    check()
    except BaseException:
        process.kill()
        raise


def failure(subject: str, said: str, code: str = "image_failed") -> VirtopsError:
    """The typed error for what a program said; `code` where nothing more exact is known."""
    for _unused, words, meaning, remedy in _MEANINGS:
        if words in said:
            return VirtopsError(meaning, "%s failed: %s" % (subject, said), remedy)
    return VirtopsError(code, "%s failed: %s" % (subject, said), "Mend what the message names, then try again")


def os_failure(subject: str, error: OSError, code: str = "image_failed") -> VirtopsError:
    """The same for an OSError, by its number: strerror(3) speaks the user's language."""
    said = "%s (%s)" % (error.strerror, error.filename) if error.filename else str(error.strerror or error)
    for number, _unused, meaning, remedy in _MEANINGS:
        if number and number == error.errno:
            return VirtopsError(meaning, "%s failed: %s" % (subject, said), remedy)
    return VirtopsError(code, "%s failed: %s" % (subject, said), "Mend what the message names, then try again")


@contextlib.contextmanager
def failing(subject: str, code: str = "image_failed") -> Iterator[None]:
    """What the system refuses meanwhile becomes the typed error."""
    try:
        yield
    except OSError as error:
        raise os_failure(subject, error, code) from error


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace").strip()
