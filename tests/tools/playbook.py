# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The collection's playbooks from the clone's copy, as a user's `ansible-playbook` would run them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from .envs import ROOT
from .tree import COLLECTIONS

CONFIG = ROOT / "tests" / "demo" / "ansible.cfg"


def command(playbook: str, inventory: Path, **variables: Any) -> list[str]:
    """Return the command line; `variables` go in as extra variables."""
    ansible_playbook = Path(sys.executable).parent / "ansible-playbook"
    return [str(ansible_playbook), "-i", str(inventory), f"virtops.libvirt.{playbook}", "-e", json.dumps(variables)]


def environment() -> dict[str, str]:
    """Return a process environment with nothing of the caller's Ansible in it."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("ANSIBLE_", "PYTHON"))}
    ours = {"ANSIBLE_CONFIG": str(CONFIG), "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS), "LC_ALL": "C.UTF-8"}
    return {**env, **ours, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
