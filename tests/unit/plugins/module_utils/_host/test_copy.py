# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Copies of real images."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.backup import (
    Copied,
    CopyOrder,
    VerifyOrder,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Layer
from ansible_collections.virtops.libvirt.plugins.module_utils._host import copy as copy_module
from ansible_collections.virtops.libvirt.plugins.module_utils._host.copy import ImageCopier
from ansible_collections.virtops.libvirt.plugins.module_utils._host.images import Images
from ansible_collections.virtops.libvirt.plugins.module_utils._host.locks import Slots

pytestmark = pytest.mark.skipif(
    shutil.which("qemu-img") is None or shutil.which("qemu-io") is None, reason="qemu-utils is not installed"
)

MIB = 1024 * 1024


@pytest.fixture
def copier(tmp_path: Path) -> ImageCopier:
    (tmp_path / "locks").mkdir()
    (tmp_path / "set").mkdir()
    return ImageCopier(
        lambda done, life: None, slots=lambda count: Slots(count, directories=lambda: [str(tmp_path / "locks")])
    )


def image(path: Path, image_format: str, backing: Layer | None = None, pattern: int = 1) -> Layer:
    below = ["-b", backing.path, "-F", backing.format] if backing else []
    subprocess.run(["qemu-img", "create", "-q", "-f", image_format, *below, str(path), "16M"], check=True)
    write = ["-c", "write -P %d %dM 1M" % (pattern, pattern)]
    subprocess.run(["qemu-io", "-f", image_format, *write, str(path)], check=True, stdout=subprocess.DEVNULL)
    return Layer(str(path), image_format)


def order(source: Layer, image_format: str | None = None, method: str = "copy", **options: Any) -> CopyOrder:
    kind = image_format or source.format
    target = options.pop("target", "vda")
    return CopyOrder(target, source, "%s.%s" % (target, kind), kind, (method,), 16 * MIB, 0, **options)


def same(one: Layer, path: Path, image_format: str) -> bool:
    argv = ["qemu-img", "compare", "-q", "-f", one.format, "-F", image_format, one.path, str(path)]
    return subprocess.run(argv, check=False).returncode == 0


def verify(copier: ImageCopier, tmp_path: Path, wanted: CopyOrder, copied: Copied) -> str:
    check = VerifyOrder(wanted.file, copied.bytes, wanted.target, wanted.format, copied.runs, from_disk=wanted.verify)
    return copier.verify_all((check,), str(tmp_path / "set"), 1)[wanted.file].sha256


def copy(copier: ImageCopier, tmp_path: Path, wanted: CopyOrder) -> tuple[Copied, Path]:
    found = copier.copy_all((wanted,), str(tmp_path / "set"), 1)[wanted.target]
    path = tmp_path / "set" / wanted.file
    assert (found.runs is None) == (not wanted.verify or found.method == "reflink")
    assert verify(copier, tmp_path, wanted, found) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.bytes == path.stat().st_size
    assert found.allocated == path.stat().st_blocks * 512
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert same(wanted.source, path, wanted.format)
    return found, path


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("source", ["raw", "qcow2"])
@pytest.mark.parametrize(
    ("target", "method"), [(None, "copy"), (None, "convert"), ("raw", "convert"), ("qcow2", "convert")]
)
def test_formats_and_methods(
    copier: ImageCopier, tmp_path: Path, source: str, target: str | None, method: str, verify: bool
) -> None:
    base = image(tmp_path / "with space, comma ü.img", source)
    found, _unused = copy(copier, tmp_path, order(base, target, method, verify=verify))
    assert found.method == method
    if method == "copy":
        assert found.allocated <= os.stat(base.path).st_blocks * 512


def test_compression_makes_it_smaller(copier: ImageCopier, tmp_path: Path) -> None:
    base = image(tmp_path / "a", "qcow2")
    found, _unused = copy(copier, tmp_path, order(base, method="convert", compress=True))
    assert found.allocated < os.stat(base.path).st_blocks * 512 // 2


def test_a_flattened_copy_stands_alone(copier: ImageCopier, tmp_path: Path) -> None:
    golden = image(tmp_path / "golden", "raw", pattern=2)
    base = image(tmp_path / "a", "qcow2", golden)
    _unused, path = copy(copier, tmp_path, order(base, method="convert"))
    assert Images().info(str(path), "qcow2").backing_path is None
    os.unlink(golden.path)
    subprocess.run(["qemu-io", "-r", "-f", "qcow2", "-c", "read -P 2 2M 1M", str(path)], check=True)


def test_a_copy_that_needs_another_file_is_none(copier: ImageCopier, tmp_path: Path) -> None:
    """Its plan converts it; this is the last look."""
    path, data = tmp_path / "a", tmp_path / "data"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={data}", str(path), "1M"], check=True)
    base = Layer(str(path), "qcow2")
    with pytest.raises(VirtopsError) as caught:
        copy(copier, tmp_path, order(base, method="copy", verify=False))
    assert caught.value.code == "verify_failed"
    assert str(data) in caught.value.cause
    os.unlink(tmp_path / "set" / "vda.qcow2")
    copy(copier, tmp_path, order(base, method="convert"))


