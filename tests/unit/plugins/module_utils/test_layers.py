# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The layers: modules -> _module -> {_service, _libvirt, _host} -> _core, and what each may use from outside.

_boot is a second entry beside the modules: what runs on a hypervisor without Ansible. A module installs it there.

The rules are read from the files' syntax trees, so nothing has to be importable. The checker is itself tested, on a
small tree that keeps every rule and on changes to it that each break one.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]
COLLECTION = ("ansible_collections", "virtops", "libvirt")

# Which layers a layer may import.
MAY_IMPORT = {
    "modules": {"_module", "_boot", "_service", "_host", "_core"},
    "_module": {"_module", "_service", "_libvirt", "_host", "_core"},
    "_boot": {"_boot", "_service", "_libvirt", "_host", "_core"},
    "_service": {"_service", "_core"},
    "_libvirt": {"_libvirt", "_core"},
    "_host": {"_host", "_core"},
    "_core": {"_core"},
}
# What comes from outside, and the only layer that may use it. Names are matched as whole dotted words from the left.
ONLY_IN = {
    "ansible": "_module",
    "libvirt": "_libvirt",
    "libvirt_qemu": "_libvirt",
    "lxml": "_core",
    "multiprocessing": "_host",
    "pty": "_host",
    "subprocess": "_host",
}
# lxml has few users even in its layer, so that XML is read and written in one hardened place.
LXML_FILES = "_xml_"
# The functions of os that start a process begin so.
OS_PROCESS = ("exec", "spawn", "posix_spawn", "fork", "popen", "system")


def layer_of(parts: tuple[str, ...]) -> str | None:
    """Return the layer that a path below the collection's root (without .py) is in, None if it is in none."""
    if parts[:2] == ("plugins", "modules"):
        return "modules"
    if parts[:2] == ("plugins", "module_utils") and len(parts) > 3 and parts[2] in MAY_IMPORT:
        return parts[2]
    return None


