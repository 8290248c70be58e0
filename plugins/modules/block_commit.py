#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: block_commit
short_description: Merge layers of a libvirt domain's disks into the images below them
version_added: 0.1.0
author: virtops.libvirt contributors (@virtops)
description:
  - Commits overlays into their bases while the guest runs, and pivots the guest to the base at the end. Layers in the
    middle of a chain are committed without a pivot. A domain that is off is merged with C(qemu-img commit).
  - The goal is absolute, that is, "what snapshot X added" or "all above this base". So a second run finds nothing to
    do. A run after an interruption continues from what it finds. It adopts a running commit, pivots one that is ready,
    and restarts one that vanished.
  - The merge succeeds only when the running domain and its persistent definition both show the base.
  - From the start of a commit the base is no longer the snapshot's point in time. Before the start, the module notes
    this in the journal in the domain's metadata. Then M(virtops.libvirt.image_backup) refuses to copy the base.
  - An aborted or failed merge does not harm the guest. It goes on, on its overlay. Run the task again.
  - If QEMU paused the guest because a write failed, for example on a full file system, the module resumes the guest
    after the merge.
  - The module never writes to an image that another domain of this hypervisor uses as a base (a golden image).
extends_documentation_fragment:
  - virtops.libvirt.connection
  - virtops.libvirt.domain
  - virtops.libvirt.domain.job
  - virtops.libvirt.domain.lock
  - virtops.libvirt.deadline
  - virtops.libvirt.merge
  - virtops.libvirt.attributes
  - virtops.libvirt.attributes.changes
  - virtops.libvirt.attributes.actiongroup_all
options:
  snapshot:
    description:
      - Merge the layers that this external snapshot added, each into the image below it. Then the snapshot's record is
        deleted, because its layers no longer exist. With O(delete_merged), the file with its memory is deleted too.
      - If neither libvirt nor the journal knows the snapshot, nothing is changed.
    type: str
  base:
    description: Merge everything above this image (an absolute path in the disk's chain) into it.
    type: path
  top:
    description:
      - With O(base), the topmost layer that is merged. If unset, this is the layer that the guest writes to.
    type: path
  pivot:
    description:
      - Whether the guest is switched to the base when the commit of its active layer is ready. V(false) leaves the job
        mirroring the guest's writes into both images until a later run pivots.
    type: bool
    default: true
seealso:
  - module: virtops.libvirt.snapshot_external
  - module: virtops.libvirt.block_info
  - module: virtops.libvirt.block_job
  - module: virtops.libvirt.block_pull
  - name: virsh manual, blockcommit
    description: The command and the flags that this module replaces.
    link: https://www.libvirt.org/manpages/virsh.html#blockcommit
"""

EXAMPLES = r"""
- name: Merge what a snapshot added, on all its disks, and delete the overlays
  virtops.libvirt.block_commit:
    domain: web1
    snapshot: before-update
    delete_merged: true

- name: Merge a whole chain of one disk into its base, at most at 100 MiB/s
  virtops.libvirt.block_commit:
    domain: web1
    disks: [vda]
    base: /var/lib/libvirt/images/web1.qcow2
    bandwidth: 100

- name: Merge a guest that writes much, and if necessary slow it down for at most 90 seconds
  virtops.libvirt.block_commit:
    domain: db1
    snapshot: nightly
    delete_merged: true
    timeout: 900
    on_timeout: throttle
    throttle_timeout: 90

- name: Start merging now
  virtops.libvirt.block_commit:
    domain: db1
    snapshot: nightly
    wait: false

- name: Finish later
  virtops.libvirt.block_commit:
    domain: db1
    snapshot: nightly
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
    - commit /var/lib/libvirt/images/web1.vda.s1.qcow2 into /var/lib/libvirt/images/web1.qcow2 (vda)
    - pivot vda to /var/lib/libvirt/images/web1.qcow2
domain:
  description: The domain.
  returned: success
  type: dict
  sample: {name: web1, uuid: 1b4e28ba-2fa1-11d2-883f-0016d3cca427, state: running}
disks:
  description: What was done per disk.
  returned: success
  type: list
  elements: dict
  contains:
    disk:
      description: The disk's target.
      type: str
    before:
      description: Its chain before. The layer that the guest writes to comes first.
      type: list
      elements: str
    after:
      description: Its chain afterwards.
      type: list
      elements: str
    merged:
      description: The layers that this run removed from the chain.
      type: list
      elements: str
    job:
      description:
        - The job that still runs, if there is one, with its type, cur and end (bytes), bandwidth (bytes/s), ready,
          target (the image it writes to, if libvirt tells) and progress (percent).
      type: dict
  sample:
    - disk: vda
      before: [/var/lib/libvirt/images/web1.vda.s1.qcow2, /var/lib/libvirt/images/web1.qcow2]
      after: [/var/lib/libvirt/images/web1.qcow2]
      merged: [/var/lib/libvirt/images/web1.vda.s1.qcow2]
      job:
held_seconds:
  description: How long the guest's writes were slowed so that the merge could end, in seconds.
  returned: success, if O(on_timeout) is not V(fail)
  type: float
  sample: 0.0
suspended_seconds:
  description: How long of that the guest was paused, in seconds.
  returned: success, if O(on_timeout) is not V(fail)
  type: float
  sample: 0.0
error_code:
  description: A short word for the cause of a failure. It stays the same across releases.
  returned: failure
  type: str
  sample: commit_failed
partial:
  description: What became of each disk, as in RV(disks), and its own C(error), V(null) if it has none.
  returned: failure, if something was done
  type: list
  elements: dict
  sample: []
"""

from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Outcome
from ansible_collections.virtops.libvirt.plugins.module_utils._module.entry import DomainContext, run_domain_module
from ansible_collections.virtops.libvirt.plugins.module_utils._module.job import Job
from ansible_collections.virtops.libvirt.plugins.module_utils._module.specs import (
    DEADLINE,
    MERGE,
    ArgumentSpec,
    deadline,
    merged,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._service.merge import Merge
from ansible_collections.virtops.libvirt.plugins.module_utils._service.merge_plan import MergeOptions

OPTIONS: ArgumentSpec = merged(
    MERGE,
    {
        "snapshot": {"type": "str"},
        "base": {"type": "path"},
        "top": {"type": "path"},
        "pivot": {"type": "bool", "default": True},
    },
)
SPEC: ArgumentSpec = merged(OPTIONS, DEADLINE)


def _flow(context: DomainContext) -> Outcome:
    given = {name: context.params[name] for name in OPTIONS if name != "timeout"}
    options = MergeOptions(**{**given, "disks": tuple(given["disks"])}, deadline=deadline(context.params))
    context.progress.phase("merge")
    return Merge(options, context.guest).run(context.check)


def main() -> None:
    run_domain_module(
        SPEC,
        _flow,
        changes=True,
        job=Job(),
        required_one_of=[("snapshot", "base")],
        mutually_exclusive=[("snapshot", "base"), ("snapshot", "top")],
        required_by={"top": "base"},
    )


if __name__ == "__main__":
    main()
