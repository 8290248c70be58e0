#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: preflight_info
short_description: Check for each guest of a hypervisor whether a live backup would succeed
version_added: 0.1.0
author: virtops.libvirt contributors (@virtops)
description:
  - Checks the guests of one libvirt connection. Returns what would make a live backup of them fail, and what would put
    them at risk while they use their overlays. Nothing is changed.
  - One run checks all guests of the hypervisor. So it also finds out how much space they need together on a file
    system.
  - The checks use the code of the other modules. So they find what these would refuse, with the same
    RV(guests[].checks[].error_code).
  - A guest that is off is backed up without a snapshot. So nothing of it is checked but its disks, its images and the
    space for the copies.
  - A guest whose own backup was interrupted is ready, with a warning, because the next run finishes that backup first.
    Such a guest is listed in any state, and nothing else is checked. It is not ready if no run can finish the backup
    now, for example because the guest's memory is saved (C(virsh managedsave)).
  - A guest on which a job of this collection works is ready, with a warning that names the job, because a backup run
    waits for the job or follows it. Nothing else is checked.
notes:
  - The guests are read over a read-only connection. Over such a connection libvirt does not query guest agents and does
    not show what an emulator can do. If the module must query agents, or if a guest has checkpoints, it opens a
    writable connection for this question only.
  - Five agents are queried at a time. An agent that does not answer takes 10 seconds.
  - The space is what is free now. It is not reserved. Hypervisors that share a file system do not know about each
    other.
extends_documentation_fragment:
  - virtops.libvirt.connection
  - virtops.libvirt.attributes
  - virtops.libvirt.attributes.info
  - virtops.libvirt.attributes.actiongroup_all
