# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Each numeric option of each module has bounds, and what is beyond them is refused before anything else."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("libvirt")
pytest.importorskip("lxml")

from ansible_collections.virtops.libvirt.plugins.module_utils._core.bounds import BOUNDS, bounds_of
from ansible_collections.virtops.libvirt.plugins.module_utils._module import entry
from ansible_collections.virtops.libvirt.plugins.module_utils._module.specs import JOB, LOCK, merged
from ansible_collections.virtops.libvirt.tests.unit.plugins.module_args import patch_module_args

#: What the modules require besides, where a word is not enough
GIVEN: dict[str, dict[str, Any]] = {
    "backup_verify": {"dest": "x"},
    "block_commit": {"snapshot": "x"},
    "image_backup": {"snapshot": "x"},
    "live_backup": {"dest": "x"},
    "preflight_info": {"dest": "x"},
    "restore_drill": {"dest": "x"},
}

#: What only a role has
OF_ROLES = {"connect_timeout"}

MODULES = {
    path.stem: importlib.import_module("ansible_collections.virtops.libvirt.plugins.modules.%s" % path.stem)
    for path in sorted((Path(__file__).parents[4] / "plugins" / "modules").glob("*.py"))
}
SPECS: dict[str, dict[str, Any]] = {name: module.SPEC for name, module in MODULES.items() if hasattr(module, "SPEC")}


def numeric(spec: dict[str, Any], within: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, option in spec.items():
        if option["type"] in ("int", "float"):
            yield (*within, name)
        yield from numeric(option.get("options", {}), (*within, name))


OPTIONS = [(module, path) for module, spec in SPECS.items() for path in numeric(spec)]
# Which every module that changes a domain has from the entry
OPTIONS += [("block_commit", path) for path in numeric(merged(JOB, LOCK))]


def arguments(module: str, path: tuple[str, ...], value: int) -> dict[str, Any]:
    spec: dict[str, Any] = {"domain": {"required": True}, **SPECS[module]}
    found = {name: "x" for name, option in spec.items() if option.get("required")}
    given: dict[str, Any] = {**found, **GIVEN.get(module, {})}
    if module in ("guests_info", "preflight_info", "boot_recovery"):
        del given["domain"]
    inner = given
    for part in path[:-1]:
        spec = spec[part]["options"]
        inner[part] = {name: "x" for name, option in spec.items() if option.get("required")}
        inner = inner[part]
    inner[path[-1]] = value
    return given


class Opened(Exception):
    """The module went on."""


@pytest.fixture(autouse=True)
def nothing_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_unused: object, **_unused_too: object) -> None:
        raise Opened

    for name in ("Connection", "JobRun", "LocalContext"):
        monkeypatch.setattr(entry, name, opened)


def test_there_are_options_and_each_bound_is_of_one() -> None:
    assert len(OPTIONS) > 20
    names = {path[-1] for _unused, path in OPTIONS} | OF_ROLES
    assert {name.rpartition(".")[2] for name in BOUNDS} == names


@pytest.mark.parametrize(
    ("module", "path"), OPTIONS, ids=lambda part: part if isinstance(part, str) else ".".join(part)
)
def test_bounds(module: str, path: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    option = ".".join(path)
    least, most = bounds_of(module, option)
    main = MODULES[module].main
    for value in (least - 1, most + 1):
        with patch_module_args(arguments(module, path, value)), pytest.raises(SystemExit):
            main()
        result = json.loads(capfd.readouterr().out)
        assert result["error_code"] == "bad_option", result
        assert result["msg"].startswith("%s is %d. Give a number of " % (option, value))
    for value in (least, most):
        with patch_module_args(arguments(module, path, value)), pytest.raises(Opened):
            main()
