# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A trial reaches nothing but its own overlays; and what cannot be tried is refused."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core import xml
from ansible_collections.virtops.libvirt.plugins.module_utils._core.choose_sets import Choice
from ansible_collections.virtops.libvirt.plugins.module_utils._core.drill import (
    DrillOptions,
    plan_drill,
    require_pattern,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.sets import BackupSet

SRC = "/srv/backup/web/20261120T120000Z"
DOMAIN = """
<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web</name><uuid>11111111-1111-4111-8111-111111111111</uuid>
  <metadata><app:own xmlns:app='urn:app'/></metadata>
  <memory unit='KiB'>4194304</memory><currentMemory unit='KiB'>4194304</currentMemory>
  <memoryBacking><hugepages/></memoryBacking><vcpu>2</vcpu>
  <cputune><vcpupin vcpu='0' cpuset='1'/></cputune><resource><partition>/vms</partition></resource>
  <sysinfo type='smbios'><system><entry name='uuid'>11111111-1111-4111-8111-111111111111</entry></system></sysinfo>
  <os><type machine='q35'>hvm</type><loader type='pflash'>/usr/share/OVMF_CODE.fd</loader>
    <nvram template='/usr/share/OVMF_VARS.fd'>/var/lib/libvirt/qemu/nvram/web_VARS.fd</nvram>
    <kernel>/boot/vmlinuz</kernel></os>
  <cpu mode='host-model'><numa><cell id='0' cpus='0-1' memory='4194304'/></numa></cpu>
  <on_reboot>restart</on_reboot>
  <devices>
    <disk type='block' device='disk'><driver name='qemu' type='raw' cache='none' io='native'/>
      <source dev='/dev/vg/web'><reservations managed='yes'/></source>
      <backingStore/><target dev='vda' bus='virtio'/><iotune><read_bytes_sec>1</read_bytes_sec></iotune>
      <shareable/><boot order='1'/><address type='pci' bus='0x04'/></disk>
    <disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='/iso/seed.iso'/>
      <target dev='sda' bus='sata'/><readonly/></disk>
    <disk type='network' device='disk'><source protocol='rbd' name='pool/vol'/><target dev='vdb' bus='virtio'/></disk>
    <controller type='usb'/>
    <interface type='bridge'><source bridge='br0'/></interface>
    <serial type='tcp'><source mode='bind' host='0.0.0.0' service='4555'/></serial>
    <channel type='unix'><source mode='bind' path='/run/agent.sock'/>
      <target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>
    <graphics type='vnc' port='5900' listen='0.0.0.0' passwd='secret'/>
    <hostdev mode='subsystem' type='pci'/>
    <filesystem type='mount'><source dir='/srv/share'/><target dir='share'/></filesystem>
    <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
    <rng model='virtio'><backend model='egd' type='tcp'/></rng>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
  </devices>
  <seclabel type='static' model='dac'><label>+0:+0</label></seclabel>
  <qemu:commandline><qemu:arg value='-netdev'/></qemu:commandline>
</domain>
"""
TRIAL = xml.Trial(
    name="drill-web",
    uuid="22222222-2222-4222-8222-222222222222",
    disks={"vda": xml.TrialDisk("/scratch/vda.qcow2", "/scratch/vda.nbd")},
    console="/scratch/console.log",
    nvram="/scratch/nvram",
    boot={"kernel": "/scratch/kernel"},
    memory=1 << 30,
)
DISK: dict[str, Any] = {"target": "vda", "file": "vda.raw", "format": "raw", "virtual_size": 1 << 30, "backing": None}


@pytest.fixture
def trial() -> ElementTree.Element:
    return ElementTree.fromstring(xml.isolated(DOMAIN, TRIAL)[0])


def test_it_has_nothing_that_leads_out(trial: ElementTree.Element) -> None:
    """All that names a path, an address or a device of the host is one of the trial's."""
    text = ElementTree.tostring(trial, encoding="unicode")
    for word in ("br0", "4555", "agent.sock", "spice", "vnc", "hostdev", "/srv/share", "tpm", "egd", "seed.iso"):
        assert word not in text
    for word in ("rbd", "/dev/vg/web", "hugepages", "vcpupin", "partition", "seclabel", "netdev", "11111111", "app:"):
        assert word not in text
    assert {path.text for path in trial.iterfind("os/*") if (path.text or "").startswith("/scratch")} == {
        "/scratch/nvram",
        "/scratch/kernel",
    }
    assert {found.get("path") for found in trial.iterfind("devices/*/source[@path]")} == {"/scratch/console.log"}
    assert [found.text for name in ("on_poweroff", "on_reboot", "on_crash") for found in trial.iterfind(name)] == [
        *["destroy"] * 3
    ]


def test_what_it_has_not_is_named() -> None:
    left_out = xml.isolated(DOMAIN, TRIAL)[1]
    assert left_out[:4] == ("network interfaces", "hostdev", "filesystem", "graphics")
    assert set(left_out[4:]) == {"TPM", "rng", "medium in sda", "disk vdb", "its own settings of commandline"}


def test_its_disks_are_overlays_on_what_is_served(trial: ElementTree.Element) -> None:
    """Where and how they sit in the guest stays; the drive without a medium stays, too."""
    vda, sda = trial.findall("devices/disk")
    assert vda.attrib == {"type": "file", "device": "disk"}
    assert [child.tag for child in vda] == ["driver", "source", "backingStore", "target", "boot", "address"]
    assert vda.find("driver").attrib == {"name": "qemu", "type": "qcow2", "cache": "unsafe"}  # type: ignore[union-attr]
    assert vda.find("source").get("file") == "/scratch/vda.qcow2"  # type: ignore[union-attr]
    host = vda.find("backingStore[@type='network']/source[@protocol='nbd']/host")
    assert host is not None
    assert host.attrib == {"transport": "unix", "socket": "/scratch/vda.nbd"}
    assert vda.find("backingStore/backingStore") is not None
    assert (sda.get("device"), sda.find("source")) == ("cdrom", None)


def test_its_memory_is_limited(trial: ElementTree.Element) -> None:
    assert [trial.findtext(name) for name in ("memory", "currentMemory")] == [str(1 << 20)] * 2
    assert trial.find("cpu/numa") is None
    same = ElementTree.fromstring(xml.isolated(DOMAIN, xml.Trial(**{**vars(TRIAL), "memory": 0}))[0])
    assert same.findtext("memory") == "4194304"
    assert same.find("cpu/numa") is not None


def made(**changes: Any) -> BackupSet:
    manifest: dict[str, Any] = {"disks": [DISK], "extras": [], "nvram": None, **changes}
    return BackupSet(SRC, "complete", domain="web", manifest=manifest)


def test_a_plan() -> None:
    extras = [{"kind": "kernel", "file": "vmlinuz"}, {"kind": "TPM state", "file": "tpm2-00.permall"}]
    plan = plan_drill(made(extras=extras, nvram={"file": "nvram.fd"}))
    assert plan.name == "drill-web-20261120T120000Z"
    assert (plan.nvram, plan.boot) == ("nvram.fd", {"kernel": "vmlinuz"})
    assert [(image.target, image.file, image.format) for image in plan.images] == [("vda", "vda.raw", "raw")]


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (made(disks=[{**DISK, "backing": {"path": "/b", "format": "raw"}}]), "set_not_alone"),
        (BackupSet(SRC, "damaged", why="vda.raw is missing", manifest={}), "set_damaged"),
        (BackupSet(SRC, "unknown", why="it is newer"), "set_damaged"),
    ],
)
def test_what_cannot_be_tried_is_refused(found: BackupSet, code: str) -> None:
    with pytest.raises(VirtopsError) as caught:
        plan_drill(found)
    assert caught.value.code == code


def test_a_pattern_that_is_none_is_refused() -> None:
    require_pattern(DrillOptions(Choice(), 60, "login:"))
    with pytest.raises(VirtopsError) as caught:
        require_pattern(DrillOptions(Choice(), 60, "[("))
    assert caught.value.code == "bad_pattern"
