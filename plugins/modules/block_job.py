#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: block_job
short_description: Pivot, cancel or limit the block job of a libvirt domain's disk
version_added: 0.1.0
author: virtops.libvirt contributors (@virtops)
description:
  - Pivots, cancels or limits the block job of a disk. A disk can have only one. M(virtops.libvirt.block_info) shows it.
  - O(state=pivoted) finishes a commit of the active layer, as M(virtops.libvirt.block_commit) does. It also updates the
    persistent definition, the snapshot's record and the journal.
  - With O(state=cancelled) the guest stays on the layers that it has, and loses nothing. After a cancelled commit the
    base is no longer the snapshot's point in time. The journal notes this until the merge is done.
extends_documentation_fragment:
  - virtops.libvirt.connection
  - virtops.libvirt.domain
  - virtops.libvirt.domain.lock
  - virtops.libvirt.deadline
  - virtops.libvirt.attributes
  - virtops.libvirt.attributes.changes
  - virtops.libvirt.attributes.actiongroup_all
options:
  disk:
    description: The disk's target in the guest's definition, for example V(vda).
    type: str
    required: true
  state:
    description:
      - V(present) requires a running job, and sets its O(bandwidth).
      - V(pivoted) switches the guest to the base. If the disk has no job, nothing is changed. But if the chain and the
        journal show a merge that began and is not done, for example because its job died, the module fails with the
        code V(commit_failed). Then restart the merge with M(virtops.libvirt.block_commit).
      - V(cancelled) ends the job. If the disk has no job, nothing is changed.
    type: str
    choices: [present, pivoted, cancelled]
    default: present
  bandwidth:
    description: The job's limit in MiB/s. V(0) means no limit. If unset, the limit is not changed.
    type: int
  timeout:
    description:
      - With O(state=pivoted), how many seconds the job may take to become ready. O(on_timeout) says what happens then.
    type: int
    default: 3600
  delete_merged:
    description:
      - With O(state=pivoted), whether overlays are deleted after the whole snapshot is merged, as in
        O(virtops.libvirt.block_commit#module:delete_merged).
    type: bool
    default: false
seealso:
  - module: virtops.libvirt.block_commit
  - name: virsh manual, blockjob
    description: The command and the flags that this module replaces.
    link: https://www.libvirt.org/manpages/virsh.html#blockjob
"""

EXAMPLES = r"""
- name: Start a merge without waiting
  virtops.libvirt.block_commit:
    domain: db1
    snapshot: nightly
    wait: false

- name: Slow it down during the day
  virtops.libvirt.block_job:
    domain: db1
    disk: vda
    bandwidth: 20

- name: Finish it in the evening
  virtops.libvirt.block_job:
    domain: db1
    disk: vda
    state: pivoted
"""

RETURN = r"""
actions:
  description:
    - The steps that were taken. In check mode, the steps that would be taken. After a failure, the steps that were
      taken and not undone.
  returned: success, and failure after a first look at the domain
  type: list
  elements: str
  sample:
    - limit the active-commit job of vda to 20 MiB/s (0 is no limit)
domain:
  description: The domain.
  returned: success
  type: dict
  sample: {name: db1, uuid: 1b4e28ba-2fa1-11d2-883f-0016d3cca427, state: running}
job:
  description: The job that still runs afterwards. Null if there is none.
  returned: success
  type: dict
  contains:
    type:
      description: Its kind, in the words of virsh.
      type: str
    cur:
      description: Bytes done.
      type: int
    end:
      description: Bytes in all.
      type: int
    bandwidth:
      description: Its limit in bytes/s. V(0) means no limit.
      type: int
    ready:
      description: Whether it may pivot.
      type: bool
    target:
      description: The image that it writes to. V(null) where libvirt does not tell.
      type: str
    progress:
      description: Percent.
      type: float
  sample:
    type: active-commit
    cur: 1048576
    end: 4194304
    bandwidth: 20971520
    ready: false
    target: /var/lib/libvirt/images/web1.qcow2
    progress: 25.0
error_code:
  description: A short word for the cause of a failure. It stays the same across releases.
  returned: failure
  type: str
  sample: no_job
partial:
  description:
    - What became of each disk, as in RV(virtops.libvirt.block_commit#module:disks), and its own C(error), V(null) if it
      has none.
  returned: failure, if something was done
  type: list
  elements: dict
  sample: []
"""

from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Outcome
from ansible_collections.virtops.libvirt.plugins.module_utils._module.entry import DomainContext, run_domain_module
from ansible_collections.virtops.libvirt.plugins.module_utils._module.specs import (
    DEADLINE,
    ArgumentSpec,
    deadline,
    merged,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._service.job_control import JobControl, JobOptions

OPTIONS: ArgumentSpec = {
    "disk": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "pivoted", "cancelled"], "default": "present"},
    "bandwidth": {"type": "int"},
    "timeout": {"type": "int", "default": 3600},
    "delete_merged": {"type": "bool", "default": False},
}
SPEC: ArgumentSpec = merged(OPTIONS, DEADLINE)


def _flow(context: DomainContext) -> Outcome:
    given = {name: context.params[name] for name in OPTIONS if name != "timeout"}
    options = JobOptions(**given, deadline=deadline(context.params))
    return JobControl(options, context.guest).run(context.check)


def main() -> None:
    run_domain_module(SPEC, _flow, changes=True)


if __name__ == "__main__":
    main()
