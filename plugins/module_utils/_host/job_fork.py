# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the process of a job, which does not end with the connection that began it.

It is forked, as all that it needs is imported by then: of its own session, with no descriptor of the connection. What
Ansible runs a module from is removed when the module ends. So the job gets a copy, for what it imports later and for
the watchdog, which is a Python of its own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import syslog
import traceback
from collections.abc import Callable

from .._core.job_state import JobEnd
from .job_store import JobFolder

#: The copy of Ansible's zip in the job's folder.
_CODE = "code.zip"


def keep_code(folder: JobFolder) -> str:
    """Copy the zip that we run from into the folder, and return its own path; empty where there is none.

    A module that runs from files, as for debugging, has none to lose.
    """
    archive = getattr(__spec__.loader, "archive", None)
    if not archive:
        return ""
    shutil.copyfile(archive, os.path.join(folder.path, _CODE))
    return str(archive)


def start(folder: JobFolder, alive: int, archive: str, work: Callable[[], JobEnd]) -> None:
    """Fork, and do the work in the child, which never returns: what comes of it is in the folder.

    `alive` is the descriptor of `JobFolder.hold`, which the child keeps. `archive` is what `keep_code` returned.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if os.fork():
        os.close(alive)
        return
    code = 1
    try:
        _detach(folder, alive)
        _use_copy(archive, os.path.join(folder.path, _CODE))
        end = work()
        # First, as its space may be the only one left
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(folder.path, _CODE))
        folder.end_with(end, alive)
        code = 0
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        # Neither what the module would do at its end, nor a thread that waits for storage, is ours
        os._exit(code)


def _detach(folder: JobFolder, alive: int) -> None:
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.chdir("/")
    syslog.closelog()
    null = os.open(os.devnull, os.O_RDWR)
    try:
        said = os.open(folder.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError:
        said = null
    for number, fd in ((0, null), (1, said), (2, said)):
        os.dup2(fd, number)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != alive:
            with contextlib.suppress(OSError):  # the one of this very list
                os.close(int(name))
    syslog.openlog("virtops.libvirt", syslog.LOG_PID, syslog.LOG_DAEMON)


def _use_copy(archive: str, copy: str) -> None:
    """Import from the copy from now on, and name it to programs that are started."""
    if not archive:
        return
    sys.path[:] = [copy if path == archive else path for path in sys.path]
    for module in list(sys.modules.values()):
        paths = getattr(module, "__path__", None)
        if isinstance(paths, list):
            paths[:] = [copy + path[len(archive) :] if path.startswith(archive) else path for path in paths]
    for path in [path for path in sys.path_importer_cache if path.startswith(archive)]:
        del sys.path_importer_cache[path]
