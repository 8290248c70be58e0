#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: snapshot_internal
short_description: Take or delete a snapshot inside a guest's qcow2 images
version_added: 0.1.0
author: virtops.libvirt contributors (@virtops)
description:
  - Takes an internal snapshot of all disks of a domain, and of its memory if it runs. The data are inside the qcow2
    images that the guest writes to. So no file is added and no chain grows.
  - A running guest is paused while its memory is written, some seconds for each GiB. If that is too long, take an
    external snapshot with M(virtops.libvirt.snapshot_external).
  - Every disk must be a qcow2 image on this host, because libvirt cannot leave a disk out. Only read-only and empty
    drives are skipped. A guest with a raw disk is refused. The message names the disk and the alternatives.
  - A guest with UEFI firmware needs libvirt 10.9.0 or later, and its NVRAM must be a qcow2 image.
  - If an internal snapshot of this name with the same disks exists, nothing is changed. If it is external or has other
    disks, the task fails and names the difference.
  - O(state=absent) deletes the data and the record. The images do not become smaller, but the space in them is used
    again.
  - The module refuses while the journal has an open operation on the domain, even an interrupted one, and while a block
    job runs.
extends_documentation_fragment:
  - virtops.libvirt.connection
  - virtops.libvirt.domain
  - virtops.libvirt.domain.job
  - virtops.libvirt.domain.lock
  - virtops.libvirt.attributes
  - virtops.libvirt.attributes.changes
  - virtops.libvirt.attributes.actiongroup_all
options:
  name:
    description:
      - The snapshot's name. It must not begin with a dot or contain a slash.
      - From libvirt 10.9.0 on, QEMU accepts only letters, digits, C(-), C(.) and C(_) for a running guest.
    type: str
    required: true
  state:
    description:
      - V(present) takes the snapshot if it does not exist. V(absent) deletes it if it exists.
      - V(absent) also deletes data of that name in the images that libvirt has no record of. Such data are left if only
        the record was deleted, or if libvirt's daemon died while it took the snapshot.
    type: str
    choices: [present, absent]
    default: present
  description:
    description: A description that libvirt stores with a new snapshot.
    type: str
  halt:
    description:
      - Whether the guest is turned off when the snapshot is taken, as by C(virsh snapshot-create-as --halt). It loses
        nothing, because its memory is in the snapshot.
      - If the snapshot exists and the guest is off, nothing is changed. If the snapshot exists and the guest runs, the
        task fails, because turning the guest off would lose its memory since the snapshot.
    type: bool
    default: false
  children:
    description:
      - With O(state=absent), what happens to the snapshots that descend from this one.
      - V(keep) keeps them. Its children become children of its parent.
      - V(delete) deletes them too, as C(virsh snapshot-delete --children) does.
      - V(only) deletes them and keeps this one, as C(virsh snapshot-delete --children-only) does.
      - If one of the snapshots to delete is external, nothing is deleted.
    type: str
    choices: [keep, delete, only]
    default: keep
seealso:
  - module: virtops.libvirt.snapshot_external
  - module: virtops.libvirt.snapshot_info
  - module: virtops.libvirt.snapshot_metadata
  - name: virsh manual, snapshot-create-as
    description: The command and the flags that this module replaces.
    link: https://www.libvirt.org/manpages/virsh.html#snapshot-create-as
  - name: virsh manual, snapshot-delete
    description: The same.
    link: https://www.libvirt.org/manpages/virsh.html#snapshot-delete
"""

EXAMPLES = r"""
- name: Keep the state of a running guest, memory and disks
  virtops.libvirt.snapshot_internal:
    domain: web1
    name: before-update
    description: Release 4.1, as it ran

- name: Keep it, and turn the guest off
  virtops.libvirt.snapshot_internal:
    domain: web1
    name: parked
    halt: true

- name: Delete a snapshot and all its descendants
  virtops.libvirt.snapshot_internal:
    domain: web1
    name: before-update
    state: absent
    children: delete
"""

RETURN = r"""
actions:
  description: The steps that were taken. In check mode, the steps that would be taken.
  returned: success
  type: list
  elements: str
  sample: ["take the internal snapshot before-update of vda, vdb, the memory"]
domain:
  description: The domain.
  returned: success
  type: dict
  sample: {name: web1, uuid: 1b4e28ba-2fa1-11d2-883f-0016d3cca427, state: running}
snapshot:
  description:
    - The snapshot. With O(state=absent), the snapshot that was deleted. Null if there was none.
    - The keys are those of RV(virtops.libvirt.snapshot_info#module:snapshots).
  returned: success
  type: dict
  sample:
    name: before-update
    description: Release 4.1, as it ran
    parent:
    children: []
    state: running
    kind: internal
    memory: {snapshot: internal, file: null}
    creation_time: 1795176000
    current: true
    metadata: true
    disks:
      - {name: vda, snapshot: internal, file: null, format: null}
      - {name: hda, snapshot: 'no', file: null, format: null}
error_code:
  description: A short word for the cause of a failure. It stays the same across releases.
  returned: failure
  type: str
  sample: disk_needs_qcow2
"""

from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.internal import InternalOptions
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Outcome
from ansible_collections.virtops.libvirt.plugins.module_utils._core.snapshot_tree import CHILDREN
from ansible_collections.virtops.libvirt.plugins.module_utils._module.entry import DomainContext, run_domain_module
from ansible_collections.virtops.libvirt.plugins.module_utils._module.job import Job
from ansible_collections.virtops.libvirt.plugins.module_utils._module.specs import ArgumentSpec
from ansible_collections.virtops.libvirt.plugins.module_utils._service.internal import InternalSnapshot

SPEC: ArgumentSpec = {
    "name": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "description": {"type": "str"},
    "halt": {"type": "bool", "default": False},
    "children": {"type": "str", "choices": list(CHILDREN), "default": "keep"},
}


def _flow(context: DomainContext) -> Outcome:
    given = context.params
    flow = InternalSnapshot(context.guest)
    if given["state"] == "absent":
        if given["halt"]:
            raise VirtopsError(
                "bad_option", "halt goes with state: present.", "Leave it out, or shut the domain off before"
            )
        context.progress.phase("delete")
        return flow.absent(given["name"], given["children"], context.check)
    context.progress.phase("snapshot")
    return flow.present(InternalOptions(given["name"], given["description"], given["halt"]), context.check)


def main() -> None:
    run_domain_module(SPEC, _flow, changes=True, job=Job())


if __name__ == "__main__":
    main()
