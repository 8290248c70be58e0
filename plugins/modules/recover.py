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
  - Reads the journal in the domain's metadata, the chains of its disks, and the jobs that run. Then it brings the
    domain to rest. A running domain goes on running meanwhile.
  - A snapshot that was intended, and to which no disk was switched, is undone, and a guest that was left frozen is
    thawed. If a snapshot that the user keeps was taken, only the journal is brought up to date.
  - A guest whose writes an interrupted merge had limited, or that it had paused, is let go first. One that QEMU paused
    because the overlays' file system was full is resumed when the merge has given it its own images back.
  - The overlays of a workflow such as the role P(virtops.libvirt.live_backup#role) are merged back. A commit that runs
    is adopted. One that vanished is begun anew. Of a domain that is off, the overlays are merged offline.
  - With O(backup) the workflow's backup is finished first, if its bases are untouched. Once a commit into them was
    attempted they are no longer the snapshot, and only a backup that is complete already counts.
  - An interrupted M(virtops.libvirt.block_commit) or M(virtops.libvirt.block_pull) is finished, and so is the removal
    of raw images that M(virtops.libvirt.image_convert) had begun.
  - A C(qemu-img) of ours that outlived its module is ended first, as it would make the merge fail.
  - A domain on which nothing is open is not changed.
  - The module refuses, and says what a human has to look at, if an overlay that no chain knows may hold the guest's
    newest data, or if somebody else changed a chain.
extends_documentation_fragment:
  - virtops.libvirt.connection
  - virtops.libvirt.domain
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
      - Empty, all are recovered.
    type: list
    elements: str
    default: []
  backup:
    description:
      - Finish an interrupted backup with these options of M(virtops.libvirt.image_backup).
      - Unset, no backup is finished.
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
        description: The limit for each copy in MiB/s. V(0) is no limit.
        type: int
        default: 0
      parallel:
        description: How many copies may run at once on this hypervisor.
        type: int
        default: 4
  timeout:
    description: For how many seconds a merge may take. What follows, O(on_timeout) says.
    type: int
    default: 3600
seealso:
  - module: virtops.libvirt.guests_info
  - module: virtops.libvirt.block_commit
  - module: virtops.libvirt.image_backup
"""

EXAMPLES = r"""
- name: Bring a guest to rest after a crash of whatever kind
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
  description: The steps that were taken, or in check mode those that would be.
  returned: success
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
  description: The operations that were found open.
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
  description: The manifest of the backup that was finished or found, null if there is none.
  returned: success
  type: dict
  sample: {path: /srv/backup/web1/20261120T120000Z}
error_code:
  description: A short word for the cause of a failure, which stays the same across releases.
  returned: failure
  type: str
  sample: overlay_in_use
partial:
  description: What had been done before the failure, per disk, as RV(virtops.libvirt.block_commit#module:disks).
  returned: failure, if something had been done
  type: list
  elements: dict
  sample: []
"""

from ansible_collections.virtops.libvirt.plugins.module_utils._core.backup import BackupWish
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Outcome
from ansible_collections.virtops.libvirt.plugins.module_utils._host.reaper import Reaper
from ansible_collections.virtops.libvirt.plugins.module_utils._module.entry import DomainContext, run_domain_module
from ansible_collections.virtops.libvirt.plugins.module_utils._module.flows import back_up
from ansible_collections.virtops.libvirt.plugins.module_utils._module.specs import (
    BACKUP,
    COPY,
    DEADLINE,
    ArgumentSpec,
    deadline,
    merged,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._service.recover import RecoverWish, Recovery

SPEC: ArgumentSpec = {
    "operations": {"type": "list", "elements": "str", "default": []},
    "backup": {"type": "dict", "options": merged(BACKUP, COPY)},
    "timeout": {"type": "int", "default": 3600},
    **DEADLINE,
}


def _flow(context: DomainContext) -> Outcome:
    wish = RecoverWish(tuple(context.params["operations"]), deadline(context.params))
    given = context.params["backup"]

    def finish(snapshot: str) -> Outcome:
        wish = BackupWish(snapshot=snapshot, keep_free=context.params["keep_free"], **given)
        return back_up(context, wish)

    backup = None if given is None else finish
    return Recovery(wish, context.guest, backup, Reaper(context.clock)).run(context.check)


def main() -> None:
    run_domain_module(SPEC, _flow, changes=True)


if __name__ == "__main__":
    main()
