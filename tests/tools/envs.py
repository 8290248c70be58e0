# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Virtual environments that are made once, and anew only when what was asked for has changed."""

from __future__ import annotations

import fcntl
import hashlib
import re
import shutil
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STATE = (ROOT / ".dev").resolve()  # ./dev makes .dev a link where the clone's own path would not do
REQUIREMENTS = ROOT / "tests" / "requirements"


def _text(path: Path) -> str:
    """Return the file's text with the files that it includes by -r."""
    text = path.read_text(encoding="utf-8")
    included = re.findall(r"^-r\s+(\S+)", text, flags=re.MULTILINE)
    return text + "".join(_text(path.parent / name) for name in included)


def ensure(name: str, python: Path, *requirements: str) -> Path:
    """Return the bin folder of the environment `name`: `python` with the requirements.

    A requirement is the stem of a file in tests/requirements, or `==`-like text for pip. Safe to call from
    several processes at once.
    """
    files = [REQUIREMENTS / f"{item}.txt" for item in requirements if (REQUIREMENTS / f"{item}.txt").exists()]
    texts = [item for item in requirements if not (REQUIREMENTS / f"{item}.txt").exists()]
    wanted = hashlib.sha256("\0".join([str(python), *texts, *map(_text, files)]).encode()).hexdigest()

    path = STATE / "venvs" / name
    stamp = path / ".requirements.sha256"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.parent / f"{name}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
            return path / "bin"
        started = time.monotonic()
        print(f"environment {name}: installing ...", flush=True)
        shutil.rmtree(path, ignore_errors=True)
        subprocess.run([python, "-m", "venv", path], check=True)
        command = [str(path / "bin" / "python"), "-m", "pip", "install", "-qq", "--retries", "5"]
        command += ["--disable-pip-version-check", *texts]
        for file in files:
            command += ["-r", str(file)]
        subprocess.run(command, check=True)
        stamp.write_text(wanted, encoding="utf-8")
        print(f"environment {name}: ready after {time.monotonic() - started:.0f} s", flush=True)
    return path / "bin"
