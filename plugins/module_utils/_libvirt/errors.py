# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: libvirt's error numbers to our codes and remedies, in one table.

libvirt's own message goes into the cause: it names the file, the lock or the command.
"""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .._core.errors import LibvirtFailure

LIBVIRT_IMPORT_ERROR: str | None
try:
    import libvirt
except ImportError:
    LIBVIRT_IMPORT_ERROR = traceback.format_exc()
else:
    LIBVIRT_IMPORT_ERROR = None

_CONNECTION_REMEDY = (
    "See on the hypervisor whether libvirtd (or virtqemud) runs, then run the same task again: it continues from "
    "what it finds"
)
_AGENT_REMEDY = (
    "See whether qemu-guest-agent runs in the guest and the guest is responsive, or do without it (quiesce: never "
    "or preferred)"
)

#: libvirt 10.9 and later, of a guest that runs.
_NAME_REMEDY = (
    "This libvirt makes a QEMU job of the snapshot's name, which takes only letters, digits, '-', '.' and '_': use "
    "such a name, or do this while the domain is off"
)

_RELEASED_REMEDY = (
    "QEMU no longer has the guest's images open, because the guest was paused when its memory was saved: resume it "
    "('virsh resume'), then run the task again. You may pause it again afterwards"
)

_STALE_REMEDY = (
    "libvirt works with an older state of this guest than QEMU: its daemon was restarted after it could not write its "
    "status file, for example because /run was full. See that /run has space, shut the guest down and start it again, "
    "then run the same task again"
)

#: The constant of libvirt (some are newer than the oldest libvirt that we support) -> (code, remedy).
_TABLE = {
    "VIR_ERR_NO_DOMAIN": ("no_such_domain", "List the domains of this connection with virsh list --all"),
    "VIR_ERR_NO_DOMAIN_SNAPSHOT": ("no_such_snapshot", "List the domain's snapshots with virsh snapshot-list"),
    "VIR_ERR_OPERATION_INVALID": ("operation_invalid", "Bring the domain into a state that allows it, and repeat"),
    "VIR_ERR_OPERATION_TIMEOUT": ("libvirt_busy", "Another job holds the domain: wait for it to end, and repeat"),
    "VIR_ERR_OPERATION_DENIED": ("permission_denied", "Use become, or a user who may manage this libvirt"),
    "VIR_ERR_AUTH_FAILED": ("permission_denied", "Use become, or a user who may manage this libvirt"),
    "VIR_ERR_AUTH_DENIED": ("permission_denied", "Use become, or a user who may manage this libvirt"),
    "VIR_ERR_AUTH_CANCELLED": ("permission_denied", "Use become, or a user who may manage this libvirt"),
    "VIR_ERR_AUTH_UNAVAILABLE": ("permission_denied", "Use become, or a user who may manage this libvirt"),
    "VIR_ERR_ACCESS_DENIED": ("permission_denied", "Ask for a policy that allows it to this user"),
    "VIR_ERR_OPERATION_UNSUPPORTED": ("unsupported", "See what this hypervisor's libvirt and QEMU can do"),
    "VIR_ERR_CONFIG_UNSUPPORTED": ("unsupported", "See what this hypervisor's libvirt and QEMU can do"),
    "VIR_ERR_ARGUMENT_UNSUPPORTED": ("unsupported", "See what this hypervisor's libvirt and QEMU can do"),
    "VIR_ERR_NO_SUPPORT": ("unsupported", "See what this hypervisor's libvirt and QEMU can do"),
    "VIR_ERR_BLOCK_COPY_ACTIVE": ("job_running", "Wait for the disk's block job, or end it, and repeat"),
    "VIR_ERR_AGENT_UNRESPONSIVE": ("agent_unresponsive", _AGENT_REMEDY),
    "VIR_ERR_AGENT_COMMAND_TIMEOUT": ("agent_unresponsive", _AGENT_REMEDY),
    "VIR_ERR_AGENT_COMMAND_FAILED": ("agent_failed", _AGENT_REMEDY),
    "VIR_ERR_AGENT_UNSYNCED": ("agent_unresponsive", _AGENT_REMEDY),
    "VIR_ERR_SNAPSHOT_REVERT_RISKY": (
        "revert_risky",
        "With force: true the guest is reverted all the same: QEMU is then started anew, its consoles are cut off, and "
        "the guest may notice other devices",
    ),
    "VIR_ERR_XML_INVALID_SCHEMA": (
        "xml_invalid",
        "Correct the XML, or leave validate out: the schema of libvirt 7 lacks inactiveDomain, which it writes itself "
        "into the records of running guests",
    ),
    "VIR_ERR_RESOURCE_BUSY": ("libvirt_busy", "Wait for the operation that holds it, and repeat"),
}
#: What libvirt says, by any number, when QEMU ends under a call: from its monitor or agent, or on its way out.
_ENDED = re.compile(
    r"unable to (read from|write to) (monitor|agent)|end of file from (qemu monitor|agent)|monitor was closed"
    r"|missing (monitor|agent) reply|failed to connect to (monitor|agent) socket|agent disappeared"
    r"|guest unexpectedly quit|domain is (not|no longer) running",
    re.IGNORECASE,
)
_ENDED_REMEDY = (
    "See in QEMU's log (/var/log/libvirt/qemu) why it ended. Start the guest, or leave it off, and run the same task "
    "again: it continues from what it finds"
)
#: virDomainState by number, in the words of `virsh domstate`.
STATES = ("no state", "running", "idle", "paused", "in shutdown", "shut off", "crashed", "pmsuspended")
#: Not crashed: of that one the QEMU is kept.
_OFF = ("shut off",)
#: How often and after how many seconds libvirt is asked again that may not yet have noticed that a QEMU has ended.
_LOOKS, _PAUSE = 20, 0.1

#: What QEMU said, for which libvirt has no number of its own -> (code, remedy).
_SAID = (
    ("already in active block job", _TABLE["VIR_ERR_BLOCK_COPY_ACTIVE"]),
    ("Invalid job ID", ("name_unsuitable", _NAME_REMEDY)),
    # Failed to get "write" lock; Failed to get shared "write" lock
    ('" lock', ("image_locked", "Another process uses the image: end it, or wait for its end, then try again")),
    ("Block node is read-only", ("images_released", _RELEASED_REMEDY)),
    ("Device 'libvirt-", ("guest_stale", _STALE_REMEDY)),  # a node of the block graph that QEMU has not
    ("Inactive '", ("images_released", _RELEASED_REMEDY)),  # since QEMU 10
)
_OTHER = ("libvirt_error", "Look for the reason in libvirt's log and in QEMU's (/var/log/libvirt/qemu)")

#: What a guest agent answers to all but fsfreeze commands while its file systems are frozen.
FROZEN_ANSWERS = ("has been disabled", "frozen state")
#: What it answers to a command that its administrator blocked, frozen or not.
BLOCKED_ANSWER = "not allowed"


def failure(problem: libvirt.libvirtError, doing: str, domain: Any = None) -> LibvirtFailure:
    """`doing` says what was tried, as in "Freezing the guest's file systems"; `domain` is what it was tried on."""
    if domain is not None and _ENDED.search(str(problem)) and not is_connection_lost(problem):
        state = _state_after(domain)
        if state in ("", *_OFF):
            cause = f"{doing} failed, because the guest's QEMU ended ({problem}). The guest is now {state or 'gone'}"
            return LibvirtFailure("guest_ended", cause, _ENDED_REMEDY)
    code, remedy = _known(problem)
    return LibvirtFailure(code, f"{doing} failed: {problem}", remedy)


def _state_after(domain: Any, sleep: Callable[[float], None] = time.sleep) -> str:
    """virDomainGetState, once libvirt has noticed that QEMU ended; empty where there is no such domain any more."""
    state = "running"
    for look in range(_LOOKS):
        if look:
            sleep(_PAUSE)
        try:
            state = STATES[domain.state()[0]]
        except libvirt.libvirtError as problem:
            return "" if is_number(problem, "VIR_ERR_NO_DOMAIN") else "unknown"
        if state in _OFF:
            break
    return state


@contextmanager
def mapped(doing: str, domain: Any = None) -> Iterator[None]:
    """Turn a libvirt failure in the body into ours; `domain` is what the body works on."""
    try:
        yield
    except libvirt.libvirtError as problem:
        raise failure(problem, doing, domain) from problem


def is_number(problem: libvirt.libvirtError, *names: str) -> bool:
    """Is it one of these VIR_ERR_ constants, as far as this libvirt has them?"""
    return problem.get_error_code() in {getattr(libvirt, name, None) for name in names}


def _known(problem: libvirt.libvirtError) -> tuple[str, str]:
    if is_connection_lost(problem):
        return ("connection_lost", _CONNECTION_REMEDY)
    said = next((entry for words, entry in _SAID if words in str(problem)), None)
    if said is not None:
        return said
    return next((entry for name, entry in _TABLE.items() if is_number(problem, name)), _OTHER)


def is_connection_lost(problem: libvirt.libvirtError) -> bool:
    """The daemon went away before or during the call: libvirt's own RPC layer reports it."""
    if is_number(problem, "VIR_ERR_INVALID_CONN", "VIR_ERR_NO_CONNECT"):
        return True
    return bool(problem.get_error_domain() == libvirt.VIR_FROM_RPC) and is_number(
        problem, "VIR_ERR_SYSTEM_ERROR", "VIR_ERR_INTERNAL_ERROR", "VIR_ERR_RPC"
    )
