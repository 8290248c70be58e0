# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What each test guards, and how to take it out: see `./dev test faults -- --mutate N`."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

UTILS = "plugins/module_utils"


@dataclass(frozen=True)
class Edit:
    """One change of a file of the collection; `old` stands in it exactly once."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutation:
    """A mechanism in words, and the edits that take it out; none: nothing of ours guards this one alone.

    `case` chooses one test where a fault has several: it is a part of that test's name.
    """

    mechanism: str
    edits: tuple[Edit, ...]
    case: str = ""


CORE, SERVICE = f"{UTILS}/_core", f"{UTILS}/_service"
HOST, LIBVIRT = f"{UTILS}/_host", f"{UTILS}/_libvirt"

#: A job that vanished counts as one that merged.
TRUST_THE_JOB = Edit(
    f"{SERVICE}/merge.py",
    "            raise _ended_without_merging(item.goal)\n",
    "            item.done = True\n            return True\n",
)
ACTIVE_ONLY = Edit(f"{CORE}/merge.py", "return Phase.IDLE if view.active else Phase.OFFLINE", "return Phase.IDLE")

MUTATIONS: dict[int, Mutation] = {
    1: Mutation(
        "reading and cleaning up go on over a new connection when libvirtd comes back",
        (
            Edit(
                f"{LIBVIRT}/domain.py",
                "is_connection_lost(problem):\n                raise\n        self._connection.reopen()\n",
                "None:\n                raise\n        self._connection.reopen()\n",
            ),
        ),
    ),
    2: Mutation("each module opens a connection of its own, and libvirt itself keeps the journal over its restart", ()),
    3: Mutation(
        "a thaw is tried again over a new connection, by the module and by its watchdog",
        (
            Edit(
                f"{LIBVIRT}/domain.py", '            if error.code != "connection_lost":\n', "            if error:\n"
            ),
            Edit(
                f"{LIBVIRT}/guest_watchdog.py",
                "            return bool(problem.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN)\n",
                "            return True\n",
            ),
        ),
    ),
    4: Mutation(
        "an overlay that nothing was switched to is removed with its journal, after the failure or by the next run",
        (Edit(f"{SERVICE}/overlays.py", "    return not images.holds_data(path)", "    return False"),),
    ),
    5: Mutation("a guest that is off is merged offline", (ACTIVE_ONLY,)),
    6: Mutation("a job that is gone means nothing: the chain says whether it merged", (TRUST_THE_JOB,)),
    7: Mutation("a guest that is off is merged offline", (ACTIVE_ONLY,), "shuts_down"),
    8: Mutation(
        "the journal is in the persistent definition as well, which survives the host",
        (
            Edit(
                f"{LIBVIRT}/domain.py",
                "            flags |= libvirt.VIR_DOMAIN_AFFECT_CONFIG\n",
                "            flags |= 0\n",
            ),
        ),
        "created",
    ),
    9: Mutation(
        "the role first finishes the operation that it finds open",
        (Edit("roles/live_backup/tasks/main.yml", "== 'operation_open')", "== 'none')"),),
        "between_snapshot_and_copy",
    ),
    10: Mutation(
        "a watchdog thaws the guest when the module dies",
        (
            Edit(
                f"{LIBVIRT}/guest_watchdog.py",
                "    if dismissed(float(seconds)):\n        return 0\n",
                "    if dismissed(float(seconds)) or True:\n        return 0\n",
            ),
        ),
        "module_killed",
    ),
    11: Mutation(
        "a guest that QEMU paused for want of space is resumed once it stands on its base",
        (
            Edit(
                f"{SERVICE}/merge.py",
                "        if plan.resumes and view.paused_by == IO_ERROR:\n",
                "        if False:\n",
            ),
        ),
    ),
    12: Mutation("a job that is gone means nothing: the chain says whether it merged", (TRUST_THE_JOB,)),
    13: Mutation(
        "a partial set is removed after a failure",
        (
            Edit(
                f"{SERVICE}/backup.py",
                "            self._store.remove(plan.paths.partial)\n            raise\n",
                "            raise\n",
            ),
        ),
    ),
    14: Mutation(
        "a guest that outruns its merge is held back",
        (Edit(f"{CORE}/convergence.py", "        return self.on_timeout != FAIL\n", "        return False\n"),),
        "throttle",
    ),
    15: Mutation(
        "only a mirror that is ready, with cur == end, is pivoted",
        (
            Edit(
                f"{CORE}/merge.py",
                "return Phase.READY if job.ready and job.cur == job.end else Phase.COPYING",
                "return Phase.READY",
            ),
        ),
    ),
    16: Mutation(
        "a job is ready when the XML says so, whoever began it and whether or not an event told of it",
        (
            Edit(
                f"{SERVICE}/merge.py",
                "            if step is Next.PIVOT:\n",
                "            if step is Next.PIVOT and item.started:\n",
            ),
        ),
    ),
    17: Mutation(
        "a disk's failure is kept beside the others' ends, and told per disk",
        (Edit(f"{SERVICE}/merge.py", "            item.error = error\n", "            raise\n"),),
    ),
    18: Mutation(
        "a creation that failed takes back what it had made",
        (
            Edit(
                f"{SERVICE}/snapshot.py",
                "            for disk in made if not self._wish.reuse else ():\n",
                "            for disk in ():\n",
            ),
        ),
        "no_space",
    ),
    19: Mutation(
        "the overlays of an interrupted snapshot make room for the new ones",
        (
            Edit(
                f"{CORE}/snapshot.py",
                "PREPARED, stale, ours.memory)",
                "PREPARED, (), ours.memory)",
            ),
        ),
        "stale_overlay",
    ),
    20: Mutation(
        "no call of the agent waits for ever",
        (
            Edit(
                f"{LIBVIRT}/agent.py",
                "        domain.agentSetResponseTimeout(max(1, seconds), 0)\n",
                "        domain.agentSetResponseTimeout(libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK, 0)\n",
            ),
        ),
    ),
    21: Mutation(
        "a guest that somebody else froze is told from one that answers, and never thawed",
        (
            Edit(
                f"{LIBVIRT}/agent.py",
                '        raise _agent_failure(domain, problem, "Asking the guest agent") from problem\n',
                "        return\n",
            ),
        ),
    ),
    22: Mutation(
        "the agent of a guest that is paused is not asked",
        (Edit(f"{SERVICE}/snapshot.py", '            if view.state != "running":\n', "            if False:\n"),),
    ),
    23: Mutation(
        "no snapshot is begun beside a block job",
        (
            Edit(
                f"{CORE}/refusals.py",
                "    for disk in view.disks:\n        if disk.job is not None:\n",
                "    for disk in view.disks:\n        if False:\n",
            ),
        ),
        "foreign_block_job",
    ),
    24: Mutation(
        "a disk that is gone with its overlay stops the merge",
        (
            Edit(
                f"{SERVICE}/merge_plan.py",
                "            if disk is None:\n",
                "            if disk is None:\n                continue\n            if False:\n",
            ),
        ),
        "disk_detached",
    ),
    25: Mutation(
        "disks that cannot be snapshotted are listed as left out",
        (Edit(f"{CORE}/snapshot.py", "    if disk.shareable:\n", "    if False:\n"),),
    ),
    26: Mutation(
        "only the layer that the snapshot added is merged, into the one right below it",
        (
            Edit(
                f"{CORE}/merge.py",
                "    return MergeGoal(disk.target, below, (disk.chain[depth],), ",
                "    return MergeGoal(disk.target, disk.chain[-1], disk.chain[depth:-1], ",
            ),
        ),
    ),
    27: Mutation(
        "no path stands in an option list of qemu-img, where commas count",
        (
            Edit(
                f"{HOST}/images.py",
                '            backing = ["-F", base.format, "-b", _absolute(base.path)]\n'
                '            run(["qemu-img", "create"',
                '            backing = ["-o", "backing_fmt=%s,backing_file=%s" % (base.format, base.path)]\n'
                '            run(["qemu-img", "create"',
            ),
        ),
    ),
    28: Mutation(
        "a base is not copied once a commit into it was begun (journal), or when it is another file (identity)",
        (
            Edit(f"{CORE}/backup.py", "        _require_never_committed(source, journal)\n", ""),
            Edit(
                f"{CORE}/backup.py",
                "    if source.identity is not None and source.identity != found:\n",
                "    if False:\n",
            ),
        ),
    ),
    29: Mutation(
        "what one disk's merge failed with reaches the user",
        (Edit(f"{SERVICE}/merge.py", "            item.error = error\n", "            item.done = True\n"),),
        "on_commit",
    ),
    30: Mutation(
        "a copy is compared with its source, byte for byte",
        (Edit(f"{HOST}/transfer.py", "                    if mine != theirs:\n", "                    if False:\n"),),
        "bit_flipped",
    ),
}


def mutated(collections: Path, target: Path, number: int) -> Path:
    """Copy the collection from one ansible_collections to another, without what test `number` guards."""
    tree = Path("ansible_collections/virtops/libvirt")
    for name in ("galaxy.yml", "meta", "playbooks", "plugins", "roles"):
        source, copy = collections / tree / name, target / tree / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, copy) if source.is_dir() else shutil.copyfile(source, copy)
    for edit in MUTATIONS[number].edits:
        path = target / tree / edit.file
        text = path.read_text(encoding="utf-8")
        if text.count(edit.old) != 1:
            raise AssertionError(f"{edit.file} has {text.count(edit.old)} times: {edit.old}")
        path.write_text(text.replace(edit.old, edit.new), encoding="utf-8")
    return target
