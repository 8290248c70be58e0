# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""backup_restore on libvirt's in-process driver, with real sets and real files.

Each test that dies does so at each call in turn that changes something, and runs again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

libvirt = pytest.importorskip("libvirt")
pytest.importorskip("lxml")

from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Outcome  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._core.ports import Silent  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._core.restore import (  # noqa: E402
    DiskChoice,
    HostLacks,
    HostNeeds,
    RestoreOptions,
    RestoreOrder,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._host.copy import ImageCopier  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._host.images import Images  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._host.locks import Slots  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._host.restore import Places, SetReader  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._libvirt.connection import Connection  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._libvirt.domain import Domain  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._libvirt.restore import RestoreHost  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._service.guest import Guest  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._service.recover import (  # noqa: E402
    RecoverOptions,
    Recovery,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._service.restore import Restore  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._service.restore_end import RestoreEnd  # noqa: E402

from .fakes import Died, FakeClock, FakeWatchdog  # noqa: E402

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-utils is not installed")

UUID = "11111111-2222-4333-8444-555555555555"
STAMP, TAKEN = "20261120T120000Z", "2026-11-20T12:00:00Z"
OTHER = (
    "<node><domain type='test'><name>other</name><uuid>6695eb01-f6a4-8304-79aa-97f2502e193f</uuid>"
    "<memory>8192</memory><os><type arch='i686'>hvm</type></os></domain></node>"
)
WEB = """\
<domain type='test'>
  <name>web</name>
  <uuid>%(uuid)s</uuid>
  <memory>8192</memory>
  <os>
    <type arch='i686'>hvm</type>
    <kernel>%(root)s/vmlinuz</kernel>
    <loader readonly='yes' type='pflash'>%(root)s/CODE.fd</loader>
    <nvram>%(root)s/web_VARS.fd</nvram>
  </os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' discard='unmap'/>
      <source file='%(root)s/web.raw'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='%(root)s/web-data.qcow2'/>
      <target dev='vdb' bus='virtio'/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/>
      <source file='%(root)s/scratch.raw'/>
      <target dev='vdc' bus='virtio'/>
    </disk>
    <interface type='network'>
      <mac address='52:54:00:11:22:33'/>
      <source network='default'/>
    </interface>
    <tpm model='tpm-tis'>
      <backend type='emulator' version='2.0'/>
    </tpm>
  </devices>
</domain>
"""


@dataclass
class Deaths:
    """Where the run dies: at which of the calls that change something."""

    at: int = 0
    seen: list[str] = field(default_factory=list)

    def wrap(self, thing: Any, *names: str) -> Any:
        deaths = self

        class Dying:
            def __getattr__(self, name: str) -> Any:
                found = getattr(thing, name)
                if name not in names:
                    return found

                def call(*arguments: Any) -> Any:
                    deaths.seen.append(name)
                    if len(deaths.seen) == deaths.at:
                        raise Died(name)
                    done = found(*arguments)
                    return deaths.wrap(done, "define", "write_journal", "set_autostart") if name == "domain" else done

                return call

        return Dying()


class Sets(SetReader):
    """As the helper has it, in this process."""

    def __init__(self, root: Path) -> None:
        super().__init__(
            ImageCopier(
                lambda _done, _life: None, FakeClock(), lambda count: Slots(count, directories=lambda: [str(root)])
            )
        )
        self._root = root
        self.before_copy: Callable[[], None] = lambda: None

    def machine(self) -> str:
        return "machine"

    def tpm_root(self) -> str:
        return str(self._root / "swtpm")

    def restore_all(self, orders: tuple[RestoreOrder, ...], path: str, parallel: int, *_more: Any) -> dict[str, int]:
        self.before_copy()
        return super().restore_all(orders, path, parallel)


class Host(RestoreHost):
    """The test driver tells nothing of QEMU."""

    found = HostLacks()
    needs: HostNeeds | None = None

    def lacks(self, needs: HostNeeds) -> HostLacks:
        self.needs = needs
        return self.found


class QuickImages(Images):
    """Nobody has an image open, but in the one test of that: a look at all processes takes long."""

    looks = False

    def holders(self, path: str) -> tuple[int, ...]:
        return super().holders(path) if self.looks else ()


@dataclass
class World:
    root: Path
    host: Host
    connection: Connection
    deaths: Deaths = field(default_factory=Deaths)
    images: QuickImages = field(default_factory=QuickImages)

    def restore(self, check: bool = False, **options: Any) -> Outcome:
        host = self.deaths.wrap(self.host, "define", "domain")
        places = self.deaths.wrap(Places(), "give", "put", "put_new", "make_folder", "remove", "drop_folder")
        self.sets = Sets(self.root)
        sets = self.deaths.wrap(self.sets, "restore_all")
        given = RestoreOptions(**{"src": str(self.root / "backup" / "web"), **options})
        lock: Any = lambda _name, _uuid: nullcontext()  # noqa: E731
        return Restore(given, host, sets, places, self.images, FakeClock(), Silent(), lock).run(check)

    def recover(self) -> Outcome:
        domain = Domain(self.connection, "web")
        end = RestoreEnd(domain, self.images, Places(), str(self.root / "swtpm"))
        guest = Guest(domain, self.images, FakeClock(), FakeWatchdog())
        return Recovery(RecoverOptions(), guest, restores=end).run(False)

    def definition(self, name: str = "web") -> str:
        return str(self.connection.handle.lookupByName(name).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))

    def path(self, name: str) -> Path:
        return self.root / name

    def files(self) -> list[str]:
        left = (path for path in self.root.rglob("*") if path.is_file() and "backup" not in path.parts)
        return sorted(str(path.relative_to(self.root)) for path in left if path.name not in ("node.xml", "CODE.fd"))

    def content(self) -> dict[str, str]:
        return {name: digest(self.path(name)) for name in self.files()}

    def domains(self) -> list[str]:
        return sorted(domain.name() for domain in self.connection.handle.listAllDomains())

    @property
    def set(self) -> Path:
        return self.root / "backup" / "web" / STAMP


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@functools.cache
def empty_qcow2() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "image")
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1M"], check=True)
        return Path(path).read_bytes()


