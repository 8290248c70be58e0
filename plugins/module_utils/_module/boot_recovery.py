# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the options of boot_recovery, and how they reach the flow.

Ansible brings all of our code that this imports to the hypervisor: that code is what is installed there.
"""

from __future__ import annotations

import sys

from .._boot import recover
from .._core.boot import BootWish
from .._core.model import Outcome
from .._host.files import Files
from .._service.boot import BootUnit
from .entry import LocalContext, run_local_module
from .specs import ArgumentSpec

SPEC: ArgumentSpec = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "timeout": {"type": "int", "default": 600},
}

#: Our packages but the one that Ansible enters by.
_LAYERS = ("_boot", "_core", "_host", "_libvirt", "_service")


def main() -> None:
    run_local_module(SPEC, _flow)


def _flow(context: LocalContext) -> Outcome:
    wish = BootWish(context.params["state"], context.uri, context.params["timeout"], sys.executable)
    return BootUnit(wish, _sources(), recover.__name__, Files()).run(context.check)


def _sources() -> dict[str, str]:
    """The texts of our modules, by their names; from AnsiballZ's zip as well as from files."""
    ours = recover.__name__.rpartition("._boot.")[0]
    found = {}
    for name, module in sorted(sys.modules.items()):
        layer = name[len(ours) + 1 :].split(".")
        if not name.startswith(ours + ".") or layer[0] not in _LAYERS or len(layer) < 2:
            continue
        loader = module.__spec__.loader if module.__spec__ is not None else None
        text = loader.get_source(name) if loader is not None and hasattr(loader, "get_source") else None
        if text is None:
            raise AssertionError("%s has no source" % name)
        # Ansible's own loader, under which the tests run, gives bytes
        found[name] = text.decode("utf-8") if isinstance(text, bytes) else text
    return found
