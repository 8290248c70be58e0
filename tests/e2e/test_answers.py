# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the playbook live_backup makes of the modules' answers. The modules here only answer, and note who asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

TREE = Path(__file__).resolve().parents[2]
HOST = "hv1"
MODULE = """#!/usr/bin/python
# WANT_JSON
import json, sys
with open({folder!r} + "/asked", "a") as asked:
    asked.write({name!r} + "\\n")
with open(sys.argv[1]) as file:
    given = json.load(file)
with open({folder!r} + "/answers.json") as answers:
    answer = json.load(answers)[{name!r}]
if {name!r} == "preflight_info" and "guests" in answer:
    answer["guests"] = [guest for guest in answer["guests"] if guest["uuid"] in given["guests"]]
answer = answer.pop("of", {{}}).get(given.get("domain"), answer)
print(json.dumps(answer))
"""
EFFECTS = ("live_backup", "recover")
SET = {"path": "/srv/backup/1", "consistency": "filesystem", "disks": [{"allocated": 1}]}


def guest(name: str, state: str = "running", **more: Any) -> dict[str, Any]:
    """A guest as guests_info tells of it."""
    usual = {"name": name, "uuid": f"uuid-of-{name}", "state": state, "patterns": ["*"], "journal": []}
    return {**usual, **more}


def looked(name: str, *checks: tuple[str, str]) -> dict[str, Any]:
    """A guest as preflight_info tells of it, by each check's status and message."""
    told = [
        {"check": "jobs", "status": status, "disk": None, "message": message, "remedy": "Wait", "error_code": "x"}
        for status, message in checks
    ]
    ready = all(status != "failed" for status, _message in checks)
    return {"name": name, "uuid": f"uuid-of-{name}", "state": "running", "ready": ready, "checks": told}


@dataclass(frozen=True)
class Said:
    """A playbook that has ended."""

    rc: int
    output: str
    asked: list[str]

    @property
    def effects(self) -> list[str]:
        """Return the modules that were asked and do more than look."""
        return [name for name in self.asked if name in EFFECTS]


