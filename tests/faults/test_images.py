# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images that do not stand alone, or not as they look; and headers that a guest or a tenant wrote.

The domains boot nothing: what matters is which images libvirt and QEMU have open, and what root does with them.
"""

from __future__ import annotations

import base64
import json
import re
import shlex
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import yaml
from playbook import TaskResult
from virtlab import BACKUP, IMAGES, Hypervisor

from .scene import Scene, Stage

MIB = 1 << 20
SECRET_UUID = "4a1c5c1e-6b0f-4f0e-9a53-0c7d1f2b9a10"
KEY = ["--object", "secret,id=key,data=key to the disks"]
ENCRYPTION = f"<encryption format='luks'><secret type='passphrase' uuid='{SECRET_UUID}'/></encryption>"
SLICE = "<slices><slice type='storage' offset='1048576' size='8388608'/></slices>"
#: A file of the host that only root may read, and a part of it that no image may ever have.
HOST_FILE, SECRET = "/root/of the host", b"only root may read this"


@contextmanager
def domain(hypervisor: Hypervisor, name: str, disks: list[tuple[str, str, str, str]]) -> Iterator[str]:
    """A domain that is off, and its folder; `disks` are target, format, file and what stands in <source>."""
    folder = f"{IMAGES}/{name}"
    elements = "".join(
        f"<disk type='file' device='disk'><driver name='qemu' type='{image_format}'/>"
        f"<source file='{folder}/{file}'>{inside}</source><target dev='{target}' bus='virtio'/></disk>"
        for target, image_format, file, inside in disks
    )
    hypervisor.virsh(
        "define",
        "/dev/stdin",
        stdin=f"""<domain type='qemu'><name>{name}</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
        <os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>
        <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{elements}
        <controller type='usb' model='none'/><memballoon model='none'/></devices></domain>""",
    )
    hypervisor.exec(["mkdir", "-p", "-m", "711", folder])
    try:
        yield folder
    finally:
        hypervisor.virsh("destroy", name, check=False)
        hypervisor.virsh("undefine", name, "--snapshots-metadata")
        hypervisor.exec(["rm", "-rf", folder, f"{BACKUP}/{name}"])


def run(stage: Stage, *tasks: dict[str, Any]) -> list[TaskResult]:
    """One play with these tasks on the hypervisor, each of which may fail. Return their results in order."""
    host = stage.hypervisor.name
    play = {"hosts": host, "gather_facts": False, "tasks": [{"ignore_errors": True, **task} for task in tasks]}
    path = stage.controller.folder / f"images-{stage.controller.runs}.yml"
    path.write_text(yaml.safe_dump([play]), encoding="utf-8")
    done = stage.controller.start(pipelining=True, playbook=str(path)).end()
    assert len(done.results) == len(tasks), done.output
    return list(done.results)


def module(module_name: str, **options: Any) -> dict[str, Any]:
    """One task."""
    return {f"virtops.libvirt.{module_name}": options}


def virsh(*arguments: str) -> dict[str, Any]:
    """One task that is virsh."""
    return {"ansible.builtin.command": {"argv": ["virsh", *arguments]}}


def codes(results: list[TaskResult]) -> list[str]:
    """What each task failed with, "" where it did not."""
    return [str(item.result.get("error_code", item.status if item.status != "ok" else "")) for item in results]


def verdicts(result: TaskResult) -> dict[str, str]:
    """The code of the preflight's refusal of each disk's image."""
    (guest,) = result.result["guests"]
    failed = [check for check in guest["checks"] if check["check"] == "images" and check["status"] == "failed"]
    return {check["disk"]: check["error_code"] for check in failed}


def holds(hypervisor: Hypervisor, image: str, image_format: str, byte: int, *options: str) -> bool:
    """Whether the image's first MiB is this byte all over."""
    read = ["-c", f"read -P {byte} 0 1M"]
    source = [image] if options else ["-f", image_format, image]
    return hypervisor.exec(["qemu-io", "-U", "-r", *read, *options, *source], check=False).returncode == 0


def write(hypervisor: Hypervisor, image: str, image_format: str, byte: int) -> None:
    """Fill the image's first MiB."""
    hypervisor.exec(["qemu-io", "-f", image_format, "-c", f"write -P {byte} 0 1M", image])


def make(hypervisor: Hypervisor, *arguments: str) -> None:
    """qemu-img create."""
    hypervisor.exec(["qemu-img", "create", "-q", *arguments])


