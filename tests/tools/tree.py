# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The collection at the path that Ansible's tools ask for, wherever the clone is.

ansible-test resolves links, so `.../ansible_collections/virtops/libvirt` has to be a real folder: a copy, kept equal
to the clone without what git ignores. It is its own git repository (all added, nothing committed), because the tools
that ask git which files there are would otherwise find the clone's, which ignores the copy.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from .envs import ROOT, STATE

COLLECTIONS = STATE / "collections"
TREE = COLLECTIONS / "ansible_collections" / "virtops" / "libvirt"


def sync() -> Path:
    """Make the copy equal to the clone, unless `./dev test` has already done so for all its sets."""
    if os.environ.get("DEV_TREE_IS_SYNCED") != "1":
        TREE.mkdir(parents=True, exist_ok=True)
        if not (TREE / ".git").exists():
            subprocess.run(["git", "init", "--quiet", TREE], check=True)
        # What is excluded is not deleted on the other side either: tests/output stays.
        command = ["rsync", "-a", "--delete", "--exclude=/.git", "--filter=:- .gitignore", f"{ROOT}/", f"{TREE}/"]
        subprocess.run(command, check=True)
        subprocess.run(["git", "-C", TREE, "add", "--all"], check=True)
    return TREE
