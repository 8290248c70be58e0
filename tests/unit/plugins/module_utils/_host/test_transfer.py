# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bytes and holes, on real files."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import re
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.backup import Run
from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._host import transfer
from ansible_collections.virtops.libvirt.plugins.module_utils._host.transfer import (
    Pace,
    copy_data,
    is_cached,
    read_back,
    runs_of,
    sync_data,
)

MIB = 1024 * 1024


class Clock:
    """Time passes only when somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def utcnow(self) -> str:
        return ""

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += max(0.0, seconds)


def go_on() -> None:
    """The check of a copy that nobody stops."""


def copy(source: Path, target: Path, rate: int = 0) -> tuple[Clock, tuple[Run, ...]]:
    clock = Clock()
    with source.open("rb") as one, target.open("x+b") as two:
        runs = copy_data(one.fileno(), two.fileno(), Pace(rate, clock), go_on)
        assert runs_of(two.fileno(), go_on) == runs
        sync_data(two.fileno(), go_on)
    return clock, runs


def sparse(path: Path, layout: list[tuple[int, int]], size: int) -> None:
    """Random data at these (offset, length), holes between them."""
    with path.open("wb") as file:
        file.truncate(size)
        for offset, length in layout:
            file.seek(offset)
            file.write(os.urandom(length))
        file.flush()
        os.fsync(file.fileno())


LAYOUTS = [
    ([], 0),
    ([], 3 * MIB),
    ([(0, 5)], 5),
    ([(0, 3 * MIB)], 3 * MIB),
    ([(MIB, 4096)], 9 * MIB + 17),
    ([(0, 4096), (2 * MIB, 6 * MIB), (20 * MIB - 7, 7)], 20 * MIB),
    ([(4096 * index, 4096) for index in range(0, 200, 2)], 4096 * 300),
]


@pytest.fixture(params=["direct", "cached"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where files are read back, on file systems with O_DIRECT and on those without."""
    if request.param == "cached":
        real = os.open

        def without(path: Any, flags: int, *rest: Any, **options: Any) -> int:
            if flags & os.O_DIRECT:
                raise OSError(errno.EINVAL, "Invalid argument")
            return real(path, flags, *rest, **options)

        monkeypatch.setattr(os, "open", without)
    return tmp_path