def image(path: Path, image_format: str, word: bytes) -> None:
    if image_format == "qcow2":
        path.write_bytes(empty_qcow2())
        return
    with path.open("wb") as file:
        file.truncate(1 << 20)
        file.seek(300000)
        file.write(word)


def make_set(root: Path) -> None:
    folder = root / "backup" / "web" / STAMP
    folder.mkdir(parents=True)
    for one in (root / "backup", root / "backup" / "web", folder):
        one.chmod(0o700)
    image(folder / "vda.raw", "raw", b"what the backup has")
    image(folder / "vdb.qcow2", "qcow2", b"")
    (folder / "nvram.fd").write_bytes(b"variables")
    (folder / "tpm2-00.permall").write_bytes(b"secrets")
    (folder / "kernel").write_bytes(b"boots")
    (folder / "domain.xml").write_text(WEB % {"uuid": UUID, "root": root})

    def plain(file: str) -> dict[str, Any]:
        return {"file": file, "bytes": (folder / file).stat().st_size, "sha256": digest(folder / file)}

    def disk(target: str, source: str, image_format: str) -> dict[str, Any]:
        return {
            **plain("%s.%s" % (target, image_format)),
            "target": target,
            "source": str(root / source),
            "source_format": image_format,
            "format": image_format,
            "virtual_size": 1 << 20,
            "allocated": 4096,
            "method": "copy",
            "backing": None,
        }

    tpm = "%s/swtpm/%s/tpm2/tpm2-00.permall" % (root, UUID)
    manifest = {
        "schema_version": 1,
        "operation": "o",
        "snapshot": None,
        "domain": {"name": "web", "uuid": UUID},
        "hypervisor": "hv",
        "machine": "m",
        "times": {"snapshot": TAKEN, "started": TAKEN, "finished": TAKEN},
        "consistency": "crash",
        "domain_xml": "domain.xml",
        "autostart": True,
        "nvram": None,
        "extras": [
            {**plain("nvram.fd"), "kind": "NVRAM", "source": "%s/web_VARS.fd" % root, "taken": TAKEN},
            {**plain("kernel"), "kind": "kernel", "source": "%s/vmlinuz" % root, "taken": TAKEN},
            {**plain("kernel"), "kind": "kernel", "source": "/etc/passwd", "taken": TAKEN},
            {**plain("tpm2-00.permall"), "kind": "TPM state", "source": tpm, "taken": TAKEN},
        ],
        "lacks": [{"kind": "disk", "name": "vdc", "source": None, "reason": "the snapshot does not have it"}],
        "disks": [disk("vda", "web.raw", "raw"), disk("vdb", "web-data.qcow2", "qcow2")],
    }
    rewrite(folder, manifest)


