# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Work that is begun goes on to its end, whatever becomes of the connection and of the controller."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from endstate import Before
from fleet import Member, drop_ssh, until
from gate import Gate, gated
from playbook import Controller, Play, RunningPlay
from virtlab import BACKUP

#: MiB that a merge copies at 1 MiB/s, and after it a copy: longer than the task follows without a line.
DIRT = 16
SNAPSHOT = "jobs"


def begin(controller: Controller, members: list[Member], *tasks: dict[str, object], **variables: Any) -> RunningPlay:
    """Start a play of these tasks on the hypervisors of these guests, one guest on each."""
    names = {member.hypervisor.name: member.guest.name for member in members}
    defaults = {"group/virtops.libvirt.all": {"domain": "{{ names[inventory_hostname] }}"}}
    play = {
        "hosts": ",".join(names),
        "gather_facts": False,
        "module_defaults": defaults,
        "tasks": [{"name": str(number), **task} for number, task in enumerate(tasks)],
    }
    path = Path(controller.folder) / f"jobs{controller.runs + 1}.yml"
    path.write_text(yaml.safe_dump([play]), encoding="utf-8")
    return controller.start(playbook=str(path), pipelining=True, names=names, **variables)


def task(module: str, /, options: dict[str, object], **keywords: object) -> dict[str, object]:
    """Return a task."""
    return {f"virtops.libvirt.{module}": options, **keywords}


TAKE = task("snapshot_external", {"name": SNAPSHOT})
MERGE = task("block_commit", {"snapshot": SNAPSHOT, "delete_merged": True})


def copied_mib(member: Member) -> float:
    """Return how much of the set under way is written."""
    folder = member.partial()
    return sum(entry.stat().st_blocks for entry in folder.iterdir()) / 2048 if folder else 0


def succeeded(play: Play) -> None:
    """The play came to its end."""
    assert play.rc == 0, play.output
    assert {item.status for item in play.results} == {"ok"}, play.output


def clean(member: Member) -> None:
    """Remove the sets."""
    for found in member.sets():
        member.hypervisor.exec(["rm", "-rf", found.folder])


def test_a_killed_controller_needs_no_second_play(fleet: dict[str, Member], controller: Controller) -> None:
    """The merge that was begun is finished, and its overlays are deleted."""
    member = fleet["web2@e2e1"]
    before = Before.of(member)
    succeeded(begin(controller, [member], TAKE).end())
    dirt = "/mnt/vdb/dirt"
    member.guest.command(f"dd if=/dev/zero of={dirt} bs=1M count={DIRT} conv=fsync 2>&1; rm {dirt}; sync", timeout=60)
    slow = task("block_commit", {"snapshot": SNAPSHOT, "delete_merged": True, "bandwidth": 1})
    play = begin(controller, [member], slow)
    until("the merge", lambda: member.phase() == "committing" and member.facts().jobs != [], 60)
    play.kill()
    assert member.facts().journal
    until("the end of the merge", lambda: not member.facts().journal, 60)
    before.assert_normal_end(sets=0)
    (job,) = controller.module(member.hypervisor.name, "job_info", domain=member.guest.name)["jobs"][-1:]
    assert (job["module"], job["state"]) == ("block_commit", "ended")
    told = controller.module(member.hypervisor.name, "job_info", id=job["id"], wait=5)["jobs"][0]
    assert told["result"]["changed"]
    assert "commit" in " ".join(told["log"])


def test_a_cut_connection_is_found_again(fleet: dict[str, Member], controller: Controller) -> None:
    """The copy goes on, and so does the task that follows it; with no_log it says nothing meanwhile."""
    told, secret = members = [fleet["web2@e2e1"], fleet["files@e2e2"]]
    befores = [Before.of(member) for member in members]
    copy = {"snapshot": SNAPSHOT, "dest": BACKUP, "rate_limit": 1, "parallel": 1}
    hidden = "{{ inventory_hostname == '%s' }}" % secret.hypervisor.name
    play = begin(controller, members, TAKE, task("image_backup", copy, no_log=hidden), MERGE)
    until("a copy under way", lambda: all(copied_mib(member) > 2 for member in members), 60)
    for member in members:
        drop_ssh(member.hypervisor)
    ended = play.end()
    succeeded(ended)
    lines = re.findall(r"^\[(\w+)\] (copy vd.*: \d+ of \d+ MiB, .* MiB/s, .* left)$", ended.output, re.MULTILINE)
    assert {host for host, _unused in lines} == {told.hypervisor.name}, ended.output
    assert len(lines) <= 30
    for before in befores:
        before.assert_normal_end()
        clean(before.member)


