# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the role live_backup and its report say of a guest whose backup failed, by how its recovery ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

TREE = Path(__file__).resolve().parents[2]
MODULE = """#!/usr/bin/python
import os, signal
%s
"""
FAILS = 'print(\'{"failed": true, "msg": "No room.", "error_code": "no_space"}\')'
KILLED = "os.kill(os.getpid(), signal.SIGKILL)"
NEVER = 'print(\'{"failed": true, "msg": "never", "error_code": "never"}\')'
RECOVERIES = {
    "not needed": (NEVER, "No room."),
    "done": ('print(\'{"changed": true, "actions": [], "operations": []}\')', "no overlay is left"),
    "failed": (FAILS, "could not be put right: No room."),
    "killed": (KILLED, "may be on its overlays still"),
    "a bug": ("raise ValueError('a bug')", "may be on its overlays still"),
}
PLAY = [
    {
        "hosts": "web",
        "gather_facts": False,
        "tasks": [
            {
                "name": "Back up",
                "block": [{"name": "Run", "ansible.builtin.include_role": {"name": "virtops.libvirt.live_backup"}}],
                "rescue": [
                    {
                        "name": "Keep what it said",
                        "ansible.builtin.copy": {
                            "content": "{{ ansible_failed_result.error_code | default('none') }}\n"
                            "{{ ansible_failed_result.msg }}\n{{ lookup('template', report) }}",
                            "dest": "{{ playbook_dir }}/said",
                            "mode": "0600",
                        },
                    }
                ],
            }
        ],
    }
]


@pytest.fixture
def collections(tmp_path: Path) -> Path:
    """The collection without modules; the test adds those that it runs."""
    folder = tmp_path / "ansible_collections" / "virtops" / "libvirt"
    (folder / "plugins" / "modules").mkdir(parents=True)
    for name in (
        "roles",
        "meta",
        "galaxy.yml",
        "plugins/filter",
        "plugins/action",
        "plugins/plugin_utils",
        "plugins/module_utils",
    ):
        (folder / name).symlink_to(TREE / name)
    return folder


@pytest.mark.parametrize("how", RECOVERIES)
def test_what_is_told(tmp_path: Path, collections: Path, how: str) -> None:
    """An overlay is said to be gone only where the recovery came to its end, or the backup itself says so."""
    code, words = RECOVERIES[how]
    backup = FAILS if how == "not needed" else KILLED
    for name, text in (("live_backup", backup), ("recover", code)):
        (collections / "plugins" / "modules" / f"{name}.py").write_text(MODULE % text, encoding="utf-8")
    (tmp_path / "play.yml").write_text(yaml.safe_dump(PLAY), encoding="utf-8")
    given = {
        "live_backup_domain": "web",
        "live_backup_dest": "/srv/backup",
        "live_backup_hypervisor": "localhost",
        "ansible_python_interpreter": sys.executable,
        "report": str(TREE / "playbooks" / "templates" / "live_backup_report.j2"),
        "__live_backup_all": ["web"],
        "__live_backup_good": [],
        "__live_backup_guests": ["web"],
        "__live_backup_unmatched": [],
        "__live_backup_missed": [],
        "__live_backup_left_out": [],
        "__live_backup_stuck": [],
        "__live_backup_elsewhere": [],
        "__live_backup_unseen": ["web"],
    }
    (tmp_path / "given.yml").write_text(yaml.safe_dump(given), encoding="utf-8")
    env = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(tmp_path), "ANSIBLE_LOCALHOST_WARNING": "false"}
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "web,", "-c", "local"]
    ran = subprocess.run(
        [*command, "-e", f"@{tmp_path}/given.yml", str(tmp_path / "play.yml")],
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
    said = (tmp_path / "said").read_text(encoding="utf-8")
    assert said.count(words) == 2, said
    # One that was killed with its module has no code
    assert said.startswith("no_space\n" if how == "not needed" else "none\n")
    assert "never" not in said
    assert ("no overlay is left" in said) == (how == "done")