def make_encrypted(hypervisor: Hypervisor, *arguments: str) -> None:
    """The same: on a fast or a busy machine QEMU may fail to measure what the key's derivation costs."""
    command = ["qemu-img", "create", "-q", *KEY, *arguments]
    assert any(hypervisor.exec(command, check=False).returncode == 0 for _unused in range(20))


def define_key(hypervisor: Hypervisor) -> None:
    """What libvirt gives to QEMU for the encrypted disks."""
    hypervisor.virsh(
        "secret-define",
        "/dev/stdin",
        stdin=f"<secret ephemeral='no' private='no'><uuid>{SECRET_UUID}</uuid><description>x</description></secret>",
    )
    key = hypervisor.outside("/root/key")
    key.write_text("key to the disks", encoding="utf-8")
    hypervisor.virsh("secret-set-value", SECRET_UUID, "--file", "/root/key", "--plain")
    key.unlink()


@pytest.fixture
def host(stage: Stage) -> Stage:
    """The hypervisor, whoever else is on it."""
    stage.up()
    return stage


def test_images_that_several_files_hold(host: Stage) -> None:
    """A qcow2 with a data file and a flat VMDK are converted: their copies can be opened when all else is gone."""
    hypervisor = host.hypervisor
    disks = [("vda", "qcow2", "head.qcow2", ""), ("vdb", "vmdk", "flat.vmdk", "")]
    with domain(hypervisor, "several", disks) as folder:
        make(hypervisor, "-f", "qcow2", "-o", f"data_file={folder}/data.raw", f"{folder}/head.qcow2", "8M")
        make(hypervisor, "-f", "vmdk", "-o", "subformat=monolithicFlat", f"{folder}/flat.vmdk", "8M")
        write(hypervisor, f"{folder}/head.qcow2", "qcow2", 0x61)
        write(hypervisor, f"{folder}/flat.vmdk", "vmdk", 0x62)
        # libvirt 9 gives QEMU's user neither of the files that the headers name
        hypervisor.exec(["chmod", "666", f"{folder}/data.raw", f"{folder}/flat-flat.vmdk"])
        results = run(
            host,
            module("snapshot_external", domain="several", name="off"),
            virsh("start", "several"),
            module("preflight_info", guests=["several"], dest=BACKUP, quiesce="never"),
            module("snapshot_external", domain="several", name="s"),
            module("image_backup", domain="several", snapshot="s", dest=BACKUP, method="copy"),
            module("image_backup", domain="several", snapshot="s", dest=BACKUP),
            module("block_commit", domain="several", snapshot="s", delete_merged=True),
        )
        assert codes(results) == ["image_foreign", "", "", "", "method_unsuitable", "", ""]
        assert verdicts(results[2]) == {}
        backup = results[5].result["backup"]
        assert {disk["file"]: disk["method"] for disk in backup["disks"]} == {
            "vda.qcow2": "convert",
            "vdb.vmdk": "convert",
        }
        hypervisor.virsh("destroy", "several")
        hypervisor.exec(
            ["rm", *(f"{folder}/{name}" for name in ("head.qcow2", "data.raw", "flat.vmdk", "flat-flat.vmdk"))]
        )
        assert holds(hypervisor, f"{backup['path']}/vda.qcow2", "qcow2", 0x61)
        assert holds(hypervisor, f"{backup['path']}/vdb.vmdk", "vmdk", 0x62)
        assert "dataStore" not in hypervisor.outside(f"{backup['path']}/domain.xml").read_text(encoding="utf-8")


