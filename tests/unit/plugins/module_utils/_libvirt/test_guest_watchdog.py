# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._libvirt import guest_watchdog

from .conftest import URI

TEST_UUID = "6695eb01-f6a4-8304-79aa-97f2502e193f"
FROZEN = {"frozen": True, "suspended": False, "tunes": {}}
Define = Callable[..., Any]


def start(uri: str = URI, uuid: str = TEST_UUID, seconds: str = "60") -> subprocess.Popen[bytes]:
    """By its file, as a zip's removal must not matter: it imports nothing of the collection."""
    command = [sys.executable, str(Path(guest_watchdog.__file__)), uri, uuid, seconds, json.dumps(FROZEN)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def armed() -> subprocess.Popen[bytes]:
    process = start()
    assert process.stdout is not None
    assert process.stdout.readline() == b"armed\n"
    return process


@pytest.mark.parametrize("said", [b"done\n", b""])
def test_it_ends_when_it_is_told_to_or_has_thawed(said: bytes) -> None:
    process = armed()
    out, err = process.communicate(said, timeout=30)
    assert (process.returncode, out, err) == (0, b"", b"")


def test_it_thaws_when_the_time_is_over() -> None:
    process = start(seconds="0.1")
    assert process.stdout is not None
    assert process.stdout.readline() == b"armed\n"
    assert process.wait(30) == 0
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_hangup_does_not_end_it(number: int) -> None:
    process = armed()
    os.kill(process.pid, number)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.2)
    process.communicate(b"done\n", timeout=30)
    assert process.returncode == 0


