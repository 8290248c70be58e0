# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Writes each task result as one line of JSON into the file that VIRTOPS_RECORD names: see playbook.py.

And holds the play where a test wants to do something between two tasks: before the task that VIRTOPS_GATE names, until
the file VIRTOPS_RECORD.open is there. VIRTOPS_RECORD.gate says that the play has come so far.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: recorder
type: notification
short_description: Write each task result as one line of JSON
description: For the tests, which may also hold the play before a task.
"""

#: How long a gate holds at most: a test that failed opens none.
GATE_SECONDS = 180


class CallbackModule(CallbackBase):  # type: ignore[misc]
    """Ansible's own output is for people; tests ask for single results."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "recorder"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        """Start without a play."""
        super().__init__()
        self._play = ""

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Remember which play the results belong to."""
        self._play = play.get_name()

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        """The gate: nothing of this task has been started on this guest yet."""
        record = os.environ["VIRTOPS_RECORD"]
        is_there = task.name == os.environ.get("VIRTOPS_GATE") and "@" in host.get_name()
        if not is_there or Path(f"{record}.gate").exists():
            return
        Path(f"{record}.gate").touch()
        deadline = time.monotonic() + GATE_SECONDS
        while not Path(f"{record}.open").exists() and time.monotonic() < deadline:
            time.sleep(0.02)

    def v2_runner_on_ok(self, result: Any) -> None:
        """Task succeeded."""
        self._write("ok", result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Task failed, whether or not a rescue follows."""
        self._write("ignored" if ignore_errors else "failed", result)

    def v2_runner_on_skipped(self, result: Any) -> None:
        """Task was skipped; that costs the controller time too."""
        self._write("skipped", result)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Host could not be reached."""
        self._write("unreachable", result)

    def _write(self, status: str, result: Any) -> None:
        # Before ansible-core 2.19 these had no public names
        public = hasattr(result, "task")
        line = {
            "play": self._play,
            "task": result.task_name,
            "action": (result.task if public else result._task).action,
            "host": (result.host if public else result._host).get_name(),
            "status": status,
            "result": result.result if public else result._result,
        }
        with open(os.environ["VIRTOPS_RECORD"], "a", encoding="utf-8") as file:
            file.write(json.dumps(line, default=str) + "\n")