def test_images_that_only_qemu_may_write(host: Stage) -> None:
    """Encrypted disks, and a slice of a file: refused before anything is made, and no offline merge ends their headers.

    What stands on an overlay already, as earlier releases left it, is merged once the guest runs.
    """
    hypervisor = host.hypervisor
    disks = [
        ("vda", "raw", "luks.raw", ENCRYPTION),
        ("vdb", "qcow2", "luks.qcow2", ENCRYPTION),
        ("vdc", "raw", "slice.raw", SLICE),
    ]
    with domain(hypervisor, "sealed", disks) as folder:
        define_key(hypervisor)
        for options in (
            ["-f", "luks", "-o", "key-secret=key,iter-time=100", f"{folder}/luks.raw"],
            [
                "-f",
                "qcow2",
                "-o",
                "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=100",
                f"{folder}/luks.qcow2",
            ],
        ):
            make_encrypted(hypervisor, *options, "8M")
        make(hypervisor, "-f", "raw", f"{folder}/slice.raw", "16M")
        for name, below in (("luks.raw", "raw"), ("luks.qcow2", "qcow2")):
            make(hypervisor, "-u", "-f", "qcow2", "-F", below, "-b", f"{folder}/{name}", f"{folder}/on-{name}", "8M")
            alone = {"driver": "qcow2", "backing": None, "file": {"driver": "file", "filename": f"{folder}/on-{name}"}}
            hypervisor.exec(["qemu-io", "-c", "write -P 99 0 1M", f"json:{json.dumps(alone)}"])
        overlays = [
            *("--diskspec", f"vda,file={folder}/on-luks.raw", "--diskspec", f"vdb,file={folder}/on-luks.qcow2"),
            *("--diskspec", "vdc,snapshot=no"),
        ]
        first = [{"name": name, "snapshot": "no"} for name in ("vdb", "vdc")]
        results = run(
            host,
            virsh("start", "sealed"),
            module("preflight_info", guests=["sealed"], dest=BACKUP, quiesce="never"),
            module("snapshot_external", domain="sealed", name="s"),
            module("snapshot_external", domain="sealed", name="s", disks=first),
            virsh("snapshot-create-as", "sealed", "old", "--no-metadata", "--disk-only", "--reuse-external", *overlays),
            module("image_backup", domain="sealed", overlays=[f"{folder}/on-luks.raw"], dest=BACKUP),
        )
        assert codes(results) == ["", "", "image_encrypted", "image_encrypted", "", "image_encrypted"]
        assert verdicts(results[1]) == {"vda": "image_encrypted", "vdb": "image_encrypted", "vdc": "image_sliced"}
        hypervisor.virsh("destroy", "sealed")
        merges = [
            module("block_commit", domain="sealed", disks=[disk], base=f"{folder}/{name}")
            for disk, name in (("vda", "luks.raw"), ("vdb", "luks.qcow2"))
        ]
        pull = module("block_pull", domain="sealed", disks=["vda"])
        results = run(host, *merges, pull, virsh("start", "sealed"), *merges)
        assert codes(results) == ["image_encrypted", "image_encrypted", "image_encrypted", "", "", ""]
        assert "Start the domain" in results[0].result["msg"]
        chains = hypervisor.virsh("domblklist", "sealed")
        assert [f"{folder}/{name}" in chains for name in ("luks.raw", "luks.qcow2")] == [True, True]
        hypervisor.virsh("destroy", "sealed")
        raw = f"driver=luks,key-secret=key,file.filename={folder}/luks.raw"
        qcow2 = f"driver=qcow2,encrypt.key-secret=key,file.filename={folder}/luks.qcow2"
        assert holds(hypervisor, raw, "", 99, *KEY, "--image-opts")
        assert holds(hypervisor, qcow2, "", 99, *KEY, "--image-opts")
    hypervisor.virsh("secret-undefine", SECRET_UUID)


def forged_header(backing: str) -> bytes:
    """A qcow2 of 256 KiB (docs/interop/qcow2.txt, version 2, clusters of 512 bytes) that is all its backing file.

    It fits into the first block of a raw disk, which ext4 leaves to boot loaders.
    """
    name = backing.encode()
    header = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", 2, 200, len(name), 9, 256 << 10, 0, 8, 512, 512, 1, 0, 0)
    extension = struct.pack(">II8s", 0xE2792ACA, 3, b"raw") + struct.pack(">II", 0, 0)
    return (header + extension).ljust(200, b"\0") + name


def name_data_file(hypervisor: Hypervisor, image: str, path: str) -> None:
    """Make an image whose data are in that file, which qemu-img itself would overwrite."""
    stand_in = path[:-1] + "_"
    make(hypervisor, "-f", "qcow2", "-o", f"data_file={stand_in},data_file_raw=on", image, "64K")
    hypervisor.exec(["rm", stand_in])
    with hypervisor.outside(image).open("r+b") as file:
        at = file.read(4096).index(stand_in.encode())
        file.seek(at)
        file.write(path.encode())


