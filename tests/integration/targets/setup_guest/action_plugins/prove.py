# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What holds for each module that changes a guest, in one task: see `cycle` and `refuse`.

`module` is the module's short name, `domain` the guest's. `compare` is what must be as before after a check or a
refusal: `bytes` with those of the images, `names` with their names only as a guest that runs writes to them, `none`.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from shlex import quote
from typing import Any

from ansible import context
from ansible.plugins.action import ActionBase

# While a guest boots, its agent connects; that is its own doing
FINGERPRINT = r"""set -eu
virsh dumpxml %(domain)s | sed -E "s/ state='(dis)?connected'//; /<allocation/d"
virsh dumpxml --inactive %(domain)s
virsh snapshot-list %(domain)s --name
cd %(folder)s
"""
BYTES = r"""
find . -printf '%p %y %s %m %i %T@\n' | sort
find . -type f -print0 | sort -z | xargs -0 b2sum"""
NAMES = r"""
find . -printf '%p %y %m %i\n' | sort"""
#: Of Ansible, not of the module
FOREIGN = {"invocation", "warnings", "deprecations", "failed", "exception"}
#: Of a job, as the guest writes all the time
PROGRESS = {"cur", "end", "progress"}


class Unexpected(Exception):
    """What should hold does not."""


class ActionModule(ActionBase):  # type: ignore[misc]
    """Runs a module of the collection as a task of its own would, action plugin included."""

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the results of all runs, by names."""
        super().run(tmp, task_vars)
        self._vars = task_vars or {}
        given = self._task.args
        self._domain = given["domain"]
        self._compare = given.get("compare", "bytes")
        try:
            return self.refuse(given["cases"]) if "cases" in given else self.cycle(given)
        except Unexpected as problem:
            return {"failed": True, "msg": str(problem.args[0]), "results": problem.args[1:]}

    def cycle(self, given: dict[str, Any]) -> dict[str, Any]:
        """Check, run, run again, check again, with `options`: changed once, and said so before.

        `suspended`: the guest is, until the first check is done. `may_repeat`: a second run may change as well.
        The warnings are those of all runs.
        """
        options = given["options"]
        suspended = given.get("suspended", False)
        if suspended:
            self._shell("virsh suspend %s" % quote(self._domain))
        # Whether a check touches something does not depend on libvirt
        before = "" if "once" in context.CLIARGS["skip_tags"] else self._fingerprint()
        checked = self._module(options, check=True)
        if before and self._fingerprint() != before:
            raise Unexpected("the check has changed something", checked)
        if suspended:
            self._shell("virsh resume %s" % quote(self._domain))
        ran, again = self._module(options), self._module(options)
        rechecked = self._module(options, check=True)
        runs = {"checked": checked, "ran": ran, "again": again, "rechecked": rechecked}
        changed = {name: result.get("failed") or result["changed"] for name, result in runs.items()}
        repeats = given.get("may_repeat", False) and again.get("changed")
        for name, result in runs.items():
            if result.get("failed") or result["changed"] != (name in ("checked", "ran") or repeats):
                raise Unexpected("%s: %s" % (name, changed), runs)
        for part in ("actions", "diff", *given.get("same", ())):
            if _without_progress(checked[part]) != _without_progress(ran[part]):
                raise Unexpected("the check says other %s than the run" % part, checked[part], ran[part])
        if not checked.keys() - FOREIGN == ran.keys() - FOREIGN == again.keys() - FOREIGN:
            raise Unexpected("the results have other keys", *map(sorted, runs.values()))
        idle = again["actions"] == rechecked["actions"] == [] and again["diff"]["before"] == again["diff"]["after"]
        if not repeats and not idle:
            raise Unexpected("what did nothing tells of steps", again, rechecked)
        # From ansible-core 2.19 on those of all runs are this task's without that
        warnings = dict.fromkeys(word for result in runs.values() for word in result.pop("warnings", []))
        return {"changed": True, "warnings": list(warnings), **runs}

    def refuse(self, cases: list[dict[str, Any]]) -> dict[str, Any]:
        """Each of the cases' `options` is refused with its `code` and `words`, in check mode as well."""
        before = self._fingerprint()
        results = []
        for case in cases:
            for check in (False, True):
                result = self._module({**self._task.args.get("options", {}), **case["options"]}, check=check)
                results.append(result)
                fits = result.get("failed") and result.get("error_code") == case["code"] and not result.get("partial")
                if not fits or case.get("words", "") not in result["msg"]:
                    raise Unexpected("check %s, not refused as it should be: %s" % (check, case), result)
        if self._fingerprint() != before:
            raise Unexpected("a refusal has changed something", *results)
        return {"results": results}

    def _module(self, options: dict[str, Any], *, check: bool = False) -> dict[str, Any]:
        loader = self._shared_loader_obj
        name = "virtops.libvirt.%s" % self._task.args["module"]
        task = self._task.copy()
        task.action = name
        task.args = {"domain": self._domain, **options}
        task.check_mode, task.diff = check, True
        handler = loader.module_loader.find_plugin_with_context(name).action_plugin or "ansible.legacy.normal"
        result: dict[str, Any] = loader.action_loader.get(
            handler,
            task=task,
            connection=self._connection,
            play_context=self._play_context,
            loader=self._loader,
            templar=self._templar,
            shared_loader_obj=loader,
        ).run(task_vars=self._vars)
        return {key: value for key, value in result.items() if not key.startswith("_ansible")}

    def _fingerprint(self) -> str:
        if self._compare == "none":
            return ""
        names = {
            "domain": quote(self._domain),
            "folder": quote(str(PurePosixPath("/var/lib/libvirt/images", self._domain))),
        }
        return self._shell(FINGERPRINT % names + (BYTES if self._compare == "bytes" else NAMES))

    def _shell(self, script: str) -> str:
        done = self._low_level_execute_command(script, executable="/bin/bash")
        if done["rc"]:
            raise Unexpected("the shell says: %s" % done["stderr"], script)
        return str(done["stdout"])


def _without_progress(value: Any) -> Any:
    """Return a result without what a running job changes from moment to moment."""
    if isinstance(value, dict):
        return {key: _without_progress(part) for key, part in value.items() if key not in PROGRESS}
    return [_without_progress(part) for part in value] if isinstance(value, list) else value
