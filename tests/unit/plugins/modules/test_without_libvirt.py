# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Sets are listed, and with lxml alone verified, on a backup server that knows no libvirt."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.libvirt.tests.unit.plugins import module_args

CODE = """
import sys, json, importlib
for name in sys.argv[3].split(","):
    sys.modules[name] = None
from ansible_collections.virtops.libvirt.tests.unit.plugins.module_args import patch_module_args
module = importlib.import_module("ansible_collections.virtops.libvirt.plugins.modules." + sys.argv[1])
with patch_module_args(json.loads(sys.argv[2])):
    module.main()
"""


def run(module: str, lacking: str, **options: Any) -> dict[str, Any]:
    path = str(Path(module_args.__file__).parents[6])
    argv = [sys.executable, "-B", "-c", CODE, module, json.dumps(options), lacking]
    env = {"PYTHONPATH": ":".join([path, *sys.path])}
    done = subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_listing_needs_neither(tmp_path: Path) -> None:
    assert run("backup_info", "libvirt,libvirt_qemu,lxml", dest=str(tmp_path))["sets"] == []
    refused = run("backup_info", "libvirt,libvirt_qemu,lxml", dest=str(tmp_path / "none"))
    assert refused["error_code"] == "dest_missing"


def test_reading_needs_lxml(tmp_path: Path) -> None:
    for module, options in (("backup_info", {"verify": True}), ("backup_verify", {})):
        refused = run(module, "libvirt,libvirt_qemu,lxml", dest=str(tmp_path), **options)
        assert refused["error_code"] == "missing_library"
    pytest.importorskip("lxml")
    assert run("backup_info", "libvirt,libvirt_qemu", dest=str(tmp_path), verify=True)["sets"] == []
