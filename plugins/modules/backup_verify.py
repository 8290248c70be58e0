#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_verify
short_description: Read backup sets back, and check that they are whole
version_added: 0.1.0
author: virtops.libvirt contributors (@virtops)
description:
  - Reads each chosen set from the disk, past the page cache, and compares it with what was written when it was made.
    It checks that the manifest can be used, that each file is there with its length and SHA-256, that C(SHA256SUMS) and
    the manifest agree, that C(qemu-img check) finds no error in qcow2 images, that each image has the format and the
    virtual size that the manifest names and needs no other file, that the domain's definition can be read and is of the
    set's domain, and that the sets that an incremental set stands on are whole, too.
  - It notes the result and the time in each set, in C(notes.json). M(virtops.libvirt.backup_info) shows them.
  - It looks at all chosen sets before it fails. RV(sets) then has the problems of each.
  - A whole set of another domain among a guest's sets is a problem, too, as nobody can tell the two apart by name. It
    is not noted in the set.
  - A set that is removed meanwhile is no failure. Unfinished and foreign sets are named in RV(others), and not read.
  - It makes no connection to libvirt, and does not need its Python library. So it also works on a backup server, if
    that has C(qemu-img) and the Python library lxml. Run it as the user that the sets belong to.
  - The work is a job of its own on the host. It goes on to its end if the connection is cut. If it is killed, the notes
    of the sets that it had read by then stay.
extends_documentation_fragment:
  - virtops.libvirt.connection
  - virtops.libvirt.domain.job
  - virtops.libvirt.sets
  - virtops.libvirt.sets.choice
  - virtops.libvirt.attributes
  - virtops.libvirt.attributes.changes
  - virtops.libvirt.attributes.actiongroup_all
attributes:
  check_mode:
    details:
      - It reads no image then, and says which sets it would read. It fails if a file of one is missing or has another
        length.
  idempotent:
    support: none
    details:
      - Each run reads the sets again, and notes the time.
options:
  uri:
    description: Not used. Every module of this collection has it, so that C(module_defaults) can set it for all.
  newest:
    description: Whether to verify only the newest set of each domain, with those that it is incremental on.
    type: bool
    default: false
seealso:
  - module: virtops.libvirt.backup_info
  - module: virtops.libvirt.live_backup
"""

EXAMPLES = r"""
- name: Verify the newest set of each guest
  virtops.libvirt.backup_verify:
    dest: /srv/backup
    newest: true
    rate_limit: 100

- name: Verify one set before it is needed
  virtops.libvirt.backup_verify:
    path: /srv/backup/web1/20261120T120000Z
"""

RETURN = r"""
changed:
  description: Whether a set was read, and the result noted in it.
  returned: always
  type: bool
actions:
  description: The sets that were read, or in check mode would be.
  returned: always
  type: list
  elements: str
  sample: ['verify /srv/backup/web1/20261120T120000Z (500 MiB)']
diff:
  description: The sets in which a result was noted, or in check mode would be.
  returned: success
  type: dict
sets:
  description:
    - The chosen sets, as RV(virtops.libvirt.backup_info#module:sets) describes them, by the domain's name and then by
      time. Also returned if the module fails because a set is not whole.
  returned: success
  type: list
  elements: dict
  contains:
    path:
      description: Where it is.
      type: str
    state:
      description: V(complete), or V(damaged) if it is not whole, or V(unknown) if a later release made it.
      type: str
    read:
      description: Whether its files were read. Always false in check mode.
      type: bool
    problems:
      description: Everything that is wrong with it, in words. Empty if it is whole.
      type: list
      elements: str
    verified:
      description: Whether it was whole the last time that it was read.
      type: bool
  sample:
    - path: /srv/backup/web1/20261120T120000Z
      state: complete
      why: ''
      domain: {name: web1, uuid: 1b4e28ba-2fa1-11d2-883f-0016d3cca427}
      taken: '2026-11-20T12:00:00Z'
      age: 86400
      read: true
      problems: []
      verified: true
      last_verified:
        time: '2026-11-21T03:00:00Z'
        ok: true
        message: ''
others:
  description:
    - What else there is of these guests and was not read, in the same form. RV(ignore:state) is V(unfinished),
      V(foreign), or V(removed) if it was removed meanwhile.
  returned: success
  type: list
  elements: dict
matched:
  description: Those of O(guests) that match a domain with sets which is not excluded.
  returned: success
  type: list
  elements: str
  sample: ['*']
unmatched:
  description: The others of O(guests).
  returned: success
  type: list
  elements: str
  sample: []
error_code:
  description: A short word for the cause of a failure. It stays the same across releases.
  returned: failure
  type: str
  sample: set_damaged
"""

from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Outcome
from ansible_collections.virtops.libvirt.plugins.module_utils._host.clock import SystemClock
from ansible_collections.virtops.libvirt.plugins.module_utils._host.helper import backup_sets
from ansible_collections.virtops.libvirt.plugins.module_utils._module.entry import LocalContext, run_local_module
from ansible_collections.virtops.libvirt.plugins.module_utils._module.job import Job
from ansible_collections.virtops.libvirt.plugins.module_utils._module.specs import (
    CHOICE,
    CHOICE_RULES,
    READ,
    ArgumentSpec,
    choice,
    merged,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._service.verify_sets import (
    SetVerification,
    VerifyOptions,
)

SPEC: ArgumentSpec = merged(READ, CHOICE, {"newest": {"type": "bool", "default": False}})


def _flow(context: LocalContext) -> Outcome:
    given = context.params
    options = VerifyOptions(choice(given), given["rate_limit"], given["parallel"])
    with backup_sets(given["stall_timeout"]) as (sets, checker):
        return SetVerification(options, sets, checker, SystemClock(), context.progress).run(context.check)


def main() -> None:
    run_local_module(
        SPEC,
        _flow,
        changes=True,
        needs=lambda _given: ("lxml",),
        job=Job(),
        **CHOICE_RULES,
    )


if __name__ == "__main__":
    main()
