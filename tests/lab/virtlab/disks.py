# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disk images for test guests, made on the machine without mounting anything."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ._sys import LabError, locked, run


@dataclass(frozen=True)
class Disk:
    """One disk of a guest.

    target      name in the guest and in libvirt: vda, vdb, … (virtio), sda (scsi), hda (ide; for a cdrom), fda
    size_mib    size of the disk; its ext4 takes all of it
    format      raw or qcow2
    fill_mib    that much incompressible data in /fill.bin on it
    golden      name of a golden image: the disk is a qcow2 overlay of it, and so are those of other guests
    path        where the image lies inside the hypervisor; default IMAGES/<guest>/<target>.<format>
    device      disk, cdrom or floppy; the latter two are empty unless `path` names an image that is there already
    blank       no file system: the guest leaves the disk alone (the right thing for a shareable one)
    existing    do not make the image: `path` is there already (another guest's shareable disk, a restored backup)
    """

    target: str = "vda"
    size_mib: int = 64
    format: str = "qcow2"
    fill_mib: int = 0
    golden: str | None = None
    path: str | None = None
    device: str = "disk"
    readonly: bool = False
    shareable: bool = False
    transient: bool = False
    blank: bool = False
    existing: bool = False

    def __post_init__(self) -> None:
        if self.format not in ("raw", "qcow2") or self.device not in ("disk", "cdrom", "floppy"):
            raise LabError(f"{self.target}: format is raw or qcow2, device disk, cdrom or floppy")
        if self.golden and self.format != "qcow2":
            raise LabError(f"{self.target}: only a qcow2 disk can stand on a golden image")

    @property
    def bus(self) -> str:
        return {"vd": "virtio", "sd": "scsi", "hd": "ide", "fd": "fdc"}[self.target[:2]]


def ext4_image(cache: Path, size_mib: int, fill_mib: int) -> Path:
    """A cached raw image with ext4 on all of it and `fill_mib` of data that does not compress."""
    image = cache / "disks" / f"ext4-{size_mib}-{fill_mib}.raw"
    with locked(cache / "disks.lock"):
        if image.exists():
            return image
        image.parent.mkdir(parents=True, exist_ok=True)
        partial = image.with_suffix(".new")
        with partial.open("wb") as handle:
            handle.truncate(size_mib << 20)
        with tempfile.TemporaryDirectory(dir=image.parent) as content:
            if fill_mib:
                _fill(Path(content) / "fill.bin", fill_mib)
            options = ["-q", "-F", "-t", "ext4", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"]
            run(["mke2fs", *options, "-d", content, partial], timeout=900)
        partial.rename(image)
    return image


def _fill(path: Path, mib: int) -> None:
    """Random pages, each MiB made different from all others by its number: fast, and no tool can fold it."""
    block = bytearray(os.urandom(1 << 20))
    with path.open("wb") as handle:
        for number in range(mib):
            for page in range(0, len(block), 4096):
                block[page : page + 8] = number.to_bytes(8, "little")
            handle.write(block)


def make(cache: Path, disk: Disk, target: Path) -> None:
    """Write a disk's image at a path of the machine; not for disks on a golden image."""
    if target.exists():
        raise LabError(f"{target} is there already")
    partial = target.with_name(f".{target.name}.new")
    if disk.blank:
        run(["qemu-img", "create", "-q", "-f", disk.format, partial, f"{disk.size_mib}M"])
    else:
        source = ext4_image(cache, disk.size_mib, disk.fill_mib)
        if disk.format == "raw":
            run(["cp", "--reflink=auto", "--sparse=always", source, partial], timeout=600)
        else:
            run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", source, partial], timeout=600)
    partial.chmod(0o600)
    partial.rename(target)
