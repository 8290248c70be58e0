# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""The code that is installed is whole: it runs where there is nothing else of ours, and no Ansible."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

libvirt = pytest.importorskip("libvirt")
lxml = pytest.importorskip("lxml")

from ansible_collections.virtops.libvirt.plugins.module_utils._boot import recover  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._core.boot import LIBRARY, BootOptions, wanted  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.modules import boot_recovery  # noqa: E402


def test_the_code_stands_alone(tmp_path: Path) -> None:
    wish = BootOptions("present", "test:///default", 60, sys.executable)
    for path, entry in wanted(wish, boot_recovery._sources(), recover.__name__).items():
        if path.startswith(LIBRARY) and entry.text is not None:
            file = tmp_path / path[len(LIBRARY) + 1 :]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(entry.text, encoding="utf-8")
    libraries = [Path(libvirt.__file__).parent, Path(lxml.__file__).parent.parent]
    # Refusing Ansible: its own code must not be needed
    code = "import sys, runpy; sys.modules['ansible'] = None; runpy.run_module(sys.argv.pop(1), run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-B", "-c", code, recover.__name__, "--uri", "test:///default"],
        env={"PYTHONPATH": ":".join(map(str, [tmp_path, *libraries]))},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "test: nothing to do\n", "")
