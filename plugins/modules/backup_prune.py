#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_prune
short_description: Remove old backup sets by a retention policy
version_added: 0.1.0
author: virtops.libvirt contributors (@virtops)
description:
  - Removes the sets in O(dest) that M(virtops.libvirt.live_backup) and M(virtops.libvirt.image_backup) made, except
    those that the keep options keep. M(virtops.libvirt.live_backup) has the same options, and prunes after each backup.
  - Each domain is treated by itself, by its UUID.
  - RV(removed) and RV(kept) give the reason for each set. In check mode they say what would happen.
  - Only complete sets count, and only complete sets are removed. Unfinished, damaged and foreign sets, sets of a later
    release, and sets whose last verification failed are never touched. RV(left) names them.
  - The newest verified set of a domain always stays. If none is verified, the newest set stays.
  - If the newest set of a domain is damaged, or its last verification failed, no set of this domain is removed. The
    sets of the other domains are pruned, and then the module fails with the code C(newest_set_bad).
  - A set that an incremental set stands on stays as long as that one.
  - A set first gets a hidden name, then its files are deleted. If the module is interrupted, run it again. It first
    finishes that removal.
  - If the target refuses the removal, because it is append-only or read-only, the module fails with the code
    C(remove_refused) and names the sets that would go. Check mode cannot see such a refusal.
  - It makes no connection to libvirt, and does not need its Python library. So it also works on a backup server. Run it
    as the user that the sets belong to.
extends_documentation_fragment:
  - virtops.libvirt.connection
  - virtops.libvirt.keep
  - virtops.libvirt.attributes
  - virtops.libvirt.attributes.changes
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
      - If unset, the sets of all domains, those of each domain by themselves.
    type: str
  keep_unverified:
    description:
      - Whether to keep sets that nobody has read back since they were written, whatever the other options say.
      - Sets of releases before this option count as not verified, until M(virtops.libvirt.backup_verify) has read them.
    type: bool
    default: false
  stall_timeout:
    description:
      - After how many seconds without any progress the module gives up, because the storage of O(dest) does not answer.
        It then fails with C(copy_stalled).
    type: int
    default: 300
seealso:
  - module: virtops.libvirt.backup_info
  - module: virtops.libvirt.backup_verify
  - module: virtops.libvirt.live_backup
  - module: virtops.libvirt.snapshot_prune
  - name: Proxmox Backup Server, Prune
    description: The options that the keep options are modelled on.
    link: https://pbs.proxmox.com/docs/maintenance.html#pruning
"""

EXAMPLES = r"""
- name: Keep the backups of seven days, four weeks and twelve months
  virtops.libvirt.backup_prune:
    dest: /srv/backup
    keep_daily: 7
    keep_weekly: 4
    keep_monthly: 12

- name: Show what would go of one guest
  virtops.libvirt.backup_prune:
    dest: /srv/backup
    domain: web1
    keep_last: 3
  check_mode: true
  register: preview

- name: Remove nothing that is younger than two weeks, and nothing that nobody has verified
  virtops.libvirt.backup_prune:
    dest: /srv/backup
    keep_monthly: 12
    min_age: 1209600
    keep_unverified: true
"""

RETURN = r"""
actions:
  description:
    - The steps that were taken. In check mode, the steps that would be taken. After a failure, the steps that were
      taken before it.
  returned: success, and failure after the sets were read
  type: list
  elements: str
  sample: [remove the backup /srv/backup/web1/20261101T020000Z]
removed:
  description: The sets that were removed, by domain, the newest first. In check mode, those that would be removed.
  returned: success
  type: list
  elements: dict
  contains: &set
    path:
      description: Where it is, or was.
      type: str
    domain:
      description: The domain's name.
      type: str
    uuid:
      description: The domain's UUID.
      type: str
    taken:
      description: The point in time that it holds, in UTC.
      type: str
    verified:
      description: Whether it was whole the last time that it was read back.
      type: bool
    reason:
      description: Why it is removed or kept.
      type: str
  sample:
    - path: /srv/backup/web1/20261101T020000Z
      domain: web1
      uuid: 1b4e28ba-2fa1-11d2-883f-0016d3cca427
      taken: '2026-11-01T02:00:00Z'
      verified: true
      reason: no keep option covers it
kept:
  description: The complete sets that stay, by domain, the newest first.
  returned: success
  type: list
  elements: dict
  contains: *set
  sample:
    - path: /srv/backup/web1/20261120T020000Z
      domain: web1
      uuid: 1b4e28ba-2fa1-11d2-883f-0016d3cca427
      taken: '2026-11-20T02:00:00Z'
      verified: true
      reason: "keep_daily: the newest of 2026-11-20"
left:
  description: What is not a whole set. The module does not touch it, and does not count it.
  returned: success
  type: list
  elements: dict
  contains:
    path:
      description: Where it is.
      type: str
    domain:
      description: The domain's name. Empty if nothing tells it.
      type: str
    state:
      description: The state, as in RV(virtops.libvirt.backup_info#module:sets).
      type: str
    reason:
      description: What is wrong with it.
      type: str
  sample: []
error_code:
  description: A short word for the cause of a failure. It stays the same across releases.
  returned: failure
  type: str
  sample: newest_set_bad
partial:
  description: The sets that were removed before the module failed, as RV(removed).
  returned: failure with RV(error_code) C(newest_set_bad)
  type: list
  elements: dict
  sample: []
"""

from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Outcome
from ansible_collections.virtops.libvirt.plugins.module_utils._host.clock import SystemClock
from ansible_collections.virtops.libvirt.plugins.module_utils._host.helper import backup_sets
from ansible_collections.virtops.libvirt.plugins.module_utils._module.entry import LocalContext, run_local_module
from ansible_collections.virtops.libvirt.plugins.module_utils._module.specs import (
    COPY,
    KEEP,
    KEEP_UNVERIFIED,
    ArgumentSpec,
    keep,
    merged,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._service.backup_prune import (
    BackupPrune,
    BackupPruneOptions,
)

SPEC: ArgumentSpec = merged(
    KEEP,
    KEEP_UNVERIFIED,
    {
        "dest": {"type": "path", "required": True},
        "domain": {"type": "str"},
        "stall_timeout": COPY["stall_timeout"],
    },
)


def _flow(context: LocalContext) -> Outcome:
    given = context.params
    options = BackupPruneOptions(given["dest"], keep(given), given["domain"])
    with backup_sets(given["stall_timeout"]) as (sets, _checker):
        return BackupPrune(options, sets, SystemClock()).run(context.check)


def main() -> None:
    run_local_module(SPEC, _flow, changes=True, needs=lambda _given: ())


if __name__ == "__main__":
    main()
