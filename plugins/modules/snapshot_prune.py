#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: snapshot_prune
short_description: Delete the old snapshots of a libvirt domain by a retention policy
version_added: 0.1.0
author: virtops.libvirt contributors (@virtops)
description:
  - Deletes the snapshots whose names begin with O(prefix), except those that the keep options keep.
  - RV(removed) and RV(kept) give the reason for each. In check mode they say what would happen.
  - Internal snapshots are deleted as M(virtops.libvirt.snapshot_internal) does. External ones are merged as
    M(virtops.libvirt.snapshot_external) does, so the guest keeps all its data. External snapshots that follow each
    other are merged in one go.
  - Snapshots that descend from a deleted one stay, unless they are to go too.
  - The current snapshot gets no special treatment. Usually it is the newest and stays. After a revert to an old
    snapshot, it may be deleted. The guest keeps its data and its state.
  - If one of the snapshots cannot be deleted, for example because other branches stand on its image, the module fails
    before it deletes any.
  - If the module is interrupted, run it again. It first finishes the deletion that it began.
  - The module refuses while the journal has another open operation on the domain, and while a block job runs.
extends_documentation_fragment:
  - virtops.libvirt.connection
  - virtops.libvirt.domain
  - virtops.libvirt.domain.job
  - virtops.libvirt.domain.lock
  - virtops.libvirt.keep
  - virtops.libvirt.attributes
  - virtops.libvirt.attributes.changes
  - virtops.libvirt.attributes.actiongroup_all
options:
  prefix:
    description:
      - Only snapshots whose names begin with this text are counted and deleted. It must not be blank.
      - Give internal and external snapshots different prefixes. If snapshots of both kinds would go in one run, the
        module refuses.
    type: str
    required: true
  timeout:
    description: The number of seconds that each merge may take.
    type: int
    default: 3600
seealso:
  - module: virtops.libvirt.snapshot_external
  - module: virtops.libvirt.snapshot_internal
  - module: virtops.libvirt.snapshot_info
"""

EXAMPLES = r"""
- name: Take a snapshot each night
  virtops.libvirt.snapshot_external:
    domain: web1
    name: "nightly-{{ now(utc=true, fmt='%Y%m%d') }}"

- name: Keep those of seven days, and of four weeks before
  virtops.libvirt.snapshot_prune:
    domain: web1
    prefix: nightly-
    keep_daily: 7
    keep_weekly: 4

- name: Show what would go
  virtops.libvirt.snapshot_prune:
    domain: web1
    prefix: nightly-
    keep_last: 3
  check_mode: true
  register: preview
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
    - begin to delete snapshot nightly-20261120 by merges of this collection, which a later run can finish
domain:
  description: The domain.
  returned: success
  type: dict
  sample: {name: web1, uuid: 1b4e28ba-2fa1-11d2-883f-0016d3cca427, state: running}
removed:
  description: The snapshots that were deleted, the newest first. In check mode, those that would be deleted.
  returned: success
  type: list
  elements: dict
  contains: &snapshot
    name:
      description: The snapshot's name.
      type: str
    kind:
      description: V(internal) or V(external).
      type: str
    taken:
      description: When it was taken, in UTC.
      type: str
    reason:
      description: Why it is deleted or kept.
      type: str
  sample:
    - name: nightly-20261101
      kind: external
      taken: '2026-11-01T02:00:00Z'
      reason: no keep option covers it
kept:
  description: The snapshots with O(prefix) that stay, the newest first.
  returned: success
  type: list
  elements: dict
  contains: *snapshot
  sample:
    - name: nightly-20261120
      kind: external
      taken: '2026-11-20T02:00:00Z'
      reason: "keep_daily: the newest of 2026-11-20"
disks:
  description: What was merged per disk, as in RV(virtops.libvirt.block_commit#module:disks).
  returned: success
  type: list
  elements: dict
  sample: []
error_code:
  description: A short word for the cause of a failure. It stays the same across releases.
  returned: failure
  type: str
  sample: branches_above
partial:
  description: What was done before the failure, per disk.
  returned: failure, if something was done
  type: list
  elements: dict
  sample: []
"""

from ansible_collections.virtops.libvirt.plugins.module_utils._core.convergence import Deadline
from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Outcome
from ansible_collections.virtops.libvirt.plugins.module_utils._module.entry import DomainContext, run_domain_module
from ansible_collections.virtops.libvirt.plugins.module_utils._module.job import Job
from ansible_collections.virtops.libvirt.plugins.module_utils._module.specs import KEEP, ArgumentSpec, keep
from ansible_collections.virtops.libvirt.plugins.module_utils._service.snapshot_prune import (
    SnapshotPrune,
    SnapshotPruneOptions,
)

SPEC: ArgumentSpec = {
    **KEEP,
    "prefix": {"type": "str", "required": True},
    "timeout": {"type": "int", "default": 3600},
}


def _flow(context: DomainContext) -> Outcome:
    given = context.params
    if not given["prefix"].strip():
        raise VirtopsError(
            "bad_option",
            "prefix is blank, so it would mean each snapshot of the domain.",
            "Give what the names of the snapshots begin with",
        )
    options = SnapshotPruneOptions(given["prefix"], keep(given), Deadline(timeout=given["timeout"]))
    return SnapshotPrune(options, context.guest).run(context.check)


def main() -> None:
    run_domain_module(SPEC, _flow, changes=True, job=Job())


if __name__ == "__main__":
    main()
