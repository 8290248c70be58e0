# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._libvirt import thaw_watchdog

from .conftest import URI

TEST_UUID = "6695eb01-f6a4-8304-79aa-97f2502e193f"
Define = Callable[..., Any]


def start(uri: str = URI, uuid: str = TEST_UUID, seconds: str = "60") -> subprocess.Popen[bytes]:
    """By its file, as a zip's removal must not matter: it imports nothing of the collection."""
    command = [sys.executable, str(Path(thaw_watchdog.__file__)), uri, uuid, seconds]
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
    assert thaw_watchdog.Thawer(URI, made.UUIDString()).thaw()
    assert made.fsThaw() == 0


def test_there_is_nothing_to_do_for_a_guest_that_ended(define: Define) -> None:
    thawers = []
    for name, kind in (("off", {}), ("gone", {"transient": True})):
        made = define(name, **kind)
        thawer = thaw_watchdog.Thawer(URI, made.UUIDString())
        thawer.connect()
        made.destroy()
        thawers.append(thawer)
    assert [thawer.thaw() for thawer in thawers] == [True, True]


def test_it_tries_again_over_a_new_connection(tmp_path: Path, define: Define, monkeypatch: pytest.MonkeyPatch) -> None:
    made = define("restarting")
    made.fsFreeze()
    uris = [f"qemu+unix:///system?socket={tmp_path}/none"] * 3 + [URI]
    opened: list[str] = []

    def connect(_unused: str, real: Callable[[str], Any] = thaw_watchdog.libvirt.open) -> Any:
        opened.append(uris[len(opened)])
        return real(opened[-1])

    monkeypatch.setattr(thaw_watchdog.libvirt, "open", connect)
    monkeypatch.setattr(thaw_watchdog.time, "sleep", lambda _: None)
    assert thaw_watchdog.thaw_within(thaw_watchdog.Thawer(URI, made.UUIDString()), 60)
    assert opened == uris
    assert made.fsThaw() == 0


def test_it_gives_up_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thaw_watchdog.time, "sleep", lambda _: None)
    thawer = thaw_watchdog.Thawer(f"qemu+unix:///system?socket={tmp_path}/none", TEST_UUID)
    assert not thaw_watchdog.thaw_within(thawer, -1)
