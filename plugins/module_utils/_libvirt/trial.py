# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: transient guests that end with their trial, and at the latest with us."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from .._core.errors import VirtopsError
from . import agent
from .connection import Connection
from .errors import LIBVIRT_IMPORT_ERROR, mapped

if LIBVIRT_IMPORT_ERROR is None:
    import libvirt
    import libvirt_qemu

#: Seconds for one answer of an agent.
_ANSWER_SECONDS = 5
_LOOK_SECONDS = 0.2


class Trials:
    """Implements `_core.drill.TrialHost`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @contextmanager
    def boot(self, xml: str) -> Iterator[RunningTrial]:
        with mapped("Booting the set"):
            domain = self._connection.handle.createXML(xml, libvirt.VIR_DOMAIN_START_AUTODESTROY)
        try:
            yield RunningTrial(domain)
        finally:
            with suppress(libvirt.libvirtError):
                domain.destroy()


class RunningTrial:
    """Implements `_core.drill.TrialGuest`."""

    def __init__(self, domain: Any) -> None:
        self._domain = domain

    def is_running(self) -> bool:
        """One that is gone is transient, and so not there at all."""
        try:
            return bool(self._domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING)
        except libvirt.libvirtError:
            return False

    def answers(self) -> bool:
        try:
            agent.ping(self._domain, "connected", _ANSWER_SECONDS)
        except VirtopsError:
            return False
        return True

    def execute(self, command: tuple[str, ...], seconds: int) -> tuple[int, str]:
        program, *arguments = command
        started = self._ask("guest-exec", {"path": program, "arg": arguments, "capture-output": True})
        deadline = time.monotonic() + seconds
        while True:
            said = self._ask("guest-exec-status", {"pid": started["pid"]})
            if said["exited"]:
                words = b"".join(base64.b64decode(said.get(name, "")) for name in ("out-data", "err-data"))
                # One that a signal ended has no exit code
                return int(said.get("exitcode", -1)), words.decode("utf-8", "replace")
            if time.monotonic() > deadline:
                raise VirtopsError(
                    "drill_failed",
                    "It came up, and the check %s in it did not end within %d s" % (program, seconds),
                    "Give it longer (command_timeout)",
                )
            time.sleep(_LOOK_SECONDS)

    def _ask(self, what: str, arguments: dict[str, Any]) -> Any:
        order = json.dumps({"execute": what, "arguments": arguments})
        with mapped("Asking the guest agent for %s" % what):
            return json.loads(libvirt_qemu.qemuAgentCommand(self._domain, order, _ANSWER_SECONDS, 0))["return"]
