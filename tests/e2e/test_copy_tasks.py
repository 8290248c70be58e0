# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Guests that are copied by tasks of the user's own: the guide's examples, and what ends such a copy early."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import in_parallel
from endstate import Before
from fleet import Member, kill_jobs, until
from playbook import Controller, Play, RunningPlay
from virtlab import BACKUP, lost

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "docsite" / "rst" / "guide_live_backup.rst"
COPIES, REPOSITORY, RESTORED = "/srv/copies", "/srv/restic", "/srv/restored"
SECRET = "a-secret-of-the-copy"
#: Holds a play in the user's tasks.
WAITS = {
    "name": "Wait for the test",
    "ansible.builtin.wait_for": {"path": "{{ go }}", "timeout": 120},
    "delegate_to": "localhost",
}
FAILS = {
    "name": "Read nothing",
    "ansible.builtin.command": "cat /nowhere/{{ item }}",
    "loop": ["a"],
    "delegate_to": "{{ live_backup_hypervisor }}",
}
HIDDEN = {
    "name": "Hide",
    "ansible.builtin.command": {"argv": ["sh", "-c", "echo {{ secret }}; echo {{ secret }} >&2; exit 1"]},
    "no_log": True,
    "delegate_to": "{{ live_backup_hypervisor }}",
}


