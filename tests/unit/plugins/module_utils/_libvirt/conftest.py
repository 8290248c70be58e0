# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Domains of libvirt's own in-process driver, each test its own."""

from __future__ import annotations

import gc
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

libvirt = pytest.importorskip("libvirt")
pytest.importorskip("lxml")

from ansible_collections.virtops.libvirt.plugins.module_utils._libvirt.connection import Connection  # noqa: E402

URI = "test:///default"
AGENT = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
XML = """
<domain type='test'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>8</memory>
  <os><type arch='i686'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/><source file='/img/{name}.qcow2'/><target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'><target dev='hda' bus='ide'/><readonly/></disk>
    {devices}
  </devices>
</domain>
"""


@pytest.fixture(autouse=True)
def _no_collection() -> Iterator[None]:
    """A libvirt object that is collected between a failed call and its exception takes the error's number away. And an
    error that a test makes itself has the words of the last one that libvirt made, if there was one."""
    libvirt.virResetLastError()
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def connection() -> Iterator[Connection]:
    with Connection(URI) as opened:
        yield opened


@pytest.fixture
def define(connection: Connection) -> Iterator[Callable[..., Any]]:
    """Make a domain: running unless `off`, persistent unless `transient`. It is gone after the test."""
    made = []

    def make(name: str, off: bool = False, transient: bool = False, devices: str = "") -> Any:
        text = XML.format(name=name, uuid=uuid.uuid4(), devices=devices)
        domain = connection.handle.createXML(text) if transient else connection.handle.defineXML(text)
        made.append(domain)
        if not off and not transient:
            domain.create()
        return domain

    yield make
    for domain in made:
        with suppress(libvirt.libvirtError):
            for snapshot in domain.listAllSnapshots(libvirt.VIR_DOMAIN_SNAPSHOT_LIST_ROOTS):
                snapshot.delete(libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_CHILDREN)
        with suppress(libvirt.libvirtError):
            domain.destroy()
        with suppress(libvirt.libvirtError):
            domain.undefine()
