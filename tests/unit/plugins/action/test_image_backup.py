# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""How the action plugin follows a job: which calls it makes, what it shows, and a connection that is cut."""

from __future__ import annotations

from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleAuthenticationFailure, AnsibleConnectionFailure

from ansible_collections.virtops.libvirt.plugins.action import image_backup

CUT = AnsibleConnectionFailure("Shared connection closed")
ASKED = {"module_args": {"follow": 10, "job_id": "a", "name": "x"}}
DONE = {"changed": True, "actions": ["merge"], "invocation": ASKED}
WAITING = {"changed": False, "running_job": {"id": "a", "state": "waiting", "phase": "", "disks": []}}


def running(done: int) -> dict[str, Any]:
    disks = [{"disk": "vda", "done": done << 20, "total": 100 << 20}]
    return {"id": "a", "state": "running", "phase": "copy", "disks": disks, "speed": 1 << 20}


def first(done: int) -> dict[str, Any]:
    return {"changed": False, "running_job": running(done), "invocation": ASKED, "ansible_facts": {"b": 1}}


def polled(done: int) -> dict[str, Any]:
    return {"changed": False, "jobs": [running(done)]}


def ended(result: dict[str, Any]) -> dict[str, Any]:
    return {"changed": False, "jobs": [{**running(100), "state": "ended", "result": result}]}


