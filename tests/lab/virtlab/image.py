# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The test guest's kernel and initramfs, built from the machine's own Debian packages.

The kernel package is unpacked, never installed. Everything is keyed by the packages' versions and by our own
files, so a change of either builds a new image and nothing else does.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ._sys import LabError, locked, run

SOURCES = Path(__file__).resolve().parent.parent / "guest"
MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "evdev", "button", "ext4", "crc32c_generic")
KERNEL_META = "linux-image-cloud-amd64"
AGENT = Path("/usr/sbin/qemu-ga")


@dataclass(frozen=True)
class GuestImage:
    kernel: Path
    initrd: Path


def build(cache: Path) -> GuestImage:
    """Return the image, building it if it is not cached (about 3 s and one download of 30 MB)."""
    kernel_package, version = _kernel_package()
    target = cache / "guest" / _key(kernel_package, version)
    image = GuestImage(target / "vmlinuz", target / "initrd.img")
    with locked(cache / "guest.lock"):
        if target.is_dir():
            return image
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            work = Path(scratch)
            unpacked = _unpack(kernel_package, version, cache, work)
            out = work / "out"
            out.mkdir()
            shutil.copyfile(next((unpacked / "boot").glob("vmlinuz-*")), out / "vmlinuz")
            (out / "initrd.img").write_bytes(_cpio(_files(unpacked, work)))
            out.rename(target)
    return image


def _kernel_package() -> tuple[str, str]:
    """The newest kernel that the meta package stands for: its name and version."""
    shown = run(["apt-cache", "show", "--no-all-versions", KERNEL_META]).stdout
    found = re.search(r"^Depends: (linux-image-\S+) \(= ([^)]+)\)", shown, re.MULTILINE)
    if found is None:
        raise LabError(f"apt knows no {KERNEL_META}: run apt-get update")
    return found[1], found[2]


def _key(kernel_package: str, version: str) -> str:
    digest = hashlib.sha256(f"{kernel_package} {version}".encode())
    for package in ("qemu-guest-agent", "busybox-static", "libc6"):
        digest.update(run(["dpkg-query", "-W", "-f", "${Package} ${Version}\n", package]).stdout.encode())
    for path in [*sorted(SOURCES.rglob("*")), Path(__file__)]:
        if path.is_file():
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _unpack(package: str, version: str, cache: Path, work: Path) -> Path:
    downloads = cache / "debs"
    downloads.mkdir(parents=True, exist_ok=True)
    deb = downloads / f"{package}_{version.replace(':', '%3a')}_amd64.deb"
    if not deb.exists():
        run(["apt-get", "download", f"{package}={version}"], cwd=downloads, timeout=600)
    run(["dpkg-deb", "-x", deb, work / "kernel"])
    return work / "kernel"


@dataclass(frozen=True)
class _Entry:
    """One file of the initramfs; the mode says whether it is a folder, a link or a plain file."""

    path: str
    mode: int
    data: bytes = b""


def _plain(path: str, data: bytes, mode: int = 0o755) -> _Entry:
    return _Entry(path, stat.S_IFREG | mode, data)


def _files(unpacked: Path, work: Path) -> list[_Entry]:
    entries = [_plain("init", (SOURCES / "init").read_bytes())]
    entries += [_plain(f"lab/{script.name}", script.read_bytes()) for script in sorted((SOURCES / "bin").iterdir())]
    for program in ("writer", "control"):
        binary = work / program
        run(["gcc", "-static", "-O2", "-Wall", "-Wextra", "-Werror", "-o", binary, SOURCES / f"{program}.c"])
        entries.append(_plain(f"lab/{program}", binary.read_bytes()))
    entries += [_plain("bin/busybox", Path("/bin/busybox").read_bytes()), _link("bin/sh", "busybox")]
    entries += [_plain(str(path).lstrip("/"), path.read_bytes()) for path in (AGENT, *_libraries(AGENT))]
    # Both doors that a shutdown comes through: the agent calls /sbin/shutdown, acpid the power button's script.
    entries += [_link("sbin/shutdown", "/lab/shutdown"), _link("etc/acpi/PWRF/00000080", "/lab/shutdown")]
    loaded = _modules(unpacked)
    entries += [_plain(f"modules/{name}.ko", data, 0o644) for name, data in loaded.items()]
    entries.append(_plain("modules/order", "".join(f"{name}\n" for name in loaded).encode(), 0o644))
    entries += [_Entry(folder, stat.S_IFDIR | 0o755) for folder in ("dev", "proc", "sys", "run", "mnt", "tmp", "var")]
    return entries


def _link(path: str, target: str) -> _Entry:
    return _Entry(path, stat.S_IFLNK | 0o777, target.encode())


def _libraries(program: Path) -> Iterator[Path]:
    for line in run(["ldd", program]).stdout.splitlines():
        found = re.search(r"(?:=> )?(/\S+) \(0x", line)
        if found is not None:
            yield Path(found[1])


def _modules(unpacked: Path) -> dict[str, bytes]:
    """The wanted modules that this kernel has not built in, each after those it needs.

    The package carries no modules.dep (depmod makes it at installation), so the modules are asked themselves.
    """
    paths = {_module_name(path): path for path in unpacked.glob("**/kernel/**/*.ko*")}
    ordered: dict[str, bytes] = {}

    def add(name: str) -> None:
        path = paths.get(name)
        if path is None or name in ordered:
            return
        data = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        depends = re.search(rb"\0depends=([^\0]*)\0", data)
        for needed in (depends[1].decode() if depends else "").split(","):
            add(needed)
        ordered[name] = data

    # virtio wants virtio_ring, but the two only name each other's symbols: the ring has to come first.
    for name in ("virtio_ring", *MODULES):
        add(name)
    return ordered


def _module_name(path: Path) -> str:
    return path.name.partition(".ko")[0].replace("-", "_")


def _cpio(entries: Iterable[_Entry]) -> bytes:
    """The entries as a newc archive (Linux: Documentation/driver-api/early-userspace/buffer-format.rst)."""
    out = io.BytesIO()
    folders: set[str] = set()
    number = 0

    def put(entry: _Entry) -> None:
        nonlocal number
        number += 1
        name = entry.path.encode() + b"\0"
        fields = (number, entry.mode, 0, 0, 1, 0, len(entry.data), 0, 0, 0, 0, len(name), 0)
        out.write(b"070701" + b"".join(b"%08X" % field for field in fields) + name)
        out.write(b"\0" * (-out.tell() % 4) + entry.data)
        out.write(b"\0" * (-out.tell() % 4))

    for entry in entries:
        for folder in reversed([str(parent) for parent in Path(entry.path).parents][:-1]):
            if folder not in folders:
                folders.add(folder)
                put(_Entry(folder, stat.S_IFDIR | 0o755))
        if entry.path not in folders:
            put(entry)
        if stat.S_ISDIR(entry.mode):
            folders.add(entry.path)
    put(_Entry("TRAILER!!!", 0))
    return out.getvalue()


def place(image: GuestImage, folder: Path) -> None:
    """Give a hypervisor its own copy: libvirt chowns what it boots from, and two must not fight over one inode."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in (image.kernel, image.initrd):
        target = folder / source.name
        if target.exists() and target.stat().st_mtime_ns == source.stat().st_mtime_ns:
            continue
        partial = folder / f".{source.name}"
        run(["cp", "--reflink=auto", "--preserve=timestamps", source, partial])
        os.replace(partial, target)
