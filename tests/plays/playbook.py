# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs playbooks as an operator does, and tells what each task said; or kills the controller under them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from gate import Gate
from virtlab import Lab

HERE = Path(__file__).resolve().parent
LIVE_BACKUP = "virtops.libvirt.live_backup"
RECOVER = "virtops.libvirt.recover"
RESTORE = "virtops.libvirt.restore"
STOP = "virtops.libvirt.stop"
VERIFY = "virtops.libvirt.verify"
GUESTS_PLAY = "Back the guests up"
GUESTS_PLAYS = (GUESTS_PLAY, "Bring the guests to rest")
#: The inventory group of all hypervisors of the test.
TESTED = "tested"
REPORTS = ("Report on each guest", "Report on each set")
REFUSALS = "Refuse the guests that are not ready"


@dataclass(frozen=True)
class TaskResult:
    """One task on one host; `status` is ok, failed, ignored, skipped or unreachable."""

    play: str
    task: str
    action: str
    host: str
    status: str
    result: dict[str, Any]


@dataclass(frozen=True)
class Play:
    """A playbook that has ended."""

    rc: int
    output: str
    results: tuple[TaskResult, ...]

    def of(self, host: str, action: str = "") -> list[TaskResult]:
        """Return the results of a guest in the guests' play in the order of time, of one action if it is given."""
        found = [item for item in self.results if item.host == host and item.play in GUESTS_PLAYS]
        return [item for item in found if item.action.endswith(action)]

    def guests(self) -> set[str]:
        """Return the inventory names of the guests that the play worked on; hypervisors have nothing to do in it."""
        return {item.host for item in self.results if item.play in GUESTS_PLAYS and "@" in item.host}

    def refused(self) -> dict[str, str]:
        """Return why guests were not touched, by their inventory names."""
        refusals = [item for item in self.results if item.play == REFUSALS and item.status == "failed"]
        return {item.host: str(item.result["msg"]) for item in refusals}

    def report(self) -> dict[str, str]:
        """Return the closing report: the line of each guest, by the guest's inventory name."""
        found = {line.split(": ", 1)[0]: line for line in self.lines()}
        return {name: line for name, line in found.items() if "@" in name}

    def lines(self) -> list[str]:
        """Return the closing report."""
        reports = ("Report on each guest", "Report on each set")
        (said,) = [item for item in self.results if item.task in reports and item.status == "ok"]
        return [str(line) for line in said.result["msg"]]

    def changed(self) -> list[str]:
        """Return the tasks that changed something, each with its host."""
        return [f"{item.task} ({item.host})" for item in self.results if item.result.get("changed")]


@dataclass
class RunningPlay:
    """A playbook under way."""

    process: subprocess.Popen[str]
    record: Path
    output: Path
    patience: float = 180
    #: What holds the job that it follows.
    gate: Gate | None = None

    def reach_gate(self, timeout: float = 120) -> None:
        """Wait until the play stands before the task that it was started with as `gate`, or its job at its own."""
        gate = Path(f"{self.record}.gate")
        deadline = time.monotonic() + timeout
        while not (self.gate.wait(0) if self.gate else gate.exists()):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the play did not come to its gate:\n{self.output.read_text()}")
            time.sleep(0.02)

    def open_gate(self) -> None:
        """Let it go on."""
        Path(f"{self.record}.open").touch()
        if self.gate:
            self.gate.open()

    def end(self, timeout: float | None = None) -> Play:
        """Wait for its end."""
        self.process.wait(timeout or self.patience)
        lines = self.record.read_text(encoding="utf-8").splitlines() if self.record.exists() else []
        results = tuple(TaskResult(**json.loads(line)) for line in lines if line.endswith("}"))
        return Play(self.process.returncode, self.output.read_text(encoding="utf-8"), results)

    def kill(self) -> None:
        """SIGKILL to the controller: ansible-playbook, its workers and all ssh processes at one moment.

        They are one PID namespace, which the kernel kills as a whole with its first process. Workers and ssh's
        connection masters are sessions of their own, so that a signal to the process group would miss them.
        """
        if self.process.poll() is not None:
            raise AssertionError(f"the play ended before it could be killed:\n{self.output.read_text()}")
        self.process.kill()
        self.process.wait(30)