def example(name: str) -> Any:
    """Return the tasks of the guide."""
    block = re.search(
        rf"^\.\. code-block:: yaml\n   :name: {name}\n\n((?:   .*\n|\n)+)",
        GUIDE.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert block, name
    return yaml.safe_load(textwrap.dedent(block[1]))


def tasks_file(controller: Controller, name: str, *tasks: Any) -> str:
    """Write a file of tasks, and return its path."""
    path = controller.folder / f"{name}.yml"
    path.write_text(yaml.safe_dump(list(tasks)), encoding="utf-8")
    return str(path)


def start(controller: Controller, files: dict[str, str], *arguments: str, **variables: Any) -> RunningPlay:
    """Start the playbook for these guests, each with its own file of tasks, by their names in the inventory."""
    limit = [part for alias in files for part in (alias.partition("@")[2], alias)]
    return controller.start(
        *("--limit", ":".join(dict.fromkeys(limit)), *arguments),
        pipelining=True,
        copy_files=files,
        live_backup_copy_tasks="{{ copy_files[inventory_hostname] | default('') }}",
        live_backup_dest="",
        **variables,
    )


def told(play: Play, member: Member) -> dict[str, Any]:
    """Return how the guest's job ended, as its last task of ours told."""
    return play.of(member.alias, "live_backup")[-1].result


def waiting_job(member: Member) -> str:
    """Return the ID of its job while that waits for the word that the bases are copied; else nothing."""
    for path in member.hypervisor.outside("/run/virtops.libvirt/jobs").glob("*/handed.json"):
        if json.loads(path.read_text(encoding="utf-8"))["domain"]["name"] == member.guest.name:
            return path.parent.name if member.phase() == "created" else ""
    return ""


def job(controller: Controller, member: Member, job_id: str) -> dict[str, Any]:
    """Return what is told of a job."""
    found: dict[str, Any] = controller.module(member.hypervisor.name, "job_info", id=job_id, wait=60)["jobs"][0]
    return found


@pytest.fixture(scope="module")
def members(fleet: dict[str, Member]) -> list[Member]:
    """A guest with a backing file and a raw disk, and one on the other hypervisor."""
    return [fleet["web2@e2e1"], fleet["files@e2e2"]]


def test_the_examples_of_the_guide(members: list[Member], controller: Controller) -> None:
    """What restic, and rsync over SSH, have copied is what the guests had; restic's passphrase is told nowhere."""
    by_restic, by_rsync = members
    vault = by_restic.hypervisor
    vault.exec(["mkdir", "-p", COPIES])
    inventory = yaml.safe_load(controller.lab.inventory())["hypervisors"]
    key, port = inventory["vars"]["ansible_ssh_private_key_file"], inventory["hosts"][vault.name]["ansible_port"]
    config = f"""
        umask 077; mkdir -p /root/.ssh; cat {key} >/root/.ssh/vault_key
        printf 'Host vault\\n HostName 127.0.0.1\\n Port {port}\\n' >/root/.ssh/config
        printf ' IdentityFile /root/.ssh/vault_key\\n StrictHostKeyChecking accept-new\\n' >>/root/.ssh/config
    """
    by_rsync.hypervisor.exec(["sh", "-ec", config])
    made = f"""
        rm -rf /etc/restic {REPOSITORY} {RESTORED}; install -d -m 700 /etc/restic
        (umask 077; echo {SECRET} >/etc/restic/passphrase)
        restic -q -r {REPOSITORY} --password-file /etc/restic/passphrase init
    """
    by_restic.hypervisor.exec(["sh", "-ec", made])
    befores = in_parallel(Before.of, members)
    files = {
        by_rsync.alias: tasks_file(controller, "rsync", *example("rsync")),
        by_restic.alias: tasks_file(controller, "restic", *example("restic")),
    }
    play = start(controller, files, "-v", rsync_target=f"vault:{COPIES}", restic_repository=REPOSITORY).end()
    assert play.rc == 0, play.output
    assert SECRET not in play.output
    for before in befores:
        member = before.member
        before.assert_normal_end(sets=0)
        result = told(play, member)
        assert (result["copied"], result["consistency"], result["backup"]) == (True, "filesystem", None)
        assert result["window_ms"] > result["freeze_ms"] > 0
        bases = {base["disk"]: base for base in result["bases"]}
        assert {disk: base["path"] for disk, base in bases.items()} == {
            disk: before.facts.live[disk][0] for disk in member.targets
        }
        assert bases["vda"]["needs"] == before.facts.live["vda"][1:]
        assert f"copied by {files[member.alias]} (filesystem-consistent" in play.report()[member.alias]
    (copy,) = vault.outside(COPIES).iterdir()
    assert copy.name.startswith("files-2")
    by_restic.hypervisor.exec(
        [
            "sh",
            "-ec",
            f"""
            export RESTIC_REPOSITORY={REPOSITORY} RESTIC_PASSWORD_FILE=/etc/restic/passphrase
            restic -q check --read-data
            restic -q restore latest --host {by_restic.guest.name} --target {RESTORED}
        """,
        ]
    )
    for before, folder in zip(befores, (RESTORED, f"{COPIES}/{copy.name}"), strict=True):
        member = before.member
        paths = [before.facts.live[disk][0] for disk in sorted(member.targets)]
        reports = [vault.guest("any").read(f"{folder}{path}") for path in paths]
        assert [report.fsck for report in reports if not report.is_clean] == []
        assert lost([report.journal for report in reports], before.mark) == []
        xml = vault.outside(f"{folder}/root/{member.guest.name}.xml").read_text(encoding="utf-8")
        assert all(path in xml for path in paths)
    modes = {path.stat().st_mode & 0o777 for path in copy.rglob("*") if path.is_file()}
    assert modes == {0o600}


def test_what_ends_a_copy_early(members: list[Member], fleet: dict[str, Member], controller: Controller) -> None:
    """Tasks that fail, an order to stop, and a kill of the job: each guest is merged, and no report is green."""
    stopped, killed = members
    failed, hidden = fleet["db@e2e1"], fleet["web1@e2e1"]
    waits = tasks_file(controller, "waits", WAITS)
    files = {
        stopped.alias: waits,
        killed.alias: waits,
        failed.alias: tasks_file(controller, "fails", FAILS),
        hidden.alias: tasks_file(controller, "hidden", HIDDEN),
    }
    befores = in_parallel(Before.of, [stopped, killed, failed, hidden])
    go = controller.folder / "go"
    play = start(controller, files, "--forks", "8", go=str(go), secret=SECRET)
    until("the waits", lambda: all(map(waiting_job, members)), 60)
    waiting = job(controller, stopped, waiting_job(stopped))
    assert (waiting["state"], waiting["result"]["copied"]) == ("waiting", False)
    # Another play has no use for the copy of this one
    other = controller.module(stopped.hypervisor.name, "live_backup", domain=stopped.guest.name, dest=BACKUP)
    assert other["error_code"] == "locked"
    ended = controller.module(stopped.hypervisor.name, "live_backup", domain=stopped.guest.name, state="stopped")
    assert ended["changed"]
    assert not stopped.facts().journal
    kill_jobs(killed.hypervisor)
    go.touch()
    done = play.end()
    assert done.rc != 0
    codes = [told(done, before.member)["error_code"] for before in befores]
    assert codes == ["stopped", "job_killed", "copy_failed", "copy_failed"]
    lines = done.report()
    assert all(": FAILED. " in lines[alias] for alias in files)
    assert "Read nothing: " in lines[failed.alias]
    assert "/nowhere/a" in lines[failed.alias]
    assert "Hide: its result is hidden" in lines[hidden.alias]
    assert SECRET not in done.output
    logs = hidden.hypervisor.outside("/run/virtops.libvirt/jobs").rglob("*")
    assert [path for path in logs if path.is_file() and SECRET.encode() in path.read_bytes()] == []
    assert all("no overlay is left" in lines[member.alias] for member in (killed, failed, hidden))
    for before in befores:
        before.assert_normal_end(sets=0)


def test_a_killed_controller_leaves_no_overlay(members: list[Member], controller: Controller) -> None:
    """The job merges by itself when the time is over, and is no success."""
    member, _unused = members
    before = Before.of(member)
    waits = tasks_file(controller, "waits", WAITS)
    play = start(controller, {member.alias: waits}, go=str(controller.folder / "never"), live_backup_copy_timeout=10)
    until("the wait", lambda: waiting_job(member), 60)
    job_id = waiting_job(member)
    play.kill()
    assert member.phase() == "created"
    until("the end of the job", lambda: not member.facts().journal, 60, every=0.2)
    before.assert_normal_end(sets=0)
    ended = job(controller, member, job_id)
    assert (ended["state"], ended["result"]["error_code"]) == ("failed", "copy_unreported")
