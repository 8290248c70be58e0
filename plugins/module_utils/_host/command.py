# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: running one program on the hypervisor, and what its failure means."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

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
#: Between two looks for its end, which follows that of its outputs.
_END_SECONDS = 0.005
#: Seconds for a program to be gone after SIGKILL.
_GONE_SECONDS = 5.0
#: The most that a program may print.
_MOST_BYTES = 32 << 20
#: How a program ends that meets a limit: GLib aborts where there is no memory.
_LIMITED = frozenset({signal.SIGXCPU, signal.SIGKILL, signal.SIGABRT, signal.SIGTRAP})

_MAKE_SPACE = "Make space on that file system, then try again"
_MORE_MEMORY = (
    "Give it more: see its limits (ulimit -a, those of its service or container) and what else runs on the host, then "
    "try again"
)
#: errno(3), what a program says for it in the C locale, and the code and the remedy that this stands for.
_MEANINGS = (
    (errno.ENOSPC, "No space left on device", "no_space", _MAKE_SPACE),
    (errno.EDQUOT, "Disk quota exceeded", "no_space", _MAKE_SPACE),
    (0, '" lock', "image_locked", "Another process uses the image: wait for its block job or end it, then try again"),
    (errno.EACCES, "Permission denied", "permission_denied", "Run the module with the rights to it (become)"),
    (errno.EPERM, "Operation not permitted", "permission_denied", "Run the module with the rights to it (become)"),
    (errno.ENOMEM, "Cannot allocate memory", "no_memory", _MORE_MEMORY),
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


def child_environment() -> dict[str, str]:
    """What a program of ours gets: the C locale, as its messages are read, and the mark."""
    return {**os.environ, "LC_ALL": "C", **_marks}


@dataclass(frozen=True)
class Limits:
    """What a program gets, as images are nobody's word: bytes of address space, processor seconds, seconds of time."""

    memory: int
    cpu: int | None = None
    seconds: float | None = None


#: For a look at an image: those that OpenStack gives qemu-img for it.
LOOK = Limits(1 << 30, 30, 60.0)
#: For work that lasts as long as it does. qemu-img check needs two bytes for each cluster: this does for 128 TiB.
WORK = Limits(4 << 30)


def run(
    argv: list[str],
    subject: str,
    tied: bool = False,
    fine: frozenset[int] = frozenset({0}),
    check: Callable[[], None] | None = None,
    fds: Mapping[int, str] | None = None,
    limits: Limits | None = None,
    until: Callable[[str], bool] | None = None,
    watch: Callable[[int], None] | None = None,
) -> str:
    """Run a program without a shell and return what it printed.

    `subject` is what the error is about, as "The copy of /a.img". `tied`: a long one, that dies with us. `fine`: the
    exit codes of success. `check` is called now and then; it raises to stop the program. `fds`: descriptors that it
    gets under their numbers, and how a message calls the files. `limits`: LOOK, and WORK where it is tied. `until` gets
    each line that it prints, which are not returned then, and ends the program where it says so. `watch` is called now
    and then with its PID.
    """
    program = _installed(argv[0])
    argv = _tied(argv) if tied else argv
    limits = limits or (WORK if tied else LOOK)
    with failing(subject):
        # run_command would need an AnsibleModule, which this layer does not know, and cannot be stopped midway.
        process = subprocess.Popen(  # pylint: disable=ansible-bad-function,consider-using-with
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=child_environment(),
            pass_fds=tuple(fds or ()),
        )
        try:
            _limit(process.pid, limits)
            out, err, ended = _listen(process, subject, limits, check, until, watch)
        finally:
            _end(process)
    if ended and process.returncode not in fine:
        said = _text(err) or _text(out) or _how_it_ended(program, process.returncode)
        raise failure(subject, _FD_NAME.sub(lambda found: (fds or {}).get(int(found[1]), found[0]), said))
    return _text(out)


def start_tied(argv: list[str], subject: str) -> subprocess.Popen[bytes]:
    """Start a program that serves, and that dies with the thread that calls this; what it says goes nowhere."""
    _installed(argv[0])
    with failing(subject):
        return subprocess.Popen(  # pylint: disable=ansible-bad-function,consider-using-with
            _tied(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=child_environment(),
            cwd="/",
        )


def _installed(program: str) -> str:
    if shutil.which(program) is None:
        raise VirtopsError(
            "missing_program",
            "%s is not installed on this host" % program,
            "Install it (Debian: qemu-utils, RHEL: qemu-img, SUSE: qemu-tools)",
        )
    return program


def _tied(argv: list[str]) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", _TRAMPOLINE, str(os.getpid()), *argv]


def _limit(pid: int, limits: Limits) -> None:
    """prlimit(2), while it loads its libraries: preexec_fn may deadlock, see above. One that has ended needs none."""
    for kind, wanted in ((resource.RLIMIT_AS, limits.memory), (resource.RLIMIT_CPU, limits.cpu)):
        with contextlib.suppress(ProcessLookupError):
            hard = resource.prlimit(pid, kind)[1]
            # What the module itself was given at most stays the most, and only root may raise it
            if wanted is not None and (hard == resource.RLIM_INFINITY or wanted < hard):
                resource.prlimit(pid, kind, (wanted, wanted))


def _listen(
    process: subprocess.Popen[bytes],
    subject: str,
    limits: Limits,
    check: Callable[[], None] | None,
    until: Callable[[str], bool] | None,
    watch: Callable[[int], None] | None,
) -> tuple[bytes, bytes, bool]:
    """What it printed on each of its outputs, and whether it came to its end by itself."""
    deadline = None if limits.seconds is None else time.monotonic() + limits.seconds
    outputs = [pipe for pipe in (process.stdout, process.stderr) if pipe is not None]
    said = {pipe.fileno(): bytearray() for pipe in outputs}
    out, err = (pipe.fileno() for pipe in outputs)
    with selectors.DefaultSelector() as pipes:
        for pipe in outputs:
            pipes.register(pipe, selectors.EVENT_READ)
        while pipes.get_map() or process.poll() is None:
            # With both outputs closed there is nothing to select: only its end is to come.
            if not pipes.get_map():
                time.sleep(_END_SECONDS)
            for key, _unused in pipes.select(_CHECK_SECONDS) if pipes.get_map() else ():
                chunk = os.read(key.fd, 1 << 16)
                said[key.fd] += chunk
                if not chunk:
                    pipes.unregister(key.fileobj)
                elif len(said[key.fd]) > _MOST_BYTES:
                    raise VirtopsError(
                        "image_failed",
                        "%s failed: it printed more than %d MiB" % (subject, _MOST_BYTES >> 20),
                        "The image is damaged, or was made to do harm: look where it comes from",
                    )
            if until is not None and _any_line(said[out], until):
                return bytes(said[out]), bytes(said[err]), False
            if check is not None:
                check()
            if watch is not None:
                watch(process.pid)
            if deadline is not None and time.monotonic() >= deadline:
                raise VirtopsError(
                    "image_timeout",
                    "%s did not end within %d s" % (subject, limits.seconds or 0),
                    "The image's storage does not answer, or a server that its header names does not: repair this, "
                    "then try again",
                )
    return bytes(said[out]), bytes(said[err]), True


def _any_line(said: bytearray, until: Callable[[str], bool]) -> bool:
    """Takes the whole lines out."""
    lines = said.split(b"\n")
    said[:] = lines.pop()
    return any(until(_text(bytes(line))) for line in lines)


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL where it is not over. One that waits for storage does not even heed that: it is left to itself."""
    if process.poll() is None:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GONE_SECONDS)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _how_it_ended(program: str, code: int) -> str:
    if code >= 0:
        return "exit code %d" % code
    why = "; it needed more time or memory than it may have for one image" if -code in _LIMITED else ""
    return "%s was ended by the signal %s%s" % (program, signal.Signals(-code).name, why)


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
    """What the system refuses meanwhile becomes the typed error; memory for a thread, too, and Python's own."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "new thread" not in str(error):
            raise
        raise VirtopsError(
            "no_memory", "%s failed: %s" % (subject, str(error) or "there is no memory"), _MORE_MEMORY
        ) from error
    except OSError as error:
        raise os_failure(subject, error, code) from error


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace").strip()
