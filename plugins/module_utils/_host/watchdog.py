# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the process that lets go of a guest when the module dies while it holds it back.

A frozen or suspended guest stands still for ever. The module may be SIGKILLed meanwhile, so a process of its own
session waits beside it. What it holds on to is a pipe from us: the kernel closes our end however we die, and it reads
the end of file. What it does then is the business of the module that it runs, which knows libvirt. Between the two:

    argv     URI UUID SECONDS HOLD   (HOLD in JSON, the fields of _core.model.Hold)
    stdout   "armed" and a newline once it is ready (imports done, libvirt connected); after that it writes nothing,
             as nobody may be there to read. What it says instead of "armed" becomes our error.
    stdin    "done" and a newline: end without an effect. End of file, or SECONDS gone by: let go, then end.
    SIGTERM  as the end of file: the end of a login session takes us and it along, whatever session it has of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from dataclasses import asdict

from .._core.errors import VirtopsError
from .._core.model import Hold
from .command import failing

#: Seconds for it to say "armed": Python starts, imports libvirt and connects, on a busy host.
ARM_SECONDS = 20.0
#: Seconds for it to end after "done".
DISARM_SECONDS = 5.0

_ARMED = b"armed\n"


class PythonWatchdog:
    """Implements `_core.ports.Watchdog` by `python -m module_name`.

    Ansible packs only what is imported: whoever names the module must import it as well.
    """

    def __init__(self, uri: str, module_name: str, arm_seconds: float = ARM_SECONDS) -> None:
        self._uri = uri
        self._module_name = module_name
        self._arm_seconds = arm_seconds
        self._process: subprocess.Popen[bytes] | None = None

    def arm(self, uuid: str, seconds: int, hold: Hold) -> None:
        """Start it and wait for "armed"; only then the one before it ends. `seconds` count from then on."""
        with failing("Starting the watchdog that would thaw or resume the guest", "watchdog_failed"):
            process = self._start(uuid, seconds, hold)
        said = self._wait_armed(process)
        if not said.endswith(_ARMED):
            process.kill()
            _close(process)
            raise VirtopsError(
                "watchdog_failed",
                "The watchdog that would thaw or resume the guest did not "
                "start: %s" % _last_line(said, self._arm_seconds),
                "Correct what the message names; until then do without it (quiesce: never, on_timeout: fail)",
            )
        self.disarm()
        self._process = process

    def _start(self, uuid: str, seconds: int, hold: Hold) -> subprocess.Popen[bytes]:
        # Our end of its stdin is close-on-exec, as all that Python opens: no other child keeps the pipe open.
        # run_command waits for the end, and this has to outlive us.
        return subprocess.Popen(  # pylint: disable=ansible-bad-function
            [sys.executable, "-m", self._module_name, self._uri, uuid, str(seconds), json.dumps(asdict(hold))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # Out of AnsiballZ's zip as well: our sys.path names it.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            cwd="/",
            close_fds=True,
            # Of its own session: the hangup of a dropped SSH connection does not reach it.
            start_new_session=True,
        )

    def disarm(self) -> None:
        """Say "done" and wait for its end. It may have acted and ended by itself: that is fine."""
        process, self._process = self._process, None
        if process is None or process.stdin is None:
            return
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(b"done\n")
            process.stdin.flush()
        try:
            process.wait(DISARM_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        _close(process)

    def _wait_armed(self, process: subprocess.Popen[bytes]) -> bytes:
        """What it said until "armed", its end or the deadline."""
        if process.stdout is None:
            raise AssertionError("it was started with a pipe")
        fd = process.stdout.fileno()
        deadline = time.monotonic() + self._arm_seconds
        said = b""
        while not said.endswith(_ARMED):
            readable, _unused, _ignored1 = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(fd, 4096) if readable else b""
            if not chunk:
                break
            said += chunk
        return said


def _close(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    process.wait()


def _last_line(said: bytes, seconds: float) -> str:
    lines = said.decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing within %d s" % seconds