def forget_format(hypervisor: Hypervisor, image: str) -> None:
    """Take the backing file's format out of a header: old versions of qemu-img made such images."""
    with hypervisor.outside(image).open("r+b") as file:
        at = file.read(4096).index(struct.pack(">I", 0xE2792ACA))
        file.seek(at)
        file.write(struct.pack(">I", 0x12345678))


@contextmanager
def silent_server() -> Iterator[socket.socket]:
    """Whoever connects to it waits."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        yield server


def test_headers_that_lie(scene: Scene) -> None:
    """A guest forges a qcow2 on its raw disk; a tenant brings images whose headers name a host's file, and a server.

    None of it gets that file into a backup or an image, and nobody connects. The command that is told mends the first.
    """
    hypervisor, guest = scene.hypervisor, scene.member.guest
    secret = hypervisor.outside(HOST_FILE)
    secret.write_bytes(SECRET * 4096)
    secret.chmod(0o600)
    header = base64.b64encode(forged_header(HOST_FILE)).decode()
    guest.command(f"echo {header} | base64 -d | dd of=/dev/vda conv=notrunc,fsync 2>&1")
    disks = [(f"vd{letter}", "qcow2", f"{letter}.qcow2", "") for letter in "abc"]
    with silent_server() as server, domain(hypervisor, "tenant", disks) as folder:
        hypervisor.exec(["cp", "--sparse=always", f"{IMAGES}/web/vda.raw", f"{folder}/forged.raw"])
        make(hypervisor, "-f", "qcow2", "-F", "raw", "-b", f"{folder}/forged.raw", f"{folder}/below.qcow2")
        forget_format(hypervisor, f"{folder}/below.qcow2")
        make(hypervisor, "-u", "-f", "qcow2", "-F", "qcow2", "-b", f"{folder}/below.qcow2", f"{folder}/a.qcow2", "64M")
        name_data_file(hypervisor, f"{folder}/brought.qcow2", HOST_FILE)
        make(
            hypervisor, "-u", "-f", "qcow2", "-F", "qcow2", "-b", f"{folder}/brought.qcow2", f"{folder}/b.qcow2", "64K"
        )
        port = server.getsockname()[1]
        make(hypervisor, "-u", "-f", "qcow2", "-F", "raw", "-b", f"nbd://127.0.0.1:{port}/x", f"{folder}/c.qcow2", "1M")
        commit = {"domain": "tenant", "base": f"{folder}/below.qcow2", "disks": ["vda"]}
        results = run(
            scene.stage,
            module("preflight_info", guests=["tenant"], states=[], dest=BACKUP, quiesce="never"),
            module("block_info", domain="tenant"),
            module("image_backup", domain="tenant", overlays=[f"{folder}/a.qcow2"], dest=BACKUP),
            module("block_commit", **commit),
            module("block_pull", domain="tenant", disks=["vdb"]),
            module("block_pull", domain="tenant", disks=["vdc"]),
            module(
                "snapshot_external",
                domain="tenant",
                name="s",
                disks=[{"name": n, "snapshot": "no"} for n in ("vda", "vdb")],
            ),
        )
        assert codes(results) == [
            *("", "", "backing_format", "backing_format", "image_foreign", "image_foreign", "image_foreign"),
        ]
        assert verdicts(results[0]) == {"vda": "backing_format", "vdb": "image_foreign", "vdc": "image_foreign"}
        with pytest.raises(BlockingIOError):
            server.accept()
        assert not hypervisor.outside(f"{BACKUP}/tenant").exists()
        (command,) = re.findall(r"run: (qemu-img rebase .*?), where FORMAT", results[2].result["msg"])
        hypervisor.exec(shlex.split(command.replace("FORMAT", "raw")))
        (made,) = run(scene.stage, module("image_backup", domain="tenant", overlays=[f"{folder}/a.qcow2"], dest=BACKUP))
        assert codes([made]) == [""]
        copies = [f"{made.result['backup']['path']}/vda.qcow2", *(f"{folder}/{letter}.qcow2" for letter in "abc")]
        for image in copies:
            assert SECRET not in hypervisor.outside(image).read_bytes()
        compare = ["qemu-img", "compare", "-f", "qcow2", "-F", "raw", copies[0], f"{folder}/forged.raw"]
        assert "identical" in hypervisor.exec(compare).stdout
    guest.command("dd if=/dev/zero of=/dev/vda bs=512 count=1 conv=notrunc,fsync 2>&1")
    secret.unlink()
    scene.before.assert_normal_end(sets=0)
