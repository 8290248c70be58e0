# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The helper as a real process, which can be stopped and left behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.backup import CopyOrder, SetPaths
from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Layer
from ansible_collections.virtops.libvirt.plugins.module_utils._host.helper import HelpedCopier, Helper, backup_target
from ansible_collections.virtops.libvirt.plugins.module_utils._host.image_lock import ImageLock, is_being_written

MIB = 1024 * 1024


@pytest.fixture
def helper(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Helper]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    helper = Helper(20)
    yield helper
    helper.end()


def pid_of(helper: Helper) -> int:
    assert helper._process is not None
    return helper._process.pid


def order(tmp_path: Path, rate: int = 0) -> CopyOrder:
    source = tmp_path / "a"
    source.write_bytes(os.urandom(2 * MIB))
    return CopyOrder("vda", Layer(str(source), "raw"), "vda.raw", "raw", ("copy",), 2 * MIB, 0, rate_limit=rate)


def idle() -> None:
    """Nobody watches."""


def ignore(target: str, done: int, total: int) -> None:
    """Nobody is told."""


def test_a_set_is_made_through_it(tmp_path: Path) -> None:
    parent = str(tmp_path / "web")
    paths = SetPaths(parent, parent + "/20261120T120000Z", parent + "/.20261120T120000Z.partial")
    told: list[tuple[str, int, int]] = []
    with backup_target(20) as (store, copier):
        store.check_destination(str(tmp_path))
        assert store.free_bytes(str(tmp_path)) > 0
        directory = store.begin(paths, "{}")
        with copier.hold((order(tmp_path).source.path,)):
            found = copier.copy_all((order(tmp_path),), directory, 1, idle, lambda *words: told.append(words))
        assert found["vda"].bytes == 2 * MIB
        assert told[-1] == ("vda", 2 * MIB, 2 * MIB)
        store.finish(paths)
        with pytest.raises(VirtopsError) as caught:
            store.check_destination("relative")
        assert (caught.value.code, bool(caught.value.remedy)) == ("dest_unsafe", True)
    assert sorted(os.listdir(paths.final)) == ["manifest.json", "vda.raw"]


def test_it_has_nothing_of_ours(helper: Helper, tmp_path: Path) -> None:
    """A lock would outlive us in it."""
    image = tmp_path / "image"
    image.write_bytes(b"x")
    with ImageLock(str(image)):
        helper.call("store.hostname")
        links = [os.readlink(f"/proc/{pid_of(helper)}/fd/{fd}") for fd in os.listdir(f"/proc/{pid_of(helper)}/fd")]
    assert str(image) not in links
    assert not is_being_written(str(image))


def test_one_that_does_not_go_on_is_left_behind(tmp_path: Path, helper: Helper) -> None:
    """Stopped by a signal, it is as one that waits in the kernel; each later call fails at once."""
    helper.call("store.hostname")
    helper._stall_timeout = 1
    process = pid_of(helper)
    os.kill(process, signal.SIGSTOP)
    began = time.monotonic()
    for _twice in range(2):
        with pytest.raises(VirtopsError) as caught:
            HelpedCopier(helper).copy_all((order(tmp_path),), str(tmp_path), 1, idle, ignore)
        assert caught.value.code == "copy_stalled"
    assert 1 <= time.monotonic() - began < 5
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_a_slow_copy_goes_on(tmp_path: Path, helper: Helper) -> None:
    """Each step counts, however little it is."""
    helper._stall_timeout = 1
    copied = HelpedCopier(helper).copy_all((order(tmp_path, MIB),), str(tmp_path), 1, idle, ignore)
    assert copied["vda"].bytes == 2 * MIB


def test_whoever_watches_ends_a_copy_under_way(tmp_path: Path, helper: Helper) -> None:
    """At 4 KiB/s it would take minutes."""
    looks = []

    def watch() -> None:
        looks.append(1)
        if len(looks) == 2:
            raise VirtopsError("overlay_space", "It is full", "Make space")

    with pytest.raises(VirtopsError) as caught:
        HelpedCopier(helper).copy_all((order(tmp_path, 4096),), str(tmp_path), 1, watch, ignore)
    assert caught.value.code == "overlay_space"
    assert helper._process is None
    assert helper.call("store.hostname")  # a new one


@pytest.mark.parametrize("name", ["store.nothing", "copier.copy_all"])
def test_a_bug_in_it_is_a_traceback(helper: Helper, name: str) -> None:
    with pytest.raises(RuntimeError, match="Traceback"):
        helper.call(name)


def test_one_that_is_killed(helper: Helper, tmp_path: Path) -> None:
    killed: list[Any] = []

    def watch() -> None:
        if not killed:
            killed.append(os.kill(pid_of(helper), signal.SIGKILL))

    with pytest.raises(VirtopsError) as caught:
        HelpedCopier(helper).copy_all((order(tmp_path, 4096),), str(tmp_path), 1, watch, ignore)
    assert caught.value.code == "copy_failed"
