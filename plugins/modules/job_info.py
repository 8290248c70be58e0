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
    M(virtops.libvirt.block_pull), M(virtops.libvirt.image_convert), M(virtops.libvirt.recover),
    M(virtops.libvirt.restore_drill), M(virtops.libvirt.snapshot_external), M(virtops.libvirt.snapshot_internal),
    M(virtops.libvirt.snapshot_prune) and M(virtops.libvirt.snapshot_revert)) work in a job on the hypervisor. A job
    goes on to its end if the connection is cut or the controller dies.
  - This module lists the running jobs, and those that ended in the last day, with the cause of each failure. With O(id)
    it shows the log and the whole result of one job. With O(wait) it waits for the end first.
  - The jobs of other users of the hypervisor are not shown.
extends_documentation_fragment:
  - virtops.libvirt.connection
  - virtops.libvirt.attributes
  - virtops.libvirt.attributes.info
  - virtops.libvirt.attributes.actiongroup_all
options:
  domain:
    description:
      - Only the jobs of this domain, by its name or UUID. A domain without jobs has an empty list.
      - If there is neither such a job nor such a domain at O(uri), the module fails with C(no_such_domain), so that a
        wrong name does not look like a domain without jobs. Otherwise libvirt is not asked, so this also works while
        its daemon does not answer.
    type: str
  id:
    description: Only this job. Then O(domain) does not matter.
    type: str
  wait:
    description:
      - How many seconds to wait until the job of O(id), or all jobs of O(domain), have ended. The module refuses this
        without one of them.
      - The module returns when they have ended, when a job waits for your own copy (RV(jobs[].state) is V(waiting)), or
        when this time is over. In the last case RV(jobs[].state) of a job is still V(running).
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

- name: Wait until nothing works on a guest, for at most 10 minutes
  virtops.libvirt.job_info:
    domain: web1
    wait: 600

- name: Show which jobs failed
  ansible.builtin.debug:
    msg: "{{ item.domain.name }}: {{ item.error_code }}. {{ item.msg }}"
  loop: "{{ found.jobs | selectattr('state', 'in', ['failed', 'killed']) }}"
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
          M(virtops.libvirt.backup_verify) and M(virtops.libvirt.restore_drill), which work on sets.
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
    error_code:
      description: The C(error_code) that its module failed with. Null if it has none, or runs.
      type: str
    msg:
      description: The message that its module failed with. Null if it did not fail, or runs.
      type: str
    path:
      description: The backup set that it made. Null if it made none, or runs.
      type: str
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
      msg:
      path:
error_code:
  description: A short word for the cause of a failure. It stays the same across releases.
  returned: failure
  type: str
  sample: no_such_job
"""

from contextlib import suppress
from typing import Any

from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.job_state import (
    JobEnd,
    JobState,
    describe,
    job_gone,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Outcome
from ansible_collections.virtops.libvirt.plugins.module_utils._core.text import words_shown
from ansible_collections.virtops.libvirt.plugins.module_utils._host.clock import SystemClock
from ansible_collections.virtops.libvirt.plugins.module_utils._host.job_store import JobFolder, JobStore
from ansible_collections.virtops.libvirt.plugins.module_utils._host.locks import known_directories
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
    given, store = context.params, JobStore(known_directories)
    if given["id"]:
        return Outcome(values={"jobs": [_one(store, given["id"], given["wait"])]})
    if given["domain"]:
        _wait(_of(store, given["domain"], context), given["wait"])
        return Outcome(values={"jobs": [_shown(*job) for job in _of(store, given["domain"], context)]})
    if given["wait"]:
        raise VirtopsError("bad_option", "wait needs a job to wait for", "Set id, or domain for all jobs of a domain")
    return Outcome(values={"jobs": [_shown(*job) for job in store.all()]})


def _of(store: JobStore, domain: str, context: LocalContext) -> list[tuple[JobFolder, JobState]]:
    """The jobs of a domain; where there is none, by its UUID: it may have got another name since."""
    found = [(folder, state) for folder, state in store.all() if domain in (state.domain, state.uuid)]
    if found:
        return found
    uuid = context.uuid_of(domain)
    return [(folder, state) for folder, state in store.all() if state.uuid == uuid]


def _wait(jobs: list[tuple[JobFolder, JobState]], seconds: int) -> None:
    """Until all have ended, for so many seconds in all."""
    clock = SystemClock()
    until = clock.monotonic() + seconds
    for folder, _unused in jobs:
        with suppress(Unfinished, HandedOver, VirtopsError):
            follow(folder, max(0.0, until - clock.monotonic()))


def _one(store: JobStore, job_id: str, wait: int) -> dict[str, Any]:
    folder = store.find(job_id)
    if folder is None:
        raise job_gone(job_id)
    with suppress(Unfinished, HandedOver, VirtopsError):
        follow(folder, wait)
    state = folder.state()
    if state is None:
        raise job_gone(job_id)
    end, handed = _end(folder), folder.handed_over()
    result = handed and words_shown(handed) if end is None else describe_end(end)
    told = {} if result is None else {"result": result}
    return {**_shown(folder, state), "log": folder.log_lines(LINES), **told}


def _shown(folder: JobFolder, state: JobState) -> dict[str, Any]:
    end = _end(folder)
    result = {} if end is None else describe_end(end)
    backup = result.get("backup") or {}
    told = {"error_code": result.get("error_code"), "msg": result.get("msg"), "path": backup.get("path")}
    return {**describe(state, _how(end, folder.handed_over())), **told}


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