Run = Callable[..., Said]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run the playbook on guests that exist in the answers alone."""
    folder = tmp_path / "ansible_collections" / "virtops" / "libvirt"
    modules = folder / "plugins" / "modules"
    modules.mkdir(parents=True)
    for name in (
        "roles",
        "meta",
        "playbooks",
        "galaxy.yml",
        "plugins/filter",
        "plugins/action",
        "plugins/plugin_utils",
        "plugins/module_utils",
    ):
        (folder / name).symlink_to(TREE / name)
    for name in ("guests_info", "preflight_info", *EFFECTS):
        (modules / f"{name}.py").write_text(MODULE.format(folder=str(tmp_path), name=name), encoding="utf-8")

    def play(
        found: list[dict[str, Any]],
        looks: list[dict[str, Any]] | None = None,
        playbook: str = "live_backup",
        fails: dict[str, str] | None = None,
        arguments: tuple[str, ...] = (),
        backup: dict[str, Any] | None = None,
        **variables: Any,
    ) -> Said:
        failures = {
            f"uuid-of-{name}": {"failed": True, "error_code": "x", "msg": words}
            for name, words in (fails or {}).items()
        }
        answers = {
            "guests_info": {"guests": found, "unmatched": []},
            "preflight_info": {"guests": looks or [looked(one["name"]) for one in found]},
            "live_backup": {"changed": True, "backup": SET, "recovered": [], "of": failures, **(backup or {})},
            "recover": {"changed": True, "actions": [], "operations": [], "backup": None},
        }
        (tmp_path / "answers.json").write_text(json.dumps(answers), encoding="utf-8")
        (tmp_path / "asked").write_text("", encoding="utf-8")
        given = {"ansible_python_interpreter": sys.executable, "live_backup_dest": "/srv/backup", **variables}
        (tmp_path / "given.yml").write_text(yaml.safe_dump({"target": HOST, **given}), encoding="utf-8")
        env = {
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(tmp_path),
            "ANSIBLE_LOCALHOST_WARNING": "false",
            "ANSIBLE_STDOUT_CALLBACK": "default",
            "ANSIBLE_CALLBACK_RESULT_FORMAT": "yaml",
        }
        command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", f"{HOST},", "-c", "local"]
        ran = subprocess.run(
            [*command, "-e", f"@{tmp_path}/given.yml", f"virtops.libvirt.{playbook}", *arguments],
            cwd=tmp_path,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        asked = (tmp_path / "asked").read_text(encoding="utf-8").split()
        output = " ".join(ran.stdout.split())
        return Said(ran.returncode, output, asked)

    return play


def test_a_guest_that_is_not_ready_stops_no_other(run: Run) -> None:
    """It comes first by its name, and in a look alone it is not the one that stands for its hypervisor."""
    names, found = ("abc", "odd", "web"), "The preflight found, and nothing was touched: A job is running. Wait."
    for bad in names[:2]:
        said = run([guest(name) for name in names], fails={bad: found})
        assert said.rc != 0
        assert f"{bad}@{HOST}: FAILED. {found}" in said.output
        looks = [looked(name, *[("failed", "A job is running")] * (name == bad)) for name in names]
        only = run([guest(name) for name in names], looks, preflight_only=True)
        assert only.rc != 0
        assert f"{bad}@{HOST}: NOT READY. A job is running." in only.output
        for name in set(names) - {bad}:
            assert f"{name}@{HOST}: backed up to /srv/backup/1" in said.output
            assert f"{name}@{HOST}: ready" in only.output
        assert "The preflight failed" not in only.output
        assert (said.effects, only.effects) == (["live_backup"] * len(names), [])


@pytest.mark.parametrize(("name", "value", "least"), [("timeout", "-5", 0), ("parallel", 0, 1)])
def test_a_number_out_of_its_bounds(run: Run, name: str, value: object, least: int) -> None:
    """It is named, so that nothing is begun and nobody is told to be ready."""
    words = f"live_backup_{name} is {value}. Give a number of {least} or more."
    said = run([guest("web"), guest("abc")], preflight_only=name == "timeout", **{f"live_backup_{name}": value})
    assert said.rc != 0
    if name == "timeout":
        assert f"web@{HOST}: NOT READY. The preflight failed: {words}" in said.output
    else:
        told = "A variable has a value that cannot be meant, and nothing was touched"
        assert f"web@{HOST}: FAILED. {told}: {words}" in said.output
    assert ": ready" not in said.output
    assert said.asked == ["guests_info"]


def test_no_destination(run: Run) -> None:
    """It is not called one that is no absolute path."""
    said = run([guest("web")], live_backup_dest=" ")
    assert said.rc != 0
    assert "and nothing was touched: live_backup_dest was not given. Name the directory" in said.output
    assert said.asked == ["guests_info"]


@pytest.mark.parametrize("path", ["copy.yml", "/nowhere/copy.yml"])
def test_no_file_of_copy_tasks(run: Run, path: str) -> None:
    """It is looked for before the snapshot, and at no other place than the one that is named."""
    said = run([guest("web")], live_backup_copy_tasks=path)
    assert said.rc != 0
    assert f"nothing was touched: live_backup_copy_tasks is {path}, and the controller has no such file." in said.output
    assert said.asked == ["guests_info"]


@pytest.mark.parametrize("text", ["- name: x\n  nope: {{\n", "name: x\n", "x\n"])
def test_copy_tasks_that_are_none(run: Run, tmp_path: Path, text: str) -> None:
    """They would end the play when they are included, which is after the snapshot."""
    path = tmp_path / "copy.yml"
    path.write_text(text, encoding="utf-8")
    said = run([guest("web")], live_backup_copy_tasks=str(path))
    assert said.rc != 0
    assert f"web@{HOST}: FAILED. A variable has a value that cannot be meant, and nothing was touched: " in said.output
    assert said.asked == ["guests_info"]


WAITING = {
    "backup": None,
    "domain": {"name": "web"},
    "bases": [{"disk": "vda", "path": "/a"}],
    "extras": [],
    "domain_xml": "",
    "taken": "20261120T120000Z",
    "consistency": "crash",
    "copied": False,
    "job": "0" * 32,
}
LOST = {
    "name": "Reach nobody",
    "ansible.builtin.ping": None,
    "delegate_to": "vault",
    "vars": {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1},
}


@pytest.mark.parametrize("task", [LOST, {"name": "End it", "ansible.builtin.meta": "end_host"}], ids=["lost", "ended"])
def test_copy_tasks_that_break_off(run: Run, tmp_path: Path, task: dict[str, Any]) -> None:
    """The job is told nothing, so it is not called a backup."""
    path = tmp_path / "copy.yml"
    path.write_text(yaml.safe_dump([task]), encoding="utf-8")
    said = run([guest("web")], live_backup_copy_tasks=str(path), live_backup_dest="", backup=WAITING)
    assert said.rc != 0
    assert f"web@{HOST}: FAILED. Its copy tasks broke off" in said.output
    assert said.effects == ["live_backup"]


def test_a_check_runs_no_copy_tasks(run: Run, tmp_path: Path) -> None:
    """It says so."""
    path = tmp_path / "copy.yml"
    path.write_text(yaml.safe_dump([{"name": "Never", "ansible.builtin.fail": {"msg": "never"}}]), encoding="utf-8")
    foreseen = {name: value for name, value in WAITING.items() if name != "job"}
    said = run([guest("web")], arguments=("--check",), live_backup_copy_tasks=str(path), backup=foreseen)
    assert said.rc == 0, said.output
    assert f"Check mode: the tasks of {path} are not run." in said.output
    assert f"web@{HOST}: would be backed up" in said.output


@pytest.mark.parametrize(
    ("given", "value"),
    [("preflight_only", "maybe"), ("live_backup_preflight", "fasle"), ("live_backup_allow_none", "2")],
)
def test_a_switch_that_is_no_boolean(run: Run, given: str, value: object) -> None:
    """It is refused with its name, and not taken for false: a look would be a backup."""
    said = run([guest("web")], **{given: value})
    assert said.rc != 0
    assert f"{given} is '{value}', which is neither true nor false" in said.output
    assert said.asked == []


def test_a_role_s_switch_that_is_no_boolean(run: Run) -> None:
    """It is told, by its name."""
    said = run([guest("web")], live_backup_verify="maybe")
    assert said.rc != 0
    assert "live_backup_verify" in said.output
    assert said.asked == ["guests_info"]


def test_a_guest_in_another_state_is_told_as_it_is(run: Run) -> None:
    """Not as one that was not found, and not as one of those that were backed up."""
    asked = [guest("web", "paused", patterns=["web"], paused_by="I/O error"), guest("abc", patterns=["abc"])]
    said = run(asked, guests=["web", "abc", "typo"])
    assert said.rc != 0
    assert f"NOT BACKED UP: web@{HOST} (paused)" in said.output
    assert f"WARNING: web@{HOST} is paused at an I/O error" in said.output
    assert f"abc@{HOST}: backed up" in said.output
    assert "NOT FOUND: typo" in said.output
    assert "NOT FOUND: web" not in said.output
    assert f"No backup is made of a guest that is not running or shut off here: web@{HOST} (paused)." in said.output

    said = run([guest("off", "shut off"), guest("sleeping", "paused", paused_by="user"), guest("abc")])
    assert said.rc == 0, said.output
    assert f"Left out: sleeping@{HOST} (paused)" in said.output
    ends = f"Every guest that is running or shut off was backed up; left out: sleeping@{HOST} (paused)."
    assert ends in said.output
    assert said.effects == ["live_backup", "live_backup"]
    assert "WARNING: sleeping" not in said.output
    only = run([guest("off", "shut off")], [{**looked("off"), "state": "shut off"}], preflight_only=True)
    assert f"off@{HOST}: ready, while it is off" in only.output

    said = run([guest("web", "paused", patterns=["web"])], guests="web", preflight_only=True)
    assert said.rc != 0
    assert f"NOT BACKED UP: web@{HOST} (paused)" in said.output
    assert "There was nothing to back up" not in said.output
    said = run([guest("abc")], live_backup_preflight=False)
    assert said.rc == 0
    assert "Every guest was backed up." in said.output


@pytest.mark.parametrize("states", ["running", ["running"], " running , paused"])
def test_the_states_are_the_users(run: Run, states: object) -> None:
    """As a list or as text, and no other counts."""
    said = run([guest("off", "shut off"), guest("sleeping", "paused"), guest("abc")], live_backup_states=states)
    assert said.rc == 0, said.output
    assert said.effects == ["live_backup"] * (2 if "paused" in states else 1)  # type: ignore[operator]
    assert f"off@{HOST} (shut off)" in said.output
    assert f"off@{HOST}: backed up" not in said.output


def test_a_state_that_no_guest_has(run: Run) -> None:
    """It would leave out every guest."""
    said = run([guest("off", "shut off")], live_backup_states="running,stopped")
    assert said.rc != 0
    assert "live_backup_states has stopped. Give some of running, shut off," in said.output
    assert said.asked == []


def test_a_guest_that_is_off_here_and_at_another_host(run: Run) -> None:
    """It is that host's."""
    said = run([guest("gone", "shut off", elsewhere=True), guest("abc", elsewhere=False)])
    assert said.rc == 0, said.output
    assert said.effects == ["live_backup"]
    assert f"At another host: gone@{HOST} is off on its hypervisor, and runs at another one." in said.output
    assert f"left out: gone@{HOST} (shut off)." in said.output
    said = run([guest("twin", "shut off"), guest("twin2", uuid="uuid-of-twin")])
    assert said.effects == ["live_backup"]
    assert f"At another host: twin@{HOST}" in said.output
