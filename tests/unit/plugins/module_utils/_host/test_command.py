# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._host.command import (
    LOOK,
    Limits,
    failing,
    failure,
    os_failure,
    run,
)


def test_the_output_of_a_program() -> None:
    assert run(["echo", "a b"], "x") == "a b"
    assert run(["echo", "a b"], "x", tied=True) == "a b"


@pytest.mark.parametrize("tied", [False, True])
def test_its_failure_has_its_words(tied: bool) -> None:
    with pytest.raises(VirtopsError) as caught:
        run(["sh", "-c", "echo sorry >&2; exit 3"], "The thing", tied=tied)
    assert (caught.value.code, caught.value.cause) == ("image_failed", "The thing failed: sorry")


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("error while writing sector 0: No space left on device", "no_space"),
        ('Failed to get "write" lock\nIs another process using the image [/a]?', "image_locked"),
        ('Failed to get shared "write" lock', "image_locked"),
        ("Could not open '/a': Permission denied", "permission_denied"),
        ("something else", "image_failed"),
    ],
)
def test_what_words_mean(said: str, code: str) -> None:
    assert failure("It", said).code == code


def test_numbers_mean_the_same_in_every_language() -> None:
    assert os_failure("It", OSError(errno.ENOSPC, "Kein Platz")).code == "no_space"
    assert os_failure("It", OSError(errno.EIO, "E/A-Fehler"), "copy_failed").code == "copy_failed"


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("limits", "code", "words"),
    [
        (Limits(LOOK.memory, 1), "while True: pass", "time or memory"),
        (Limits(1 << 28), "bytearray(1 << 30)", "MemoryError"),
        (Limits(LOOK.memory, seconds=0.5), "import time; time.sleep(60)", "within 0 s"),
        (LOOK, "while True: print('x' * 65536)", "printed more than"),
    ],
)
def test_a_program_has_limits(limits: Limits, code: str, words: str, tied: bool) -> None:
    began = time.monotonic()
    with pytest.raises(VirtopsError) as caught:
        run([sys.executable, "-c", code], "Looking", tied=tied, limits=limits)
    assert words in str(caught.value)
    assert time.monotonic() - began < 30


def test_what_is_enough_ends_a_program() -> None:
    seen: list[str] = []

    def enough(line: str) -> bool:
        seen.append(line)
        return line == "3"

    code = "import itertools\nfor number in itertools.count(): print(number, flush=True)"
    assert run([sys.executable, "-c", code], "Counting", until=enough) == ""
    assert seen == ["0", "1", "2", "3"]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't start new thread"), OSError(errno.ENOMEM, "")])
def test_no_memory_is_told(error: Exception) -> None:
    with pytest.raises(VirtopsError) as caught, failing("The copy"):
        raise error
    assert caught.value.code == "no_memory"


def test_a_bug_stays_one() -> None:
    with pytest.raises(RuntimeError), failing("The copy"):
        raise RuntimeError("generator raised StopIteration")


def test_a_tied_child_dies_with_us(tmp_path: Path) -> None:
    """Also where the one that waits is a thread, as for copies side by side."""
    pid_file = tmp_path / "pid"
    code = (
        "import sys, threading\n"
        "from ansible_collections.virtops.libvirt.plugins.module_utils._host.command import run\n"
        "argv = ['sh', '-c', 'echo $$ > %s.new; mv %s.new %s; exec sleep 600' % ((sys.argv[1],) * 3)]\n"
        "thread = threading.Thread(target=run, args=(argv, 'x', True))\n"
        "thread.start()\n"
        "thread.join()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(pid_file)], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert _soon(pid_file.exists)
    child = int(pid_file.read_text())
    assert not _is_gone(child)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert _soon(lambda: _is_gone(child))


def _soon(condition) -> bool:
    """Processes have their own time: look until it is so."""
    for _unused in range(200):
        if condition():
            return True
        time.sleep(0.05)
    return False


def _is_gone(pid: int) -> bool:
    """Gone, or dead and not yet waited for by whoever adopted it."""
    try:
        status = Path("/proc/%d/stat" % pid).read_text()
    except OSError:
        return True
    return status.rpartition(")")[2].split()[0] in "ZX"
