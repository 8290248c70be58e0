#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: journal_info
short_description: Show the operations in a libvirt domain's journal, their state, and how to recover them
version_added: 0.1.0
author: virtops.libvirt contributors (@virtops)
description:
  - Reads the journal that this collection keeps in the domain's metadata. The journal holds the snapshots that are
    kept, and the operations that still run or were interrupted.
  - The journal says what was intended. This module also shows which image each disk really uses now. For an open
    operation, it shows what M(virtops.libvirt.recover) would do.
  - M(virtops.libvirt.guests_info) shows the journals of all guests of a hypervisor, in short.
extends_documentation_fragment:
  - virtops.libvirt.connection
  - virtops.libvirt.domain
  - virtops.libvirt.attributes
  - virtops.libvirt.attributes.info
  - virtops.libvirt.attributes.actiongroup_all
seealso:
  - module: virtops.libvirt.guests_info
  - module: virtops.libvirt.recover
  - module: virtops.libvirt.block_info
"""

EXAMPLES = r"""
- name: Look at the operations of a guest
  virtops.libvirt.journal_info:
    domain: web1
  register: journal

- name: Show how each interrupted operation can be recovered
  ansible.builtin.debug:
    msg: "{{ item.name }}: {{ item.recovery }}"
  loop: "{{ journal.operations | selectattr('open') }}"
  loop_control:
    label: "{{ item.name }}"
"""

RETURN = r"""
domain:
  description: The domain.
  returned: success
  type: dict
  sample: {name: web1, uuid: 1b4e28ba-2fa1-11d2-883f-0016d3cca427, state: running}
operations:
  description: The operations, in the journal's order. Empty for a domain without a journal.
  returned: success
  type: list
  elements: dict
  contains:
    id:
      description: The operation's own identifier.
      type: str
    kind:
      description:
        - The workflow, V(snapshot), V(commit), V(pull), V(revert), V(delete), V(convert), or the name that a role gave.
      type: str
    name:
      description: The snapshot's name.
      type: str
    phase:
      description: What was intended last, V(prepared), V(created) or V(committing).
      type: str
    started:
      description: When it began, in UTC.
      type: str
    open:
      description:
        - Whether it still runs or was interrupted. While it is open, no other operation may start on this domain.
      type: bool
    noted:
      description:
        - Whether it is in the journal. V(false) for a live backup whose journal is gone. It was then found by the names
          of its layers, its record or its overlay.
      type: bool
    consistency:
      description: What the snapshot holds, V(filesystem), V(crash) or V(offline). Empty before it is known.
      type: str
    memory:
      description: The file with the guest's memory. V(null) for a snapshot of the disks only.
      type: str
    disks:
      description: Its disks, with the journal's notes about each, and its present state.
      type: list
      elements: dict
      contains:
        name:
          description: The target, for example V(vda).
          type: str
        base:
          description: The image below the overlay. The overlay is merged into it.
          type: str
        base_format:
          description: The format of that image.
          type: str
        overlay:
          description: The layer that the operation added, or that it merges.
          type: str
        identity:
          description:
            - The base as it was right after the snapshot, RV(ignore:inode), RV(ignore:size) in bytes and
              RV(ignore:mtime_ns). A block device is identified by RV(ignore:device), a name that does not change, and
              its size. For a file, RV(ignore:device) is empty.
            - V(null) before this is known, and for a merge.
          type: dict
        in_chain:
          description: Whether the disk uses the overlay now.
          type: bool
        overlay_exists:
          description: Whether the overlay's file exists.
          type: bool
        base_unchanged:
          description:
            - Whether the base is still what RV(operations[].disks[].identity) says, so that it can be backed up.
            - V(null) if this was not noted.
          type: bool
        job:
          description:
            - The block job on the disk, with RV(ignore:type), RV(ignore:cur), RV(ignore:end), RV(ignore:bandwidth),
              RV(ignore:ready), RV(ignore:target) and RV(ignore:progress), as in M(virtops.libvirt.block_info). V(null)
              if there is none.
          type: dict
    recovery:
      description:
        - What M(virtops.libvirt.recover) would do, in words. It includes the warnings, for example about a file in the
          journal that no operation made. V(null) if the operation is not open.
      type: str
  sample:
    - id: 5d0b7a52-3a7c-4f0e-9c39-0a4f3b1f6a60
      kind: live_backup
      name: nightly
      phase: created
      started: 20261120T120000Z
      open: true
      noted: true
      consistency: filesystem
      memory: null
      disks:
        - name: vda
          base: /var/lib/libvirt/images/web1.qcow2
          base_format: qcow2
          overlay: /var/lib/libvirt/images/web1.nightly.qcow2
          identity: {device: "", inode: 131, size: 2147483648, mtime_ns: 1795175940000000000}
          in_chain: true
          overlay_exists: true
          base_unchanged: true
          job:
      recovery: >-
        virtops.libvirt.recover would: commit /var/lib/libvirt/images/web1.nightly.qcow2 into
        /var/lib/libvirt/images/web1.qcow2 (vda).
error_code:
  description: A short word for the cause of a failure. It stays the same across releases.
  returned: failure
  type: str
  sample: journal_unreadable
"""

from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Outcome
from ansible_collections.virtops.libvirt.plugins.module_utils._module.entry import DomainContext, run_domain_module
from ansible_collections.virtops.libvirt.plugins.module_utils._module.flows import restore_end
from ansible_collections.virtops.libvirt.plugins.module_utils._service.journal_info import journal


def _flow(context: DomainContext) -> Outcome:
    return journal(context.guest, restore_end(context))


def main() -> None:
    run_domain_module({}, _flow, changes=False)


if __name__ == "__main__":
    main()