def rewrite(folder: Path, manifest: dict[str, Any]) -> None:
    """The manifest, and the sums as they then are."""
    (folder / "manifest.json").write_text(json.dumps(manifest))
    files = [path for path in sorted(folder.iterdir()) if path.name != "SHA256SUMS"]
    (folder / "SHA256SUMS").write_text("".join("%s  %s\n" % (digest(path), path.name) for path in files))


@contextmanager
def worlds(root: Path) -> Iterator[World]:
    (root / "node.xml").write_text(OTHER)
    (root / "CODE.fd").write_bytes(b"")
    make_set(root)
    with Connection("test://%s/node.xml" % root) as connection:
        yield World(root, Host(connection), connection)


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory: what is synced here is a lot, and no disk loses its power."""
    shared = "/dev/shm" if os.path.isdir("/dev/shm") else str(tmp_path)
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        yield Path(folder)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with worlds(tmp_path) as found:
        yield found


@pytest.fixture
def used(world: World) -> World:
    """The host has the guest, with other data, off."""
    make_used(world)
    return world


TPM = "swtpm/%s/tpm2/tpm2-00.permall" % UUID
PLACES = {
    "web.raw": "vda.raw",
    "web-data.qcow2": "vdb.qcow2",
    "web_VARS.fd": "nvram.fd",
    "vmlinuz": "kernel",
    TPM: "tpm2-00.permall",
}


def assert_restored(world: World, others: tuple[str, ...] = ()) -> None:
    """All at its place, nothing beside it, and no operation in the journal."""
    assert world.files() == sorted((*PLACES, *others))
    for place, file in PLACES.items():
        assert digest(world.path(place)) == digest(world.set / file), place
    definition = world.definition()
    assert ".restoring-" not in definition
    assert "<virtops:operation" not in definition
    assert "52:54:00:11:22:33" in definition
    assert world.connection.handle.lookupByName("web").UUIDString() == UUID


def test_a_guest_that_the_host_does_not_have(world: World) -> None:
    before = world.content()
    foreseen = world.restore(check=True)
    assert (world.domains(), world.content()) == (["other"], before)
    done = world.restore()
    assert (foreseen.steps, foreseen.before, foreseen.after) == (done.steps, done.before, done.after)
    assert done.values["domain"] == {"name": "web", "uuid": UUID, "state": "shut off"}
    assert_restored(world)
    assert world.connection.handle.lookupByName("web").autostart() == 1
    assert "The disk vdc is not in the backup: the snapshot does not have it." in done.warnings
    assert world.path("vmlinuz").stat().st_mode & 0o777 == 0o644
    for check in (False, True):
        again = world.restore(check=check)
        assert not again.changed
        assert again.before == again.after


def test_a_copy_beside_the_original(used: World) -> None:
    before, definition = used.content(), used.definition()
    done = used.restore(domain="copy", start=True)
    copy = used.definition("copy")
    uuid = used.connection.handle.lookupByName("copy").UUIDString()
    assert UUID not in copy
    assert "52:54:00:11:22:33" not in copy
    assert "%s/copy_VARS.fd" % used.root in copy
    # It would write to a disk of the original
    assert "scratch.raw" not in copy
    assert any("does not get the disk vdc" in warning for warning in done.warnings)
    assert used.definition() == definition
    new = {name: value for name, value in used.content().items() if name not in before}
    assert new.keys() == {
        "copy.vda.raw",
        "copy.vdb.qcow2",
        "copy_VARS.fd",
        "vmlinuz",
        "swtpm/%s/tpm2/tpm2-00.permall" % uuid,
    }
    assert {name: value for name, value in used.content().items() if name in before} == before
    assert done.values["domain"] == {"name": "copy", "uuid": uuid, "state": "running"}
    assert used.connection.handle.lookupByName("copy").autostart() == 0
    assert not used.restore(domain="copy", start=True).changed


def test_in_place(used: World) -> None:
    """The definition that was there goes, and so do the images; what the set does not have stays."""
    done = used.restore(overwrite=True)
    assert_restored(used, ("scratch.raw",))
    assert used.path("web.raw").stat().st_mode & 0o777 == 0o640
    assert any("scratch.raw" in warning for warning in done.warnings)
    assert not used.restore(overwrite=True).changed
    with used.path("web.raw").open("r+b") as file:
        file.write(b"used since")
    assert not used.restore().changed
    assert used.restore(overwrite=True).changed
    assert_restored(used, ("scratch.raw",))


def test_what_a_guest_starts_from(used: World) -> None:
    """Other guests may start from it, so it is only put where nothing is."""
    used.path("vmlinuz").write_bytes(b"other")
    done = used.restore(overwrite=True)
    assert used.path("vmlinuz").read_bytes() == b"other"
    assert any("kernel" in warning and "another file" in warning for warning in done.warnings)


def test_to_other_folders(used: World) -> None:
    """The old images stay, and are told."""
    used.path("fast").mkdir()
    done = used.restore(overwrite=True, dest=str(used.path("fast")))
    assert digest(used.path("fast/web.vda.raw")) == digest(used.set / "vda.raw")
    assert "%s/fast/web.vda.raw" % used.root in used.definition()
    assert any("%s/web.raw" % used.root in warning for warning in done.warnings)
    assert used.path("web.raw").exists()


def test_single_disks(used: World) -> None:
    target = str(used.path("vda-then.raw"))
    wish: dict[str, Any] = {"disks": (DiskChoice("vda", target),)}
    definition = used.definition()
    done = used.restore(**wish)
    assert digest(used.path("vda-then.raw")) == digest(used.set / "vda.raw")
    assert used.definition() == definition
    assert not used.restore(**wish).changed
    assert done.values["disks"] == used.restore(check=True, **wish).values["disks"]
    used.path("vda-then.raw").write_bytes(b"somebody's")
    assert_refused(used, "image_exists", **wish)
    # In place
    assert_refused(used, "domain_exists", disks=(DiskChoice("vda"),))
    nvram = used.path("web_VARS.fd").read_bytes()
    used.restore(disks=(DiskChoice("vda"),), overwrite=True)
    assert digest(used.path("web.raw")) == digest(used.set / "vda.raw")
    assert used.path("web_VARS.fd").read_bytes() == nvram
    assert used.definition() == definition


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "in place"])
def test_a_death_at_each_call(tmp_path: Path, overwrite: bool) -> None:
    """Before the domain is defined the old one is untouched; each time the next run, or the recovery, ends it."""
    others = ("scratch.raw",) if overwrite else ()
    at = 0
    while True:
        at += 1
        root = tmp_path / str(at)
        root.mkdir()
        with worlds(root) as world:
            if overwrite:
                make_used(world)
            old, domains = world.content(), world.domains()
            definition = world.definition() if overwrite else ""
            world.deaths = Deaths(at)
            done: list[str] = []
            try:
                world.restore(overwrite=overwrite)
            except Died:
                done = world.deaths.seen[:-1]
            else:
                break
            if "define" not in done:
                now = world.content()
                assert {name: now[name] for name in old} == old
                assert world.domains() == domains
                assert not overwrite or world.definition() == definition
            world.deaths = Deaths()
            if "define" in done and at % 2:
                assert world.recover().changed is ("write_journal" not in done)
            world.restore(overwrite=overwrite)
            assert_restored(world, others)
            assert not world.restore(overwrite=overwrite).changed
    assert at > 12


def make_used(world: World) -> None:
    """As the fixture `used`."""
    world.connection.handle.defineXML(WEB % {"uuid": UUID, "root": world.root})
    image(world.path("web.raw"), "raw", b"what the guest has now")
    image(world.path("web-data.qcow2"), "qcow2", b"")
    image(world.path("scratch.raw"), "raw", b"not in the backup")
    world.path("web.raw").chmod(0o640)
    world.path("web_VARS.fd").write_bytes(b"other variables")
    world.path("swtpm/%s/tpm2" % UUID).mkdir(parents=True)
    world.path(TPM).write_bytes(b"other secrets")


def assert_refused(world: World, code: str, words: str = "", **options: Any) -> None:
    before = world.content(), world.domains()
    for check in (True, False):
        with pytest.raises(VirtopsError) as caught:
            world.restore(check=check, **options)
        assert (caught.value.code, words in caught.value.cause) == (code, True), caught.value
    assert (world.content(), world.domains()) == before


def flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(300000 if path.suffix == ".raw" else 4)
        file.write(b"\xff")


def swap(world: World) -> None:
    (world.set / "domain.xml").write_text(WEB % {"uuid": UUID[::-1].replace("5", "6"), "root": world.root})
    rewrite(world.set, json.loads((world.set / "manifest.json").read_text()))


DAMAGES: dict[str, tuple[str, str, Callable[[World], object]]] = {
    "a bit of the definition": ("set_damaged", "domain.xml", lambda world: flip(world.set / "domain.xml")),
    "a short image": ("set_damaged", "vda.raw", lambda world: os.truncate(world.set / "vda.raw", 5)),
    "no image": ("set_damaged", "vdb.qcow2", lambda world: (world.set / "vdb.qcow2").unlink()),
    "another domain's definition": ("set_damaged", "domain.xml is of", swap),
    "no set": ("set_missing", "", lambda world: shutil.rmtree(world.set)),
    "others may write": ("dest_not_private", "", lambda world: world.set.chmod(0o777)),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_set(world: World, name: str) -> None:
    code, words, damage = DAMAGES[name]
    damage(world)
    assert_refused(world, code, words, src=str(world.set))


@pytest.mark.parametrize("file", ["vda.raw", "vdb.qcow2", "nvram.fd", "tpm2-00.permall"])
def test_a_bit_of_a_file(used: World, file: str) -> None:
    """Found while it is copied, as whole files are hashed only then: nothing of it stays."""
    flip(used.set / file)
    os.truncate(used.set / file, json_size(used, file))
    before, definition = used.content(), used.definition()
    with pytest.raises(VirtopsError) as caught:
        used.restore(overwrite=True)
    assert (caught.value.code, file in caught.value.cause) == ("set_damaged", True)
    assert caught.value.actions == ()
    assert (used.content(), used.definition()) == (before, definition)


def json_size(world: World, file: str) -> int:
    manifest = json.loads((world.set / "manifest.json").read_text())
    return int(next(one["bytes"] for one in (*manifest["disks"], *manifest["extras"]) if one["file"] == file))


def test_an_image_that_names_another_file(world: World) -> None:
    """Whoever made the set: the guest must not get to read this host's files."""
    secret = world.path("backup/secret")
    secret.write_bytes(bytes(1 << 20))
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(secret), "-F", "raw", str(world.set / "vdb.qcow2"), "1M"],
        check=True,
    )
    manifest = json.loads((world.set / "manifest.json").read_text())
    manifest["disks"][1].update(bytes=(world.set / "vdb.qcow2").stat().st_size, sha256=digest(world.set / "vdb.qcow2"))
    rewrite(world.set, manifest)
    with pytest.raises(VirtopsError) as caught:
        world.restore()
    assert (caught.value.code, "secret" in caught.value.cause) == ("set_damaged", True)
    assert world.files() == []


