# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: what a qcow2 header says, read without opening anything else.

Of an image that is not ours, or of one to be deleted: qemu-img might follow what its header names, and fail at that.
The format is in docs/interop/qcow2.txt.
"""

from __future__ import annotations

import json
import os
import struct

from .._core.model import Layer

_MAGIC = b"QFI\xfb"
_V2_BYTES = 72
#: As much as the fields before the extensions take in version 3.
_HEADER_BYTES = 104
#: The incompatible feature "external data file".
_EXTERNAL_DATA = 1 << 2
#: The most that a backing file's name may have.
_NAME_BYTES = 1023
_BACKING_FORMAT = 0xE2792ACA
#: Header extensions lie in the first cluster, before the backing file's name.
_EXTENSION_BYTES = 64 * 1024


def backing_layer(path: str) -> Layer | None:
    """The backing file that this qcow2 names; None where it names none, and where the file is no qcow2.

    Without a format it is raw, as libvirt takes it. A name that is no path of this host stays as it is. Raises OSError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO would wait for its writer
    try:
        return backing_of(fd, path)
    finally:
        os.close(fd)


def backing_of(fd: int, path: str) -> Layer | None:
    """The same of one that is open. `path` is where it lies: a relative name is meant from there."""
    header = os.pread(fd, _HEADER_BYTES, 0)
    if not is_header(header):
        return None
    offset, size = struct.unpack(">QI", header[8:20])
    if not offset or not 0 < size <= _NAME_BYTES:
        return None
    name = os.fsdecode(os.pread(fd, size, min(offset, (1 << 63) - 1)))
    return Layer(_plain(name, path), _format(fd, header))


def is_header(header: bytes) -> bool:
    """Do these first bytes of a file say that it is a qcow2?"""
    return header.startswith(_MAGIC) and len(header) >= _V2_BYTES


def has_data_file(header: bytes) -> bool:
    """Is its data in another file?"""
    return header[4:8] > b"\0\0\0\2" and bool(int.from_bytes(header[72:80], "big") & _EXTERNAL_DATA)


def _format(fd: int, header: bytes) -> str:
    version = int.from_bytes(header[4:8], "big")
    at = int.from_bytes(header[100:104], "big") if version > 2 and len(header) == _HEADER_BYTES else _V2_BYTES
    while at < _EXTENSION_BYTES:
        found = os.pread(fd, 8, at)
        if len(found) < 8:
            break
        kind, length = struct.unpack(">II", found)
        if kind == _BACKING_FORMAT:
            return os.pread(fd, min(length, 64), at + 8).decode("utf-8", "replace")
        if kind == 0:
            break
        at += 8 + (length + 7) // 8 * 8
    return "raw"


def _plain(name: str, owner: str) -> str:
    """The path behind json:{"file": {"filename": …}} and file:…; one that is relative lies beside its owner."""
    if name.startswith("json:"):
        try:
            name = _filename(json.loads(name[len("json:") :])) or name
        except (ValueError, RecursionError):
            return name
    if name.startswith("file:"):
        name = name[len("file:") :]
    if ":" in name.split("/")[0]:
        return name  # a protocol
    return os.path.normpath(os.path.join(os.path.dirname(owner), name))


def _filename(options: object) -> str | None:
    """blockdev-add nests them, and its short form has keys like file.filename."""
    while isinstance(options, dict):
        for key in ("filename", "file.filename"):
            if isinstance(options.get(key), str):
                return str(options[key])
        options = options.get("file")
    return None
