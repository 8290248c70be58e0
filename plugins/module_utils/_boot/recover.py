# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: bring all guests of a hypervisor to rest after it was booted, without Ansible.

    python3 -m ansible_collections.virtops.libvirt.plugins.module_utils._boot.recover [--uri URI] [--timeout SECONDS]

The systemd unit that the role `hypervisor` installs runs this. It says one line for each guest, and ends with 1 where
one of them needs a human. Only operations that were begun before this boot are looked at: nobody can be at work on
them any more, while a later one may be between two tasks of a play. No backup is finished: where to, and how, only
the play knows that made it. A guest whose memory is saved is left as it is. Where one has such an operation this goes
on after it has told systemd that the host may go on, until that guest was started, and recovers it then.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from types import FrameType

from .._core.convergence import Deadline
from .._core.errors import VirtopsError
from .._core.model import DomainView
from .._core.refusals import require_read
from .._core.strays import is_stray_name
from .._core.text import shown
from .._core.xml import LXML_IMPORT_ERROR
from .._host.boottime import boot_id, booted_at
from .._host.clock import SystemClock
from .._host.command import marked
from .._host.images import Images
from .._host.job_store import who_works
from .._host.locks import DomainLock
from .._host.reaper import Reaper
from .._host.restore import Places
from .._host.store import BackupStore
from .._host.watchdog import PythonWatchdog
from .._libvirt import guest_watchdog
from .._libvirt.connection import Connection
from .._libvirt.domain import Domain
from .._libvirt.errors import LIBVIRT_IMPORT_ERROR
from .._libvirt.host import Host
from .._service.guest import Guest
from .._service.recover import RecoverOptions, Recovery
from .._service.restore_end import RestoreEnd
from .._service.strays import lost_operations, with_bases

#: Seconds that libvirt's daemon gets to answer after the boot.
CONNECT_SECONDS = 60
#: Seconds that a guest gets beyond its merge's timeout, for all that is done besides.
GRACE_SECONDS = 60
#: Between two looks at the guests whose memory is saved.
LOOK_SECONDS = 10


def main(arguments: Sequence[str]) -> int:
    options = argparse.ArgumentParser(description="Bring all guests to rest that an interrupted operation left.")
    options.add_argument("--uri", default="qemu:///system", help="the libvirt connection")
    options.add_argument("--timeout", type=int, default=600, help="seconds after which a guest's merge is given up")
    given = options.parse_args(arguments)
    for library, problem in (("libvirt-python", LIBVIRT_IMPORT_ERROR), ("lxml", LXML_IMPORT_ERROR)):
        if problem is not None:
            _say("The Python library %s is missing for %s. Run the role hypervisor." % (library, sys.executable))
            return 1
    boot = Boot(boot_id(), booted_at(), SystemClock().utcnow())
    try:
        with _connect(given.uri) as connection:
            found = recover_all(connection, given.timeout, boot, _say)
    except VirtopsError as error:
        _say(str(error))
        return 1
    _tell_ready()
    needy = found.needy
    while found.saved:
        time.sleep(LOOK_SECONDS)
        with suppress(VirtopsError), _connect(given.uri) as connection:  # its daemon may be away for a while
            boot = replace(boot, now=SystemClock().utcnow())
            found = recover_all(connection, given.timeout, boot, _say, found.saved)
            needy = needy or found.needy
    return 1 if needy else 0


@dataclass(frozen=True)
class Boot:
    """Its ID; by the clock, when it was, and what time it is now."""

    id: str
    began: str
    now: str


@dataclass(frozen=True)
class Found:
    """`needy`: a guest needs a human. `saved` are the UUIDs of those that are recovered once they were started."""

    needy: bool
    saved: tuple[str, ...]