@pytest.mark.parametrize("method", ["copy", "convert"])
def test_a_kept_reference_is_absolute(copier: ImageCopier, tmp_path: Path, method: str) -> None:
    golden = image(tmp_path / "golden", "qcow2", pattern=2)
    base = image(tmp_path / "a", "qcow2", golden)
    subprocess.run(["qemu-img", "rebase", "-u", "-b", "golden", "-F", "qcow2", base.path], check=True)
    _unused, path = copy(copier, tmp_path, order(base, method=method, backing=golden))
    info = Images().info(str(path), "qcow2")
    assert (info.backing_path, info.backing_format) == (golden.path, "qcow2")


def test_no_reflink_is_said(copier: ImageCopier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_module, "clone", lambda source, target: False)
    base = image(tmp_path / "a", "raw")
    with pytest.raises(VirtopsError) as caught:
        copier.copy_all((order(base, method="reflink"),), str(tmp_path / "set"), 1)
    assert caught.value.code == "no_reflink"
    os.unlink(tmp_path / "set" / "vda.raw")
    both = CopyOrder("vda", base, "vda.raw", "raw", ("reflink", "copy"), 16 * MIB, 0)
    assert copier.copy_all((both,), str(tmp_path / "set"), 1)["vda"].method == "copy"


def test_a_clone_is_taken_where_it_works(copier: ImageCopier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def clone(source: int, target: int) -> bool:
        os.sendfile(target, source, 0, 1 << 30)
        return True

    monkeypatch.setattr(copy_module, "clone", clone)
    found, _unused = copy(copier, tmp_path, order(image(tmp_path / "a", "raw"), method="reflink"))
    assert found.method == "reflink"


def test_a_source_with_errors_is_no_backup(copier: ImageCopier, tmp_path: Path) -> None:
    base = image(tmp_path / "a", "qcow2")
    with open(base.path, "r+b") as file:
        file.seek(0x20000)  # a block of reference counts
        file.write(b"\0" * 65536)
    found = copier.copy_all((order(base),), str(tmp_path / "set"), 1)["vda"]
    with pytest.raises(VirtopsError) as caught:
        verify(copier, tmp_path, order(base), found)
    assert caught.value.code == "verify_failed"


def flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(MIB + 5)
        file.write(b"\xff")


@pytest.mark.parametrize("method", ["copy", "convert"])
@pytest.mark.parametrize(
    ("damage", "words"), [(flip, "the bytes "), (lambda path: os.truncate(path, MIB), "bytes instead of")]
)
def test_a_copy_that_differs_is_no_backup(
    copier: ImageCopier, tmp_path: Path, method: str, damage: Callable[[Path], None], words: str
) -> None:
    wanted = order(image(tmp_path / "a", "raw"), method=method)
    found = copier.copy_all((wanted,), str(tmp_path / "set"), 1)["vda"]
    damage(tmp_path / "set" / "vda.raw")
    with pytest.raises(VirtopsError) as caught:
        verify(copier, tmp_path, wanted, found)
    assert caught.value.code == "verify_failed"
    assert words in caught.value.cause


def test_a_conversion_is_compared_with_its_source(
    copier: ImageCopier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That qemu-img wrote what it read tells only a second look at both."""
    base = image(tmp_path / "a", "raw")
    monkeypatch.setattr(copy_module._Copy, "_convert", lambda copy: flip_new(Path(copy._path)))
    with pytest.raises(VirtopsError) as caught:
        copier.copy_all((order(base, method="convert"),), str(tmp_path / "set"), 1)
    assert caught.value.code == "verify_failed"


def flip_new(path: Path) -> None:
    """A conversion that went wrong."""
    os.truncate(path, 16 * MIB)
    flip(path)


def test_the_first_failure_stops_the_others(copier: ImageCopier, tmp_path: Path) -> None:
    """Also one that runs in qemu-img: at 1 byte/s it would take for ever."""
    slow = order(image(tmp_path / "a", "raw"), method="convert", rate_limit=1, target="vda")
    paced = order(image(tmp_path / "b", "raw"), rate_limit=4096, target="vdb")
    broken = order(Layer(str(tmp_path / "none"), "raw"), target="vdc")
    with pytest.raises(VirtopsError) as caught:
        copier.copy_all((slow, paced, broken), str(tmp_path / "set"), 3)
    assert caught.value.code == "no_image"


def test_no_more_at_a_time_than_the_hypervisor_allows(
    copier: ImageCopier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, most, lock = [0], [0], threading.Lock()
    real: Callable[..., Any] = copy_module.copy_data

    def counted(*arguments: Any) -> Any:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        found = real(*arguments)
        with lock:
            running[0] -= 1
        return found

    monkeypatch.setattr(copy_module, "copy_data", counted)
    orders = tuple(order(image(tmp_path / name, "raw"), target=name) for name in ("a", "b", "c"))
    assert set(copier.copy_all(orders, str(tmp_path / "set"), 1)) == {"a", "b", "c"}
    assert most == [1]
    assert os.listdir(tmp_path / "locks") == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_target_is_said_as_such(copier: ImageCopier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: int, target: int, *rest: object) -> None:
        with open("/dev/full", "wb", buffering=0) as device:
            device.write(b"x")

    monkeypatch.setattr(copy_module, "copy_data", full)
    with pytest.raises(VirtopsError) as caught:
        copier.copy_all((order(image(tmp_path / "a", "raw")),), str(tmp_path / "set"), 1)
    assert caught.value.code == "no_space"
