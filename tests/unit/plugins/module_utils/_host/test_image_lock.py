# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lock, against the real QEMU tools on both sides."""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._host.image_lock import (
    ImageLock,
    is_being_written,
    is_lockable,
)

pytestmark = pytest.mark.skipif(
    shutil.which("qemu-img") is None or shutil.which("qemu-io") is None, reason="qemu-utils is not installed"
)


@pytest.fixture(params=["raw", "qcow2"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    path = str(tmp_path / "image")
    subprocess.run(["qemu-img", "create", "-q", "-f", request.param, path, "1M"], check=True)
    return path, request.param


@pytest.fixture
def writer(image: tuple[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A process that has the image open for writing, as a commit has."""
    path, image_format = image
    with subprocess.Popen(
        ["qemu-io", "-f", image_format, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("length\n")
        process.stdin.flush()
        while "1 MiB" not in process.stdout.readline():
            pass
        yield process
        process.stdin.close()


def write(path: str, image_format: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["qemu-io", "-f", image_format, "-c", "write 0 4k", path], capture_output=True, text=True, check=False
    )


def test_qemu_may_not_write_while_we_read(image: tuple[str, str]) -> None:
    with ImageLock(image[0]):
        done = write(*image)
        assert 'Failed to get "write" lock' in done.stderr
    done = write(*image)
    assert done.stderr == ""


def test_qemu_may_not_commit_while_we_read(image: tuple[str, str], tmp_path: Path) -> None:
    path, image_format = image
    overlay = str(tmp_path / "overlay")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", image_format, "-b", path, overlay], check=True)
    assert write(overlay, "qcow2").stderr == ""
    commit = ["qemu-img", "commit", "-q", "-d", "-f", "qcow2", overlay]
    with ImageLock(path):
        assert "lock" in subprocess.run(commit, capture_output=True, text=True, check=False).stderr
    assert subprocess.run(commit, capture_output=True, text=True, check=False).stderr == ""


def test_qemu_and_others_of_us_may_read_meanwhile(image: tuple[str, str]) -> None:
    with ImageLock(image[0]), ImageLock(image[0]):
        subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", image[0]], check=image[1] == "qcow2")
        subprocess.run(["qemu-img", "convert", "-f", image[1], "-O", "raw", *image[:1], image[0] + ".copy"], check=True)


@pytest.mark.usefixtures("writer")
def test_we_do_not_read_while_qemu_writes(image: tuple[str, str]) -> None:
    with pytest.raises(VirtopsError) as caught, ImageLock(image[0]):
        pass
    assert caught.value.code == "image_locked"


def test_an_image_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(VirtopsError) as caught, ImageLock(str(tmp_path / "none")):
        pass
    assert caught.value.code == "no_image"


def test_where_locks_hold(image: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_lockable(image[0])
    assert not is_lockable(str(tmp_path))
    assert not is_lockable(str(tmp_path / "none"))
    with monkeypatch.context() as patch:
        patch.setattr("fcntl.fcntl", failing_with(errno.ENOLCK))
        assert not is_lockable(image[0])


def failing_with(number: int) -> Callable[..., int]:
    """As a file system without locks answers."""

    def fcntl(*_unused: object) -> int:
        raise OSError(number, "")

    return fcntl


def test_who_writes_is_seen_and_not_who_reads(image: tuple[str, str], tmp_path: Path) -> None:
    with ImageLock(image[0]):
        assert not is_being_written(image[0])
    assert not is_being_written(str(tmp_path / "none"))


@pytest.mark.usefixtures("writer")
def test_qemu_is_seen_to_write(image: tuple[str, str]) -> None:
    assert is_being_written(image[0])