options:
  guests:
    description:
      - Patterns for names, as in a shell (V(*), V(?), V([seq]), V([!seq])), or whole UUIDs.
      - A guest is checked if one of them matches.
    type: list
    elements: str
    default: ["*"]
  exclude:
    description: Patterns, as in O(guests), of guests to leave out.
    type: list
    elements: str
    default: []
  states:
    description:
      - Check only guests in one of these states, and those whose backup was interrupted. An empty list means all
        states.
    type: list
    elements: str
    choices: [running, idle, paused, in shutdown, shut off, crashed, pmsuspended]
    default: [running, shut off]
  dest:
    description:
      - The directory for the backups, as in O(virtops.libvirt.image_backup#module:dest).
      - Required with O(copy=own).
    type: path
  copy:
    description:
      - Who would copy, as in O(virtops.libvirt.live_backup#module:copy). With V(user) the module does not check whether
        the copies fit.
    type: str
    choices: [own, user]
    default: own
  format:
    description: The format of the copies. V(same) is the format of each base.
    type: str
    choices: [same, qcow2, raw]
    default: same
  compress:
    description: Whether the copies' clusters would be compressed.
    type: bool
    default: false
  method:
    description: How the images would be copied, as in O(virtops.libvirt.image_backup#module:method).
    type: str
    choices: [auto, reflink, copy, convert]
    default: auto
  keep_backing:
    description: Whether a copy would keep the reference to its base's backing files.
    type: bool
    default: false
  disks:
    description: Exceptions for single disks, as in O(virtops.libvirt.snapshot_external#module:disks).
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: The disk's target, for example V(vda).
        type: str
        required: true
      snapshot:
        description: V(no) leaves the disk out.
        type: str
        choices: [external, "no"]
        default: external
      file:
        description: The absolute path of the overlay.
        type: path
      format:
        description: The format of the overlay.
        type: str
        choices: [qcow2]
        default: qcow2
  overlay_dir:
    description: The directory for the overlays. If unset, each is beside its disk's image.
    type: path
  quiesce:
    description:
      - Whether the guests would be frozen. With V(required) an agent that does not answer is a failure, with
        V(preferred) a warning. With V(never) agents are not queried.
    type: str
    choices: [required, preferred, never]
    default: preferred
  freeze_timeout:
    description:
      - How many seconds a guest agent may take to freeze, from 1 to 3600. This module only checks that the agent
        answers, within 10 seconds, or within this time if it is shorter.
    type: int
    default: 60
  operation:
    description:
      - The name of the workflow that makes the backups. It resumes only its own interrupted operations.
    type: str
    default: live_backup
  max_chain:
    description:
      - How many layers the chain of a disk may have after an overlay is added. Some releases of libvirt cannot start a
        guest with more than about 25.
    type: int
    default: 25
  overlay_reserve:
    description:
      - The free space that is required for the overlay of each disk. What the guest writes during its backup goes
        there. In percent of the disk, for example V(5%), or in MiB, for example V(2048).
      - The merge later writes the same data into the base. So a thin base needs as much space on its own file system,
        but never more than it still lacks to its virtual size.
    type: str
    default: 5%
seealso:
  - module: virtops.libvirt.guests_info
  - module: virtops.libvirt.journal_info
  - module: virtops.libvirt.snapshot_external
  - module: virtops.libvirt.image_backup
"""

EXAMPLES = r"""
- name: Check whether all guests can be backed up
  virtops.libvirt.preflight_info:
    dest: /srv/backup
  register: preflight

- name: Fail if one of them cannot
  ansible.builtin.assert:
    that: preflight.ready
    fail_msg: "{{ preflight.guests | rejectattr('ready') | map(attribute='name') | join(', ') }}"

- name: Check the databases, which must be frozen, with overlays in another directory
  virtops.libvirt.preflight_info:
    guests: ["db*"]
    dest: /srv/backup
    quiesce: required
    overlay_dir: /srv/overlays
    overlay_reserve: 20%
"""

RETURN = r"""
guests:
  description: The guests that were checked, sorted by name.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The domain's name.
      type: str
    uuid:
      description: The domain's UUID.
      type: str
    state:
      description: The state, in the words of O(states).
      type: str
    ready:
      description: Whether no check failed. Warnings do not count.
      type: bool
    checks:
      description: What was checked.
      type: list
      elements: dict
      contains:
        check:
          description:
            - V(journal), V(state), V(capabilities), V(disks), V(images), V(chain), V(jobs), V(agent), V(overlay_space),
              V(base_growth), V(target), V(apparmor), V(definition), V(checkpoints), V(shared), V(overlays)
              or V(extras).
          type: str
        status:
          description: V(ok), V(warning) or V(failed).
          type: str
        disk:
          description: The disk's target. V(null) if the check is about the whole guest.
          type: str
        message:
          description: What was found.
          type: str
        remedy:
          description: What to do about it. V(null) if there is nothing to do.
          type: str
        error_code:
          description: A short word for the problem. It stays the same across releases. V(null) if there is no problem.
          type: str
  sample:
    - name: web1
      uuid: 1b4e28ba-2fa1-11d2-883f-0016d3cca427
      state: running
      ready: false
      checks:
        - check: jobs
          status: failed
          disk: vdb
          message: A block job (copy) of somebody else is running
          remedy: Wait for its end, or end it with 'virsh blockjob'
          error_code: job_running
        - check: shared
          status: ok
          disk:
          message: No other domain stands on its images
          remedy:
          error_code:
ready:
  description: Whether every guest is ready.
  returned: success
  type: bool
  sample: false
file_systems:
  description: The space that the backups of all these guests together may need, for each file system.
  returned: success
  type: list
  elements: dict
  contains:
    path:
      description: A file or directory on it.
      type: str
    free:
      description: The bytes that are free.
      type: int
    copies:
      description: The bytes that the copies may take. Reflinks and compression may need less.
      type: int
    overlays:
      description: The bytes that O(overlay_reserve) keeps for overlays.
      type: int
  sample: [{path: /srv/backup, free: 85899345920, copies: 2147483648, overlays: 0}]
unmatched:
  description: The patterns of O(guests) that match no domain of this connection in any state.
  returned: success
  type: list
  elements: str
  sample: []
error_code:
  description: A short word for the cause of a failure. It stays the same across releases.
  returned: failure
  type: str
  sample: uri_unreachable
"""

from ansible_collections.virtops.libvirt.plugins.module_utils._core.backup import BackupOptions
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Outcome
from ansible_collections.virtops.libvirt.plugins.module_utils._core.preflight_facts import Limits, parse_reserve
from ansible_collections.virtops.libvirt.plugins.module_utils._core.snapshot import DiskOptions, SnapshotOptions
from ansible_collections.virtops.libvirt.plugins.module_utils._host.apparmor import rules
from ansible_collections.virtops.libvirt.plugins.module_utils._host.images import Images
from ansible_collections.virtops.libvirt.plugins.module_utils._host.job_store import job_at_work
from ansible_collections.virtops.libvirt.plugins.module_utils._host.store import BackupStore
from ansible_collections.virtops.libvirt.plugins.module_utils._module.entry import HostContext, run_host_module
from ansible_collections.virtops.libvirt.plugins.module_utils._module.specs import (
    BACKUP,
    COPIER,
    GUESTS,
    PREFLIGHT,
    SNAPSHOT,
    ArgumentSpec,
    merged,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._service.preflight import Preflight, PreflightOptions

SPEC: ArgumentSpec = merged(
    {**GUESTS, "states": {**GUESTS["states"], "default": ["running", "shut off"]}},
    {**BACKUP, "dest": {"type": "path"}},
    COPIER,
    {**SNAPSHOT, "quiesce": {**SNAPSHOT["quiesce"], "default": "preferred"}},
    PREFLIGHT,
    {"operation": {"type": "str", "default": "live_backup"}},
)


def _flow(context: HostContext) -> Outcome:
    given = context.params
    options = PreflightOptions(
        backup=BackupOptions(**{name: given[name] for name in BACKUP}),
        snapshot=SnapshotOptions(
            # Overlays are named after it, and no such file is there: each is looked for before it is made.
            name="preflight",
            disks=tuple(DiskOptions(disk["name"], disk["snapshot"], disk["file"]) for disk in given["disks"]),
            overlay_dir=given["overlay_dir"],
            freeze_timeout=given["freeze_timeout"],
            kind=given["operation"],
        ),
        limits=Limits(
            given["max_chain"],
            parse_reserve(given["overlay_reserve"]),
            given["quiesce"],
            given["operation"],
            given["copy"] == "own",
        ),
        guests=tuple(given["guests"]),
        exclude=tuple(given["exclude"]),
        states=tuple(given["states"]),
    )
    return Preflight(options, context.host, Images(), BackupStore(), rules, job_at_work).run()


def main() -> None:
    run_host_module(SPEC, _flow, required_if=[("copy", "own", ["dest"])])


if __name__ == "__main__":
    main()