def test_what_is_in_the_way(used: World) -> None:
    assert_refused(used, "domain_exists")
    assert_refused(used, "bad_option", dest="/a", pool="b")
    assert_refused(used, "bad_option", disks=())
    assert_refused(used, "bad_option", uuid="new")
    assert_refused(used, "unsafe_name", domain="../web")
    assert_refused(used, "no_such_disk", disks=(DiskChoice("vdx"),))
    assert_refused(used, "dest_missing", overwrite=True, dest=str(used.root / "nowhere"))
    assert_refused(used, "domain_exists", "other", domain="other")
    assert_refused(used, "domain_exists", "web", domain="renamed", uuid="keep")
    assert_refused(used, "pool_unsuitable", overwrite=True, pool="nowhere")
    assert_refused(used, "bad_path", disks=(DiskChoice("vda", "/a/../b"),))
    assert_refused(used, "restore_device", disks=(DiskChoice("vda", "/dev/loop0"),))
    used.path("copy.vda.raw").write_bytes(b"somebody's")
    assert_refused(used, "image_exists", domain="copy")
    used.path("copy.vda.raw").unlink()
    used.path("copy.vda.raw").symlink_to(used.path("web.raw"))
    assert_refused(used, "base_shared", domain="copy")
    domain = used.connection.handle.lookupByName("web")
    domain.snapshotCreateXML("<domainsnapshot><name>s</name></domainsnapshot>")
    assert_refused(used, "has_snapshots", overwrite=True)
    domain.snapshotLookupByName("s").delete()
    domain.create()
    assert_refused(used, "guest_running", overwrite=True)
    assert_refused(used, "guest_running", overwrite=True, disks=(DiskChoice("vda"),))
    domain.destroy()
    used.images.looks = True
    with used.path("web.raw").open("rb"):
        assert_refused(used, "image_locked", overwrite=True)


