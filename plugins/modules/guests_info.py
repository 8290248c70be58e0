#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: guests_info
short_description: List the guests of a hypervisor, their disks and the operations in their journals
version_added: 0.1.0
author: virtops.libvirt contributors (@virtops)
description:
  - Lists the domains of one libvirt connection, chosen by name, UUID and state.
  - It also reads the journal that this collection keeps in a domain's metadata. The journal holds the snapshots that
    are kept, and the operations that were interrupted.
extends_documentation_fragment:
  - virtops.libvirt.connection
  - virtops.libvirt.attributes
  - virtops.libvirt.attributes.info
  - virtops.libvirt.attributes.actiongroup_all
options:
  guests:
    description:
      - Patterns for names, as in a shell (V(*), V(?), V([seq]), V([!seq])), or whole UUIDs.
      - A guest is listed if one of them matches.
    type: list
    elements: str
    default: ["*"]
  exclude:
    description: Patterns, as in O(guests), of guests to leave out.
    type: list
    elements: str
    default: []
  states:
    description: List only guests in one of these states. If unset, guests in any state.
    type: list
    elements: str
    choices: [running, idle, paused, in shutdown, shut off, crashed, pmsuspended]
    default: []
seealso:
  - module: virtops.libvirt.block_info
  - name: virsh manual, list
    description: The command that this module replaces.
    link: https://www.libvirt.org/manpages/virsh.html#list
"""

EXAMPLES = r"""
- name: List all guests of this hypervisor
  virtops.libvirt.guests_info:
  register: hypervisor

- name: List the running web servers except one
  virtops.libvirt.guests_info:
    guests: ["web*"]
    exclude: [web-old]
    states: [running]

- name: Show the guests on which an operation was interrupted
  ansible.builtin.debug:
    msg: "{{ item.name }}"
  loop: "{{ hypervisor.guests }}"
  when: item.journal | selectattr('open') | length > 0
"""

RETURN = r"""
guests:
  description: The guests that were chosen, sorted by name.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The domain's name.
      type: str
    uuid:
      description: The domain's UUID.
      type: str
    patterns:
      description: The patterns of O(guests) that match it.
      type: list
      elements: str
    state:
      description: The state, in the words of O(states).
      type: str
    paused_by:
      description:
        - Why it is paused, V(user), V(I/O error) (QEMU paused it because a write failed), V(saving) or V(other).
          V(null) if it is not paused.
      type: str
    persistent:
      description: Whether its definition stays when it is shut off.
      type: bool
    autostart:
      description: Whether it starts with the hypervisor.
      type: bool
    elsewhere:
      description:
        - Whether it is off here and at another host. It was migrated there, or another host writes to its images, which
          both share.
        - A block device that hosts share cannot tell this. libvirt forgets a migration when its daemon is restarted.
      type: bool
    agent:
      description:
        - The guest agent's channel, V(connected), V(disconnected) (it exists, but nobody answers) or V(absent).
      type: str
    disks:
      description: Its disks, in the order of the definition.
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
    journal:
      description: The operations of this collection in the domain's journal.
      type: list
      elements: dict
      contains:
        id:
          description: The operation's own identifier.
          type: str
        kind:
          description: The workflow, V(snapshot), V(commit), or the name that a role gave.
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
            - Whether it is in the journal. V(false) for a live backup whose journal is gone. It was then found by the
              names of its layers, its record or its overlay.
          type: bool
        consistency:
          description: What the snapshot holds, V(filesystem), V(crash) or V(offline). Empty before it is known.
          type: str
        disks:
          description:
            - Its disks, each with RV(ignore:name), RV(ignore:base), RV(ignore:base_format) and RV(ignore:overlay).
          type: list
          elements: dict
    journal_of:
      description:
        - The UUID of the other domain that the journal in the metadata belongs to, because its definition was copied.
          Such a journal is ignored. V(null) otherwise.
      type: str
    journal_error:
      description: Why the journal, or the domain's whole definition, cannot be read. V(null) if it can be read.
      type: str
  sample:
    - name: web1
      uuid: 1b4e28ba-2fa1-11d2-883f-0016d3cca427
      state: running
      paused_by:
      persistent: true
      autostart: true
      elsewhere: false
      agent: connected
      disks:
        - name: vda
          bus: virtio
          device: disk
          type: file
          file: /var/lib/libvirt/images/web1.nightly.qcow2
          format: qcow2
          readonly: false
          shareable: false
          transient: false
      journal:
        - id: 5d0b7a52-3a7c-4f0e-9c39-0a4f3b1f6a60
          kind: live_backup
          name: nightly
          phase: created
          started: 20261120T120000Z
          open: true
          noted: true
          consistency: filesystem
          disks:
            - name: vda
              base: /var/lib/libvirt/images/web1.qcow2
              base_format: qcow2
              overlay: /var/lib/libvirt/images/web1.nightly.qcow2
      journal_of: null
      journal_error:
unmatched:
  description: The patterns of O(guests) that match no domain of this connection in any state.
  returned: success
  type: list
  elements: str
  sample: []
error_code:
  description: A short word for the cause of a failure. It stays the same across releases.
  returned: failure
  type: str
  sample: uri_unreachable
"""

from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Outcome
from ansible_collections.virtops.libvirt.plugins.module_utils._core.strays import is_stray_name
from ansible_collections.virtops.libvirt.plugins.module_utils._host.images import Images
from ansible_collections.virtops.libvirt.plugins.module_utils._module.entry import HostContext, run_host_module
from ansible_collections.virtops.libvirt.plugins.module_utils._module.specs import GUESTS, ArgumentSpec
from ansible_collections.virtops.libvirt.plugins.module_utils._service import info

SPEC: ArgumentSpec = GUESTS


def _flow(context: HostContext) -> Outcome:
    params = context.params
    return info.guests(
        context.host.domains(),
        params["guests"],
        params["exclude"],
        params["states"],
        lambda uuid: context.host.records(uuid, is_stray_name),
        Images(),
    )


def main() -> None:
    run_host_module(SPEC, _flow)


if __name__ == "__main__":
    main()
