# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What lists parts of the collection lists all of them: runtime.yml, the README, roles' READMEs, the error codes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(path.stem for path in (ROOT / "plugins" / "modules").glob("*.py"))
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())
PLAYBOOKS = sorted(path.stem for path in (ROOT / "playbooks").glob("*.yml"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
CODES_PAGE = ROOT / "docs" / "docsite" / "rst" / "error_codes.rst"


def section(text: str, title: str) -> str:
    """Return a Markdown section, without the ones after it."""
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#|\Z)", text, flags=re.MULTILINE | re.DOTALL)
    assert found, f"README.md has no section {title!r}"
    return found.group(2)


def first_cells(table: str) -> list[str]:
    """Return the names in the first column of a Markdown table, which are code and may be links."""
    return re.findall(r"^\| \[?`([\w.]+)`", table, flags=re.MULTILINE)


def code_of(role: str, *path: str) -> str:
    return (ROOT / "roles" / role).joinpath(*path).read_text(encoding="utf-8")


class TestLists:
    def test_each_module_is_in_the_action_group(self):
        runtime = yaml.safe_load((ROOT / "meta" / "runtime.yml").read_text(encoding="utf-8"))
        assert sorted(runtime["action_groups"]["all"]) == MODULES

    def test_each_module_that_works_as_a_job_is_followed(self):
        """The action plugin shows how far it is."""
        runtime = yaml.safe_load((ROOT / "meta" / "runtime.yml").read_text(encoding="utf-8"))
        texts = {name: (ROOT / "plugins" / "modules" / f"{name}.py").read_text(encoding="utf-8") for name in MODULES}
        jobs = {
            name for name, text in texts.items() if re.search(r"^  - virtops\.libvirt\.\w+\.job$", text, re.MULTILINE)
        }
        routed = {*runtime["plugin_routing"]["modules"], "image_backup"}
        assert {"recover", "snapshot_revert"} < routed <= jobs

    @pytest.mark.parametrize(
        ("title", "names"), [("Modules", MODULES), ("Roles", ROLES), ("Playbooks", PLAYBOOKS)], ids=["m", "r", "p"]
    )
    def test_the_readme_has_a_row_for_each(self, title, names):
        assert sorted(first_cells(section(README, title))) == names

    def test_links_of_the_readme_are_absolute(self):
        """Galaxy shows the README where relative links lead nowhere."""
        targets = re.findall(r"\]\(([^)]+)\)", README)
        assert [target for target in targets if not target.startswith(("https://", "#"))] == []

    def test_files_that_the_readme_links_to_exist(self):
        paths = re.findall(r"https://github\.com/virtops/virtops\.libvirt/(?:blob|tree)/main/([^)#\s]+)", README)
        built = {"CHANGELOG.rst"}  # made at the release
        assert [path for path in paths if path not in built and not (ROOT / path).exists()] == []

    def test_the_version_is_the_one_in_galaxy_yml(self):
        galaxy = yaml.safe_load((ROOT / "galaxy.yml").read_text(encoding="utf-8"))
        assert f"version {galaxy['version']}" in README


@pytest.mark.parametrize("role", ROLES)
class TestRoles:
    def test_it_has_what_a_role_needs(self, role):
        files = ("README.md", "meta/main.yml", "meta/argument_specs.yml", "defaults/main.yml", "tasks/main.yml")
        assert [name for name in files if not (ROOT / "roles" / role / name).exists()] == []

    def test_its_readme_has_each_variable(self, role):
        options = yaml.safe_load(code_of(role, "meta", "argument_specs.yml"))["argument_specs"]["main"]["options"]
        assert sorted(first_cells(code_of(role, "README.md"))) == sorted(options)

    def test_its_defaults_are_those_of_the_specification(self, role):
        options = yaml.safe_load(code_of(role, "meta", "argument_specs.yml"))["argument_specs"]["main"]["options"]
        defaults = yaml.safe_load(code_of(role, "defaults", "main.yml"))
        assert sorted(set(defaults) - set(options)) == []
        fixed = {name: value for name, value in defaults.items() if "{{" not in str(value)}
        assert fixed == {name: option["default"] for name, option in options.items() if "default" in option}

    def test_its_variables_carry_its_name(self, role):
        for name in ("defaults/main.yml", "vars/main.yml"):
            path = ROOT / "roles" / role / name
            variables = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
            prefixes = (f"{role}_",) if name.startswith("defaults") else (f"{role}_", f"__{role}_")
            assert [variable for variable in variables if not variable.startswith(prefixes)] == []


# The error codes, read from the syntax trees: the first argument of an error, what is given for a parameter or an
# attribute `code`, the keyword error_code, and the words in the tables that map libvirt's and the system's errors.
ERRORS = {"VirtopsError", "LibvirtFailure"}
TABLES = {"_TABLE", "_SAID", "_OTHER", "_MEANINGS"}
WORD = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


def words(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and WORD.fullmatch(node.value):
        yield node.value


def trees() -> list[ast.Module]:
    paths = sorted((ROOT / "plugins" / "module_utils").rglob("*.py"))
    return [ast.parse(path.read_text(encoding="utf-8")) for path in paths]


def code_parameters(parsed: list[ast.Module]) -> dict[str, int]:
    """Return the functions with a parameter `code`, and its place, without self."""
    places = {}
    for tree in parsed:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name != "__init__":
                names = [argument.arg for argument in node.args.args if argument.arg != "self"]
                if "code" in names:
                    places[node.name] = names.index("code")
    return places


def codes_in(tree: ast.Module, places: dict[str, int]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            place = 0 if name in ERRORS else places.get(name)
            if place is not None and len(node.args) > place:
                yield from words(node.args[place])
            for keyword in node.keywords:
                if keyword.arg in ("error_code", "code"):
                    yield from words(keyword.value)
        elif isinstance(node, ast.FunctionDef):
            defaults = dict(zip(reversed(node.args.args), reversed(node.args.defaults)))
            for argument, value in defaults.items():
                if argument.arg == "code":
                    yield from words(value)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name) and target.id in TABLES and node.value is not None:
                    for part in ast.walk(node.value):
                        yield from (word for item in getattr(part, "elts", ()) for word in words(item))
                elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    for left, right in zip(target.elts, node.value.elts):
                        if isinstance(left, ast.Attribute) and left.attr == "code":
                            yield from words(right)
                elif isinstance(target, ast.Attribute) and target.attr == "code":
                    yield from words(node.value)
        elif isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple) and len(node.value.elts) == 2:
            code, remedy = node.value.elts  # as _known() in _libvirt/errors.py returns them
            if getattr(remedy, "id", "").endswith("_REMEDY"):
                yield from words(code)


def codes_in_source() -> set[str]:
    parsed = trees()
    places = code_parameters(parsed)
    return {code for tree in parsed for code in codes_in(tree, places)}


class TestErrorCodes:
    def test_the_page_has_each_code_and_no_other(self):
        listed = re.findall(r"^   \* - ``(\w+)``$", CODES_PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert len(listed) == len(set(listed))
        assert sorted(listed) == sorted(codes_in_source())

    def test_codes_that_the_source_compares_with_exist(self):
        compared = {
            word
            for tree in trees()
            for node in ast.walk(tree)
            if isinstance(node, ast.Compare) and isinstance(node.left, ast.Attribute) and node.left.attr == "code"
            for side in node.comparators
            for word in words(side)
        }
        assert compared <= codes_in_source()

    @pytest.mark.parametrize(
        ("source", "found"),
        [
            ('raise VirtopsError("bad_disk", "c", "r")', {"bad_disk"}),
            ('raise LibvirtFailure("busy", "c", "r")', {"busy"}),
            ('os_failure("s", error, "copy_failed")', {"copy_failed"}),
            ('def os_failure(subject, error, code="image_failed"): pass', {"image_failed"}),
            ('_TABLE = {"VIR_ERR_X": ("no_such", "A remedy")}', {"no_such"}),
            ('lost.code, lost.remedy = "not_ready", "Wait"', {"not_ready"}),
            ('module.fail_json(msg="m", error_code="missing")', {"missing"}),
            ('def _known():\n    return ("connection_lost", _CONNECTION_REMEDY)', {"connection_lost"}),
            ('print("a_word")', set()),
        ],
    )
    def test_the_reader_finds_them(self, source, found):
        assert set(codes_in(ast.parse(source), {"os_failure": 2})) == found
