#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: job_info
short_description: List the jobs of a hypervisor, or wait for one of them
version_added: 0.1.0
author: virtops.libvirt contributors (@virtops)
description:
  - The modules that may take long (M(virtops.libvirt.live_backup), M(virtops.libvirt.image_backup),
    M(virtops.libvirt.backup_restore), M(virtops.libvirt.backup_verify), M(virtops.libvirt.block_commit),
    M(virtops.libvirt.block_pull), M(virtops.libvirt.image_convert), M(virtops.libvirt.snapshot_external) and
    M(virtops.libvirt.snapshot_internal)) work in a job on the hypervisor. A job goes on to its end if the connection is
    cut or the controller dies.
  - This module lists the running jobs, and those that ended in the last day. With O(id) it shows the log and the result
    of one job, and with O(wait) it waits for its end first.
  - The jobs of other users of the hypervisor are not shown.
extends_documentation_fragment:
  - virtops.libvirt.connection
  - virtops.libvirt.attributes
  - virtops.libvirt.attributes.info
  - virtops.libvirt.attributes.actiongroup_all
options:
  domain:
    description: Only the jobs of this domain, by its name or UUID.
    type: str
  id:
    description: Only this job.
    type: str
  wait:
    description:
      - With O(id), how many seconds to wait until the job ends.
      - The module returns when the job ends, when it waits for your own copy (RV(jobs[].state) is V(waiting)), or when
        this time is over. In the last case the job's RV(jobs[].state) is still V(running).
    type: int
    default: 0
seealso:
  - module: virtops.libvirt.journal_info
  - module: virtops.libvirt.recover
"""

EXAMPLES = r"""
- name: List the jobs of a hypervisor
  virtops.libvirt.job_info:
  register: found

- name: Show the progress of each job
  ansible.builtin.debug:
    msg: "{{ item.domain.name }}: {{ item.module }}, {{ item.phase }} {{ item.disks }}"
  loop: "{{ found.jobs | selectattr('state', 'eq', 'running') }}"
  loop_control:
    label: "{{ item.id }}"

- name: Wait for the end of a job whose controller died, for at most an hour
  virtops.libvirt.job_info:
    id: "{{ found.jobs[-1].id }}"
    wait: 3600
"""

RETURN = r"""
jobs:
  description: The jobs, the oldest first.
  returned: success
  type: list
  elements: dict
  contains:
    id:
      description: The job's identifier, 32 hexadecimal digits.
      type: str
    state:
      description:
        - V(running), V(ended) with a result, V(failed) with an error, or V(killed) without either.
        - V(waiting) if it waits until your own tasks have copied, and M(virtops.libvirt.live_backup) says so.
      type: str
    module:
      description: The module whose work it does.
      type: str
    domain:
      description:
        - The domain that it works on, with RV(ignore:name) and RV(ignore:uuid). Both are empty for
          M(virtops.libvirt.backup_verify), which works on sets.
      type: dict
    started:
      description: When it began, in UTC.
      type: str
    phase:
      description: What it does now. Empty before the first phase and after the last.
      type: str
    phases:
      description: The seconds that each finished phase took.
      type: dict
    disks:
      description: The progress of the phase on each RV(ignore:disk), in bytes, RV(ignore:done) of RV(ignore:total).
      type: list
      elements: dict
    speed:
      description: The speed of the phase in bytes/s, over the last 20 seconds.
      type: int
    result:
      description: What its module returned, or would have returned if its connection had not been cut.
      returned: with O(id), if the job is over or RV(jobs[].state) is V(waiting)
      type: dict
    log:
      description: The last 100 lines of its log. The whole log is on the hypervisor, in the job's folder.
      returned: with O(id)
      type: list
      elements: str
  sample:
    - id: 0b3fae5d6c1f4b0f8a7c9d2e1f3a4b5c
      state: running
      module: image_backup
      domain: {name: web1, uuid: 1b4e28ba-2fa1-11d2-883f-0016d3cca427}
      started: 20261120T120000Z
      phase: copy
      phases: {}
      disks:
        - disk: vda
          done: 1073741824
          total: 2147483648
      speed: 209715200
error_code:
  description: A short word for the cause of a failure. It stays the same across releases.
  returned: failure
  type: str
  sample: no_such_job
"""

from contextlib import suppress
from typing import Any

from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.job_state import JobEnd, describe, job_gone
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Outcome
from ansible_collections.virtops.libvirt.plugins.module_utils._core.text import words_shown
from ansible_collections.virtops.libvirt.plugins.module_utils._host.job_store import JobFolder, JobStore
from ansible_collections.virtops.libvirt.plugins.module_utils._module.entry import LocalContext, run_local_module
from ansible_collections.virtops.libvirt.plugins.module_utils._module.job import (
    HandedOver,
    Unfinished,
    describe_end,
    follow,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._module.specs import ArgumentSpec

SPEC: ArgumentSpec = {"domain": {"type": "str"}, "id": {"type": "str"}, "wait": {"type": "int", "default": 0}}
LINES = 100


def _flow(context: LocalContext) -> Outcome:
    given, store = context.params, JobStore()
    if given["id"]:
        return Outcome(values={"jobs": [_one(store, given["id"], given["wait"])]})
    jobs = [(folder, state) for folder, state in store.all() if given["domain"] in (None, state.domain, state.uuid)]
    return Outcome(
        values={"jobs": [describe(state, _how(_end(folder), folder.handed_over())) for folder, state in jobs]}
    )


def _one(store: JobStore, job_id: str, wait: int) -> dict[str, Any]:
    folder = store.find(job_id)
    if folder is None:
        raise job_gone(job_id)
    with suppress(Unfinished, HandedOver, VirtopsError):
        follow(folder, wait)
    end, state, handed = _end(folder), folder.state(), folder.handed_over()
    if state is None:
        raise job_gone(job_id)
    result = handed and words_shown(handed) if end is None else describe_end(end)
    told = {} if result is None else {"result": result}
    return {**describe(state, _how(end, handed)), "log": folder.log_lines(LINES), **told}


def _end(folder: JobFolder) -> JobEnd | None:
    try:
        return folder.require_end()
    except VirtopsError as killed:
        return JobEnd(error=killed)


def _how(end: JobEnd | None, handed: dict[str, Any] | None) -> str:
    if end is None:
        return "running" if handed is None else "waiting"
    if end.ended is not None:
        return "ended"
    return "killed" if end.error is not None and end.error.code == "job_killed" else "failed"


def main() -> None:
    run_local_module(SPEC, _flow, changes=False)


if __name__ == "__main__":
    main()
