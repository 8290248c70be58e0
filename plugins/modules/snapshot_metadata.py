#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: snapshot_metadata
short_description: Delete libvirt's record of a snapshot, not its data
version_added: 0.1.0
author: virtops.libvirt contributors (@virtops)
description:
  - Makes libvirt forget a snapshot, as C(virsh snapshot-delete --metadata) does. No image and no chain is touched.
  - This is for a record that is stale, because its layers were merged by hand. libvirt then can neither delete the
    snapshot nor undefine the domain.
  - The layers of an external snapshot whose record is deleted stay in use. As long as they are, the journal of this
    collection keeps the snapshots that it made, and M(virtops.libvirt.block_commit) can still merge them by name.
  - The data of an internal snapshot stays in the image, where C(qemu-img snapshot) finds it.
  - It is refused while another operation on the domain is open in the journal, also if that was interrupted.
extends_documentation_fragment:
  - virtops.libvirt.connection
  - virtops.libvirt.domain
  - virtops.libvirt.attributes
  - virtops.libvirt.attributes.changes
  - virtops.libvirt.attributes.actiongroup_all
options:
  name:
    description: The snapshot's name.
    type: str
    required: true
  state:
    description:
      - V(absent) deletes the record if there is one.
    type: str
    choices: [absent]
    required: true
  children:
    description:
      - What becomes of the records that descend from this one.
      - V(keep) makes its children those of its parent.
      - V(delete) deletes them all as well, as C(virsh snapshot-delete --children) does.
      - V(only) deletes them and keeps this one, as C(virsh snapshot-delete --children-only) does.
    type: str
    choices: [keep, delete, only]
    default: keep
seealso:
  - module: virtops.libvirt.snapshot_external
  - module: virtops.libvirt.block_commit
  - name: virsh manual, snapshot-delete
    description: The command and the flags that this module stands for.
    link: https://www.libvirt.org/manpages/virsh.html#snapshot-delete
"""

EXAMPLES = r"""
- name: Forget a snapshot whose overlays were merged by hand
  virtops.libvirt.snapshot_metadata:
    domain: web1
    name: before-update
    state: absent

- name: Forget all snapshots that descend from one
  virtops.libvirt.snapshot_metadata:
    domain: web1
    name: installed
    state: absent
    children: only
"""

RETURN = r"""
actions:
  description: The steps that were taken, or in check mode those that would be.
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
  description: What the record of O(name) said before. V(null) if there was none.
  returned: success
  type: dict
  contains:
    name:
      description: The snapshot's name.
      type: str
    description:
      description: Its description. V(null) if it has none.
      type: str
    parent:
      description: The name of its parent. V(null) if it has none.
      type: str
    state:
      description: The domain's state at the snapshot, as V(running), V(shutoff) or V(disk-snapshot).
      type: str
    kind:
      description: V(external) or V(internal).
      type: str
    creation_time:
      description: When it was taken, in seconds since 1970.
      type: int
    disks:
      description: Its disks, each with RV(ignore:name), RV(ignore:snapshot) and RV(ignore:file).
      type: list
      elements: dict
  sample:
    name: before-update
    description:
    parent:
    state: disk-snapshot
    kind: external
    creation_time: 1795176000
    disks:
      - name: vda
        snapshot: external
        file: /var/lib/libvirt/images/web1.before-update.qcow2
error_code:
  description: A short word for the cause of a failure, which stays the same across releases.
  returned: failure
  type: str
  sample: operation_open
"""

from ansible_collections.virtops.libvirt.plugins.module_utils._module import snapshot_metadata


def main() -> None:
    snapshot_metadata.main()


if __name__ == "__main__":
    main()
