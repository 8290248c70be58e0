# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which Pythons this machine has, and which of them each ansible-core supports."""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

# Per ansible-core: the Pythons that it runs on, and those that only modules run on (3.9 is our floor).
# From ansible_test/_util/target/common/constants.py of each release.
CONTROLLER = {
    "2.16": ("3.10", "3.11", "3.12"),
    "2.17": ("3.10", "3.11", "3.12"),
    "2.18": ("3.11", "3.12", "3.13"),
    "2.19": ("3.11", "3.12", "3.13"),
    "2.20": ("3.12", "3.13", "3.14"),
    "2.21": ("3.12", "3.13", "3.14"),
}
MODULES_ONLY = {
    "2.16": ("3.9",),
    "2.17": ("3.9",),
    "2.18": ("3.9", "3.10"),
    "2.19": ("3.9", "3.10"),
    "2.20": ("3.9", "3.10", "3.11"),
    "2.21": ("3.9", "3.10", "3.11"),
}
CORES = tuple(CONTROLLER)
ALL = ("3.9", "3.10", "3.11", "3.12", "3.13", "3.14")


def _folders() -> Iterator[Path]:
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        if folder:
            yield Path(folder)
    yield from (Path("/usr/bin"), Path("/usr/local/bin"))
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from sorted(pyenv.glob("versions/*/bin"))


def _real(python: Path, version: str) -> Path | None:
    """Return the interpreter behind a path, None if it is not that Python, is one of a venv, or cannot make one.

    A pyenv shim either starts another file or says "command not found"; Debian's Python may lack ensurepip.
    """
    code = (
        "import ensurepip, sys, venv;"
        "print('%d.%d' % sys.version_info[:2], sys.prefix == sys.base_prefix, sys.executable)"
    )
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    said, _rest, executable = done.stdout.strip().partition(" True ")
    return Path(executable) if done.returncode == 0 and said == version else None


@functools.cache
def available() -> dict[str, Path]:
    """Return a real interpreter for each Python minor version that the machine has."""
    found: dict[str, Path] = {}
    for folder in dict.fromkeys(_folders()):
        for version in ALL:
            python = folder / f"python{version}"
            real = _real(python, version) if version not in found and python.exists() else None
            if real:
                found[version] = real
    return {version: found[version] for version in ALL if version in found}


def for_core(core: str) -> tuple[str, ...]:
    """Return the available Pythons that modules run on with this ansible-core."""
    return tuple(v for v in MODULES_ONLY[core] + CONTROLLER[core] if v in available())


def controller_for(core: str) -> str | None:
    """Return the oldest available Python that this ansible-core runs on, None if there is none."""
    return next((v for v in CONTROLLER[core] if v in available()), None)
