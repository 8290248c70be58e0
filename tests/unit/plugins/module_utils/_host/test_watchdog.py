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
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Hold
from ansible_collections.virtops.libvirt.plugins.module_utils._host.watchdog import PythonWatchdog

HOLD = Hold(frozen=True, tunes={"vda": {"write_bytes_sec": 1}})
SAID = '{"frozen": true, "suspended": false, "tunes": {"vda": {"write_bytes_sec": 1}}}'
#: A release that leaves a trace instead; its file says how it ended.
CHILD = """
import os, select, sys
uri, uuid, seconds, hold = sys.argv[1:]
open(os.environ["TRACE"] + ".pid", "w").write(str(os.getpid()))
print("armed", flush=True)
readable, _, _ = select.select([sys.stdin], [], [], float(seconds))
word = sys.stdin.readline() if readable else "deadline"
with open(os.environ["TRACE"], "a") as file:
    file.write("done" if word == "done\\n" else "released %s %s %s %s" % (uri, uuid, hold, word))
"""


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "fake_release.py").write_text(CHILD)
    (tmp_path / "broken_release.py").write_text("raise ImportError('no libvirt here')")
    (tmp_path / "silent_release.py").write_text("import time; time.sleep(600)")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("TRACE", str(tmp_path / "trace"))
    return tmp_path / "trace"


def test_disarmed_it_does_nothing(trace: Path) -> None:
    watchdog = PythonWatchdog("test:///default", "fake_release")
    watchdog.arm("uuid", 600, HOLD)
    assert not trace.exists()
    watchdog.disarm()
    assert trace.read_text() == "done"
    watchdog.disarm()


def test_it_lets_go_at_the_deadline(trace: Path) -> None:
    watchdog = PythonWatchdog("test:///default", "fake_release")
    watchdog.arm("uuid", 0, HOLD)
    assert _soon(trace) == f"released test:///default uuid {SAID} deadline"
    watchdog.disarm()


def test_it_lets_go_when_we_are_killed(trace: Path) -> None:
    """Another child of ours that lives on must not keep the pipe open."""
    code = (
        "import subprocess, time\n"
        "from ansible_collections.virtops.libvirt.plugins.module_utils._host.watchdog import PythonWatchdog\n"
        "from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Hold\n"
        "watchdog = PythonWatchdog('test:///default', 'fake_release')\n"
        "watchdog.arm('uuid', 600, Hold(frozen=True, tunes={'vda': {'write_bytes_sec': 1}}))\n"
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
        assert _soon(trace) == f"released test:///default uuid {SAID} "
    finally:
        os.kill(other, signal.SIGKILL)
        parent.stdout.close()


def test_the_next_one_takes_the_place_of_the_first(trace: Path) -> None:
    """The guest is never without one while it is held."""
    watchdog = PythonWatchdog("test:///default", "fake_release")
    watchdog.arm("uuid", 600, HOLD)
    watchdog.arm("uuid", 0, HOLD)
    for _unused in range(200):
        if "released" in trace.read_text():
            break
        time.sleep(0.05)
    watchdog.disarm()
    assert trace.read_text().replace("done", "") == f"released test:///default uuid {SAID} deadline"
    assert trace.read_text().count("done") == 1


@pytest.mark.parametrize(
    ("module", "words"),
    [("broken_release", "no libvirt here"), ("silent_release", "said nothing"), ("none", "No module")],
)
@pytest.mark.usefixtures("trace")
def test_one_that_does_not_start_is_an_error_in_bounded_time(module: str, words: str) -> None:
    with pytest.raises(VirtopsError) as caught:
        PythonWatchdog("test:///default", module, arm_seconds=1 if module == "silent_release" else 20).arm(
            "uuid", 600, HOLD
        )
    assert caught.value.code == "watchdog_failed"
    assert words in str(caught.value)


def _soon(trace: Path) -> str:
    """Processes have their own time: look until it is there."""
    for _unused in range(200):
        if trace.exists() and trace.read_text():
            return trace.read_text()
        time.sleep(0.05)
    return ""
