# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What libvirt shows at a moment, kept as a file for the unit tests of phase_of: see `--record`.

<moment state='…'> holds the live and the persistent definition, <job> as virsh blockjob --raw has it, and <layer> as
the images themselves tell it, of a guest that is off. Of the definitions only what the collection reads is kept.
"""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

from fleet import JOURNAL, Member

ElementTree.register_namespace("virtops", JOURNAL.partition("}")[0].removeprefix("{"))


def keep(member: Member, path: Path) -> None:
    """Write down what libvirt shows of a guest now."""
    virsh, name = member.hypervisor.virsh, member.guest.name
    live, config = virsh("dumpxml", name), virsh("dumpxml", "--inactive", name)
    state = member.guest.state()
    root = ElementTree.Element("moment", state=state)
    for kind, xml, also in (("live", live, ("metadata",)), ("config", config, ())):
        ElementTree.SubElement(root, kind).append(reduced(ElementTree.fromstring(xml), also))
    for disk, file in member.guest.disk_paths().items():
        raw = virsh("blockjob", name, disk, "--raw", "--bytes", check=False)
        words = dict(line.strip().partition("=")[::2] for line in raw.splitlines() if "=" in line)
        if words:
            ElementTree.SubElement(root, "job", {"disk": disk, **words})
        if state == "shut off":
            told = member.hypervisor.exec(["qemu-img", "info", "-U", "--output=json", "--backing-chain", file]).stdout
            for layer in json.loads(told):
                values = {"disk": disk, "path": layer["filename"], "format": layer["format"]}
                ElementTree.SubElement(root, "layer", values)
    ElementTree.indent(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(ElementTree.tostring(root, encoding="unicode") + "\n", encoding="utf-8")


def reduced(domain: ElementTree.Element, also: tuple[str, ...]) -> ElementTree.Element:
    """Leave what the collection reads: the journal counts in the live definition only."""
    for element in list(domain):
        if element.tag not in ("name", "uuid", "devices", *also):
            domain.remove(element)
    for devices in domain.iterfind("devices"):
        for device in list(devices):
            if device.tag != "disk":
                devices.remove(device)
            for number in device.findall("address") + device.findall("alias"):
                device.remove(number)
    for element in domain.iter():
        element.text = (element.text or "").strip() or None
        element.tail = None
    return domain
