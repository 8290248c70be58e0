#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: restore_drill
short_description: Boot a backup set as an isolated transient guest, to see that it does
version_added: 0.1.0
author: virtops.libvirt contributors (@virtops)
description:
  - Boots each chosen backup set as a transient guest of its own, waits until it is up, runs a check in it if one is
    given, ends it, and notes in the set when it booted, or why it did not. M(virtops.libvirt.backup_info) shows that
    note.
  - Such a guest is isolated. It has no network, no graphics, no passed-through devices, no shared folders and no TPM.
    Its name, UUID and console are its own. C(left_out) in RV(sets) names what it has otherwise.
  - A set is only read. The guest writes to overlays in O(scratch), which are removed with it, and reads the images from
    a read-only C(qemu-nbd) over a socket. No owner, mode or label of the set changes.
  - All chosen sets are tried before the module fails. RV(sets) then has the problem of each.
  - The work is a job of its own on the hypervisor. It goes on to its end if the connection is cut. If it is killed,
    libvirt ends the guest, and the next drill removes what is left in O(scratch).
  - This does not compare the images with their checksums. M(virtops.libvirt.backup_verify) does.
  - A guest that needs its TPM, for example for BitLocker, does not come up in a drill.
extends_documentation_fragment:
  - virtops.libvirt.connection
  - virtops.libvirt.domain.job
  - virtops.libvirt.sets.choice
  - virtops.libvirt.attributes
  - virtops.libvirt.attributes.changes
  - virtops.libvirt.attributes.actiongroup_all
attributes:
  idempotent:
    support: none
    details:
      - Each run boots the sets again, and notes the time.
options:
  newest:
    description: Whether to boot only the newest set of each domain.
    type: bool
    default: true
  timeout:
    description: How many seconds each guest may take until it is up.
    type: int
    default: 300
  console:
    description:
      - A regular expression (Python's). A guest is up when what it prints on its first serial console has a match.
      - If unset, a guest is up when its guest agent answers. O(command) needs the agent in any case.
    type: str
  command:
    description:
      - A program, by its path in the guest, and its arguments. It is run in each guest once that is up, by the guest
        agent, without a shell. The set fails if its exit code is not 0.
    type: list
    elements: str
    default: []
  command_timeout:
    description: How many seconds O(command) may take.
    type: int
    default: 60
  memory:
    description: The most memory that each guest gets, in MiB. V(0) is as much as its definition says.
    type: int
    default: 0
  at_once:
    description:
      - How many drills may run at the same time on this hypervisor, those of other tasks included. The others wait.
      - All tasks on a hypervisor should have the same number. Where they differ, the smallest counts.
    type: int
    default: 1
  scratch:
    description:
      - A directory for the overlays and the guests' consoles, which QEMU's user may pass through. There has to be
        space for what the guests write while they boot.
    type: path
    default: /var/tmp
  stall_timeout:
    description: After how many seconds without an answer from the storage of the sets the module gives up.
    type: int
    default: 300
seealso:
  - module: virtops.libvirt.backup_info
  - module: virtops.libvirt.backup_verify
  - ref: ansible_collections.virtops.libvirt.docsite.guide_drill
    description: What a drill proves, and what it does not.
"""

EXAMPLES = r"""
- name: See that the newest backup of each web server boots, and that nginx runs in it
  virtops.libvirt.restore_drill:
    dest: /srv/backup
    guests: [web*]
    memory: 2048
    command: [/usr/bin/systemctl, is-active, --quiet, nginx]

- name: See that a guest without an agent comes to its login
  virtops.libvirt.restore_drill:
    path: /srv/backup/old/20261120T120000Z
    console: "login:"
    timeout: 600
"""

RETURN = r"""
actions:
  description: The sets that were booted, or in check mode would be.
  returned: always
  type: list
  elements: str
  sample:
    - >-
      boot the set /srv/backup/web1/20261120T120000Z as a transient guest without a network, and note in it what came
      of it
sets:
  description:
    - The chosen sets, as RV(virtops.libvirt.backup_info#module:sets) tells them, and what came of each. C(problem) is
      empty if the set booted as it should, C(boot_seconds) are the seconds until its guest was up, C(check) has the
      exit code (C(rc)) and the end of the output (C(output)) of O(command), and C(left_out) is what the guest has by
      its definition and had not in the drill.
  returned: always
  type: list
  elements: dict
  sample:
    - path: /srv/backup/web1/20261120T120000Z
      state: complete
      domain: {name: web1, uuid: 6a2a9a5e-4d25-4d5f-9b0e-1f0f4f9c5f1d}
      taken: "2026-11-20T12:00:00Z"
      problem: ""
      boot_seconds: 21.4
      check: {rc: 0, output: ""}
      left_out: [network interfaces, medium in sda]
others:
  description: What else lies among the sets of these domains and could not be tried, for example unfinished ones.
  returned: always
  type: list
  elements: dict
matched:
  description: Those of O(guests) that match a domain with sets which is not excluded.
  returned: always
  type: list
  elements: str
  sample: ['*']
unmatched:
  description: The others of O(guests).
  returned: always
  type: list
  elements: str
  sample: []
error_code:
  description: A short word for the cause of a failure. It stays the same across releases.
  returned: failure
  type: str
  sample: drill_failed
"""

from ansible_collections.virtops.libvirt.plugins.module_utils._core.drill import DrillOptions
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Outcome
from ansible_collections.virtops.libvirt.plugins.module_utils._host.clock import SystemClock
from ansible_collections.virtops.libvirt.plugins.module_utils._host.helper import backup_sets
from ansible_collections.virtops.libvirt.plugins.module_utils._host.locks import Slots
from ansible_collections.virtops.libvirt.plugins.module_utils._host.scratch import scratch
from ansible_collections.virtops.libvirt.plugins.module_utils._module.entry import HostContext, run_host_module
from ansible_collections.virtops.libvirt.plugins.module_utils._module.job import Job
from ansible_collections.virtops.libvirt.plugins.module_utils._module.specs import (
    CHOICE,
    CHOICE_RULES,
    ArgumentSpec,
    choice,
    merged,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._service.drill import Drill

SPEC: ArgumentSpec = merged(
    CHOICE,
    {
        "newest": {"type": "bool", "default": True},
        "timeout": {"type": "int", "default": 300},
        "console": {"type": "str"},
        "command": {"type": "list", "elements": "str", "default": []},
        "command_timeout": {"type": "int", "default": 60},
        "memory": {"type": "int", "default": 0},
        "at_once": {"type": "int", "default": 1},
        "scratch": {"type": "path", "default": "/var/tmp"},
        "stall_timeout": {"type": "int", "default": 300},
    },
)


def _flow(context: HostContext) -> Outcome:
    given = context.params
    options = DrillOptions(
        choice=choice(given),
        timeout=given["timeout"],
        pattern=given["console"] or "",
        command=tuple(given["command"]),
        command_timeout=given["command_timeout"],
        memory=given["memory"] << 20,
        at_once=given["at_once"],
    )
    user = context.host.capabilities().qemu_ids
    with backup_sets(given["stall_timeout"]) as (sets, _copier):
        return Drill(
            options,
            sets,
            context.trials,
            lambda path: scratch(given["scratch"], path, user),
            Slots(given["at_once"], kind="drill").take,
            SystemClock(),
            context.progress,
        ).run(context.check)


def main() -> None:
    run_host_module(SPEC, _flow, changes=True, job=Job(), **CHOICE_RULES)


if __name__ == "__main__":
    main()
