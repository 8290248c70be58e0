#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: snapshot_info
short_description: List the snapshots of a libvirt domain, filtered and as a tree
version_added: 0.1.0
author: virtops.libvirt contributors (@virtops)
description:
  - Lists a domain's snapshots, parents first, with their disks, memory, parents and children, and their tree. One task
    returns what C(virsh snapshot-list), C(snapshot-info), C(snapshot-current), C(snapshot-parent) and
    C(snapshot-dumpxml) show.
  - The filters are those of C(virsh snapshot-list). A snapshot must match all filters that are set. But of O(active),
    O(inactive) and O(disk_only) it must match only one, and so of O(internal) and O(external).
  - No match returns an empty list, and is not a failure. The same is true for O(current) if there is no current
    snapshot.
  - Snapshots that M(virtops.libvirt.snapshot_external) took without metadata are listed too. The journal has them,
    libvirt does not.
  - Each record is read once. The connection is read-only, except with O(security_info).
extends_documentation_fragment:
  - virtops.libvirt.connection
  - virtops.libvirt.domain
  - virtops.libvirt.attributes
  - virtops.libvirt.attributes.info
  - virtops.libvirt.attributes.actiongroup_all
options:
  name:
    description: Only the snapshot of this name.
    type: str
  current:
    description: Only the current snapshot, that is, the parent of the next snapshot.
    type: bool
    default: false
  roots:
    description: Only snapshots without a parent.
    type: bool
    default: false
  leaves:
    description: Only snapshots without children.
    type: bool
    default: false
  has_children:
    description: Only snapshots with children.
    type: bool
    default: false
  metadata:
    description:
      - V(true) lists only snapshots that libvirt has a record of. V(false) lists only those that are in the journal
        alone.
      - If unset, both.
    type: bool
  active:
    description: Only snapshots of a running guest with its memory.
    type: bool
    default: false
  inactive:
    description: Only snapshots of a guest that was off.
    type: bool
    default: false
  disk_only:
    description: Only snapshots of a running guest without its memory.
    type: bool
    default: false
  internal:
    description: Only snapshots inside the images.
    type: bool
    default: false
  external:
    description: Only snapshots that added overlays, or a file with the memory.
    type: bool
    default: false
  from:
    description: Only the children of the snapshot of this name. It must exist.
    type: str
  descendants:
    description: With O(from), all descendants instead of only the children.
    type: bool
    default: false
  xml:
    description: Whether each snapshot's XML is returned.
    type: bool
    default: false
  security_info:
    description:
      - Whether the XML is returned with passwords and other secrets, as with C(--security-info). Set C(no_log) on the
        task.
      - This needs the permission to change domains.
    type: bool
    default: false
seealso:
  - module: virtops.libvirt.snapshot_external
  - module: virtops.libvirt.snapshot_metadata
  - name: virsh manual, snapshot-list
    description: The command and the flags that this module replaces.
    link: https://www.libvirt.org/manpages/virsh.html#snapshot-list
"""

EXAMPLES = r"""
- name: Read all snapshots of a guest
  virtops.libvirt.snapshot_info:
    domain: web1
  register: found

- name: Show them as a tree
  ansible.builtin.debug:
    msg: "{{ found.tree.splitlines() }}"

- name: List disk-only snapshots that nothing was built on
  virtops.libvirt.snapshot_info:
    domain: web1
    disk_only: true
    leaves: true

- name: Read the definitions of all descendants of a snapshot
  virtops.libvirt.snapshot_info:
    domain: web1
    from: before-upgrade
    descendants: true
    xml: true
  register: below
"""

RETURN = r"""
snapshots:
  description: The snapshots that match the filters, parents first.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Its name.
      type: str
    description:
      description: Its description. Null if it has none.
      type: str
    parent:
      description: The name of its parent. Null for a root.
      type: str
    children:
      description: The names of its children, even if they do not match the filters.
      type: list
      elements: str
    creation_time:
      description: When it was taken, in seconds since 1970.
      type: int
    state:
      description:
        - The guest's state at the snapshot, in libvirt's words. V(disk-snapshot) is a running guest without its memory.
      type: str
    kind:
      description: V(internal) or V(external).
      type: str
    memory:
      description: Where the guest's memory is, with snapshot (V(no), V(internal) or V(external)) and file.
      type: dict
    disks:
      description: What was done per disk, with name, snapshot (V(no), V(internal) or V(external)), file and format.
      type: list
      elements: dict
    current:
      description: Whether it is the current one.
      type: bool
    metadata:
      description: Whether libvirt has a record of it.
      type: bool
    xml:
      description: Its XML. Null if libvirt has no record.
      returned: with O(xml) or O(security_info)
      type: str
  sample:
    - name: before-upgrade
      description: 4.2
      parent:
      children: []
      creation_time: 1795190400
      state: disk-snapshot
      kind: external
      memory: {snapshot: 'no', file: null}
      disks:
        - {name: vda, snapshot: external, file: /var/lib/libvirt/images/web1.vda.before-upgrade.qcow2, format: qcow2}
      current: true
      metadata: true
current:
  description: The name of the domain's current snapshot. Null if there is none. The filters do not change this.
  returned: success
  type: str
  sample: before-upgrade
tree:
  description:
    - The snapshots that match the filters, drawn as by C(virsh snapshot-list --tree).
    - Null if they are more than a hundred levels deep.
  returned: success
  type: str
  sample: before-upgrade
tree_data:
  description: The same as data, in the order of the drawing, with the name and depth (V(0) for a root) of each.
  returned: success
  type: list
  elements: dict
  sample:
    - name: before-upgrade
      depth: 0
error_code:
  description: A short word for the cause of a failure. It stays the same across releases.
  returned: failure
  type: str
  sample: no_such_snapshot
"""

from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Outcome
from ansible_collections.virtops.libvirt.plugins.module_utils._core.snapshot_tree import Filters
from ansible_collections.virtops.libvirt.plugins.module_utils._module.entry import DomainContext, run_domain_module
from ansible_collections.virtops.libvirt.plugins.module_utils._module.specs import ArgumentSpec
from ansible_collections.virtops.libvirt.plugins.module_utils._service.snapshot_info import (
    SnapshotInfoOptions,
    snapshots,
)

FLAGS = (
    *("current", "roots", "leaves", "has_children", "active", "inactive", "disk_only", "internal", "external"),
    "descendants",
)
SPEC: ArgumentSpec = {
    "name": {"type": "str"},
    "from": {"type": "str"},
    "metadata": {"type": "bool"},
    **{name: {"type": "bool", "default": False} for name in (*FLAGS, "xml", "security_info")},
}


def _flow(context: DomainContext) -> Outcome:
    given = context.params
    filters = Filters(
        name=given["name"],
        metadata=given["metadata"],
        start=given["from"],
        **{name: given[name] for name in FLAGS},
    )
    options = SnapshotInfoOptions(filters, given["xml"] or given["security_info"], given["security_info"])
    return snapshots(options, context.domain)


def main() -> None:
    run_domain_module(
        SPEC,
        _flow,
        changes=False,
        needs_secrets=lambda params: bool(params["security_info"]),
        mutually_exclusive=[("name", "current", "from")],
    )


if __name__ == "__main__":
    main()
