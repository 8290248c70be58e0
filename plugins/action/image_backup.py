# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: runs a module that works as a job, follows the job, and shows how far it is.

It stands for each module that meta/runtime.yml gives it. The module begins the job and follows it for some seconds;
most jobs are over by then. Those that last longer are followed by job_info. A connection that is cut ends neither the
job nor the task: the job is named from here, so that the next connection finds it again.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleAuthenticationFailure, AnsibleConnectionFailure
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible.utils.vars import merge_hash

from ansible_collections.virtops.libvirt.plugins.plugin_utils.progress import ProgressLines

#: Seconds that the first call follows, and each later one. Each ends as soon as the job does.
FIRST = 10
SOON = 10
LATER = 30
#: Seconds after which a job is one that lasts.
LASTS = 120
#: Seconds for a hypervisor to be reachable again: before anything is known of the job, and after.
RECONNECT_UNKNOWN = 30
RECONNECT = 300
#: Seconds between two tries to reach it.
PAUSE = 3

#: The variable that turns the lines off.
SWITCH = "virtops_progress"


#: The variable with which a role's last task fails as an earlier one did, `error_code` and all, in better words: it
#: runs no module. ansible.builtin.fail returns a message only.
FAILURE = "__virtops_failure"


class ActionModule(ActionBase):
    _supports_check_mode = True
    _supports_async = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        del tmp
        if result.get("skipped"):
            return result
        task_vars = task_vars or {}
        if FAILURE in task_vars:
            return merge_hash(result, {**self._templar.template(task_vars[FAILURE]), "failed": True})
        args = self._task.args
        if self._task.async_val or self._task.check_mode or args.get("follow") is not None:
            wrap_async = bool(self._task.async_val) and not self._connection.has_native_async
            return merge_hash(result, self._execute_module(task_vars=task_vars, wrap_async=wrap_async))
        return merge_hash(result, self._run_job(task_vars))

    def _run_job(self, task_vars: dict[str, Any]) -> dict[str, Any]:
        show = self._shower(task_vars)
        began = time.monotonic()
        first = self._begin(task_vars, began)
        job = first.get("running_job")
        while job is not None:
            show(job)
            seconds = SOON if time.monotonic() - began < LASTS else LATER
            found = self._reached(
                lambda job=job, seconds=seconds: self._execute_module(
                    module_name="virtops.libvirt.job_info",
                    module_args={"id": job["id"], "wait": seconds},
                    task_vars=task_vars,
                ),
                RECONNECT,
            )
            if found.get("failed"):
                return {**found, **_kept(first)}
            (job,) = found["jobs"]
            if job["state"] != "running":
                return {**job["result"], **_kept(first)}
        return _without_ours(first)

    def _begin(self, task_vars: dict[str, Any], began: float) -> dict[str, Any]:
        """Begin the job. As long as it waits for the domain's lock nothing has begun, so it is asked for again."""
        args = {"job_id": uuid.uuid4().hex, **self._task.args, "follow": FIRST}
        while True:
            found = self._reached(
                lambda: self._execute_module(module_args=args, task_vars=task_vars), RECONNECT_UNKNOWN
            )
            if found.get("running_job", {}).get("state") != "waiting":
                return found
            timeout = int(self._task.args["lock_timeout"])  # the module has taken it for a number
            args["lock_timeout"] = max(0, timeout - int(time.monotonic() - began))

    def _reached(self, call: Callable[[], dict[str, Any]], seconds: float) -> dict[str, Any]:
        """The call's result, also where the connection is cut in its middle and comes back within so many seconds."""
        until: float | None = None
        while True:
            try:
                return call()
            except AnsibleAuthenticationFailure:
                raise  # again and again, it would lock the account
            except AnsibleConnectionFailure as problem:
                now = time.monotonic()
                until = until or now + seconds
                if now >= until:
                    raise
                Display().vv("%s: %s" % (self._task.get_name(), problem))
            time.sleep(PAUSE)
            with contextlib.suppress(AnsibleConnectionFailure, NotImplementedError):
                self._connection.reset()

    def _shower(self, task_vars: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], None]:
        """What prints the lines of a job: nothing where they are not wanted."""
        wanted = self._templar.template(task_vars.get(SWITCH, True))
        lines = ProgressLines()
        name = task_vars.get("inventory_hostname", "")

        def show(job: Mapping[str, Any]) -> None:
            line = lines.line(job, time.monotonic())
            if line is not None:
                Display().display("[%s] %s" % (name, line))

        if self._task.no_log or not boolean(wanted, strict=False):
            return lambda _job: None
        return show


def _kept(first: Mapping[str, Any]) -> dict[str, Any]:
    """What the call that began the job tells and the later ones do not: the options, an interpreter that was found."""
    return {key: value for key, value in _without_ours(first).items() if key in ("ansible_facts", "invocation")}


def _without_ours(result: dict[str, Any]) -> dict[str, Any]:
    """The result as if the task had been run without this plugin."""
    for name in ("follow", "job_id"):
        result.get("invocation", {}).get("module_args", {}).pop(name, None)
    return result
