# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bytes and holes, on real files."""

from __future__ import annotations

import errno
import hashlib
import os
import random
from pathlib import Path

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._host import transfer
from ansible_collections.virtops.libvirt.plugins.module_utils._host.transfer import Pace, copy_data, sha256

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


def copy(source: Path, target: Path, rate: int = 0) -> Clock:
    clock = Clock()
    with source.open("rb") as one, target.open("xb") as two:
        copy_data(one.fileno(), two.fileno(), Pace(rate, clock), go_on)
    return clock


def sparse(path: Path, layout: list[tuple[int, int]], size: int) -> None:
    """Random data at these (offset, length), holes between them."""
    with path.open("wb") as file:
        file.truncate(size)
        for offset, length in layout:
            file.seek(offset)
            file.write(os.urandom(length))


LAYOUTS = [
    ([], 0),
    ([], 3 * MIB),
    ([(0, 5)], 5),
    ([(0, 3 * MIB)], 3 * MIB),
    ([(MIB, 4096)], 9 * MIB + 17),
    ([(0, 4096), (2 * MIB, 6 * MIB), (20 * MIB - 7, 7)], 20 * MIB),
    ([(4096 * index, 4096) for index in range(0, 200, 2)], 4096 * 300),
]


@pytest.mark.parametrize(("layout", "size"), LAYOUTS)
def test_a_copy_is_the_same_and_allocates_no_more(tmp_path: Path, layout: list[tuple[int, int]], size: int) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    sparse(source, layout, size)
    copy(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks <= source.stat().st_blocks
    expected = hashlib.sha256(source.read_bytes()).hexdigest()
    assert sha256(str(target), go_on) == expected
    assert sha256(str(target), go_on, str(source)) == expected


@pytest.mark.parametrize("offset", [0, 300 * 1024, 3 * MIB + 100, 5 * MIB - 1])
@pytest.mark.parametrize("changed", ["a", "b"])
def test_one_byte_that_differs_is_found(tmp_path: Path, offset: int, changed: str) -> None:
    """In data of both, and where one of them has a hole."""
    source, target = tmp_path / "a", tmp_path / "b"
    sparse(source, [(0, MIB)], 5 * MIB)
    copy(source, target)
    with (tmp_path / changed).open("r+b") as file:
        file.seek(offset)
        old = file.read(1)
        file.seek(offset)
        file.write(bytes([old[0] ^ 1]))
    with pytest.raises(VirtopsError) as caught:
        sha256(str(target), go_on, str(source))
    assert caught.value.code == "verify_failed"


def test_another_length_is_found(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    sparse(source, [(0, MIB)], 5 * MIB)
    copy(source, target)
    os.truncate(target, 4 * MIB)
    with pytest.raises(VirtopsError) as caught:
        sha256(str(target), go_on, str(source))
    assert caught.value.code == "verify_failed"


def test_random_layouts(tmp_path: Path) -> None:
    rng = random.Random(1)
    for number in range(20):
        source, target = tmp_path / ("a%d" % number), tmp_path / ("b%d" % number)
        size = rng.randrange(2 * MIB)
        sparse(source, [(rng.randrange(size), 1) for _unused in range(5)] if size else [], size)
        copy(source, target)
        assert sha256(str(target), go_on, str(source)) == hashlib.sha256(source.read_bytes()).hexdigest()


@pytest.mark.parametrize("rate", [MIB, 64 * 1024, 1024 * MIB])
def test_the_pace_is_kept(tmp_path: Path, rate: int) -> None:
    sparse(tmp_path / "a", [(0, 4 * MIB)], 4 * MIB)
    clock = copy(tmp_path / "a", tmp_path / "b", rate)
    assert clock.now == pytest.approx(4 * MIB / rate)


def test_a_copy_can_be_stopped(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop() -> None:
        raise Stop

    sparse(tmp_path / "a", [(0, MIB)], MIB)
    with (tmp_path / "a").open("rb") as one, (tmp_path / "b").open("xb") as two, pytest.raises(Stop):
        copy_data(one.fileno(), two.fileno(), Pace(0, Clock()), stop)
    with pytest.raises(Stop):
        sha256(str(tmp_path / "a"), stop)


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