def test_another_domain_has_the_image(world: World) -> None:
    definition = WEB.replace("<name>web", "<name>thief") % {"uuid": UUID[::-1], "root": world.root}
    world.connection.handle.defineXML(definition)
    image(world.path("web.raw"), "raw", b"the thief's")
    assert_refused(world, "base_shared")


def test_what_the_host_lacks(world: World) -> None:
    world.path("CODE.fd").unlink()
    world.host.found = HostLacks(soft=("the network default of libvirt",))
    assert_refused(world, "host_lacks", "CODE.fd", start=True)
    done = world.restore(check=True)
    assert sum("the guest will not start" in warning for warning in done.warnings) == 3  # and scratch.raw
    assert world.host.needs is not None
    assert world.host.needs.networks == ("default",)
    world.host.found = HostLacks(hard=("the CPU model Z80",))
    assert_refused(world, "host_lacks", "Z80")


def test_a_guest_that_is_started_meanwhile(used: World) -> None:
    """Between the look and the definition: it goes on as it was, and nothing of the copies stays."""
    before = used.content()
    give = Places.give

    def start(self: Places, path: str, like: Any) -> None:
        give(self, path, like)
        domain = used.connection.handle.lookupByName("web")
        if not domain.isActive():
            domain.create()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Places, "give", start)
        with pytest.raises(VirtopsError) as caught:
            used.restore(overwrite=True)
    assert caught.value.code == "guest_running"
    assert used.content() == before


