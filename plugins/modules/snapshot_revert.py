#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: snapshot_revert
short_description: Revert a guest to a snapshot
version_added: 0.1.0
author: virtops.libvirt contributors (@virtops)
description:
  - Reverts the disks of a domain to a snapshot, and its memory if the snapshot has it. What the guest wrote since is
    lost, unless it is in another snapshot.
  - libvirt does the revert to an internal snapshot. The domain gets the definition that it had at the snapshot.
  - libvirt 9.9.0 or later can revert to an external snapshot. C(virsh capabilities) then has C(<externalSnapshot/>).
    But libvirt deletes the files of the current snapshot without a check whether other layers need them, and puts every
    disk on a new overlay. So the module lets libvirt do it only if nothing can be lost. The guest's disks must be on
    the overlays of its current snapshot, and nothing else may need these overlays. The snapshot must hold all disks
    that the guest has now and had then, and each must be a file. The domain then also gets the definition that it had
    at the snapshot.
  - In all other cases the module itself reverts to an external snapshot. Examples are an older libvirt, a disk that the
    snapshot left out, an inserted CD, a disk on a block device, and branches of snapshots after an earlier revert. The
    module turns the guest off. Each disk of the snapshot gets a new overlay on its image of that moment. The rest of
    the definition stays as it is. If the snapshot has the guest's memory, the guest then continues from it. Until it is
    turned off again, it has the devices of that moment. The module never writes to the snapshot's images and its memory
    file, so you can revert to it again. If the revert was interrupted, the next run finishes it.
    M(virtops.libvirt.recover) undoes or finishes it too, but without the memory. A transient domain cannot be reverted
    in this way.
  - RV(actions) shows which way is used, in check mode too.
  - An overlay that holds only what the guest wrote since then is removed, unless another snapshot needs it.
  - If the guest is off, and nobody has written to its images or changed its definition since this module reverted it to
    the same snapshot, nothing is changed. Otherwise the revert is done. It is always done if the guest runs.
  - If the snapshot does not exist, the module fails.
  - The module refuses if a revert would harm other data. That is so if other layers stand on the images that hold the
    snapshot, if a disk has had another image since, or if another domain uses one of the images. The module also
    refuses if an image was written to after an external snapshot, for example by a merge.
  - The module refuses if the guest's memory is saved (C(virsh managedsave)), because this memory does not fit the disks
    of another moment.
  - libvirt also restores the old metadata, with the old journal of this collection. So the module writes the journal
    again. Old operations do not come back, and snapshots whose layers are in use stay in the journal.
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
    description: The snapshot's name. Set this or O(current).
    type: str
  current:
    description: Whether to revert to the domain's current snapshot.
    type: bool
    default: false
  run_state:
    description:
      - The guest's state after the revert.
      - V(snapshot) is its state when the snapshot was taken. V(running) and V(paused) are like the flags of C(virsh
        snapshot-revert).
      - A transient domain that would be off after the revert needs V(running) or V(paused).
    type: str
    choices: [snapshot, running, paused]
    default: snapshot
  force:
    description:
      - Whether to revert even if libvirt calls it risky, for example because the devices of the running guest are not
        those of the snapshot. The message says when you need this.
    type: bool
    default: false
  reset_nvram:
    description:
      - Whether the guest gets new UEFI variables from their template (libvirt 8.1.0 or later).
      - If the module itself reverts to an external snapshot, this works only if the guest is then started.
    type: bool
    default: false
seealso:
  - module: virtops.libvirt.snapshot_internal
  - module: virtops.libvirt.snapshot_external
  - module: virtops.libvirt.snapshot_info
  - name: virsh manual, snapshot-revert
    description: The command and the flags that this module replaces.
    link: https://www.libvirt.org/manpages/virsh.html#snapshot-revert
"""

EXAMPLES = r"""
- name: Revert a guest to its state before the update
  virtops.libvirt.snapshot_revert:
    domain: web1
    name: before-update

- name: Revert it to its current snapshot, and start it in any case
  virtops.libvirt.snapshot_revert:
    domain: web1
    current: true
    run_state: running
"""

RETURN = r"""
actions:
  description: The steps that were taken. In check mode, the steps that would be taken.
  returned: success
  type: list
  elements: str
  sample: ["take the disks and memory of web1 back to snapshot before-update; it is then running"]
domain:
  description: The domain.
  returned: success
  type: dict
  sample: {name: web1, uuid: 1b4e28ba-2fa1-11d2-883f-0016d3cca427, state: running}
snapshot:
  description:
    - The snapshot that the domain was reverted to.
    - The keys are those of RV(virtops.libvirt.snapshot_info#module:snapshots).
  returned: success
  type: dict
  sample:
    name: before-update
    description:
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
state_before:
  description: The domain's state before, in the words of C(virsh domstate).
  returned: success
  type: str
  sample: running
state_after:
  description: The domain's state after. In check mode, the state that it would have.
  returned: success
  type: str
  sample: running
error_code:
  description: A short word for the cause of a failure. It stays the same across releases.
  returned: failure
  type: str
  sample: layers_above
"""

from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Outcome
from ansible_collections.virtops.libvirt.plugins.module_utils._core.revert import RUN_STATES, RevertOptions
from ansible_collections.virtops.libvirt.plugins.module_utils._module.entry import DomainContext, run_domain_module
from ansible_collections.virtops.libvirt.plugins.module_utils._module.job import Job
from ansible_collections.virtops.libvirt.plugins.module_utils._module.specs import ArgumentSpec
from ansible_collections.virtops.libvirt.plugins.module_utils._service.revert import Revert

SPEC: ArgumentSpec = {
    "name": {"type": "str"},
    "current": {"type": "bool", "default": False},
    "run_state": {"type": "str", "choices": list(RUN_STATES), "default": "snapshot"},
    "force": {"type": "bool", "default": False},
    "reset_nvram": {"type": "bool", "default": False},
}


def _flow(context: DomainContext) -> Outcome:
    given = context.params
    options = RevertOptions(
        **{name: given[name] for name in ("name", "run_state", "force", "reset_nvram")},
    )
    context.progress.phase("revert")
    return Revert(options, context.guest).run(context.check)


def main() -> None:
    run_domain_module(
        SPEC,
        _flow,
        changes=True,
        job=Job(),
        mutually_exclusive=[("name", "current")],
        required_if=[("current", False, ("name",))],
    )


if __name__ == "__main__":
    main()
