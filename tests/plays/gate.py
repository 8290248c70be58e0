# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Holds the job of a live backup before one of its phases: by a file on its hypervisor, and some code for tests."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from virtlab import Hypervisor

TREE = Path("ansible_collections/virtops/libvirt")
FLOW = "plugins/module_utils/_service/live_backup.py"
GATES = "/run/gates"
BEGIN = "        self._guest.progress.phase(name)\n"
HOLD = f"""
        import os, time
        if os.path.exists("{GATES}/" + name):
            open("{GATES}/" + name + ".reached", "w").close()
            while os.path.exists("{GATES}/" + name):
                time.sleep(0.02)
"""


def gated(collections: Path, target: Path) -> Path:
    """Copy the collection from one ansible_collections to another, where the flow has gates."""
    for name in ("galaxy.yml", "meta", "playbooks", "plugins", "roles"):
        source, copy = collections / TREE / name, target / TREE / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, copy) if source.is_dir() else shutil.copyfile(source, copy)
    path = target / TREE / FLOW
    before, begin, after = path.read_text(encoding="utf-8").partition(BEGIN)
    assert begin, f"{FLOW} has no {BEGIN}"
    path.write_text(before + begin + HOLD + after, encoding="utf-8")
    return target


class Gate:
    """One phase, on one hypervisor: shut from the beginning."""

    def __init__(self, hypervisor: Hypervisor, phase: str) -> None:
        """Shut it."""
        folder = hypervisor.outside(GATES)
        folder.mkdir(exist_ok=True)
        self.path, self.reached = folder / phase, folder / f"{phase}.reached"
        self.reached.unlink(missing_ok=True)
        self.path.touch()

    def wait(self, seconds: float) -> bool:
        """Say whether a job came to it within this time."""
        deadline = time.monotonic() + seconds
        while not self.reached.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.reached.exists()

    def open(self) -> None:
        """Let the job go on; where the host was booted since, there is none."""
        self.path.unlink(missing_ok=True)
