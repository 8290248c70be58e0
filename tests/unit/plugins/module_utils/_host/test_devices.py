# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What names a block device for good, in a sysfs of our own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._host import devices

NUMBER = os.makedev(253, 4)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The device's folder; the numbers are links to it."""
    monkeypatch.setattr(devices, "SYSFS", str(tmp_path / "block"))
    monkeypatch.setattr(devices, "UDEV", str(tmp_path / "udev"))
    device = tmp_path / "devices" / "x"
    for made in (tmp_path / "block", tmp_path / "udev", device):
        made.mkdir(parents=True)
    (tmp_path / "block" / "253:4").symlink_to(device)
    return device


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({"dm/uuid": "LVM-abc\n", "serial": "x"}, "dm LVM-abc"),
        ({"dm/uuid": "\n", "wwid": "eui.00\n"}, "wwid eui.00"),
        ({"device/wwid": "naa.5000\n"}, "wwid naa.5000"),
        ({"serial": "disk-7\n"}, "serial disk-7"),
        ({"loop/backing_file": "/srv/a b\n", "loop/offset": "0\n"}, "loop /srv/a b at 0"),
        ({"../../udev/b253:4": "S:x\nE:ID_SERIAL=a=b\n"}, "ID_SERIAL a=b"),
        ({}, "number 253:4"),
    ],
)
def test_names(folder: Path, files: dict[str, str], name: str) -> None:
    for path, text in files.items():
        write(folder / path, text)
    assert devices.lasting_name(NUMBER) == name


@pytest.mark.parametrize(("serial", "name"), [("disk-7", "serial disk-7-part2"), ("", "253:3-part2")])
def test_a_partition(folder: Path, serial: str, name: str, tmp_path: Path) -> None:
    part = folder / "x2"
    write(part / "partition", "2\n")
    write(folder / "dev", "253:3\n")
    write(folder / "serial", serial)
    link = tmp_path / "block" / "253:4"
    link.unlink()
    link.symlink_to(part)
    assert devices.lasting_name(NUMBER) == name


def test_size(folder: Path) -> None:
    assert devices.size_of(NUMBER) == 0
    write(folder / "size", "98304\n")
    assert devices.size_of(NUMBER) == 48 << 20
