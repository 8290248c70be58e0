# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Root file systems of other generations of libvirt and QEMU: debootstrapped Debians, each made once and cached."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from ._sys import LabError, locked, run

MAKE_ROOT = Path(__file__).resolve().parent.parent / "hypervisor" / "make-root"


@dataclass(frozen=True)
class Generation:
    """A Debian: its suite, debootstrap's script for it, and a mirror that (still) has it."""

    suite: str
    script: str
    mirror: str = "http://deb.debian.org/debian"


GENERATIONS = {
    "debian11": Generation("bullseye", "bullseye"),  # libvirt 7.0, QEMU 5.2, Python 3.9
    "debian12": Generation("bookworm", "bookworm"),  # libvirt 9.0, QEMU 7.2
    "debian13": Generation("trixie", "sid"),  # libvirt 11.3, QEMU 10.0
    "forky": Generation("forky", "sid"),  # libvirt 12, QEMU 11; Debian 12's debootstrap has no script of that name
}


def root_of(cache: Path, name: str) -> Path:
    """The root file system of a generation, made if it is not there (about a minute and 300 MB of downloads)."""
    if name == "host":
        return Path("/")
    generation = GENERATIONS.get(name)
    if generation is None:
        raise LabError(f"{name}: no such generation; there are host, {', '.join(GENERATIONS)}")
    root = cache / "roots" / name
    with locked(cache / f"root-{name}.lock"):
        if not root.is_dir():
            partial = root.with_suffix(".new")
            if partial.exists():
                shutil.rmtree(partial)
            partial.parent.mkdir(parents=True, exist_ok=True)
            mirror = os.environ.get("VIRTOPS_LAB_MIRROR") or generation.mirror
            make = [str(MAKE_ROOT), str(partial), generation.suite, generation.script, mirror]
            run(["unshare", "--mount", "--pid", "--fork", "--kill-child", *make], timeout=1800)
            partial.rename(root)
    return root
