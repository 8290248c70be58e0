# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""interrupt.py ROOT DOMAIN SNAPSHOT CHILDREN WHEN CALL NUMBER: delete a snapshot, and die before or after that call.

The process ends as one does that the kernel kills; NUMBER counts the calls from 1. Exit code 3: that call never came.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import Any

root, name, snapshot, children, when, call, number = sys.argv[1:]
sys.path.insert(0, root)
left = int(number)


def utils(module: str) -> Any:
    return importlib.import_module(f"ansible_collections.virtops.libvirt.plugins.module_utils.{module}")


class Mortal:
    """Passes each call on, and dies at the one that was given."""

    def __init__(self, port: Any) -> None:
        self._port = port

    def __getattr__(self, attribute: str) -> Any:
        found = getattr(self._port, attribute)
        if attribute != call:
            return found

        def pass_on(*arguments: Any, **options: Any) -> Any:
            global left
            left -= 1
            if left == 0 and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = found(*arguments, **options)
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return pass_on


with utils("_libvirt.connection").Connection("qemu:///system", readonly=False) as connection:
    guest = utils("_service.guest").Guest(
        Mortal(utils("_libvirt.domain").Domain(connection, name)),
        Mortal(utils("_host.images").Images()),
        utils("_host.clock").SystemClock(),
        None,
    )
    limit = utils("_core.convergence").Deadline(timeout=120)
    utils("_service.snapshot_delete").SnapshotDeletion(snapshot, children, limit, guest).run(check=False)
sys.exit(3)
