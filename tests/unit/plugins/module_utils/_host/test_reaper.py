# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""On real processes: a copy of sleep(1) whose name is qemu-img."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._host import reaper
from ansible_collections.virtops.libvirt.plugins.module_utils._host.command import MARK, marked, run
from ansible_collections.virtops.libvirt.plugins.module_utils._host.reaper import Reaper

UUID = "1b4e28ba-2fa1-11d2-883f-0016d3cca427"
OTHER = "9d3c1d2e-0000-4000-8000-0016d3cca427"

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a sleeper of this name with the mark of this domain."""
    sleep = shutil.which("sleep")
    assert sleep is not None
    started: list[subprocess.Popen[bytes]] = []

    def begin(uuid: str | None, name: str = "qemu-img", word: str = "qemu-img") -> subprocess.Popen[bytes]:
        program = tmp_path / name
        if not program.exists():
            shutil.copy(sleep, program)
        marks = {} if uuid is None else {MARK: uuid}
        process = subprocess.Popen([word, "600"], executable=str(program), env={**os.environ, **marks})
        started.append(process)
        # Popen returns after execve(2), but its name and environment are seen a moment later on some kernels
        deadline = time.monotonic() + 5
        while Path("/proc/%d/comm" % process.pid).read_text() != name + "\n" and time.monotonic() < deadline:
            time.sleep(0.01)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


def test_whose_copies_are_orphans(start: Start) -> None:
    ours = start(UUID)
    start(OTHER)
    start(None)
    start(UUID, "watchdog")
    assert Reaper().orphans(UUID) == (ours.pid,)


def test_one_that_has_ended_is_none(start: Start) -> None:
    """Its parent has not asked for it: it is a zombie, which still has its name."""
    ended = start(UUID)
    ended.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    assert Reaper().orphans(UUID) == ()
    Reaper().reap(UUID, ended.pid)


@pytest.mark.parametrize("has_pidfd", [True, False])
def test_it_is_gone_afterwards(start: Start, monkeypatch: pytest.MonkeyPatch, has_pidfd: bool) -> None:
    if not has_pidfd:
        monkeypatch.setattr(reaper, "_pidfd", lambda _pid: None)
    ours, other = start(UUID), start(OTHER)
    Reaper().reap(UUID, ours.pid)
    assert ours.wait(5) == -signal.SIGKILL
    assert Reaper().orphans(UUID) == ()
    assert other.poll() is None


def test_a_number_that_means_another_process_is_left_alone(start: Start) -> None:
    """Between the look and the kill the number was given anew."""
    another = start(OTHER)
    Reaper().reap(UUID, another.pid)
    assert another.poll() is None


def test_one_that_does_not_end(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that waits for storage: the wait for it is bounded, and its number is named."""
    monkeypatch.setattr(reaper, "GONE_SECONDS", 0.2)
    monkeypatch.setattr(reaper, "_kill", lambda _pid, _uuid: True)
    stays = start(UUID)
    with pytest.raises(VirtopsError) as caught:
        Reaper().reap(UUID, stays.pid)
    assert caught.value.code == "orphan_stays"
    assert str(stays.pid) in caught.value.cause


def test_a_reader_that_cannot_end_is_in_nobodys_way(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """With -U it holds no lock; whatever else does not end may hold one."""
    reader = start(UUID, word="-U")
    assert Reaper().orphans(UUID) == (reader.pid,)
    monkeypatch.setattr(reaper, "stuck_thread", lambda pid: pid)
    other = start(UUID)
    assert Reaper().orphans(UUID) == (other.pid,)


@pytest.mark.parametrize("tied", [False, True])
def test_programs_carry_the_mark_of_the_domain(tied: bool) -> None:
    asked = ["sh", "-c", "echo ${%s-none}" % MARK]
    assert run(asked, "x", tied) == "none"
    with marked(UUID):
        assert run(asked, "x", tied) == UUID
        assert MARK not in os.environ
    assert run(asked, "x", tied) == "none"
