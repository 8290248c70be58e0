# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What QEMU says through libvirt, and our codes."""

from __future__ import annotations

import pytest

libvirt = pytest.importorskip("libvirt")

from ansible_collections.virtops.libvirt.plugins.module_utils._libvirt.errors import failure  # noqa: E402

QEMU = "internal error: unable to execute QEMU command 'block-commit': "


@pytest.mark.parametrize(
    ("said", "code", "remedy"),
    [
        (QEMU + "Block node is read-only", "images_released", "virsh resume"),
        (QEMU + "Device 'libvirt-3-format' not found", "guest_stale", "start it again"),
        (QEMU + "Inactive 'libvirt-2-format' can't be a backing child of active '#b'", "images_released", "virsh"),
        (QEMU + 'Failed to get "write" lock', "image_locked", "end it"),
        (QEMU + 'Failed to get shared "write" lock', "image_locked", "end it"),
        ("block copy still active: disk 'vda' already in active block job", "job_running", "block job"),
    ],
)
def test_what_qemu_said(said: str, code: str, remedy: str) -> None:
    found = failure(libvirt.libvirtError(said), "Starting the commit of vda of web")
    assert found.code == code
    assert remedy in found.remedy
    assert said in found.cause
