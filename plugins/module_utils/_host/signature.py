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
from .command import os_failure

_QCOW2_MAGIC = b"QFI\xfb"
#: docs/interop/qcow2.txt: the least that a header has, and the most that the name of a backing file may have.
_QCOW2_HEADER = 72
_BACKING_NAME_MAX = 1023
#: The incompatible feature "external data file": no overlay of ours has one.
_EXTERNAL_DATA = 1 << 2
#: libvirt's src/qemu/qemu_saveimage.h; the second while the image is being written.
_MEMORY_MAGICS = (b"LibvirtQemudSave", b"LibvirtQemudPart")
#: struct _virQEMUSaveHeader: the magic, and 19 numbers of 32 bits, the second of which is the length of the XML.
_MEMORY_HEADER = 16 + 19 * 4
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
    header = file.read(max(_QCOW2_HEADER, _MEMORY_HEADER) + 8)
    if header.startswith(_QCOW2_MAGIC) and len(header) >= _QCOW2_HEADER:
        return _qcow2(file, path, header)
    if header.startswith(_MEMORY_MAGICS) and len(header) >= _MEMORY_HEADER:
        return Signature("memory", domain=_saved_domain(file, header))
    return Signature("other")


def _qcow2(file: BinaryIO, path: str, header: bytes) -> Signature:
    version, offset, size = struct.unpack(">IQI", header[4:20])
    features = struct.unpack(">Q", header[72:80])[0] if version >= 3 and len(header) >= 80 else 0
    if features & _EXTERNAL_DATA or size > _BACKING_NAME_MAX:
        return Signature("other")
    if not offset or not size:
        return Signature("qcow2")
    file.seek(offset)
    return Signature("qcow2", backing=_absolute(os.fsdecode(file.read(size)), path))


def _absolute(name: str, path: str) -> str:
    """As `images` tells it: a relative name is meant from the folder of the image that says it."""
    if name.startswith("file:"):
        name = name[len("file:") :]
    if name.startswith(("/", "json:")) or "://" in name:
        return name
    return os.path.normpath(os.path.join(os.path.dirname(path), name))


def _saved_domain(file: BinaryIO, header: bytes) -> str | None:
    """The definition that was saved with the memory follows the header. Its numbers are in the host's byte order."""
    (length,) = struct.unpack("=I", header[20:24])
    file.seek(_MEMORY_HEADER)
    found = re.search(rb"<uuid>([0-9a-fA-F-]{36})</uuid>", file.read(min(length, _XML_MAX)))
    return None if found is None else found[1].decode("ascii").lower()
