# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""An agent that answers what libvirt's test driver cannot make it answer; the texts are QEMU 7.2's."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._libvirt import agent, errors

from .conftest import libvirt

FROZEN = (
    "internal error: unable to execute QEMU agent command 'guest-get-time': "
    "Command guest-get-time has been disabled: the agent is in frozen state"
)
OLD_FROZEN = "The command guest-get-time has been disabled for this instance"
BLOCKED = "Command guest-get-time has been disabled: the command is not allowed"


def problem(name: str, text: str, domain: int = 0) -> Any:
    error = libvirt.libvirtError(text)
    error.err = (getattr(libvirt, name), domain, text, 2, None, None, None, -1, -1)
    return error


class FakeAgent:
    """A libvirt domain whose agent fails with `error`, if one is given."""

    def __init__(self, error: Any = None, timeouts: bool = True) -> None:
        self.error = error
        self.timeouts = timeouts
        self.calls: list[str] = []

    def name(self) -> str:
        return "web"

    def agentSetResponseTimeout(self, seconds: int, flags: int) -> None:
        if not self.timeouts:
            raise problem("VIR_ERR_NO_SUPPORT", "no")
        self.calls.append(f"timeout {seconds}")

    def _answer(self, call: str) -> int:
        self.calls.append(call)
        if self.error is not None:
            raise self.error
        return 2

    def getTime(self) -> int:
        return self._answer("time")

    def fsFreeze(self) -> int:
        return self._answer("freeze")

    def fsThaw(self) -> int:
        return self._answer("thaw")


def test_no_call_waits_for_ever() -> None:
    domain = FakeAgent()
    agent.ping(domain, "connected", 5)
    assert agent.freeze(domain, 7) == 2
    assert agent.thaw(domain, 0) == 2
    assert domain.calls == [
        *("timeout 5", "time", "timeout -2"),
        *("timeout 7", "freeze", "timeout -2"),
        *("timeout 1", "thaw", "timeout -2"),
    ]


def test_the_timeout_is_put_back_after_a_failure() -> None:
    domain = FakeAgent(problem("VIR_ERR_AGENT_UNRESPONSIVE", "Guest agent not available for now"))
    with pytest.raises(VirtopsError) as caught:
        agent.freeze(domain, 3)
    assert caught.value.code == "agent_unresponsive"
    assert domain.calls == ["timeout 3", "freeze", "timeout -2"]


def test_a_driver_without_timeouts_is_asked_anyway() -> None:
    assert agent.freeze(FakeAgent(timeouts=False), 3) == 2


@pytest.mark.parametrize("text", [FROZEN, OLD_FROZEN])
def test_a_guest_that_somebody_froze_is_told_apart(text: str) -> None:
    domain = FakeAgent(problem("VIR_ERR_INTERNAL_ERROR", text))
    for call in (lambda: agent.ping(domain, "connected", 1), lambda: agent.freeze(domain, 1)):
        with pytest.raises(VirtopsError) as caught:
            call()
        assert caught.value.code == "already_frozen"
        assert "virsh domfsthaw web" in caught.value.remedy
        assert text in caught.value.cause


def test_a_blocked_command_is_an_answer_to_a_ping_but_not_to_a_freeze() -> None:
    domain = FakeAgent(problem("VIR_ERR_INTERNAL_ERROR", BLOCKED))
    agent.ping(domain, "connected", 1)
    with pytest.raises(VirtopsError) as caught:
        agent.freeze(domain, 1)
    assert caught.value.code == "libvirt_error"


@pytest.mark.parametrize(
    ("name", "domain", "text", "code"),
    [
        ("VIR_ERR_NO_DOMAIN", "VIR_FROM_QEMU", "", "no_such_domain"),
        ("VIR_ERR_NO_DOMAIN_SNAPSHOT", "VIR_FROM_QEMU", "", "no_such_snapshot"),
        ("VIR_ERR_SYSTEM_ERROR", "VIR_FROM_RPC", "Cannot write data: Broken pipe", "connection_lost"),
        ("VIR_ERR_INTERNAL_ERROR", "VIR_FROM_RPC", "client socket is closed", "connection_lost"),
        ("VIR_ERR_INVALID_CONN", "VIR_FROM_DOM", "", "connection_lost"),
        ("VIR_ERR_INTERNAL_ERROR", "VIR_FROM_QEMU", "End of file from qemu monitor", "libvirt_error"),
        ("VIR_ERR_BLOCK_COPY_ACTIVE", "VIR_FROM_QEMU", "", "job_running"),
        ("VIR_ERR_OPERATION_UNSUPPORTED", "VIR_FROM_QEMU", "disk 'a' already in active block job", "job_running"),
        ("VIR_ERR_OPERATION_UNSUPPORTED", "VIR_FROM_QEMU", "no", "unsupported"),
        ("VIR_ERR_OPERATION_DENIED", "VIR_FROM_QEMU", "", "permission_denied"),
        ("VIR_ERR_OPERATION_TIMEOUT", "VIR_FROM_QEMU", "", "libvirt_busy"),
        ("VIR_ERR_NO_MEMORY", "VIR_FROM_QEMU", "out of it", "libvirt_error"),
    ],
)
def test_libvirts_numbers_have_our_codes(name: str, domain: str, text: str, code: str) -> None:
    told = errors.failure(problem(name, text, getattr(libvirt, domain)), "Doing it")
    assert told.code == code
    assert told.cause == f"Doing it failed: {text}"
    assert told.remedy