def imports(tree: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield the line and the full dotted name of everything that a file of this package imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, tuple(alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, *(node.module.split(".") if node.module else ()))
            for alias in node.names:
                yield node.lineno, (*module, alias.name)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", None))
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, tuple(node.args[0].value.split("."))


def starts_process(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the name of each use of a function of os that starts a process."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            if node.attr.startswith(OS_PROCESS):
                yield node.lineno, f"os.{node.attr}"
        elif isinstance(node, ast.ImportFrom) and node.module == "os" and not node.level:
            for alias in node.names:
                if alias.name.startswith(OS_PROCESS):
                    yield node.lineno, f"os.{alias.name}"


def problems_of(path: Path, root: Path) -> Iterator[str]:
    """Yield what is wrong with one file, each as `file:line: text`."""
    relative = path.relative_to(root)
    parts = relative.with_suffix("").parts
    tree = ast.parse(path.read_text(encoding="utf-8"), str(relative))
    if not tree.body:  # an empty __init__.py
        return
    layer = layer_of(parts)
    if layer is None:
        yield f"{relative}:1: is in none of the layers {', '.join(MAY_IMPORT)}"
        return
    if layer != "modules" and "private" not in (ast.get_docstring(tree) or "").lower():
        yield f"{relative}:1: its docstring does not say that it is private"

    for line, name in imports(tree, (*COLLECTION, *parts[:-1])):
        if name[: len(COLLECTION)] == COLLECTION:
            inner = name[len(COLLECTION) :]
            # `from .module_utils import _core` names a layer itself
            target = layer_of((*inner, "") if len(inner) == 3 else inner)
            if inner[:2] == ("plugins", "doc_fragments"):
                target = None
            if target not in MAY_IMPORT[layer]:
                yield f"{relative}:{line}: {layer} must not import {'.'.join(inner)}"
        elif ONLY_IN.get(name[0], layer) != layer:
            yield f"{relative}:{line}: only {ONLY_IN[name[0]]} may import {name[0]}"
        elif name[0] == "lxml" and not path.name.startswith(LXML_FILES):
            yield f"{relative}:{line}: only {LXML_FILES}*.py may import lxml"
    if layer != "_host":
        for line, called in starts_process(tree):
            yield f"{relative}:{line}: only _host may use {called}"


def problems(root: Path) -> list[str]:
    """Return what is wrong with all modules and module utils below a collection's root."""
    files = [path for folder in ("modules", "module_utils") for path in (root / "plugins" / folder).rglob("*.py")]
    return [problem for path in sorted(files) for problem in problems_of(path, root)]


def test_the_layers_are_kept() -> None:
    assert problems(ROOT) == []


# What follows tests the checker.

UTILS = "ansible_collections.virtops.libvirt.plugins.module_utils"
PRIVATE = '"""This is private."""\n'
CLEAN = {
    "plugins/modules/thing_info.py": f"from {UTILS}._module.entry import run\nfrom {UTILS}._host.run import run\n"
    + f"from {UTILS}._service.flow import Flow\nfrom {UTILS}._core.model import Disk\nimport json\n",
    "plugins/module_utils/__init__.py": "",
    "plugins/module_utils/_module/entry.py": PRIVATE
    + f"from ansible.module_utils.basic import AnsibleModule\nfrom {UTILS}._service.flow import Flow\n"
    + f"from {UTILS}._libvirt.domain import Domain\nfrom {UTILS}._host.run import run\n",
    "plugins/module_utils/_boot/recover.py": PRIVATE + f"import argparse\nfrom {UTILS}._service.flow import Flow\n",
    "plugins/module_utils/_service/flow.py": PRIVATE + f"import time\nfrom {UTILS}._core.model import Disk\n",
    "plugins/module_utils/_libvirt/domain.py": PRIVATE + "import libvirt\nfrom .._core import model\n",
    "plugins/module_utils/_host/run.py": PRIVATE + "import os\nimport subprocess\nos.execv('/bin/true', [])\n",
    "plugins/module_utils/_core/model.py": PRIVATE + "from .xml import parse\nimport os\nos.path.join('a', 'b')\n",
    "plugins/module_utils/_core/_xml_tree.py": PRIVATE + "from lxml import etree\n",
}


def write(root: Path, files: dict[str, str]) -> None:
    """Write the files of a synthetic collection."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def test_a_tree_that_keeps_the_rules_has_no_problem(tmp_path: Path) -> None:
    write(tmp_path, CLEAN)

    assert problems(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "line", "problem"),
    [
        # upward and sideways, in every way to write an import
        ("_core/model.py", f"from {UTILS}._host.run import run", "_core must not import"),
        ("_core/model.py", f"import {UTILS}._service.flow", "_core must not import"),
        ("_core/model.py", "from .._host.run import run", "_core must not import"),
        ("_core/model.py", "from .. import _libvirt", "_core must not import"),
        ("_service/flow.py", f"from {UTILS}._libvirt.domain import Domain", "_service must not import"),
        ("_service/flow.py", f"from {UTILS} import _host", "_service must not import"),
        ("_libvirt/domain.py", f"from {UTILS}._host.run import run", "_libvirt must not import"),
        ("_host/run.py", f"from {UTILS}._module.entry import run", "_host must not import"),
        ("_host/run.py", "from ...modules import thing_info", "_host must not import"),
        ("_module/entry.py", f"from {UTILS}.stray import x", "_module must not import"),
        # it runs without Ansible
        ("_boot/recover.py", f"from {UTILS}._module.entry import run", "_boot must not import"),
        ("_boot/recover.py", "from ansible.module_utils.basic import AnsibleModule", "only _module may"),
        # a module gets its connection from _module, and Ansible brings no other module with it
        ("../modules/thing_info.py", f"from {UTILS}._libvirt.domain import Domain", "modules must not import"),
        ("../modules/thing_info.py", "from ..module_utils import _libvirt", "modules must not import"),
        ("../modules/thing_info.py", "from .other import SPEC", "modules must not import"),
        ("../modules/thing_info.py", "from ansible.module_utils.basic import AnsibleModule", "only _module may"),
        # what comes from outside
        ("_service/flow.py", "from ansible.module_utils.basic import AnsibleModule", "only _module may"),
        ("_service/flow.py", "import libvirt", "only _libvirt may import libvirt"),
        ("_module/entry.py", "def f():\n    import libvirt", "only _libvirt may import libvirt"),
        ("_module/entry.py", "import importlib\nimportlib.import_module('libvirt')", "only _libvirt may"),
        ("_libvirt/domain.py", "from lxml import etree", "only _core may import lxml"),
        ("_core/model.py", "import lxml.etree", "only _xml_*.py may import lxml"),
        ("_core/model.py", "import subprocess", "only _host may import subprocess"),
        ("_libvirt/domain.py", "import os\nos.execvp('virsh', [])", "only _host may use os.execvp"),
        ("_service/flow.py", "from os import fork", "only _host may use os.fork"),
    ],
)
def test_a_file_that_breaks_a_rule_is_found(tmp_path: Path, name: str, line: str, problem: str) -> None:
    write(tmp_path, CLEAN)
    broken = (tmp_path / "plugins" / "module_utils" / name).resolve()
    broken.write_text(broken.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")

    found = problems(tmp_path)

    assert len(found) == 1
    assert found[0].startswith(str(broken.relative_to(tmp_path)))
    assert problem in found[0]


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("plugins/module_utils/_core/x.py", "X = 1\n", "does not say that it is private"),
        ("plugins/module_utils/_core/x.py", '"""For everyone."""\n', "does not say that it is private"),
        ("plugins/module_utils/x.py", PRIVATE, "is in none of the layers"),
        ("plugins/module_utils/_other/x.py", PRIVATE, "is in none of the layers"),
    ],
)
def test_a_file_out_of_place_is_found(tmp_path: Path, name: str, text: str, problem: str) -> None:
    write(tmp_path, {**CLEAN, name: text})

    found = problems(tmp_path)

    assert len(found) == 1
    assert problem in found[0]