def recover_all(
    connection: Connection,
    timeout: int,
    boot: Boot,
    say: Callable[[str], None],
    saved: Sequence[str] | None = None,
) -> Found:
    """One guest after another. Once again for those that were `saved` when they were looked at first."""
    needy, left, host = False, [], Host(connection)
    for view in host.domains():
        if saved is not None and (view.uuid not in saved or _is_saved(view)):
            left += [view.uuid] if view.uuid in saved else []
            continue
        try:
            require_read(view)
            if _was_interrupted(view, boot) or _has_lost_its_journal(view, host):
                told = _recover(connection, view, timeout)
                say("%s: %s" % (view.name, "healed: " + "; ".join(told) if told else "nothing to do"))
            else:
                say("%s: nothing to do" % view.name)
        except VirtopsError as error:
            if error.code == "memory_saved":
                left.append(view.uuid)
                say("%s: left as it is, because its memory is saved; it is recovered after it has started" % view.name)
            elif error.code == "locked" and saved is not None:
                left.append(view.uuid)  # a play may have come first
            else:
                needy = True
                say("%s: NEEDS A HUMAN (%s): %s" % (view.name, error.code, error))
        except Exception:  # noqa: BLE001  (a bug: it is shown as one, and the other guests get their turn)
            needy = True
            traceback.print_exc()
            say("%s: NEEDS A HUMAN: its recovery stopped, see above" % view.name)
    return Found(needy, tuple(left))


def _is_saved(view: DomainView) -> bool:
    return view.saved and not view.active


def _tell_ready() -> None:
    """sd_notify(3): what the unit is ordered before may start, as libvirt-guests, which starts saved guests."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as teller:
            teller.sendto(b"READY=1", "\0" + address[1:] if address.startswith("@") else address)


def _was_interrupted(view: DomainView, boot: Boot) -> bool:
    """By the boot."""
    operations = view.journal.operations
    return any(op.open and op.is_of_earlier_boot(boot.id, boot.began, boot.now) for op in operations)


def _has_lost_its_journal(view: DomainView, host: Host) -> bool:
    """A run writes its journal before all else, so this is of none that is at work."""
    journal = view.journal
    seen = with_bases(view, Images())
    return bool(lost_operations(seen, journal, lambda: host.records(view.uuid, is_stray_name)))


def _recover(connection: Connection, view: DomainView, timeout: int) -> tuple[str, ...]:
    """What was done, and what has to be said besides."""
    domain = Domain(connection, view.uuid)
    clock = SystemClock()
    options = RecoverOptions(deadline=Deadline(timeout=timeout))
    watchdog = PythonWatchdog(connection.uri, guest_watchdog.__name__)
    try:
        lock = DomainLock(view.uuid, refused=partial(who_works, view.name, view.uuid))
        with lock, marked(view.uuid), _at_most(timeout + GRACE_SECONDS, view.name):
            restores = RestoreEnd(domain, Images(), Places(), BackupStore().tpm_root())
            flow = Recovery(options, Guest(domain, Images(), clock, watchdog), None, Reaper(clock), restores)
            outcome = flow.run(check=False)
            return outcome.steps + outcome.warnings
    finally:
        domain.close()


def _connect(uri: str) -> Connection:
    deadline = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            return Connection(uri)
        except VirtopsError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(1)


@contextmanager
def _at_most(seconds: int, name: str) -> Iterator[None]:
    """Whatever a guest's recovery waits for, the others get their turn; it may be broken off anywhere.

    setitimer(2), again and again: a flow may take one for the failure of a step that it can do without. A call that
    hangs in libvirt itself is ended by the unit's own timeout.
    """

    def give_up(_number: int, _frame: FrameType | None) -> None:
        raise VirtopsError(
            "timeout",
            "The recovery of domain %s took longer than %d s" % (name, seconds),
            "Run the playbook virtops.libvirt.recover, which gives it more time",
        )

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds, 5)
    try:
        yield
    finally:
        _ignore_alarms()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _ignore_alarms() -> None:
    """One that came just now may still be raised in here."""
    while True:
        with suppress(VirtopsError):
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
            return


def _say(text: str) -> None:
    """One line, at once: the journal keeps them even if we are ended."""
    sys.stdout.write(shown(" ".join(text.split())) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