@dataclass
class Controller:
    """A machine's Ansible, with an inventory of lab hypervisors only and none of the user's own settings."""

    folder: Path
    hosts: Sequence[str]
    lab: Lab
    collections: Path = field(default_factory=lambda: Path(os.environ["ANSIBLE_COLLECTIONS_PATH"]))
    #: Seconds that a play may take
    patience: float = 180
    #: Where the ansible-core is that runs the plays
    programs: Path = Path(sys.executable).parent
    runs: int = field(default=0, init=False)

    def run(self, *arguments: str, pipelining: bool = True, playbook: str = LIVE_BACKUP, **variables: Any) -> Play:
        """Run a playbook with extra variables."""
        return self.start(*arguments, pipelining=pipelining, gate="", playbook=playbook, **variables).end()

    def start(
        self,
        *arguments: str,
        pipelining: bool = False,
        gate: str = "",
        playbook: str = LIVE_BACKUP,
        **variables: Any,
    ) -> RunningPlay:
        """Start the playbook; with `gate`, it waits before the first task of that name (see recorder.py).

        With pipelining, as the README recommends it, a module may outlive the controller that is killed.

        --kill-child: what kills unshare kills the namespace, and so everything.
        """
        self.runs += 1
        record, output = self.folder / f"{self.runs}.jsonl", self.folder / f"{self.runs}.log"
        command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL", "--"]
        command += [str(self.programs / "ansible-playbook"), "-i", str(self._inventory()), playbook]
        command += ["-e", json.dumps({"live_backup_dest": "/srv/backup", "target": TESTED, **variables}), *arguments]
        with output.open("w", encoding="utf-8") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                env=self._environment(record, pipelining, gate),
                start_new_session=True,
            )
        return RunningPlay(process, record, output, self.patience)

    def by_hand(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run one of Ansible's commands as a message or a guide tells it, with our inventory."""
        program, *arguments = shlex.split(command)
        self.runs += 1
        return subprocess.run(
            [str(self.programs / program), "-i", str(self._inventory()), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self._environment(self.folder / f"{self.runs}.jsonl", True, ""),
            timeout=self.patience,
            check=False,
        )

    def start_module(self, host: str, module: str, /, **options: object) -> RunningPlay:
        """Start one module of the collection on a hypervisor."""
        task = {"name": module, f"virtops.libvirt.{module}": options}
        play = {"name": module, "hosts": host, "gather_facts": False, "tasks": [task]}
        path = self.folder / f"{self.runs + 1}.yml"
        path.write_text(yaml.safe_dump([play]), encoding="utf-8")
        return self.start(pipelining=True, playbook=str(path))

    def module(self, host: str, module: str, /, **options: object) -> dict[str, Any]:
        """Run one module and return its result, failed or not."""
        play = self.start_module(host, module, **options).end()
        if not play.results:
            raise AssertionError(f"{module} gave no result:\n{play.output}")
        return play.results[-1].result

    def _inventory(self) -> Path:
        whole = yaml.safe_load(self.lab.inventory())["hypervisors"]
        hosts = {name: whole["hosts"][name] for name in self.hosts}
        groups = {TESTED: {"hosts": hosts, "vars": whole["vars"]}, "second": {"hosts": {self.hosts[-1]: None}}}
        path = self.folder / "inventory.yml"
        path.write_text(yaml.safe_dump(groups), encoding="utf-8")
        return path

    def _environment(self, record: Path, pipelining: bool, gate: str) -> Mapping[str, str]:
        config = self.folder / "ansible.cfg"
        # As the README recommends: the default keeps a processor busy, of two that all plays and guests of a test share
        config.write_text("[defaults]\ninternal_poll_interval = 0.02\n", encoding="utf-8")
        env = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
        return {
            **env,
            "ANSIBLE_COLLECTIONS_PATH": str(self.collections),
            "ANSIBLE_CONFIG": str(config),
            "ANSIBLE_HOME": str(self.folder / "home"),
            # Each play its own: one that used another's connection would lose it when that one ends, or is killed
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.lab.dir / "cp" / record.stem / str(os.getpid())),
            "ANSIBLE_CALLBACK_PLUGINS": str(HERE / "callback_plugins"),
            "ANSIBLE_CALLBACKS_ENABLED": "recorder",
            "ANSIBLE_PIPELINING": str(pipelining),
            "ANSIBLE_FORCE_COLOR": "0",
            "ANSIBLE_NOCOLOR": "1",
            "VIRTOPS_RECORD": str(record),
            "VIRTOPS_GATE": gate,
        }
