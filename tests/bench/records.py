# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs on the hypervisor, with its own Python: snapshot_info beside the least that libvirt-python needs for the same.

Writes records of snapshots until there are as many as the second argument says, then times both in turns, each with a
connection of its own. Prints the seconds of each run as JSON. The third argument is how many runs.
"""

from __future__ import annotations

import json
import sys
import time

import libvirt

from ansible_collections.virtops.libvirt.plugins.module_utils._libvirt.connection import Connection
from ansible_collections.virtops.libvirt.plugins.module_utils._libvirt.domain import Domain
from ansible_collections.virtops.libvirt.plugins.module_utils._service.snapshot_info import (
    SnapshotInfoOptions,
    snapshots,
)

URI = "qemu:///system"
#: A new branch of the tree begins after so many records.
BRANCH = 25


def write_records(name: str, count: int) -> None:
    """Write the records that are missing, without data, as --redefine does."""
    connection = libvirt.open(URI)
    domain = connection.lookupByName(name)
    definition = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
    for number in range(domain.snapshotNum(), count):
        parent = f"<parent><name>s{number - 1}</name></parent>" if number % BRANCH else ""
        record = (
            f"<domainsnapshot><name>s{number}</name><description>The snapshot {number}</description>"
            f"<state>shutoff</state>{parent}<creationTime>{1795176000 + number}</creationTime>"
            f"<disks><disk name='vda' snapshot='internal'/></disks>{definition}</domainsnapshot>"
        )
        domain.snapshotCreateXML(record, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)
    connection.close()


def least(name: str) -> int:
    """Read every record, and do nothing with it."""
    connection = libvirt.openReadOnly(URI)
    found = [snapshot.getXMLDesc() for snapshot in connection.lookupByName(name).listAllSnapshots()]
    connection.close()
    return len(found)


def ours(name: str) -> int:
    """Do all that the module does, but for Ansible's part."""
    with Connection(URI, readonly=True) as connection:
        domain = Domain(connection, name)
        found = snapshots(SnapshotInfoOptions(), domain)
        domain.close()
    told = found.values["snapshots"]
    assert isinstance(told, list)
    return len(told)


def main() -> None:
    """Write, and measure."""
    name, count, runs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    write_records(name, count)
    seconds: dict[str, list[float]] = {"least": [], "ours": []}
    for _run in range(runs):
        for way in (least, ours):
            began = time.perf_counter()
            assert way(name) == count
            seconds[way.__name__].append(time.perf_counter() - began)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
