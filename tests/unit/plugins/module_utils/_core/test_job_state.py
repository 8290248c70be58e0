# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is said of a job: to whom it is in the way, and what a killed one has made."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.job_state import (
    JobState,
    domain_locked,
    job_killed,
    job_words,
)

STATE = JobState("1f", "live_backup", "web", "20261120T120000Z", "uuid-1", pid=7)
WAIT = "Wait until it has ended, or let this task wait with a longer lock_timeout. "


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (STATE, "live_backup (job 1f, since 20261120T120000Z)"),
        (replace(STATE, phase="snapshot"), "live_backup (job 1f, since 20261120T120000Z, phase snapshot)"),
        (
            replace(STATE, phase="copy", disks={"vda": (1, 2), "vdb": (1, 6)}),
            "live_backup (job 1f, since 20261120T120000Z, phase copy, 25 %)",
        ),
        (
            replace(STATE, phase="merge", disks={"vda": (9, 8)}),
            "live_backup (job 1f, since 20261120T120000Z, phase merge, 100 %)",
        ),
    ],
)
def test_how_a_job_is_named(state: JobState, words: str) -> None:
    assert job_words(state) == words


@pytest.mark.parametrize(
    ("pid", "since", "job", "words"),
    [
        (None, "", None, "Another task works on domain web. " + WAIT.rstrip()),
        (
            7,
            "20261120T120000Z",
            None,
            "Another task (process 7, since 20261120T120000Z) works on domain web. "
            + WAIT
            + "'ps -fp 7' on the hypervisor shows what it is.",
        ),
        (
            7,
            "",
            STATE,
            "live_backup (job 1f, since 20261120T120000Z) works on domain web. "
            + WAIT
            + "virtops.libvirt.job_info with id: 1f shows how far it is; its log on the hypervisor is /run/log.",
        ),
    ],
)
def test_who_holds_a_lock(pid: int | None, since: str, job: JobState | None, words: str) -> None:
    error = domain_locked("web", pid, since, job, "/run/log")
    assert (error.code, str(error)) == ("locked", words)


@pytest.mark.parametrize(
    ("module", "phase", "done", "words"),
    [
        ("block_commit", "merge", [], "in the phase 'merge'. Run"),
        ("live_backup", "", [], "from outside. It has made no set. Run"),
        ("live_backup", "copy", ["recovery", "preflight"], "in the phase 'copy'. It has made no set. Run"),
        ("live_backup", "merge", ["recovery"], "in the phase 'merge'. It has made no set. Run"),
        ("live_backup", "merge", ["snapshot", "copy"], "Its set is copied, but not verified: the next run finishes it"),
        ("image_backup", "verify", ["copy"], "Its set is copied, but not verified: the next run finishes it"),
        # Of an earlier run, as a part of the recovery
        ("live_backup", "merge", ["recovery", "copy", "verify"], "It may have completed a set: see the target's"),
        ("live_backup", "preflight", ["recovery", "copy", "verify"], "It may have completed a set: see the target's"),
    ],
)
def test_what_a_killed_job_has_made(module: str, phase: str, done: list[str], words: str) -> None:
    state = replace(STATE, module=module, phase=phase, phases=dict.fromkeys(done, 1.0))
    error = job_killed(state, "/run/log")
    assert words in str(error)
    assert "Run the same task or play again: it finishes or undoes what was begun" in str(error)
