# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._host import locks
from ansible_collections.virtops.libvirt.plugins.module_utils._host.locks import DomainLock, Slots


@pytest.fixture
def directory(tmp_path: Path) -> Callable[[], str]:
    return lambda: str(tmp_path)


def test_a_second_task_is_refused_and_told_who(tmp_path: Path, directory: Callable[[], str]) -> None:
    with DomainLock("u", lambda: [directory()]):
        with pytest.raises(VirtopsError) as caught, DomainLock("u", lambda: [directory()]):
            pass
        with DomainLock("other", lambda: [directory()]):
            pass
    assert caught.value.code == "locked"
    assert str(os.getpid()) in str(caught.value)
    assert os.listdir(tmp_path) == []
    with DomainLock("u", lambda: [directory()]):
        pass


def test_the_file_of_a_killed_task_is_taken_over(tmp_path: Path, directory: Callable[[], str]) -> None:
    (tmp_path / "domain-u.lock").write_text("99999999\n")
    with DomainLock("u", lambda: [directory()]):
        assert (tmp_path / "domain-u.lock").read_text() == "%d\n" % os.getpid()


def test_a_child_does_not_inherit_it(directory: Callable[[], str]) -> None:
    with DomainLock("u", lambda: [directory()]):
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
    with DomainLock("u", lambda: [directory()]):
        pass
    child.communicate(b"\n")


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A file system on which a file can be made, and no byte written."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts")
    folder = tmp_path / "full"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", str(folder)], check=False).returncode:
        pytest.skip("this place forbids mounts")
    (folder / "ballast").write_bytes(bytes(4096))
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_lock_holds_without_its_text(full: Path) -> None:
    with DomainLock("u", lambda: [str(full)]):
        assert (full / "domain-u.lock").read_bytes() == b""
        with pytest.raises(VirtopsError) as caught, DomainLock("u", lambda: [str(full)]):
            pass
        assert caught.value.code == "locked"
    assert os.listdir(full) == ["ballast"]


def test_one_folder_is_enough_and_all_are_looked_at(tmp_path: Path) -> None:
    """Two tasks that have one folder in common exclude each other, whatever becomes of the others."""
    gone, kept = str(tmp_path / "gone"), str(tmp_path)
    with DomainLock("u", lambda: [gone, kept]):
        with pytest.raises(VirtopsError) as caught, DomainLock("u", lambda: [kept]):
            pass
        assert caught.value.code == "locked"
    with pytest.raises(VirtopsError) as caught, DomainLock("u", lambda: [gone]):
        pass
    assert caught.value.code == "no_lock_directory"
    assert gone in str(caught.value)
    (tmp_path / "gone").mkdir()
    with DomainLock("u", lambda: [kept]):
        with pytest.raises(VirtopsError) as caught, DomainLock("u", lambda: [gone, kept]):
            pass
        assert os.listdir(gone) == [], "what was taken first is let go"


def test_slots_run_out_and_come_back(tmp_path: Path, directory: Callable[[], str]) -> None:
    class Clock:
        """Time in which the other holder ends after three looks."""

        def __init__(self) -> None:
            self.slept = 0
            self.on_third: Callable[[], None] | None = None

        def utcnow(self) -> str:
            return ""

        def monotonic(self) -> float:
            return 0.0

        def sleep(self, seconds: float) -> None:
            self.slept += 1
            if self.slept == 3 and self.on_third:
                self.on_third()

    clock = Clock()
    first, second = Slots(2, clock, lambda: [directory()]).take(), Slots(2, clock, lambda: [directory()]).take()
    first.__enter__()
    second.__enter__()
    clock.on_third = lambda: first.__exit__(None, None, None) and None
    with Slots(2, clock, lambda: [directory()]).take():
        assert clock.slept == 3
    second.__exit__(None, None, None)
    assert os.listdir(tmp_path) == []


def test_a_slot_of_the_other_folder_serves(tmp_path: Path) -> None:
    """/run is read-only, or gone."""
    gone, kept = tmp_path / "gone", tmp_path / "kept"
    kept.mkdir()
    with Slots(1, directories=lambda: [str(gone), str(kept)]).take():
        assert os.listdir(kept) == ["copy-0.lock"]
    with pytest.raises(VirtopsError) as caught, Slots(1, directories=lambda: [str(gone)]).take():
        pass
    assert caught.value.code == "no_lock_directory"


def test_threads_take_slots_of_their_own(directory: Callable[[], str]) -> None:
    slots = Slots(1, directories=lambda: [directory()])
    inside, most = [0], [0]

    def work() -> None:
        with slots.take():
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            inside[0] -= 1

    threads = [threading.Thread(target=work) for _unused in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


@pytest.mark.skipif(os.geteuid() == 0, reason="root has /run")
def test_the_directory_of_a_user_in_his_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    path = locks.lock_directories()[0]
    assert path == str(tmp_path / "virtops.libvirt")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="/run is root's")
def test_the_directory_of_root() -> None:
    path = locks.lock_directories()[0]
    assert path == "/run/virtops.libvirt"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
