# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the guest agent's calls of one domain, none of which waits for ever."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .._core.errors import LibvirtFailure, VirtopsError
from .._core.text import command
from .errors import BLOCKED_ANSWER, FROZEN_ANSWERS, LIBVIRT_IMPORT_ERROR, failure, is_number

if LIBVIRT_IMPORT_ERROR is None:
    import libvirt


def ping(domain: Any, agent: str, seconds: int) -> None:
    """Fail unless the agent answers; `agent` is the channel's state as `DomainView.agent` has it.

    virDomainGetTime, because it is answered by all agents and needs no monitor command that taints.
    """
    if agent == "absent":
        raise VirtopsError(
            "no_agent",
            f"The domain {domain.name()} has no guest agent channel",
            "Give it a channel org.qemu.guest_agent.0 and install qemu-guest-agent in the guest, or do without "
            "it (quiesce: never or preferred)",
        )
    if agent == "disconnected":
        raise VirtopsError(
            "agent_unresponsive",
            f"No guest agent is connected in {domain.name()}",
            "Start qemu-guest-agent in the guest, or do without it (quiesce: never or preferred)",
        )
    try:
        with _answer_within(domain, seconds):
            domain.getTime()
    except libvirt.libvirtError as problem:
        if BLOCKED_ANSWER in str(problem):
            return  # it answered, and that it is not frozen: the frozen agent says so instead
        raise _agent_failure(domain, problem, "Asking the guest agent") from problem


def freeze(domain: Any, seconds: int) -> int:
    """virDomainFSFreeze. After a failure the guest may still be frozen, or become so: thaw."""
    try:
        with _answer_within(domain, seconds):
            return int(domain.fsFreeze())
    except libvirt.libvirtError as problem:
        raise _agent_failure(domain, problem, "Freezing the guest's file systems") from problem


def thaw(domain: Any, seconds: int) -> int:
    """virDomainFSThaw; 0 where nothing was frozen."""
    try:
        with _answer_within(domain, seconds):
            return int(domain.fsThaw())
    except libvirt.libvirtError as problem:
        raise _agent_failure(domain, problem, "Thawing the guest's file systems") from problem


@contextmanager
def _answer_within(domain: Any, seconds: int) -> Iterator[None]:
    """virDomainAgentSetResponseTimeout around a call: without it libvirt waits for ever.

    libvirt has no call that reads the timeout, so its default is put back. The test driver has no timeouts.
    """
    try:
        domain.agentSetResponseTimeout(max(1, seconds), 0)
    except libvirt.libvirtError as problem:
        if not is_number(problem, "VIR_ERR_NO_SUPPORT"):
            raise
        yield
        return
    try:
        yield
    finally:
        _restore_timeout(domain)


def _restore_timeout(domain: Any) -> None:
    try:
        domain.agentSetResponseTimeout(libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK, 0)
    except libvirt.libvirtError:
        # The domain or the daemon is gone, and the timeout with it
        return


def _agent_failure(domain: Any, problem: libvirt.libvirtError, doing: str) -> LibvirtFailure:
    text = str(problem)
    if any(answer in text for answer in FROZEN_ANSWERS) and BLOCKED_ANSWER not in text:
        return LibvirtFailure(
            "already_frozen",
            f"{doing} failed: the file systems of {domain.name()} are frozen already ({problem})",
            f"When no other backup is at work on this guest, thaw it: {command('virsh', 'domfsthaw', domain.name())}",
        )
    return failure(problem, doing, domain)
