# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: a block device by what stays the same, by sysfs(5) and udev's data.

Its number, and the number of its node, may be others after a reboot, or once it was taken away and came back.
"""

from __future__ import annotations

import os

SYSFS = "/sys/dev/block"
UDEV = "/run/udev/data"

#: Files below the device's folder that name it, with what they are; the first that is there and not empty counts.
_NAMES = (
    ("dm", "dm/uuid"),
    ("md", "md/uuid"),
    ("wwid", "wwid"),
    ("wwid", "device/wwid"),
    ("serial", "serial"),
    ("serial", "device/serial"),
)
#: What udev found, where the kernel does not tell.
_PROPERTIES = ("ID_WWN_WITH_EXTENSION", "ID_WWN", "ID_SERIAL", "MD_UUID")
#: Of /sys/block/*/size, whatever the device's own sectors are.
_SECTOR = 512


def lasting_name(number: int) -> str:
    """A name of the device with this st_rdev that it keeps; its number where nothing gives one."""
    plain = "%d:%d" % (os.major(number), os.minor(number))
    folder = os.path.realpath(os.path.join(SYSFS, plain))
    partition = _read(os.path.join(folder, "partition"))
    if partition:
        whole = _read(os.path.join(folder, "..", "dev"))
        return "%s-part%s" % (_name(os.path.dirname(folder), whole) or whole, partition)
    return _name(folder, plain) or "number %s" % plain


def size_of(number: int) -> int:
    """In bytes; 0 where it has no medium."""
    plain = "%d:%d" % (os.major(number), os.minor(number))
    return int(_read(os.path.join(SYSFS, plain, "size")) or 0) * _SECTOR


def _name(folder: str, plain: str) -> str:
    for kind, name in _NAMES:
        found = _read(os.path.join(folder, name))
        if found:
            return "%s %s" % (kind, found)
    backing = _read(os.path.join(folder, "loop", "backing_file"))
    if backing:
        return "loop %s at %s" % (backing, _read(os.path.join(folder, "loop", "offset")) or "0")
    lines = _read(os.path.join(UDEV, "b" + plain)).splitlines()
    told = dict(line[2:].split("=", 1) for line in lines if line.startswith("E:") and "=" in line)
    return next(("%s %s" % (name, told[name]) for name in _PROPERTIES if told.get(name)), "")


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip("\0 \t\n")
    except OSError:
        return ""
