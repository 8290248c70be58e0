#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: snapshot_metadata
short_description: Write, change or delete libvirt's record of a snapshot, not its data
version_added: 0.1.0
author: virtops.libvirt contributors (@virtops)
description:
  - Changes what libvirt knows about a snapshot. It changes no image and no chain, and the guest does not notice.
  - O(state=absent) deletes the record, as C(virsh snapshot-delete --metadata) does. Use it for a record that is stale
    because its layers were merged by hand. With such a record, libvirt can neither delete the snapshot nor undefine the
    domain.
  - If the record of an external snapshot is deleted, its layers stay in use. As long as they are in use, the journal of
    this collection keeps the snapshots that this collection took, and M(virtops.libvirt.block_commit) can still merge
    them by name. The data of an internal snapshot stay in the image. C(qemu-img snapshot) shows them.
  - O(xml) writes a record, as C(virsh snapshot-create --redefine) does. A record that already has the content of the
    XML is not changed. Use it to restore the records of a domain that was moved, or of a transient domain that was
    started again. Write the parents first.
  - O(current), O(description) and O(new_name) change a record, as C(virsh snapshot-current) and C(virsh snapshot-edit)
    do. The domain itself is not reverted.
  - The module refuses while the journal has an open operation on the domain, even an interrupted one.
extends_documentation_fragment:
  - virtops.libvirt.connection
  - virtops.libvirt.domain
  - virtops.libvirt.domain.lock
  - virtops.libvirt.attributes
  - virtops.libvirt.attributes.changes
  - virtops.libvirt.attributes.actiongroup_all
options:
  name:
    description: The snapshot's name. With O(xml), the name is in the XML.
    type: str
  state:
    description:
      - V(present) writes or changes the record. V(absent) deletes it if there is one.
    type: str
    choices: [present, absent]
    default: present
  xml:
    description:
      - The record, as RV(virtops.libvirt.snapshot_info#module:snapshots[].xml) or C(virsh snapshot-dumpxml) shows it.
      - Its parent must have a record already, and the UUID of the domain in it must be this domain's.
    type: str
  current:
    description:
      - Whether it becomes the current snapshot, that is, the parent of the next one. V(false) does not change this.
    type: bool
    default: false
  description:
    description: The new description. An empty string removes it. If unset, it is not changed.
    type: str
  new_name:
    description:
      - The new name. Its children keep it as their parent.
      - If it has that name already, only O(description) and O(current) are changed. Another record of that name is
        never overwritten.
      - An internal snapshot cannot be renamed or cloned, because its data in the images are found by its name.
    type: str
  clone:
    description: With O(new_name), whether the record is also kept under its old name.
    type: bool
    default: false
  validate:
    description:
      - Whether libvirt first checks the XML against its schema (libvirt 5.6.0 or later).
      - The schema of libvirt 7.0 (Debian 11) rejects even libvirt's own records of running guests.
    type: bool
    default: false
  children:
    description:
      - With O(state=absent), what happens to the records that descend from this one.
      - V(keep) keeps them. Its children become children of its parent.
      - V(delete) deletes them too, as C(virsh snapshot-delete --children) does.
      - V(only) deletes them and keeps this one, as C(virsh snapshot-delete --children-only) does.
    type: str
    choices: [keep, delete, only]
    default: keep
seealso:
  - module: virtops.libvirt.snapshot_info
  - module: virtops.libvirt.snapshot_external
  - module: virtops.libvirt.block_commit
  - name: virsh manual, snapshot-delete
    description: The command and the flags that this module replaces.
    link: https://www.libvirt.org/manpages/virsh.html#snapshot-delete
  - name: virsh manual, snapshot-edit
    description: The same.
    link: https://www.libvirt.org/manpages/virsh.html#snapshot-edit
"""

EXAMPLES = r"""
- name: Delete the record of a snapshot whose overlays were merged by hand
  virtops.libvirt.snapshot_metadata:
    domain: web1
    name: before-update
    state: absent

- name: Delete the records of all descendants of a snapshot
  virtops.libvirt.snapshot_metadata:
    domain: web1
    name: installed
    state: absent
    children: only

- name: Describe a snapshot and make it the current one
  virtops.libvirt.snapshot_metadata:
    domain: web1
    name: before-update
    description: Release 4.2, before the update
    current: true

- name: Rename an external snapshot
  virtops.libvirt.snapshot_metadata:
    domain: web1
    name: before-update
    new_name: release-4.2

- name: Read the records of a moved guest on its old host
  virtops.libvirt.snapshot_info:
    domain: web1
    security_info: true
  register: moved
  delegate_to: hv1
  no_log: true

- name: Write the records on its new host, parents first
  virtops.libvirt.snapshot_metadata:
    domain: web1
    xml: "{{ item.xml }}"
    current: "{{ item.current }}"
  loop: "{{ moved.snapshots | selectattr('metadata') }}"
  no_log: true
"""

RETURN = r"""
actions:
  description: The steps that were taken. In check mode, the steps that would be taken.
  returned: success
  type: list
  elements: str
  sample: ["delete the record of snapshot before-update, not its data"]
domain:
  description: The domain.
  returned: success
  type: dict
  sample: {name: web1, uuid: 1b4e28ba-2fa1-11d2-883f-0016d3cca427, state: running}
snapshot:
  description:
    - The record after the change. With O(state=absent), the record before. Null if there was none.
    - The keys are those of RV(virtops.libvirt.snapshot_info#module:snapshots).
  returned: success
  type: dict
  sample:
    name: before-update
    description:
    parent:
    children: []
    state: disk-snapshot
    kind: external
    memory: {snapshot: 'no', file: null}
    creation_time: 1795176000
    current: true
    metadata: true
    disks:
      - {name: vda, snapshot: external, file: /var/lib/libvirt/images/web1.before-update.qcow2, format: qcow2}
error_code:
  description: A short word for the cause of a failure. It stays the same across releases.
  returned: failure
  type: str
  sample: operation_open
"""

from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Outcome
from ansible_collections.virtops.libvirt.plugins.module_utils._core.snapshot_tree import CHILDREN
from ansible_collections.virtops.libvirt.plugins.module_utils._module.entry import DomainContext, run_domain_module
from ansible_collections.virtops.libvirt.plugins.module_utils._module.specs import ArgumentSpec
from ansible_collections.virtops.libvirt.plugins.module_utils._service.records import (
    RecordOptions,
    Records,
    delete_record,
)

SPEC: ArgumentSpec = {
    "name": {"type": "str"},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    # With security_info it has the passwords of graphics; what a module is given is written to the host's log
    "xml": {"type": "str", "no_log": True},
    "current": {"type": "bool", "default": False},
    "description": {"type": "str"},
    "new_name": {"type": "str"},
    "clone": {"type": "bool", "default": False},
    "validate": {"type": "bool", "default": False},
    "children": {"type": "str", "choices": list(CHILDREN), "default": "keep"},
}


def _flow(context: DomainContext) -> Outcome:
    given = context.params
    if given["state"] == "absent":
        return delete_record(context.guest, given["name"], given["children"], context.check)
    options = RecordOptions(
        name=given["name"],
        text=given["xml"],
        **{name: given[name] for name in ("current", "description", "new_name", "clone", "validate")},
    )
    return Records(options, context.guest).run(context.check)


def main() -> None:
    run_domain_module(
        SPEC,
        _flow,
        changes=True,
        required_one_of=[("name", "xml")],
        mutually_exclusive=[("xml", "new_name")],
        required_if=[("state", "absent", ("name",)), ("clone", True, ("new_name",))],
    )


if __name__ == "__main__":
    main()
