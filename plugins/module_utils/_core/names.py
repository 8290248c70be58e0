# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: which names a snapshot can have, said before the first effect.

libvirt and QEMU find out late, when the data are in the images already, and then leave them there.
"""

from __future__ import annotations

import re

from .errors import VirtopsError

#: libvirt writes a record as the file NAME.xml.new, and a file's name has at most 255 bytes.
LONGEST = 255 - len(".xml.new")
#: The libvirt that makes a job of an internal snapshot of a guest that runs, with an ID that QEMU checks.
_JOBS_SINCE = 10_009_000


def check_record_name(name: str, kept: bool = True) -> None:
    """Refuse what libvirt's QEMU driver can keep no record by; where none is `kept`, what names no snapshot at all."""
    size = len(name.encode("utf-8", "surrogateescape"))
    if not name.strip():
        why = "it is blank" if name else "it is empty"
    elif "/" in name:
        why = "it has a slash in it"
    elif kept and name.startswith("."):
        why = "it begins with a dot"
    elif kept and size > LONGEST:
        why = "it has %d bytes in UTF-8, and %d is the limit" % (size, LONGEST)
    else:
        return
    raise VirtopsError(
        "name_unsuitable",
        "libvirt takes no snapshot of the name %r: %s." % (name, why),
        "Choose another name",
    )


def check_job_name(
    name: str,
    libvirt_version: int,
    remedy: str = "Choose a name of letters, digits, '-', '.' and '_', or take the snapshot while the domain is off",
) -> None:
    """Refuse what QEMU takes for no job's ID; for internal snapshots of a guest that runs, taken or deleted."""
    if libvirt_version >= _JOBS_SINCE and re.fullmatch(r"[A-Za-z0-9._-]+", name) is None:
        raise VirtopsError(
            "name_unsuitable",
            "QEMU takes no job by the name %r, which this libvirt makes of an internal snapshot of a guest that runs."
            % name,
            remedy,
        )
