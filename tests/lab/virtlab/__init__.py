# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lab hypervisors and test guests: what demo, tests and bench run on. See tests/lab/README.md."""

from __future__ import annotations

from ._sys import LabError
from .disks import Disk
from .guest import Guest
from .hypervisor import BACKUP, IMAGES, Hypervisor, Volume
from .lab import Lab
from .records import ImageReport, Journal, Mark, Record, lost, read_image

__all__ = [
    "BACKUP",
    "IMAGES",
    "Disk",
    "Guest",
    "Hypervisor",
    "ImageReport",
    "Journal",
    "Lab",
    "LabError",
    "Mark",
    "Record",
    "Volume",
    "lost",
    "read_image",
]
