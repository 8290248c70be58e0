#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: block_info
short_description: Show the disks of a libvirt domain, their backing chains and their block jobs
version_added: 0.1.0
author: virtops.libvirt contributors (@virtops)
description:
  - Shows together what C(virsh domblklist --details), C(virsh domblkinfo), C(virsh blockjob --info) and C(qemu-img info
    --backing-chain) show.
  - The chain of a running domain is the one that QEMU uses. The chain of a domain that is off is read from its images.
  - An image that is missing or cannot be read is a warning, not a failure.
extends_documentation_fragment:
  - virtops.libvirt.connection
  - virtops.libvirt.domain
  - virtops.libvirt.attributes
  - virtops.libvirt.attributes.info
  - virtops.libvirt.attributes.actiongroup_all
options:
  disks:
    description: The disks to show, by their targets. If unset, all disks.
    type: list
    elements: str
    default: []
seealso:
  - module: virtops.libvirt.guests_info
  - module: virtops.libvirt.block_commit
  - name: virsh manual, domblklist
    description: The command that this module replaces.
    link: https://www.libvirt.org/manpages/virsh.html#domblklist
"""

EXAMPLES = r"""
- name: Show all disks of a domain
  virtops.libvirt.block_info:
    domain: web1
  register: web1

- name: Show the disks that have overlays
  ansible.builtin.debug:
    msg: "{{ item.name }} has {{ item.chain | length }} layers"
  loop: "{{ web1.disks }}"
  when: item.chain | length > 1

- name: Wait until the block job of one disk has ended, or is ready for its pivot
  virtops.libvirt.block_info:
    domain: web1
    disks: [vda]
  register: vda
  until: vda.disks[0].job is none or vda.disks[0].job.ready
  retries: 60
  delay: 5
"""

RETURN = r"""
domain:
  description: The domain.
  returned: success
  type: dict
  sample: {name: web1, uuid: 1b4e28ba-2fa1-11d2-883f-0016d3cca427, state: running}
disks:
  description: The disks, in the order of the definition.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The target, for example V(vda).
      type: str
    bus:
      description: The bus, for example V(virtio).
      type: str
    device:
      description: The kind of device, V(disk), V(cdrom), V(floppy) or V(lun).
      type: str
    type:
      description: The kind of source, for example V(file), V(block), V(volume) or V(network).
      type: str
    file:
      description: The image that the guest writes to. V(null) for an empty drive, or if it is not a local image.
      type: str
    format:
      description: The format of that image.
      type: str
    readonly:
      description: Whether the guest may only read it.
      type: bool
    shareable:
      description: Whether other guests may write to it too.
      type: bool
    transient:
      description: Whether all writes are lost when the guest stops.
      type: bool
    capacity:
      description: The size in bytes that the guest sees. V(null) if libvirt does not know it.
      type: int
    allocation:
      description: The highest byte of the image that is in use, as in C(virsh domblkinfo).
      type: int
    physical:
      description: The size of the image's file or device in bytes.
      type: int
    chain:
      description: The images that the disk consists of. The one that the guest writes to comes first.
      type: list
      elements: dict
      contains:
        path:
          description: The image. If the layer is not an image on this host, a text that names it.
          type: str
        format:
          description: Its format.
          type: str
        depth:
          description: V(0) for the layer that the guest writes to, V(1) for the one below it, and so on.
          type: int
        exists:
          description: Whether the file exists. V(null) if the layer is not an image on this host.
          type: bool
        size:
          description: Its virtual size in bytes. V(null) if it cannot be read.
          type: int
        allocation:
          description: The bytes that it uses on the file system. V(null) if it cannot be read.
          type: int
        internal_snapshots:
          description: The names of the snapshots inside it.
          type: list
          elements: str
    job:
      description: The block job that runs on the disk. V(null) if there is none.
      type: dict
      contains:
        type:
          description: The kind of job, V(commit), V(active-commit), V(pull), V(copy), V(backup) or V(unknown).
          type: str
        cur:
          description: The bytes that are done.
          type: int
        end:
          description: The bytes to do in all. Both are V(0) while the job starts.
          type: int
        bandwidth:
          description: The limit in bytes/s. V(0) means no limit.
          type: int
        ready:
          description: Whether it has caught up with the guest and may be pivoted.
          type: bool
        target:
          description: The image that it writes to. V(null) if libvirt does not show it.
          type: str
        progress:
          description: The percentage that is done.
          type: float
  sample:
    - name: vda
      bus: virtio
      device: disk
      type: file
      file: /var/lib/libvirt/images/web1.nightly.qcow2
      format: qcow2
      readonly: false
      shareable: false
      transient: false
      capacity: 10737418240
      allocation: 3211264
      physical: 3276800
      chain:
        - path: /var/lib/libvirt/images/web1.nightly.qcow2
          format: qcow2
          depth: 0
          exists: true
          size: 10737418240
          allocation: 3276800
          internal_snapshots: []
        - path: /var/lib/libvirt/images/web1.qcow2
          format: qcow2
          depth: 1
          exists: true
          size: 10737418240
          allocation: 2147483648
          internal_snapshots: []
      job:
error_code:
  description: A short word for the cause of a failure. It stays the same across releases.
  returned: failure
  type: str
  sample: no_such_domain
"""

from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Outcome
from ansible_collections.virtops.libvirt.plugins.module_utils._module.entry import DomainContext, run_domain_module
from ansible_collections.virtops.libvirt.plugins.module_utils._module.specs import ArgumentSpec
from ansible_collections.virtops.libvirt.plugins.module_utils._service import info

SPEC: ArgumentSpec = {"disks": {"type": "list", "elements": "str", "default": []}}


def _flow(context: DomainContext) -> Outcome:
    return info.block(context.domain, context.images, context.params["disks"])


def main() -> None:
    run_domain_module(SPEC, _flow, changes=False)


if __name__ == "__main__":
    main()
