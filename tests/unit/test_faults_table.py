# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""The table of what each fault test guards names code that is there, and leaves no fault out."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAULTS = ROOT / "tests" / "faults"


def load(path: Path) -> ModuleType:
    """Return the module of a file that lies in no package of the units."""
    spec = importlib.util.spec_from_file_location("virtops_faults_table", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


TABLE = load(FAULTS / "mutations.py")


@pytest.mark.parametrize("mutation", TABLE.MUTATIONS, ids=lambda mutation: mutation.fault)
def test_each_edit_has_its_place(mutation: Any) -> None:
    for edit in mutation.edits:
        text = (ROOT / edit.file).read_text(encoding="utf-8")
        assert TABLE.applied(edit, text) != text
    assert bool(mutation.sees) == bool(mutation.edits)


def test_each_fault_has_its_test_and_its_row() -> None:
    texts = [path.read_text(encoding="utf-8") for path in FAULTS.glob("test_*.py")]
    numbers = {int(number) for text in texts for number in re.findall(r"^def test_fault_(\d\d)_", text, re.MULTILINE)}
    assert numbers == {mutation.fault for mutation in TABLE.MUTATIONS} == set(range(1, 31))
