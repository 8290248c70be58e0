# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Each variable of each role and playbook may be a string, or blank: tests/e2e/test_variables.py plays it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())


def load(role: str, *path: str) -> Any:
    return yaml.safe_load((ROOT / "roles" / role).joinpath(*path).read_text(encoding="utf-8"))


def options(role: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = load(role, "meta", "argument_specs.yml")["argument_specs"]["main"]["options"]
    return found


def checked(tasks: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The types that the role compares its variables with."""
    for task in tasks:
        if "block" in task:
            return checked(task["block"])
        if "ansible.builtin.validate_argument_spec" in task:
            found: dict[str, dict[str, Any]] = task["ansible.builtin.validate_argument_spec"]["argument_spec"]
            return found
    return {}


VARIABLES = [(role, name) for role in ROLES for name in options(role)]
each_variable = pytest.mark.parametrize(("role", "name"), VARIABLES, ids=[name for _unused, name in VARIABLES])


@each_variable
class TestRoles:
    def test_ansible_takes_it_blank(self, role: str, name: str) -> None:
        """It would refuse a blank number, or one that is none of the choices."""
        assert options(role)[name]["type"] in ("raw", "str", "path")
        assert "choices" not in options(role)[name]

    def test_a_blank_one_is_its_default(self, role: str, name: str) -> None:
        read = load(role, "vars", "main.yml")[f"__{role}_given"][name[len(role) + 1 :]]
        (default,) = re.findall(rf"(?<!_){name}(?: \| default\(''\))? \| virtops\.libvirt\.given\((.*?)\)+ }}}}", read)
        fixed = options(role)[name].get("default")
        if fixed is not None:
            assert yaml.safe_load(default) == fixed
        else:
            assert default in ("''", "[]", "{}", "inventory_hostname")

    def test_it_is_checked(self, role: str, name: str) -> None:
        path = ROOT / "roles" / role / "tasks" / "check.yml"
        spec = checked(load(role, "tasks", path.name if path.exists() else "main.yml"))
        types = {bool: "bool", int: "int", list: "list"}
        default = options(role)[name].get("default")
        assert spec[name]["type"] == types.get(type(default), spec[name]["type"])

    def test_no_task_reads_it_as_it_came(self, role: str, name: str) -> None:
        for path in (ROOT / "roles" / role / "tasks").glob("*.yml"):
            for line in path.read_text(encoding="utf-8").splitlines():
                outside = re.search(rf"({{{{|{{%|when:|that:|- )[^#]*(?<![\w.]){name}(?![\w=:])", line)
                assert not outside or "Set guarded" in line or "fail_msg" in line, line


@pytest.mark.parametrize("playbook", ["live_backup", "recover", "restore_drill", "verify"])
def test_playbooks_read_each_variable_with_the_filter(playbook: str) -> None:
    """And each by the playbook's own name before the short one."""
    text = (ROOT / "playbooks" / f"{playbook}.yml").read_text(encoding="utf-8")
    read = re.findall(
        rf"(?<!_)({playbook}_\w+|target|guests|exclude|preflight_only) \| (\S+) \| ([\w.]+)", " ".join(text.split())
    )
    names = {name for name, _unused, _also in read}
    assert {f"{playbook}_{name}" for name in ("target", "guests", "exclude", "strategy")} <= names
    assert (f"{playbook}_uri" in names) == (playbook in ("live_backup", "recover")), (
        "what a role reads alone stays there"
    )
    assert {"target", "guests", "exclude"} <= names
    # The end of what is given to `given`, too
    assert {default for _unused, default, _also in read} <= {"default('')", "default(''))"}
    assert {then for *_unused, then in read} <= {"virtops.libvirt.given", "virtops.libvirt.switch"}
    assert not re.search(r"\| bool\b", text), "it takes a misspelt word for false"
