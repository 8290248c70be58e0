# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Where a merge stands in what libvirt really shows, from moments that the faults of tests/faults left on record.

xml/moments: GENERATION-FAULT-MOMENT.xml, made by `./dev test faults -- --record DIR`; host is libvirt 9.0 with QEMU 7.2,
debian13 libvirt 11.3 with QEMU 10.0.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core import xml
from ansible_collections.virtops.libvirt.plugins.module_utils._core.merge import (
    MergeGoal,
    Next,
    Phase,
    next_step,
    phase_of,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import BlockJob, Disk, DomainView, Layer

pytestmark = pytest.mark.skipif(xml.LXML_IMPORT_ERROR is not None, reason="needs lxml")

MOMENTS = Path(__file__).parent / "xml" / "moments"
#: virsh's words in `blockjob --raw` for the XML's.
KINDS = {
    "Active Commit": "active-commit",
    "Active Block Commit": "active-commit",
    "Block Commit": "commit",
    "Commit": "commit",
    "Block Copy": "copy",
    "Copy": "copy",
    "Block Pull": "pull",
    "Pull": "pull",
}


def view_of(moment: str) -> DomainView:
    """The reading that `_libvirt.domain` makes of it."""
    root = ElementTree.parse(MOMENTS / f"{moment}.xml").getroot()
    live, config = (ElementTree.tostring(root.findall(f"{kind}/domain")[0]) for kind in ("live", "config"))
    parsed = xml.parse_domain(live.decode(), config.decode())
    view = DomainView(
        name=parsed.name,
        uuid=parsed.uuid,
        state=root.get("state", ""),
        persistent=True,
        disks=parsed.disks,
        config_disks=parsed.config_disks,
        journal_xml=parsed.journal_xml,
    )
    jobs = {job.get("disk", ""): job for job in root.findall("job")}
    layers: dict[str, list[Layer]] = {}
    for layer in root.findall("layer"):
        found = layers.setdefault(layer.get("disk", ""), [])
        found.append(Layer(layer.get("path", ""), layer.get("format", "")))
    if not view.active:
        return view.with_disks(
            tuple(
                replace(disk, chain=tuple(layers.get(disk.target, ())) or disk.chain, job=None)
                for disk in view.config_disks
            )
        )

    def with_job(disk: Disk) -> Disk:
        job = jobs.get(disk.target)
        if job is None:
            return disk
        seen = disk.job or BlockJob(kind=KINDS[job.get("type", "")])
        return replace(disk, job=replace(seen, cur=int(job.get("cur", "0")), end=int(job.get("end", "0"))))

    return view.with_disks(tuple(with_job(disk) for disk in view.disks))


def goals_of(view: DomainView) -> dict[str, MergeGoal]:
    """What the journal in it intends, per disk."""
    return {
        disk.target: MergeGoal(disk.target, Layer(disk.base, disk.base_format), (Layer(disk.overlay, "qcow2"),))
        for operation in xml.parse_journal(view.journal_xml).operations
        for disk in operation.disks
    }


NEXT = {
    Phase.IDLE: Next.START,
    Phase.COPYING: Next.WAIT,
    Phase.READY: Next.PIVOT,
    Phase.ENDING: Next.WAIT,
    Phase.OFFLINE: Next.COMMIT_OFFLINE,
    Phase.CONFIG_STALE: Next.UPDATE_CONFIG,
    Phase.MERGED: Next.DONE,
    Phase.FOREIGN_JOB: Next.REFUSE,
    Phase.LOST: Next.REFUSE,
}