def test_a_guest_at_work_is_no_interrupted_one(
    fleet: dict[str, Member], controller: Controller, tmp_path: Path
) -> None:
    """Whoever comes meanwhile is told which job works on it, since when, and where to look."""
    member = fleet["web2@e2e1"]
    host, name = member.hypervisor.name, member.guest.name
    before = Before.of(member)
    first = Controller(tmp_path, controller.hosts, controller.lab, gated(controller.collections, tmp_path / "tree"))
    gate = Gate(member.hypervisor, "copy")
    only = ("--limit", f"{host},{member.alias}")
    play = first.start(*only, live_backup_quiesce="never")
    assert gate.wait(120)
    backup = {"dest": BACKUP, "lock_timeout": 600}
    looks = begin(
        controller,
        [member],
        task("job_info", {}),
        task("recover", {}, ignore_errors=True),
        task("job_info", {"wait": 1, "domain": ""}, ignore_errors=True),
        task("job_info", {"domain": "wbe2"}, ignore_errors=True),
        task("live_backup", {**backup, "quiesce": "never"}, check_mode=True),
        task("live_backup", backup, check_mode=True),
        task("recover", {"lock_timeout": 600}, check_mode=True),
        task("preflight_info", {"dest": BACKUP, "guests": [name], "domain": "{{ omit }}"}),
    ).end()
    assert looks.rc == 0, looks.output
    found, refused, unnamed, unknown, same, other, recovery, preflight = [item.result for item in looks.results]
    (job,) = [job for job in found["jobs"] if job["state"] == "running"]
    assert (job["module"], job["phase"], job["error_code"], job["path"]) == ("live_backup", "copy", None, None)
    named = f"live_backup (job {job['id']}, since {job['started']}, phase copy)"
    folder = f"/run/virtops.libvirt/jobs/{job['id']}"
    assert refused["error_code"] == "locked"
    assert refused["msg"].startswith(f"{named} works on domain {name}. ")
    assert f"{folder}/log" in refused["msg"]
    assert (unnamed["error_code"], unknown["error_code"]) == ("bad_option", "no_such_domain")
    assert same["actions"] == [f"follow the {named}, which makes this backup already, and return its result"]
    assert other["actions"] == [f"wait for the end of the {named}", "then back up the domain"]
    assert same["under_way"]["id"] == other["under_way"]["id"] == job["id"]
    assert recovery["actions"] == [f"wait for the end of the {named}, and see whether it left anything"]
    (check,) = preflight["guests"][0]["checks"]
    assert (preflight["ready"], check["check"], check["status"]) == (True, "jobs", "warning")
    assert check["message"].startswith(f"A job works on {name}: {named}. ")
    foreseen = controller.run(*only, "--check", live_backup_quiesce="never")
    assert foreseen.rc == 0, foreseen.output
    assert foreseen.report()[member.alias].startswith(f"{member.alias}: a job is under way. The play would follow the ")
    assert "interrupted" not in looks.output + foreseen.output

    stop = controller.start_module(host, "live_backup", domain=name, state="stopped")
    until("the order", member.hypervisor.outside(f"{folder}/stop").exists, 60)
    gate.open()
    assert stop.end().results[-1].result["actions"] == [f"stop the job {job['id']} (live_backup of domain {name})"]
    ended = play.end()
    # What fails the host at last tells all that its backup failed with
    failed = ended.of(member.alias)[-1]
    assert (failed.status, failed.result["error_code"]) == ("failed", "stopped"), ended.output
    wait = task("job_info", {"wait": 9})
    ends = begin(controller, [member], wait, task("job_info", {"id": job["id"]})).end().results
    (listed,) = [it for it in ends[0].result["jobs"] if it["id"] == job["id"]]
    assert (listed["state"], listed["error_code"], listed["path"]) == ("failed", "stopped", None)
    log = "\n".join(ends[1].result["jobs"][0]["log"])
    assert " copy begins\n" in log
    assert " begins: take the external snapshot " in log
    before.assert_normal_end(sets=0)


@pytest.mark.parametrize("poll", [1, 0])
def test_async_goes_as_with_any_module(fleet: dict[str, Member], controller: Controller, poll: int) -> None:
    """The plugin leaves the following to Ansible, which needs the module's own result."""
    member = fleet["web2@e2e1"]
    before = Before.of(member)
    merge = {**MERGE, "async": 120, "poll": poll, "register": "begun"}
    status = {
        "ansible.builtin.async_status": {"jid": "{{ begun.ansible_job_id }}"},
        "register": "asked",
        "until": "asked is finished",
        "retries": 60,
        "delay": 1,
    }
    ended = begin(controller, [member], {**TAKE, "async": 120, "poll": 1}, merge, *([] if poll else [status])).end()
    succeeded(ended)
    assert ended.results[-1].result["disks"][0]["merged"]
    before.assert_normal_end(sets=0)
