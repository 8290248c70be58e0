#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_info
short_description: List the backup sets in a directory
version_added: 0.1.0
author: virtops.libvirt contributors (@virtops)
description:
  - Lists the sets that M(virtops.libvirt.live_backup) and M(virtops.libvirt.image_backup) made in O(dest), with their
    age and state. It also names what is unfinished, damaged or foreign there.
  - It reads no image, unless O(verify) is set. It changes nothing.
  - It makes no connection to libvirt, and does not need its Python library. So it also works on a backup server. Run it
    as the user that the sets belong to.
extends_documentation_fragment:
  - virtops.libvirt.connection
  - virtops.libvirt.sets
  - virtops.libvirt.attributes
  - virtops.libvirt.attributes.info
  - virtops.libvirt.attributes.actiongroup_all
options:
  uri:
    description: Not used. Every module of this collection has it, so that C(module_defaults) can set it for all.
  dest:
    description: The directory that backups are made in, as O(virtops.libvirt.live_backup#module:dest).
    type: path
    required: true
  domain:
    description:
      - Only the sets of this domain, by its name or UUID. The domain need not exist.
      - With a name, only the folder of this name is read, if there is one. With a UUID all folders are.
      - If unset, the sets of all domains.
    type: str
  verify:
    description:
      - Whether to read each set and check it, as M(virtops.libvirt.backup_verify) does. This takes as long as reading
        all images. The result is only returned, and the module does not fail for a damaged set.
      - M(virtops.libvirt.backup_verify) also notes the result in the set. Use that for regular checks.
      - This needs C(qemu-img) and the Python library lxml on the host.
    type: bool
    default: false
seealso:
  - module: virtops.libvirt.backup_verify
  - module: virtops.libvirt.live_backup
"""

EXAMPLES = r"""
- name: List all sets
  virtops.libvirt.backup_info:
    dest: /srv/backup
  register: found

- name: Show them
  ansible.builtin.debug:
    msg: "{{ item.domain.name }} {{ item.taken }}: {{ item.state }} {{ item.why }}"
  loop: "{{ found.sets }}"
  loop_control:
    label: "{{ item.path }}"

- name: Fail if the newest whole set of a guest is older than a day
  ansible.builtin.assert:
    that: found.sets | selectattr('domain.name', 'eq', 'web1') | selectattr('state', 'eq', 'complete')
      | map(attribute='age') | min < 86400
"""

RETURN = r"""
sets:
  description: The sets, by the domain's name and then by time. No set is an empty list.
  returned: success
  type: list
  elements: dict
  contains:
    path:
      description: Where it is.
      type: str
    state:
      description:
        - V(complete), V(unfinished) (its backup runs or was interrupted, or its removal was), V(damaged) (a file is
          missing or has another length, the manifest cannot be used, or the set that it is incremental on is not whole;
          with O(verify) also what was found by reading it), V(foreign) (not a set of this collection, renamed, or
          others may write to it) or V(unknown) (a later release made it).
      type: str
    why:
      description: In words, why it is not complete. Empty if it is.
      type: str
    domain:
      description: The domain, with RV(ignore:name) and RV(ignore:uuid). Both are empty if nothing tells them.
      type: dict
    hypervisor:
      description: The name of the host that made it. Empty if nothing tells it.
      type: str
    taken:
      description: The point in time that it holds, in UTC.
      type: str
    finished:
      description: When it was complete, in UTC.
      type: str
    age:
      description: The seconds since RV(ignore:taken).
      type: int
    consistency:
      description: V(filesystem), V(crash), V(offline) or V(unknown), as in the manifest.
      type: str
    size:
      description: The bytes of its files, with their holes.
      type: int
    allocated:
      description: The bytes that it takes on the disk.
      type: int
    base:
      description: The name of the set in the same folder that it is incremental on. Null if it stands alone.
      type: str
    disks:
      description:
        - The images, each with RV(ignore:target), RV(ignore:format), RV(ignore:virtual_size), RV(ignore:file) and
          RV(ignore:bytes).
      type: list
      elements: dict
    lacks:
      description: What the set does not hold, as in the manifest.
      type: list
      elements: dict
    verified:
      description:
        - Whether it was whole the last time that it was read back, when it was made or later.
      type: bool
    last_verified:
      description:
        - What M(virtops.libvirt.backup_verify) noted last, with RV(ignore:time), RV(ignore:ok) and RV(ignore:message).
          Null if it never did.
      type: dict
    last_booted:
      description: What the last restore drill noted, in the same form.
      type: dict
    problems:
      description: Everything that is wrong with it.
      returned: with O(verify)
      type: list
      elements: str
    read:
      description: Whether its files were read.
      returned: with O(verify)
      type: bool
  sample:
    - path: /srv/backup/web1/20261120T120000Z
      state: complete
      why: ''
      domain: {name: web1, uuid: 1b4e28ba-2fa1-11d2-883f-0016d3cca427}
      hypervisor: hv1
      taken: '2026-11-20T12:00:00Z'
      finished: '2026-11-20T12:00:04Z'
      age: 86400
      consistency: filesystem
      size: 2147483648
      allocated: 524288000
      base:
      disks:
        - target: vda
          format: qcow2
          virtual_size: 10737418240
          file: vda.qcow2
          bytes: 2147483648
      lacks: []
      verified: true
      last_verified:
        time: '2026-11-21T03:00:00Z'
        ok: true
        message: ''
      last_booted:
error_code:
  description: A short word for the cause of a failure. It stays the same across releases.
  returned: failure
  type: str
  sample: dest_missing
"""

from ansible_collections.virtops.libvirt.plugins.module_utils._core.choose_sets import Choice
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Outcome
from ansible_collections.virtops.libvirt.plugins.module_utils._host.clock import SystemClock
from ansible_collections.virtops.libvirt.plugins.module_utils._host.helper import backup_sets
from ansible_collections.virtops.libvirt.plugins.module_utils._module.entry import LocalContext, run_local_module
from ansible_collections.virtops.libvirt.plugins.module_utils._module.specs import READ, ArgumentSpec, merged
from ansible_collections.virtops.libvirt.plugins.module_utils._service.verify_sets import (
    SetVerification,
    VerifyOptions,
    list_sets,
)

SPEC: ArgumentSpec = merged(
    READ,
    {
        "dest": {"type": "path", "required": True},
        "domain": {"type": "str"},
        "verify": {"type": "bool", "default": False},
    },
)


def _flow(context: LocalContext) -> Outcome:
    given, clock = context.params, SystemClock()
    with backup_sets(given["stall_timeout"]) as (sets, checker):
        if not given["verify"]:
            return list_sets(sets, given["dest"], given["domain"], clock.utcnow())
        choice = Choice(given["dest"], domain=given["domain"])
        options = VerifyOptions(choice, given["rate_limit"], given["parallel"], note=False)
        return SetVerification(options, sets, checker, clock).look_only()


def main() -> None:
    run_local_module(SPEC, _flow, changes=False, needs=lambda given: ("lxml",) if given["verify"] else ())


if __name__ == "__main__":
    main()
