# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._host.watchdog import PythonWatchdog

#: A thaw that leaves a trace instead; its file says how it ended.
CHILD = """
import os, select, sys
uri, uuid, seconds = sys.argv[1:]
open(os.environ["TRACE"] + ".pid", "w").write(str(os.getpid()))
print("armed", flush=True)
readable, _, _ = select.select([sys.stdin], [], [], float(seconds))
word = sys.stdin.readline() if readable else "deadline"
with open(os.environ["TRACE"], "w") as file:
    file.write("done" if word == "done\\n" else "thawed %s %s %s" % (uri, uuid, word))
"""


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "fake_thaw.py").write_text(CHILD)
    (tmp_path / "broken_thaw.py").write_text("raise ImportError('no libvirt here')")
    (tmp_path / "silent_thaw.py").write_text("import time; time.sleep(600)")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("TRACE", str(tmp_path / "trace"))
    return tmp_path / "trace"


def test_disarmed_it_thaws_nothing(trace: Path) -> None:
    watchdog = PythonWatchdog("test:///default", "fake_thaw")
    watchdog.arm("uuid", 600)
    assert not trace.exists()
    watchdog.disarm()
    assert trace.read_text() == "done"
    watchdog.disarm()


def test_it_thaws_at_the_deadline(trace: Path) -> None:
    watchdog = PythonWatchdog("test:///default", "fake_thaw")
    watchdog.arm("uuid", 0)
    assert _soon(trace) == "thawed test:///default uuid deadline"
    watchdog.disarm()


def test_it_thaws_when_we_are_killed(trace: Path) -> None:
    """Another child of ours that lives on must not keep the pipe open."""
    code = (
        "import subprocess, time\n"
        "from ansible_collections.virtops.libvirt.plugins.module_utils._host.watchdog import PythonWatchdog\n"
        "watchdog = PythonWatchdog('test:///default', 'fake_thaw')\n"
        "watchdog.arm('uuid', 600)\n"
        "other = subprocess.Popen(['sleep', '600'], close_fds=False)\n"
        "print(other.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    other = int(parent.stdout.readline())
    child = int(Path(str(trace) + ".pid").read_text())
    try:
        assert os.getsid(child) == child
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert _soon(trace) == "thawed test:///default uuid "
    finally:
        os.kill(other, signal.SIGKILL)
        parent.stdout.close()


@pytest.mark.parametrize(
    ("module", "words"), [("broken_thaw", "no libvirt here"), ("silent_thaw", "said nothing"), ("none", "No module")]
)
@pytest.mark.usefixtures("trace")
def test_one_that_does_not_start_is_an_error_in_bounded_time(module: str, words: str) -> None:
    with pytest.raises(VirtopsError) as caught:
        PythonWatchdog("test:///default", module, arm_seconds=1 if module == "silent_thaw" else 20).arm("uuid", 600)
    assert caught.value.code == "watchdog_failed"
    assert words in str(caught.value)


def _soon(trace: Path) -> str:
    """Processes have their own time: look until it is there."""
    for _unused in range(200):
        if trace.exists() and trace.read_text():
            return trace.read_text()
        time.sleep(0.05)
    return ""
