#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: snapshot_revert
short_description: Take a guest back to a snapshot
version_added: 0.1.0
author: virtops.libvirt contributors (@virtops)
description:
  - Takes the disks of a domain, and its memory where the snapshot has that, back to a snapshot. What the guest wrote
    since is lost, unless it is in another snapshot.
  - To an internal snapshot libvirt goes back, and the definition becomes that of the snapshot's moment.
  - To an external snapshot libvirt goes back since 9.9.0; C(virsh capabilities) then has C(<externalSnapshot/>). It
    deletes the files of the current snapshot without asking what else stands on them, and it puts every disk on a new
    overlay. So the module lets it only if nothing can be lost. The guest's disks have to be on the overlays of its
    current snapshot, which nothing else needs. The snapshot has to be of all disks that the guest has and had then, and
    each of them has to be a file. The definition then becomes that of the snapshot's moment, too.
  - In all other cases the module goes back to an external snapshot itself, for example if the host's libvirt is older,
    if the snapshot left out a disk, if a CD is inserted, if a disk is a block device, or if the guest was taken back
    before and has branches of snapshots. The guest is turned off, each of
    the snapshot's disks gets a new overlay on the image of that moment, and the definition stays as it is but for them.
    If the snapshot has the guest's memory, the guest then goes on with that, with the devices of that moment until it
    is off again. The snapshot's own images and its memory file are never written to, so it can be gone back to again.
    If it was interrupted, the next run finishes it, and M(virtops.libvirt.recover) undoes or finishes it, though
    without the memory. A transient domain cannot be taken back so.
  - RV(actions) tells which way it is, in check mode too.
  - An overlay that holds nothing but what the guest wrote since then is removed, unless another snapshot stands on it.
  - Whether something happened since the last revert can be told only of a guest that is off. If it stands on the
    snapshot, and nobody wrote to its images or changed its definition since this module took it there, nothing changes.
    Otherwise the revert happens, also of a guest that runs.
  - A snapshot that is not there is a failure.
  - It is refused if it would harm other data. That is so if layers stand on the images that the snapshot is in, if
    a disk has another image since, or if another domain uses one of them. An image that was written to after an
    external snapshot, as by a merge, is no longer that moment and is refused too.
  - It is refused if libvirt saved the guest with its memory (C(virsh managedsave)), as that does not go with the disks
    of another moment.
  - libvirt brings back the metadata of the snapshot's moment too, and in them the journal of this collection. It is
    written anew. Operations of that time do not rise again, and snapshots whose layers are in use stay known.
  - The module refuses while the journal has an open operation on the domain, even an interrupted one, and while a block
    job runs.
extends_documentation_fragment:
  - virtops.libvirt.connection
  - virtops.libvirt.domain
  - virtops.libvirt.domain.lock
  - virtops.libvirt.attributes
  - virtops.libvirt.attributes.changes
  - virtops.libvirt.attributes.actiongroup_all
options:
  name:
    description: The snapshot's name. Either this or O(current) is needed.
    type: str
  current:
    description: Whether the domain's current snapshot is meant.
    type: bool
    default: false
  run_state:
    description:
      - What the guest does afterwards.
      - V(snapshot) is what it did when the snapshot was taken. V(running) and V(paused) are as the flags of
        C(virsh snapshot-revert).
      - A transient domain that the snapshot would leave off needs V(running) or V(paused).
    type: str
    choices: [snapshot, running, paused]
    default: snapshot
  force:
    description:
      - Whether to do what libvirt calls risky, for example where the devices of the running guest are not those of the
        snapshot. The message says so if it is needed.
    type: bool
    default: false
  reset_nvram:
    description:
      - Whether the guest gets fresh UEFI variables from their template (libvirt 8.1.0).
      - Where the module goes back to an external snapshot itself, only if the guest is then started.
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
- name: Take a guest back to where it was before the update
  virtops.libvirt.snapshot_revert:
    domain: web1
    name: before-update

- name: Take it back to its current snapshot, and start it in any case
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
    - The snapshot that the domain was taken back to.
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
  description: The state after, or in check mode the one that it would have.
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
from ansible_collections.virtops.libvirt.plugins.module_utils._core.revert import RUN_STATES, RevertWish
from ansible_collections.virtops.libvirt.plugins.module_utils._module.entry import DomainContext, run_domain_module
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
    wish = RevertWish(
        **{name: given[name] for name in ("name", "run_state", "force", "reset_nvram")},
    )
    return Revert(wish, context.guest).run(context.check)


def main() -> None:
    run_domain_module(
        SPEC,
        _flow,
        changes=True,
        mutually_exclusive=[("name", "current")],
        required_if=[("current", False, ("name",))],
    )


if __name__ == "__main__":
    main()
