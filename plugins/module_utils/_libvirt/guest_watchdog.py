# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: a process that lets go of a guest when the module that holds it back dies.

    python -m ansible_collections.virtops.libvirt.plugins.module_utils._libvirt.guest_watchdog URI UUID SECONDS HOLD

It says "armed" once it is connected. The line "done" on its stdin ends it; the end of stdin, SIGTERM, or SECONDS
without "done", makes it resume and thaw the guest and put its I/O limits back, as HOLD says. It imports nothing of the
collection: the zip it came from is gone when it has to act.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from functools import partial
from typing import Any, Callable
from xml.etree import ElementTree

try:
    import libvirt
except ImportError:
    libvirt = None

#: How long it tries, a day: libvirtd may be down for maintenance, the agent may hang. Nobody else lets go of the guest
#: before the next play does.
TRY_SECONDS = 24 * 60 * 60
#: Between two tries: the first pause, and what it grows to.
PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 5.0
#: What the agent gets for one answer: it thaws first, and then runs its hooks, which would be run again by each try.
ANSWER_SECONDS = 120


class Releaser:
    """One guest, found by its UUID over a connection that may have to be opened again."""

    def __init__(self, uri: str, uuid: str, hold: dict[str, Any]) -> None:
        self._uri = uri
        self._uuid = uuid
        #: What is still to do. Only a guest that runs again can thaw.
        self._left: list[Callable[[Any], None]] = [
            *([_resume] if hold["suspended"] else []),
            *([_thaw] if hold["frozen"] else []),
            *(partial(_limit, disk, limits) for disk, limits in hold["tunes"].items()),
        ]
        self._connection: Any = None

    def connect(self) -> Any:
        if self._connection is None:
            self._connection = libvirt.open(self._uri)
        return self._connection.lookupByUUIDString(self._uuid)

    def release(self) -> bool:
        """Try once what is left, each by itself: is there nothing left to do?"""
        try:
            domain = self.connect()
            if not domain.isActive():
                return True
        except libvirt.libvirtError as problem:
            self._connection = None
            return bool(problem.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN)
        self._left = [part for part in self._left if not _succeeds(part, domain)]
        if self._left:
            self._connection = None
        return not self._left


def _succeeds(part: Callable[[Any], None], domain: Any) -> bool:
    try:
        part(domain)
    except libvirt.libvirtError:
        return False
    return True


def _resume(domain: Any) -> None:
    if domain.state() == [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER]:
        domain.resume()


def _limit(disk: str, limits: dict[str, int], domain: Any) -> None:
    """A disk that was detached since needs none."""
    devices = ElementTree.fromstring(domain.XMLDesc())
    if any(target.get("dev") == disk for target in devices.iterfind("devices/disk/target")):
        domain.setBlockIoTune(disk, limits, libvirt.VIR_DOMAIN_AFFECT_LIVE)


def _thaw(domain: Any) -> None:
    _answer_within(domain, ANSWER_SECONDS)
    domain.fsThaw()
    # There is no call to read it, so the default is put back
    _answer_within(domain, libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK)


def _answer_within(domain: Any, seconds: int) -> None:
    """virDomainAgentSetResponseTimeout; without it an agent that hangs would hang us."""
    try:
        domain.agentSetResponseTimeout(seconds, 0)
    except libvirt.libvirtError as problem:
        if problem.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
            raise


def dismissed(seconds: float) -> bool:
    """Wait on stdin: True for "done", False for its end or when `seconds` have passed."""
    deadline = time.monotonic() + seconds
    said = b""
    while not said.endswith(b"done\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([0], [], [], left)[0]:
            return False
        read = os.read(0, 64)
        if not read:
            return False
        said += read
    return True


def release_within(releaser: Releaser, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    pause = PAUSE_SECONDS
    while not releaser.release():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
    return True


def _end_stdin(*_unused: object) -> None:
    """For SIGTERM: with KillUserProcesses systemd-logind ends us and the module as soon as their SSH session ends."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)


def main(uri: str, uuid: str, seconds: str, hold: str) -> int:
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_stdin)
    if libvirt is None:
        sys.stdout.write(f"libvirt-python is missing for {sys.executable}\n")
        return 1
    libvirt.registerErrorHandler(lambda *_: None, None)
    releaser = Releaser(uri, uuid, json.loads(hold))
    try:
        releaser.connect()
    except libvirt.libvirtError as problem:
        sys.stdout.write(f"{problem}\n")
        return 1
    sys.stdout.write("armed\n")
    sys.stdout.flush()
    if dismissed(float(seconds)):
        return 0
    return 0 if release_within(releaser, TRY_SECONDS) else 1


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