def test_sigterm_is_as_the_end_of_stdin() -> None:
    """As systemd-logind sends it when the SSH session has ended. What it does in its process only that one sees."""
    code = (
        f"from {guest_watchdog.__name__} import Releaser, main\n"
        "Releaser.release = lambda self: print('released', flush=True) is None\n"
        f"raise SystemExit(main({URI!r}, {TEST_UUID!r}, '60', {json.dumps(FROZEN)!r}))\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"armed\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert process.stdout.read() == b"released\n"
    process.stdin.close()
    process.stdout.close()


def test_it_says_why_it_cannot_be_armed(tmp_path: Path) -> None:
    for uri, uuid in ((f"qemu+unix:///system?socket={tmp_path}/none", TEST_UUID), (URI, TEST_UUID[:-4] + "0000")):
        process = start(uri, uuid)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 1
        assert b"armed" not in out
        assert out.strip()
        assert err == b""


def test_it_thaws(define: Define) -> None:
    made = define("frozen by a dead module")
    made.fsFreeze()
    assert guest_watchdog.Releaser(URI, made.UUIDString(), FROZEN).release()
    assert made.fsThaw() == 0


@pytest.mark.parametrize("suspended", [True, False])
def test_it_resumes_only_what_we_suspended(define: Define, suspended: bool) -> None:
    made = define("suspended")
    made.suspend()
    hold = {"frozen": False, "suspended": suspended, "tunes": {}}
    assert guest_watchdog.Releaser(URI, made.UUIDString(), hold).release()
    assert made.isActive()
    assert (made.state()[0] == guest_watchdog.libvirt.VIR_DOMAIN_RUNNING) is suspended


def test_it_puts_the_limits_back(define: Define) -> None:
    """libvirt's test driver wants a maximum beside each limit."""
    made = define("throttled")
    made.setBlockIoTune("vda", {"write_bytes_sec": 65536, "write_bytes_sec_max": 65536}, 0)
    before = {"write_bytes_sec": 7 << 20, "write_bytes_sec_max": 7 << 20}
    hold = {"frozen": False, "suspended": False, "tunes": {"vda": before}}
    assert guest_watchdog.Releaser(URI, made.UUIDString(), hold).release()
    assert made.blockIoTune("vda")["write_bytes_sec"] == 7 << 20


def test_a_disk_that_is_gone_keeps_nothing_back(define: Define) -> None:
    """It may have been detached after its own merge, while that of another disk went on."""
    made = define("held")
    made.suspend()
    limits = {"write_bytes_sec": 7 << 20, "write_bytes_sec_max": 7 << 20}
    hold = {"frozen": False, "suspended": True, "tunes": {"vdz": limits, "vda": limits}}
    assert guest_watchdog.Releaser(URI, made.UUIDString(), hold).release()
    assert made.state()[0] == guest_watchdog.libvirt.VIR_DOMAIN_RUNNING
    assert made.blockIoTune("vda")["write_bytes_sec"] == 7 << 20


def test_what_failed_keeps_nothing_else_back_and_is_tried_again(define: Define) -> None:
    """And only that: whoever suspends the guest after we let it run means it."""
    made = define("held")
    made.suspend()
    made.fsFreeze()
    good = {"write_bytes_sec": 7 << 20, "write_bytes_sec_max": 7 << 20}
    bad = {"no_such_limit": 1}
    tunes = {"hda": bad, "vda": good}
    releaser = guest_watchdog.Releaser(URI, made.UUIDString(), {"frozen": True, "suspended": True, "tunes": tunes})
    assert not releaser.release()
    assert made.state()[0] == guest_watchdog.libvirt.VIR_DOMAIN_RUNNING
    assert made.fsThaw() == 0
    assert made.blockIoTune("vda")["write_bytes_sec"] == 7 << 20
    made.suspend()
    bad.clear()
    bad.update(good)
    assert releaser.release()
    assert made.blockIoTune("hda")["write_bytes_sec"] == 7 << 20
    assert made.state()[0] == guest_watchdog.libvirt.VIR_DOMAIN_PAUSED


def test_there_is_nothing_to_do_for_a_guest_that_ended(define: Define) -> None:
    releasers = []
    for name, kind in (("off", {}), ("gone", {"transient": True})):
        made = define(name, **kind)
        releaser = guest_watchdog.Releaser(URI, made.UUIDString(), FROZEN)
        releaser.connect()
        made.destroy()
        releasers.append(releaser)
    assert [releaser.release() for releaser in releasers] == [True, True]


def test_it_tries_again_over_a_new_connection(tmp_path: Path, define: Define, monkeypatch: pytest.MonkeyPatch) -> None:
    made = define("restarting")
    made.fsFreeze()
    uris = [f"qemu+unix:///system?socket={tmp_path}/none"] * 3 + [URI]
    opened: list[str] = []

    def connect(_unused: str, real: Callable[[str], Any] = guest_watchdog.libvirt.open) -> Any:
        opened.append(uris[len(opened)])
        return real(opened[-1])

    monkeypatch.setattr(guest_watchdog.libvirt, "open", connect)
    monkeypatch.setattr(guest_watchdog.time, "sleep", lambda _: None)
    assert guest_watchdog.release_within(guest_watchdog.Releaser(URI, made.UUIDString(), FROZEN), 60)
    assert opened == uris
    assert made.fsThaw() == 0


class Outage:
    """Time that passes only in sleep(); libvirtd is down for so many seconds of it."""

    def __init__(self, seconds: float) -> None:
        self.now = 0.0
        self.pauses: list[float] = []
        self._seconds = seconds

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.pauses.append(seconds)

    def release(self) -> bool:
        return self.now >= self._seconds


@pytest.mark.parametrize(("seconds", "released"), [(3600, True), (1 << 20, False)])
def test_it_outlasts_a_long_outage_but_not_any(seconds: float, released: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    outage = Outage(seconds)
    monkeypatch.setattr(guest_watchdog, "time", outage)
    assert guest_watchdog.release_within(outage, guest_watchdog.TRY_SECONDS) is released
    assert (outage.pauses[:3], max(outage.pauses)) == ([0.5, 1.0, 2.0], 5.0)