class Run:
    """The plugin with a hypervisor that gives these answers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: Any, args: Any = None, **task: Any) -> None:
        self.calls: list[tuple[str | None, dict[str, Any] | None, bool]] = []
        self.lines: list[str] = []
        self.resets = 0
        self._answers = list(answers)
        self._now = 0.0
        self._task = SimpleNamespace(
            **{"args": {"name": "x", **(args or {})}, "async_val": 0, "check_mode": False, "no_log": False, **task},
            get_name=lambda: "a task",
        )
        monkeypatch.setattr(image_backup, "time", SimpleNamespace(monotonic=lambda: self._now, sleep=self._sleep))
        shown = SimpleNamespace(display=self.lines.append, vv=lambda _line: None)
        monkeypatch.setattr(image_backup, "Display", lambda: shown)

    def _sleep(self, seconds: float) -> None:
        self._now += seconds

    def _answer(self, module_name: Any = None, module_args: Any = None, task_vars: Any = None, wrap_async: Any = False):
        self.calls.append((module_name, module_args and dict(module_args), wrap_async))
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        self._now += (module_args or {}).get("wait", 0)
        if isinstance(answer, Exception):
            raise answer
        return deepcopy(answer)

    def _reset(self) -> None:
        self.resets += 1

    def result(self, **task_vars: Any) -> dict[str, Any]:
        connection = SimpleNamespace(has_native_async=False, reset=self._reset, _shell=SimpleNamespace(tmpdir=None))
        templar = SimpleNamespace(template=lambda value: value)
        plugin = image_backup.ActionModule(self._task, connection, SimpleNamespace(), None, templar, None)
        plugin._execute_module = self._answer
        result: dict[str, Any] = plugin.run(task_vars={"inventory_hostname": "web1", **task_vars})
        return result


def test_a_short_job_costs_one_call(monkeypatch):
    run = Run(monkeypatch, DONE)
    result = run.result()
    assert result == {**DONE, "invocation": {"module_args": {"name": "x"}}}
    ((module, args, wrap_async),) = run.calls
    assert (module, wrap_async, args["follow"], len(args["job_id"]), args["name"]) == (None, False, 10, 32, "x")
    assert run.lines == []


def test_a_long_job_is_followed_and_its_progress_is_shown(monkeypatch):
    run = Run(monkeypatch, first(10), polled(11), polled(50), ended({"changed": True}))
    result = run.result()
    assert (result["changed"], result["ansible_facts"]) == (True, {"b": 1})
    assert [args for _unused, args, _ignored in run.calls[1:]] == [{"id": "a", "wait": 10}] * 3
    assert run.lines == [
        "[web1] copy vda 10 %: 10 of 100 MiB, 1.0 MiB/s, 1 min 31 s left",
        "[web1] copy vda 50 %: 50 of 100 MiB, 1.0 MiB/s, 51 s left",
    ]


@pytest.mark.parametrize("check_mode", [False, True])
def test_a_role_fails_as_an_earlier_task_did(monkeypatch, check_mode):
    """And no module runs for it."""
    run = Run(monkeypatch, DONE, check_mode=check_mode)
    result = run.result(__virtops_failure={"msg": "No room. No overlay is left.", "error_code": "no_space"})
    assert (result["failed"], result["error_code"]) == (True, "no_space")
    assert result["msg"] == "No room. No overlay is left."
    assert run.calls == []


def test_a_job_that_lasts_is_asked_for_less_often(monkeypatch):
    run = Run(monkeypatch, first(10), *[polled(11)] * 20, ended({}))
    run.result()
    waits = [args["wait"] for _unused, args, _ignored in run.calls[1:]]
    assert (waits[0], waits[-1], sorted(waits) == waits) == (10, 30, True)


@pytest.mark.parametrize(("task", "task_vars"), [({"no_log": True}, {}), ({}, {"virtops_progress": "false"})])
def test_nothing_is_shown_where_that_is_not_wanted(monkeypatch, task, task_vars):
    run = Run(monkeypatch, first(10), polled(50), ended({"changed": True}), **task)
    assert run.result(**task_vars)["changed"]
    assert run.lines == []


@pytest.mark.parametrize(
    ("args", "task", "wrap_async"),
    [({}, {"check_mode": True}, False), ({}, {"async_val": 60}, True), ({"follow": 5}, {}, False)],
)
def test_what_needs_no_following_is_run_as_it_is(monkeypatch, args, task, wrap_async):
    run = Run(monkeypatch, first(10), args=args, **task)
    assert "running_job" in run.result()
    assert run.calls == [(None, None, wrap_async)]


def test_a_job_is_found_again_after_the_connection_was_cut(monkeypatch):
    run = Run(monkeypatch, first(10), CUT, CUT, polled(60), CUT, ended({"failed": True, "msg": "It broke."}))
    assert (run.result()["failed"], run.resets) == (True, 3)
    assert {args["id"] for _unused, args, _ignored in run.calls[1:]} == {"a"}


def test_the_first_call_is_made_again_with_the_same_id(monkeypatch):
    run = Run(monkeypatch, CUT, DONE)
    assert run.result()["changed"]
    assert len({args["job_id"] for _unused, args, _ignored in run.calls}) == 1


@pytest.mark.parametrize("answers", [(CUT,), (first(10), CUT)])
def test_a_host_that_stays_away_is_unreachable(monkeypatch, answers):
    run = Run(monkeypatch, *answers)
    with pytest.raises(AnsibleConnectionFailure):
        run.result()
    assert run.resets < 120


def test_a_wrong_password_is_tried_once(monkeypatch):
    run = Run(monkeypatch, AnsibleAuthenticationFailure("Invalid/incorrect password"))
    with pytest.raises(AnsibleAuthenticationFailure):
        run.result()
    assert len(run.calls) == 1


def test_the_wait_for_the_lock_is_bounded_over_all_calls(monkeypatch):
    locked = {"failed": True, "error_code": "locked"}
    run = Run(monkeypatch, CUT, CUT, WAITING, WAITING, locked, args={"lock_timeout": 60})
    assert run.result()["error_code"] == "locked"
    assert [args["lock_timeout"] for _unused, args, _ignored in run.calls] == [60, 60, 60, 54, 54]
    assert len({args["job_id"] for _unused, args, _ignored in run.calls}) == 1


def test_a_job_that_nobody_knows_any_more_is_a_failure(monkeypatch):
    run = Run(monkeypatch, first(10), {"failed": True, "error_code": "no_such_job", "msg": "gone"})
    assert run.result()["error_code"] == "no_such_job"