def test_the_newest_set(world: World) -> None:
    """One that is damaged is not the newest."""
    later = world.set.parent / "20261121T120000Z"
    shutil.copytree(world.set, later)
    later.chmod(0o700)
    manifest = json.loads((later / "manifest.json").read_text())
    manifest["times"] = dict.fromkeys(manifest["times"], "2026-11-21T12:00:00Z")
    rewrite(later, manifest)
    assert isinstance(world.restore(check=True).values["backup"], dict)
    assert world.restore(check=True).values["backup"]["path"] == str(later)  # type: ignore[index]
    (later / "vda.raw").unlink()
    assert world.restore(check=True).values["backup"]["path"] == str(world.set)  # type: ignore[index]
    (warned,) = (text for text in world.restore(check=True).warnings if "passed over" in text)
    assert "20261121T120000Z (damaged: vda.raw is missing)" in warned


def test_a_set_of_another_domain(world: World) -> None:
    """In the folder of a guest it is not its newest set; nor is it restored in the name of another guest."""
    other = world.set.parent.with_name("db")
    shutil.copytree(world.set.parent, other)
    for folder in (other, other / STAMP):
        folder.chmod(0o700)
    with pytest.raises(VirtopsError) as caught:
        world.restore(src=str(other))
    assert (caught.value.code, "it is of the domain web" in caught.value.cause) == ("set_missing", True)
    for options in ({}, {"domain": "copy"}, {"guest": "db"}):
        with pytest.raises(VirtopsError) as caught:
            world.restore(**{"src": str(other / STAMP), **options})
        assert (caught.value.code, "is of the domain web" in caught.value.cause) == ("set_foreign", True)
    with pytest.raises(VirtopsError) as caught:
        world.restore(guest="db", overwrite=True)
    assert caught.value.code == "set_foreign"
    for options in ({"domain": "web"}, {"guest": "web"}):
        assert world.restore(check=True, **{"src": str(other / STAMP), **options}).changed
