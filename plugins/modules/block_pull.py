#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: block_pull
short_description: Pull the content of backing layers into a libvirt domain's active images
version_added: 0.1.0
author: virtops.libvirt contributors (@virtops)
description:
  - Copies the content of a disk's backing layers into the image that the guest writes to, while the guest runs.
    Afterwards that image has O(base) as its backing file, or none. A domain that is off is merged with C(qemu-img
    rebase).
  - The module writes to no backing layer. Use it to make a guest independent of a golden image that other guests share.
  - The goal is absolute, that is, "the active image has this base". So a second run finds nothing to do. A run after an
    interruption continues from what it finds.
  - The active image grows by what is copied into it. An aborted pull does not harm the guest. Run the task again.
  - O(delete_merged) deletes only overlays that M(virtops.libvirt.snapshot_external) made. It never deletes an original
    or a golden image.
extends_documentation_fragment:
  - virtops.libvirt.connection
  - virtops.libvirt.domain
  - virtops.libvirt.domain.job
  - virtops.libvirt.domain.lock
  - virtops.libvirt.merge
  - virtops.libvirt.attributes
  - virtops.libvirt.attributes.changes
  - virtops.libvirt.attributes.actiongroup_all
options:
  base:
    description:
      - Pull everything between the active image and this image (an absolute path in the disk's chain).
      - If unset, the whole chain is pulled, and the active image then has no backing file.
    type: path
seealso:
  - module: virtops.libvirt.block_commit
  - module: virtops.libvirt.block_info
  - name: virsh manual, blockpull
    description: The command and the flags that this module replaces.
    link: https://www.libvirt.org/manpages/virsh.html#blockpull
"""

EXAMPLES = r"""
- name: Make a guest independent of its golden image
  virtops.libvirt.block_pull:
    domain: web1

- name: Shorten a chain of one disk, at most at 50 MiB/s
  virtops.libvirt.block_pull:
    domain: web1
    disks: [vda]
    base: /var/lib/libvirt/images/golden.qcow2
    bandwidth: 50
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
    - pull /var/lib/libvirt/images/golden.qcow2 into /var/lib/libvirt/images/web1.qcow2 (vda)
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
      before: [/var/lib/libvirt/images/web1.qcow2, /var/lib/libvirt/images/golden.qcow2]
      after: [/var/lib/libvirt/images/web1.qcow2]
      merged: [/var/lib/libvirt/images/golden.qcow2]
      job:
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

from ansible_collections.virtops.libvirt.plugins.module_utils._core.convergence import Deadline
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Outcome
from ansible_collections.virtops.libvirt.plugins.module_utils._module.entry import DomainContext, run_domain_module
from ansible_collections.virtops.libvirt.plugins.module_utils._module.job import Job
from ansible_collections.virtops.libvirt.plugins.module_utils._module.specs import MERGE, ArgumentSpec, merged
from ansible_collections.virtops.libvirt.plugins.module_utils._service.merge import Merge
from ansible_collections.virtops.libvirt.plugins.module_utils._service.merge_plan import MergeOptions

SPEC: ArgumentSpec = merged(MERGE, {"base": {"type": "path"}})


def _flow(context: DomainContext) -> Outcome:
    given = {name: context.params[name] for name in SPEC if name != "timeout"}
    limit = Deadline(timeout=context.params["timeout"])
    options = MergeOptions(**{**given, "disks": tuple(given["disks"])}, deadline=limit, pull=True)
    context.progress.phase("merge")
    return Merge(options, context.guest).run(context.check)


def main() -> None:
    run_domain_module(SPEC, _flow, changes=True, job=Job())


if __name__ == "__main__":
    main()
