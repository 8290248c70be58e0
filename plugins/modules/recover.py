#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: recover
short_description: Finish or undo what interrupted runs left on a libvirt domain
version_added: 0.1.0
author: virtops.libvirt contributors (@virtops)
description:
  - Reads the journal in the domain's metadata, the chains of its disks, and the running jobs. Then it finishes or
    undoes each open operation. A running domain keeps running.
  - If no disk was switched to a planned snapshot, the snapshot is undone. If the guest was left frozen, it is thawed.
    If a snapshot that the user keeps was taken, only the journal is updated.
  - If an interrupted merge limited the guest's writes or paused the guest, this is ended first. If QEMU paused the
    guest because the overlays' file system was full, the guest is resumed after the merge.
  - The overlays of a workflow, for example of the role P(virtops.libvirt.live_backup#role), are merged back. A running
    commit is adopted, and its limit (C(bandwidth)) is lifted, because a merge with a low limit may never end. A commit
    that vanished is started again. If the domain is off, its overlays are merged offline.
  - With O(backup) the workflow's backup is finished first, if its bases are untouched. After a commit into them was
    attempted, they are no longer the snapshot, and only a backup that was complete before counts.
  - An interrupted M(virtops.libvirt.block_commit) or M(virtops.libvirt.block_pull) is finished. If
    M(virtops.libvirt.image_convert) had begun to remove raw images, this is finished too. So is a
    M(virtops.libvirt.backup_restore) that had defined the domain.
  - If a C(qemu-img) of this collection outlived its module, it is ended first, because it would make the merge fail.
  - A domain without an open operation is not changed.
  - While a job works on the domain, its operation is not interrupted. The module waits for its end, as O(lock_timeout)
    says. Check mode only names the job.
  - The module refuses if an overlay that is in no chain may hold the guest's newest data, or if somebody else changed a
    chain. The message says what a human must look at.
extends_documentation_fragment:
  - virtops.libvirt.connection
  - virtops.libvirt.domain
  - virtops.libvirt.domain.job
  - virtops.libvirt.domain.lock
  - virtops.libvirt.deadline
  - virtops.libvirt.attributes
  - virtops.libvirt.attributes.changes
  - virtops.libvirt.attributes.actiongroup_all
options:
  operations:
    description:
      - Recover only operations of these kinds (as RV(virtops.libvirt.guests_info#module:guests[].journal) shows them,
        for example V(live_backup)), and fail if another one is open.
      - If empty, all are recovered.
    type: list
    elements: str
    default: []
  backup:
    description:
      - Finish an interrupted backup with these options of M(virtops.libvirt.image_backup).
      - If unset, no backup is finished.
    type: dict
    suboptions:
      dest:
        description: The directory for the backup.
        type: path
        required: true
      format:
        description: The format of the copies.
        type: str
        choices: [same, qcow2, raw]
        default: same
      compress:
        description: Whether the copies are compressed.
        type: bool
        default: false
      method:
        description: How the images are copied.
        type: str
        choices: [auto, reflink, copy, convert]
        default: auto
      keep_backing:
        description: Whether the copies keep the reference to backing files.
        type: bool
        default: false
      verify:
        description: Whether the copies are checked.
        type: bool
        default: true
      rate_limit:
        description: The limit for each copy in MiB/s. V(0) means no limit.
        type: int
        default: 0
      parallel:
        description: How many copies may run at once on this hypervisor.
        type: int
        default: 4
      stall_timeout:
        description: The number of seconds after which a copy that does not go on is given up.
        type: int
        default: 300
  timeout:
    description: How many seconds a merge may take. O(on_timeout) says what happens then.
    type: int
    default: 3600
seealso:
  - module: virtops.libvirt.guests_info
  - module: virtops.libvirt.block_commit
  - module: virtops.libvirt.image_backup
"""

EXAMPLES = r"""
- name: Finish or undo whatever was interrupted on a guest
  virtops.libvirt.recover:
    domain: web1

- name: Finish an interrupted live backup, and no other operation
  virtops.libvirt.recover:
    domain: web1
    operations: [live_backup]
    backup:
      dest: /srv/backup
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
    - thaw the file systems of web1, which an interrupted snapshot may have left frozen
    - remove operation live-backup-20261120T120000Z from the journal
domain:
  description: The domain.
  returned: success
  type: dict
  sample: {name: web1, uuid: 1b4e28ba-2fa1-11d2-883f-0016d3cca427, state: running}
operations:
  description: The open operations that were found.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The snapshot's name, or what was being merged.
      type: str
    kind:
      description: The workflow that it belongs to.
      type: str
    phase:
      description: How far it had come, V(prepared), V(created) or V(committing).
      type: str
    started:
      description: The UTC time of its start.
      type: str
  sample:
    - name: live-backup-20261120T120000Z
      kind: live_backup
      phase: created
      started: 20261120T120000Z
backup:
  description: The manifest of the backup that was finished or found. Null if there is none.
  returned: success
  type: dict
  sample: {path: /srv/backup/web1/20261120T120000Z}
error_code:
  description: A short word for the cause of a failure. It stays the same across releases.
  returned: failure
  type: str
  sample: overlay_in_use
partial:
  description:
    - What became of each disk, as in RV(virtops.libvirt.block_commit#module:disks), and its own C(error), V(null) if it
      has none.
  returned: failure, if something was done
  type: list
  elements: dict
  sample: []
"""

from ansible_collections.virtops.libvirt.plugins.module_utils._core.backup import BackupOptions
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Outcome
from ansible_collections.virtops.libvirt.plugins.module_utils._host.reaper import Reaper
from ansible_collections.virtops.libvirt.plugins.module_utils._module.entry import DomainContext, run_domain_module
from ansible_collections.virtops.libvirt.plugins.module_utils._module.flows import back_up, restore_end
from ansible_collections.virtops.libvirt.plugins.module_utils._module.job import Job
from ansible_collections.virtops.libvirt.plugins.module_utils._module.specs import (
    BACKUP,
    COPY,
    DEADLINE,
    ArgumentSpec,
    deadline,
    merged,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._service.recover import RecoverOptions, Recovery, foreseen

SPEC: ArgumentSpec = {
    "operations": {"type": "list", "elements": "str", "default": []},
    "backup": {"type": "dict", "options": merged(BACKUP, COPY)},
    "timeout": {"type": "int", "default": 3600},
    **DEADLINE,
}


def _flow(context: DomainContext) -> Outcome:
    context.progress.phase("recovery")
    options = RecoverOptions(tuple(context.params["operations"]), deadline(context.params))
    given = context.params["backup"]

    def finish(snapshot: str) -> Outcome:
        options = BackupOptions(snapshot=snapshot, keep_free=context.params["keep_free"], **given)
        return back_up(context, options)

    backup = None if given is None else finish
    tools = backup, Reaper(context.clock), restore_end(context)
    return Recovery(options, context.guest, *tools).run(context.check)


def main() -> None:
    run_domain_module(SPEC, _flow, changes=True, job=Job(foreseen=foreseen))


if __name__ == "__main__":
    main()
