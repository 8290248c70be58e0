# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the least and the most of each numeric option."""

from __future__ import annotations

from collections.abc import Mapping

from .errors import VirtopsError
from .keep import PERIODS

#: libvirt makes bytes of MiB, and QEMU keeps them in 63 bits.
_MOST_MIB = (1 << 43) - 1
#: What libvirt and C keep in an int; seconds, that is 68 years.
_MOST = (1 << 31) - 1
#: By the option's name, or by the module's and the option's where it is another in that module. Units are in its docs.
BOUNDS = {
    "at_once": (1, _MOST),
    "bandwidth": (0, _MOST_MIB),
    "command_timeout": (1, _MOST),
    # libvirt has other meanings for less: to wait for ever (-2), for its own default (-1), not at all (0).
    # While a guest is frozen nothing in it can write.
    "copy_timeout": (1, _MOST),
    "follow": (0, _MOST),
    "freeze_timeout": (1, 3600),
    "keep_free": (0, _MOST_MIB),
    **{"keep_%s" % period: (0, _MOST) for period in PERIODS},
    "lock_timeout": (0, _MOST),
    "max_age": (0, _MOST),
    # An image and its overlay are 2
    "max_chain": (2, _MOST),
    "min_age": (0, _MOST),
    "memory": (0, _MOST_MIB),
    "parallel": (1, _MOST),
    "rate_limit": (0, _MOST_MIB),
    "resume_within": (0, _MOST),
    "stall_timeout": (1, _MOST),
    "suspend_timeout": (0, _MOST),
    "throttle_timeout": (0, _MOST),
    "timeout": (0, _MOST),
    "wait": (0, _MOST),
    # Of the role guarded_change alone
    "connect_timeout": (0, _MOST),
    # Nobody is there to run it again
    "boot_recovery.timeout": (1, _MOST),
}


def bounds_of(module: str, option: str) -> tuple[int, int]:
    """Return the least and the most of an option; `option` is a path where it is one in an option."""
    name = option.rpartition(".")[2]
    return BOUNDS.get("%s.%s" % (module, name)) or BOUNDS[name]


def require_in_bounds(module: str, given: Mapping[str, int]) -> None:
    """Refuse a number that cannot be meant; `given` are the numeric options of a module."""
    for option, value in given.items():
        least, most = bounds_of(module, option)
        if value < least:
            raise VirtopsError("bad_option", "%s is %d" % (option, value), "Give a number of %d or more" % least)
        if value > most:
            raise VirtopsError("bad_option", "%s is %d" % (option, value), "Give a number of %d or less" % most)
