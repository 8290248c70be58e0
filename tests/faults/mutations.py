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
    """What guards the guest in a fault, in words, and the edits that take it out; none: nothing of ours alone does.

    `sees` is a pattern that the test's failure has to match: any other failure proves nothing. `case` chooses one test
    where a fault has several: it is a part of that test's name.
    """

    fault: int
    mechanism: str
    edits: tuple[Edit, ...] = ()
    sees: str = ""
    case: str = ""


CORE, SERVICE = f"{UTILS}/_core", f"{UTILS}/_service"
HOST, LIBVIRT = f"{UTILS}/_host", f"{UTILS}/_libvirt"

#: A job that vanished counts as one that merged.
TRUST_THE_JOB = Edit(
    f"{SERVICE}/merge_loop.py",
    "            raise _ended_without_merging(item.goal)\n",
    "            item.done = True\n            return True\n",
)
ACTIVE_ONLY = Edit(f"{CORE}/merge.py", "return Phase.IDLE if view.active else Phase.OFFLINE", "return Phase.IDLE")
KEEP_WHAT_WAS_MADE = Edit(
    f"{SERVICE}/interrupted.py",
    " for path in why if why[path] is None}\n",
    " for path in () if why[path] is None}\n",
)

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        1,
        "reading and cleaning up go on over a new connection when libvirtd comes back",
        (
            Edit(
                f"{LIBVIRT}/domain.py",
                "is_connection_lost(problem):\n                raise\n        self._connection.reopen()\n",
                "None:\n                raise\n        self._connection.reopen()\n",
            ),
        ),
        sees="error_code.: .connection_lost|timed out after",
    ),
    Mutation(2, "each module opens a connection of its own, and libvirt itself keeps the journal over its restart"),
    Mutation(
        3,
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
        sees="a thawed guest: not within",
    ),
    Mutation(
        4,
        "an overlay that nothing was switched to is removed with its journal, after the failure or by the next run",
        (Edit(f"{SERVICE}/overlays.py", " and not images.holds_data(path)\n", " and False\n"),),
        sees="error_code.: .overlay_in_use",
    ),
    Mutation(
        5, "a guest that is off is merged offline", (ACTIVE_ONLY,), sees="Starting the commit .* domain is not running"
    ),
    Mutation(
        6, "a job that is gone means nothing: the chain says whether it merged", (TRUST_THE_JOB,), sees="assert 0 != 0"
    ),
    Mutation(
        7,
        "a guest that is off is merged offline",
        (ACTIVE_ONLY,),
        sees="Starting the commit .* domain is not running",
        case="shuts_down",
    ),
    Mutation(
        8,
        "the journal is in the persistent definition as well, which survives the host",
        (
            Edit(
                f"{LIBVIRT}/domain.py",
                "            flags |= libvirt.VIR_DOMAIN_AFFECT_CONFIG\n",
                "            flags |= 0\n",
            ),
        ),
        sees=r"assert \[\] == \['created'\]",
        case="created",
    ),
    Mutation(
        9,
        "the run first finishes the operation that it finds open",
        (
            Edit(
                f"{SERVICE}/live_backup.py",
                "        recovered = self._recover(check)\n",
                '        recovered = Outcome(before={"disks": {}}, values={"operations": []})\n',
            ),
        ),
        sees="error_code.: .operation_open",
        case="between_snapshot_and_copy",
    ),
    Mutation(
        10,
        "a watchdog thaws the guest when the module dies",
        (
            Edit(
                f"{LIBVIRT}/guest_watchdog.py",
                "    if dismissed(float(seconds)):\n        return 0\n",
                "    if dismissed(float(seconds)) or True:\n        return 0\n",
            ),
        ),
        sees="a thawed guest: not within",
        case="module_killed",
    ),
    Mutation(
        11,
        "a guest that QEMU paused for want of space is resumed once it stands on its base",
        (
            Edit(
                f"{SERVICE}/merge_loop.py",
                "        if layers.resumes:\n",
                "        if False:\n",
            ),
        ),
        sees="assert 'paused' == 'running'",
        case="no_space",
    ),
    Mutation(
        11,
        "an overlay goes once it was merged",
        (
            Edit(
                f"{SERVICE}/clean_up.py",
                "remove_layer(path, self._view(), ",
                "(lambda *_: None)(path, self._view(), ",
            ),
        ),
        sees=r"Extra items in the left set:\s+'/srv/backup/overlays/web",
        case="no_space",
    ),
    Mutation(
        11,
        "a guest whose overlays run short of space is held back before QEMU has to pause it",
        (
            Edit(
                f"{SERVICE}/brake.py",
                "        if deadline.brakes and self._short_since is None and self._is_short(goals):\n",
                "        if False:\n",
            ),
        ),
        sees="'paused'",
        case="run_short",
    ),
    Mutation(
        12, "a job that is gone means nothing: the chain says whether it merged", (TRUST_THE_JOB,), sees="assert 0 != 0"
    ),
    Mutation(
        13,
        "a partial set is removed after a failure",
        (
            Edit(
                f"{SERVICE}/backup.py",
                "            self._give_up(plan.paths, error)\n            raise\n",
                "            raise\n",
            ),
        ),
        sees=r"\.partial'",
    ),
    Mutation(
        14,
        "a guest that outruns its merge is held back",
        (Edit(f"{CORE}/convergence.py", "        return self.on_timeout != FAIL\n", "        return False\n"),),
        sees="error_code.: .(timeout|job_ending)",
        case="throttle",
    ),
    Mutation(
        15,
        "only a mirror that is ready, with cur == end, is pivoted",
        (
            Edit(
                f"{CORE}/merge.py",
                "return Phase.READY if job.ready and job.cur == job.end else Phase.COPYING",
                "return Phase.READY",
            ),
            # Tried again and again, any pivot is done in the end
            Edit(f"{SERVICE}/merge_loop.py", "PIVOT_TRIES = 20\n", "PIVOT_TRIES = 1\n"),
        ),
        sees="'not_ready'",
    ),
    Mutation(
        16,
        "a job is ready when the XML says so, whoever began it and whether or not an event told of it",
        (
            Edit(
                f"{SERVICE}/merge_loop.py",
                "            if step is Next.PIVOT:\n",
                "            if step is Next.PIVOT and item.started:\n",
            ),
        ),
        sees="'live', 'persistent', 'jobs'",
    ),
    Mutation(
        17,
        "a disk's failure is kept beside the others' ends, and told per disk",
        (Edit(f"{SERVICE}/merge_loop.py", "            item.error = error\n", "            raise\n"),),
        sees="^'partial'$",
    ),
    Mutation(
        18,
        "a creation that failed takes back what it had made",
        (KEEP_WHAT_WAS_MADE,),
        sees=r"Extra items in the left set:\s+'web/web\.vda\.live-backup",
        case="no_space",
    ),
    Mutation(
        18,
        "so does one that failed inside libvirt",
        (KEEP_WHAT_WAS_MADE,),
        sees=r"Extra items in the left set:\s+'web/web\.vda\.live-backup",
        case="inside_libvirt",
    ),
    Mutation(
        19,
        "the overlays of an interrupted snapshot make room for the new ones",
        (
            Edit(
                f"{SERVICE}/snapshot.py",
                "self._check_host(plan, view, left.files)",
                "self._check_host(plan, view, frozenset())",
            ),
        ),
        sees="error_code.: .overlay_exists",
        case="stale_overlay",
    ),
    Mutation(
        20,
        "no call of the agent waits for ever",
        (
            Edit(
                f"{LIBVIRT}/agent.py",
                "        domain.agentSetResponseTimeout(max(1, seconds), 0)\n",
                "        domain.agentSetResponseTimeout(libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK, 0)\n",
            ),
        ),
        sees="timed out after",
    ),
    Mutation(
        21,
        "a guest that somebody else froze is told from one that answers, and never thawed",
        (
            Edit(
                f"{LIBVIRT}/agent.py",
                '        raise _agent_failure(domain, problem, "Asking the guest agent") from problem\n',
                "        return\n",
            ),
        ),
        sees=r"assert False\s+\+  where False = is_frozen\(\)",
    ),
    Mutation(
        22,
        "the agent of a guest that is paused is not asked",
        (Edit(f"{SERVICE}/snapshot.py", '            if view.state != "running":\n', "            if False:\n"),),
        sees="guest_paused|agent_unresponsive",
    ),
    Mutation(
        23,
        "no snapshot is begun beside a block job",
        (
            Edit(
                f"{CORE}/refusals.py",
                "    for disk in view.disks:\n        if disk.job is not None:\n",
                "    for disk in view.disks:\n        if False:\n",
            ),
        ),
        sees="block copy still active",
        case="foreign_block_job",
    ),
    Mutation(
        24,
        "a disk that is gone with its overlay stops the merge",
        (
            Edit(
                f"{SERVICE}/merge_plan.py",
                "            if disk is None:\n",
                "            if disk is None:\n                continue\n            if False:\n",
            ),
        ),
        sees="assert 0 != 0",
        case="disk_detached",
    ),
    Mutation(
        25,
        "disks that cannot be snapshotted are listed as left out",
        (Edit(f"{CORE}/snapshot.py", "    if disk.shareable:\n", "    if False:\n"),),
        sees="vdd",
    ),
    Mutation(
        26,
        "only the layer that the snapshot added is merged, into the one right below it",
        (
            Edit(
                f"{CORE}/merge.py",
                "    return MergeGoal(disk.target, below, (disk.chain[depth],), ",
                "    return MergeGoal(disk.target, disk.chain[-1], disk.chain[depth:-1], ",
            ),
        ),
        sees=r"assert \d == 4|Facts",
    ),
    Mutation(
        27,
        "no path stands in an option list of qemu-img, where commas count",
        (
            Edit(
                f"{HOST}/images.py",
                '            backing = ["-F", base.format, "-b", _absolute(base.path)]\n'
                '            argv = ["qemu-img", "create"',
                '            backing = ["-o", "backing_fmt=%s,backing_file=%s" % (base.format, base.path)]\n'
                '            argv = ["qemu-img", "create"',
            ),
        ),
        sees="qemu-img",
    ),
    Mutation(
        28,
        "a base is not copied once a commit into it was begun (journal), or when it is another file (identity)",
        (
            Edit(f"{CORE}/backup.py", "        _require_never_committed(source, journal)\n", ""),
            Edit(
                f"{CORE}/backup.py",
                "    if source.identity is not None and source.identity != found:\n",
                "    if False:\n",
            ),
        ),
        sees="was confirmed; the image ends at",
    ),
    Mutation(
        29,
        "a folder that no overlay can be made in is found before anything is done",
        (Edit(f"{SERVICE}/overlays.py", "    if not images.is_writable(folder):\n", "    if False:\n"),),
        sees=r"assert 'permission_denied' in \('not_writable',\)",
        case="on_overlay_creation",
    ),
    Mutation(
        29,
        "what one disk's merge failed with reaches the user",
        (Edit(f"{SERVICE}/merge_loop.py", "            item.error = error\n", "            item.done = True\n"),),
        sees="assert 0 != 0",
        case="on_commit",
    ),
    Mutation(
        30,
        "what lies on the disk is compared with what was written, byte for byte",
        (Edit(f"{HOST}/transfer.py", "            if self._run.hexdigest() != digest:\n", "            if False:\n"),),
        sees="assert 0 != 0",
        case="bit_flipped",
    ),
)


def of(fault: int) -> tuple[Mutation, ...]:
    """Return what can be taken out of a fault's guards."""
    return tuple(mutation for mutation in MUTATIONS if mutation.fault == fault and mutation.edits)


def mutated(collections: Path, target: Path, mutation: Mutation) -> Path:
    """Copy the collection from one ansible_collections to another, without what the mutation's test guards."""
    tree = Path("ansible_collections/virtops/libvirt")
    for name in ("galaxy.yml", "meta", "playbooks", "plugins", "roles"):
        source, copy = collections / tree / name, target / tree / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, copy) if source.is_dir() else shutil.copyfile(source, copy)
    for edit in mutation.edits:
        path = target / tree / edit.file
        path.write_text(applied(edit, path.read_text(encoding="utf-8")), encoding="utf-8")
    return target


def applied(edit: Edit, text: str) -> str:
    """Return the file's text after the edit, which leaves a file that can be read: that alone must fail no test."""
    if text.count(edit.old) != 1:
        raise ValueError(f"{edit.file} has {text.count(edit.old)} times: {edit.old}")
    text = text.replace(edit.old, edit.new)
    if edit.file.endswith(".py"):
        compile(text, edit.file, "exec")
    return text