@pytest.mark.parametrize(("layout", "size"), LAYOUTS)
def test_a_copy_is_the_same_and_allocates_no_more(folder: Path, layout: list[tuple[int, int]], size: int) -> None:
    source, target = folder / "a", folder / "b"
    sparse(source, layout, size)
    _unused, runs = copy(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks <= source.stat().st_blocks
    expected = hashlib.sha256(source.read_bytes()).hexdigest()
    assert read_back(str(target), runs, go_on)[0] == expected
    assert read_back(str(target), None, go_on, from_disk=False) == (expected, False)
    # Where the extents are others, the data are the same all the same
    with target.open("r+b") as file:
        file.write(source.read_bytes())
        os.fsync(file.fileno())
    assert read_back(str(target), runs, go_on)[0] == expected


@pytest.mark.parametrize("offset", [0, 300 * 1024, 3 * MIB + 100, 5 * MIB - 1])
def test_one_byte_that_differs_is_found_and_named(folder: Path, offset: int) -> None:
    """In data, and where there was a hole."""
    source, target = folder / "a", folder / "b"
    sparse(source, [(0, MIB)], 5 * MIB)
    _unused, runs = copy(source, target)
    with target.open("r+b") as file:
        old = os.pread(file.fileno(), 1, offset)
        os.pwrite(file.fileno(), bytes([old[0] ^ 1]), offset)
        os.fsync(file.fileno())
    with pytest.raises(VirtopsError) as caught:
        read_back(str(target), runs, go_on)
    assert caught.value.code == "verify_failed"
    (words,) = re.findall(r"the bytes (\d+) to (\d+) differ", caught.value.cause)
    assert int(words[0]) <= offset <= int(words[1])


@pytest.mark.parametrize("size", [512 * 1024, MIB - 3])
def test_one_that_lost_its_end_is_found(folder: Path, size: int) -> None:
    source, target = folder / "a", folder / "b"
    sparse(source, [(0, MIB)], MIB)
    _unused, runs = copy(source, target)
    os.truncate(target, size)
    with pytest.raises(VirtopsError) as caught:
        read_back(str(target), runs, go_on)
    assert caught.value.code == "verify_failed"


def test_what_is_read_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where O_DIRECT cannot be had and the cache cannot be dropped, that is said."""
    sparse(tmp_path / "a", [(0, MIB)], 3 * MIB)
    _unused, runs = copy(tmp_path / "a", tmp_path / "b")
    monkeypatch.setattr(transfer, "_direct", lambda *_arguments: None)
    with (tmp_path / "b").open("rb") as file:
        file.read()
        assert is_cached(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        can_be_dropped = not is_cached(file.fileno())  # not on tmpfs
        assert read_back(str(tmp_path / "b"), runs, go_on)[1] == can_be_dropped
        file.seek(0)
        file.read()
        monkeypatch.setattr(os, "posix_fadvise", lambda *_arguments: None)
        assert not read_back(str(tmp_path / "b"), runs, go_on)[1]


def test_random_layouts(tmp_path: Path) -> None:
    rng = random.Random(1)
    for number in range(20):
        source, target = tmp_path / ("a%d" % number), tmp_path / ("b%d" % number)
        size = rng.randrange(2 * MIB)
        sparse(source, [(rng.randrange(size), 1) for _unused in range(5)] if size else [], size)
        _unused, runs = copy(source, target)
        assert read_back(str(target), runs, go_on)[0] == hashlib.sha256(source.read_bytes()).hexdigest()


def test_runs_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However scattered the data of a big file are."""
    monkeypatch.setattr(transfer, "_RUNS", 4)
    monkeypatch.setattr(transfer, "_RUN", 4096)
    sparse(tmp_path / "a", [(8192 * index, 4096) for index in range(512)], 4 * MIB)
    _unused, runs = copy(tmp_path / "a", tmp_path / "b")
    assert len(runs) <= 5
    assert read_back(str(tmp_path / "b"), runs, go_on)


@pytest.mark.parametrize("rate", [MIB, 64 * 1024, 1024 * MIB])
def test_the_pace_is_kept(tmp_path: Path, rate: int) -> None:
    sparse(tmp_path / "a", [(0, 4 * MIB)], 4 * MIB)
    clock, _unused = copy(tmp_path / "a", tmp_path / "b", rate)
    assert clock.now == pytest.approx(4 * MIB / rate)


def test_a_copy_can_be_stopped(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop() -> None:
        raise Stop

    sparse(tmp_path / "a", [(0, MIB)], MIB)
    with (tmp_path / "a").open("rb") as one, (tmp_path / "b").open("x+b") as two, pytest.raises(Stop):
        copy_data(one.fileno(), two.fileno(), Pace(0, Clock()), stop)
    with pytest.raises(Stop):
        read_back(str(tmp_path / "a"), None, stop)


@pytest.mark.parametrize(("number", "expected"), [(errno.EOPNOTSUPP, False), (errno.EXDEV, False), (0, True)])
def test_a_file_system_that_cannot_share_blocks(monkeypatch: pytest.MonkeyPatch, number: int, expected: bool) -> None:
    def ioctl(target: int, request: int, source: int) -> int:
        assert (target, request, source) == (4, 0x40049409, 3)
        if number:
            raise OSError(number, "no")
        return 0

    monkeypatch.setattr(transfer.fcntl, "ioctl", ioctl)
    assert transfer.clone(3, 4) is expected


def test_a_clone_that_fails_otherwise_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def ioctl(*arguments: int) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(transfer.fcntl, "ioctl", ioctl)
    with pytest.raises(OSError, match="full"):
        transfer.clone(3, 4)
