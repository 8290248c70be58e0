#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: boot_recovery
short_description: Install a systemd unit that recovers guests after their hypervisor boots
version_added: 0.1.0
author: virtops.libvirt contributors (@virtops)
description:
  - Installs C(virtops-libvirt-recover.service), which runs once at each boot, after libvirt and before
    C(libvirt-guests). It recovers every guest on which an operation was interrupted before the boot, as
    M(virtops.libvirt.recover) does without O(virtops.libvirt.recover#module:backup). It logs one line for each guest,
    and fails if a guest needs a human. It changes nothing on a healthy host.
  - The unit does not finish a backup, because only the play knows the target and the options.
  - The unit leaves alone an operation that began after the boot, because a play may be at work on it.
  - The unit leaves alone a guest whose memory is saved (C(virsh managedsave)) until the guest has started. If such a
    guest has an interrupted operation, the unit keeps running until then. C(libvirt-guests) does not wait for the unit.
  - The unit runs a copy of this collection's code in C(/usr/local/lib/virtops.libvirt), with the interpreter that
    Ansible uses. Run the module again after an upgrade of the collection.
  - systemd need not run. If it runs and this module reports a change, let systemd reload its units.
extends_documentation_fragment:
  - virtops.libvirt.connection
  - virtops.libvirt.attributes
  - virtops.libvirt.attributes.changes
  - virtops.libvirt.attributes.actiongroup_all
options:
  state:
    description: V(present) installs and enables the unit. V(absent) removes it and its code.
    type: str
    choices: [present, absent]
    default: present
  timeout:
    description: How many seconds the unit may merge one guest before it goes to the next.
    type: int
    default: 600
seealso:
  - module: virtops.libvirt.recover
  - ref: ansible_collections.virtops.libvirt.docsite.guide_recovery
    description: What recovery does.
"""

EXAMPLES = r"""
- name: Recover guests after a power loss
  virtops.libvirt.boot_recovery:
  register: unit

- name: Let systemd reload its units
  ansible.builtin.systemd_service:
    daemon_reload: true
  when: unit is changed
"""

RETURN = r"""
actions:
  description: The steps that were taken. In check mode, the steps that would be taken.
  returned: success
  type: list
  elements: str
  sample:
    - write the code in /usr/local/lib/virtops.libvirt
    - write the unit /etc/systemd/system/virtops-libvirt-recover.service
error_code:
  description: A short word for the cause of a failure. It stays the same across releases.
  returned: failure
  type: str
  sample: permission_denied
"""

import sys

from ansible_collections.virtops.libvirt.plugins.module_utils._boot import recover
from ansible_collections.virtops.libvirt.plugins.module_utils._core.boot import BootOptions
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Outcome
from ansible_collections.virtops.libvirt.plugins.module_utils._host.files import Files
from ansible_collections.virtops.libvirt.plugins.module_utils._module.entry import LocalContext, run_local_module
from ansible_collections.virtops.libvirt.plugins.module_utils._module.specs import ArgumentSpec
from ansible_collections.virtops.libvirt.plugins.module_utils._service.boot import BootUnit

SPEC: ArgumentSpec = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "timeout": {"type": "int", "default": 600},
}

#: Our packages but the one that Ansible enters by. Ansible brings what this file imports of them to the hypervisor:
#: that code is what is installed there.
_LAYERS = ("_boot", "_core", "_host", "_libvirt", "_service")


def _flow(context: LocalContext) -> Outcome:
    options = BootOptions(context.params["state"], context.uri, context.params["timeout"], sys.executable)
    return BootUnit(options, _sources(), recover.__name__, Files()).run(context.check)


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


def main() -> None:
    run_local_module(SPEC, _flow, changes=True)


if __name__ == "__main__":
    main()
