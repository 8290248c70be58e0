# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What files say that they are, by their first bytes."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Signature
from ansible_collections.virtops.libvirt.plugins.module_utils._host.signature import signature

UUID = "1972af2a-e158-44c9-b6e9-ddbac0142356"


def qcow2(backing: bytes = b"", features: int = 0, version: int = 3) -> bytes:
    offset = 112 if backing else 0
    header = b"QFI\xfb" + struct.pack(">IQI", version, offset, len(backing))
    return header.ljust(72, b"\0") + struct.pack(">Q", features).ljust(40, b"\0") + backing


def memory(magic: bytes, xml: str) -> bytes:
    return (magic + struct.pack("=II", 2, len(xml))).ljust(92, b"\0") + xml.encode()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", Signature("empty")),
        (b"text", Signature("other")),
        (bytes(4096), Signature("other")),
        (b"QFI\xfb", Signature("other")),
        (qcow2(), Signature("qcow2")),
        (qcow2(b"/img/base.raw"), Signature("qcow2", "/img/base.raw")),
        (qcow2(b"/img/base.raw", version=2), Signature("qcow2", "/img/base.raw")),
        (qcow2(b"base.raw"), Signature("qcow2", "HERE/base.raw")),
        (qcow2(b"file:../base.raw"), Signature("qcow2", "ABOVE/base.raw")),
        (qcow2(b"json:{}"), Signature("qcow2", "json:{}")),
        (qcow2(b"nbd://host/x"), Signature("qcow2", "nbd://host/x")),
        (qcow2(b"/img/base.raw", features=4), Signature("other")),
        (qcow2(b"x" * 1024), Signature("qcow2")),
        (memory(b"LibvirtQemudSave", f"<domain><uuid>{UUID}</uuid>"), Signature("memory", domain=UUID)),
        (memory(b"LibvirtQemudPart", f"<domain><uuid>{UUID.upper()}</uuid>"), Signature("memory", domain=UUID)),
        (memory(b"LibvirtQemudSave", "<domain>"), Signature("memory")),
        (b"LibvirtQemudSave", Signature("other")),
    ],
)
def test_regular_files(tmp_path: Path, content: bytes, expected: Signature) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    backing = expected.backing and expected.backing.replace("HERE", str(tmp_path))
    backing = backing and backing.replace("ABOVE", str(tmp_path.parent))
    assert signature(str(path)) == Signature(expected.kind, backing, expected.domain)


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(qcow2())
    (tmp_path / "link").symlink_to(image)
    os.mkfifo(tmp_path / "fifo")
    kinds = {name: signature(str(tmp_path / name)).kind for name in ("link", "fifo", ".", "gone")}
    assert kinds == {"link": "other", "fifo": "other", ".": "other", "gone": "missing"}
