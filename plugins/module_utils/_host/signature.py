# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: what a file is, by its first bytes, before it is deleted.

qemu-img would open what the header names. Here nothing is opened but the file itself, and no symlink is followed.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from typing import BinaryIO

from .._core.model import Signature
from . import qcow2
from .command import os_failure

#: libvirt's src/qemu/qemu_saveimage.h; the second while the image is being written.
_MEMORY_MAGICS = (b"LibvirtQemudSave", b"LibvirtQemudPart")
#: struct _virQEMUSaveHeader: the magic, and 19 numbers of 32 bits, the second of which is the length of the XML.
_HEADER = 16 + 19 * 4
#: The definition in it is some KiB long.
_XML_MAX = 1 << 20


def signature(path: str) -> Signature:
    """Raises VirtopsError where the file cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return Signature("missing")
    except OSError as error:
        if os.path.isfile(path) and not os.path.islink(path):
            raise os_failure("Looking at %s" % path, error) from error
        return Signature("other")  # a symlink, or what nothing can be read from
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            return Signature("block" if stat.S_ISBLK(found.st_mode) else "other")
        with open(fd, "rb", closefd=False) as file:
            return _of_regular(file, path) if found.st_size else Signature("empty")
    except OSError as error:
        raise os_failure("Looking at %s" % path, error) from error
    finally:
        os.close(fd)


def _of_regular(file: BinaryIO, path: str) -> Signature:
    header = file.read(_HEADER)
    if qcow2.is_header(header):
        if qcow2.has_data_file(header):  # no overlay of ours has one
            return Signature("other")
        backing = qcow2.backing_of(file.fileno(), path)
        return Signature("qcow2", backing=None if backing is None else backing.path)
    if header.startswith(_MEMORY_MAGICS) and len(header) >= _HEADER:
        return Signature("memory", domain=_saved_domain(file, header))
    return Signature("other")


def _saved_domain(file: BinaryIO, header: bytes) -> str | None:
    """The definition that was saved with the memory follows the header. Its numbers are in the host's byte order."""
    (length,) = struct.unpack("=I", header[20:24])
    file.seek(_HEADER)
    found = re.search(rb"<uuid>([0-9a-fA-F-]{36})</uuid>", file.read(min(length, _XML_MAX)))
    return None if found is None else found[1].decode("ascii").lower()
