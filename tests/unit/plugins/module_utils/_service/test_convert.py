# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""image_convert on libvirt's in-process driver: definitions are real, images are told by a fake."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

libvirt = pytest.importorskip("libvirt")
pytest.importorskip("lxml")

from ansible_collections.virtops.libvirt.plugins.module_utils._core.convert import ConvertOptions  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._core.journal import Journal  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import ImageInfo, Layer, Outcome  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._libvirt.connection import Connection  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._libvirt.domain import Domain  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._service.convert import Convert  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._service.guest import Guest  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._service.recover import (  # noqa: E402
    RecoverOptions,
    Recovery,
)

from .fakes import Died, FakeClock, FakeImages, FakeWatchdog  # noqa: E402

DISK = (
    "<disk type='%s' device='disk'><driver name='qemu' type='%s' discard='unmap'/>"
    "<source %s/><target dev='%s'/>%s</disk>"
)
NODE = (
    "<node><domain type='test'><name>test</name><uuid>6695eb01-f6a4-8304-79aa-97f2502e193f</uuid>"
    "<memory>8192</memory><os><type arch='i686'>hvm</type></os><devices>"
    + DISK % ("file", "raw", "file='/img/a.raw'", "vda", "")
    + DISK % ("file", "qcow2", "file='/img/b'", "vdb", "")
    + DISK % ("file", "raw", "file='/img/c'", "vdc", "")
    + DISK % ("file", "raw", "file='/img/d.img'", "vdd", "<shareable/>")
    + "<disk type='file' device='cdrom'><target dev='hda' bus='ide'/><readonly/></disk></devices></domain></node>"
)
RAW = {"/img/a.raw": ("raw", None), "/img/b": ("qcow2", None), "/img/c": ("raw", None), "/img/d.img": ("raw", None)}
NEW = {"vda": "/img/a.qcow2", "vdc": "/img/c.qcow2"}


class Images(FakeImages):
    """A conversion holds what its source holds."""

    def convert(self, source: Layer, path: str) -> None:
        self.backing[path] = ("qcow2", None)  # what is there of an image when it fails
        self._call("convert", source.path, path)

    def info(self, path: str, image_format: str | None = None) -> ImageInfo:
        return replace(super().info(path, image_format), virtual_size=self.identity(path).size)

    def rename(self, path: str, name: str) -> None:
        self._call("rename", path, name)
        self.backing[name] = self.backing.pop(path)


@pytest.fixture
def images() -> Images:
    images = Images(RAW)
    images.same = True
    return images


@pytest.fixture
def domain(tmp_path: Path) -> Iterator[Domain]:
    """It is off."""
    (tmp_path / "node.xml").write_text(NODE)
    with Connection(f"test://{tmp_path}/node.xml") as connection:
        found = Domain(connection, "test")
        found.power_off()
        yield found
        found.close()


def convert(domain: Domain, images: Images, check: bool = False, **wish: Any) -> Outcome:
    return Convert(ConvertOptions(**wish), Guest(domain, images, FakeClock(), FakeWatchdog()), images).run(check)


def paths(domain: Domain) -> dict[str, str]:
    return {disk.target: disk.active.path for disk in domain.view().disks if disk.active is not None}


OLD = {"vda": "/img/a.raw", "vdb": "/img/b", "vdc": "/img/c", "vdd": "/img/d.img"}


def test_all_raw_disks(domain: Domain, images: Images) -> None:
    before = domain.domain_xml()
    foreseen = convert(domain, images, check=True)
    assert (domain.domain_xml(), images.backing) == (before, RAW)
    done = convert(domain, images)
    assert foreseen == done
    assert done.steps == (
        "convert /img/a.raw into /img/a.qcow2 (vda)",
        "convert /img/c into /img/c.qcow2 (vdc)",
        "define test on the new images",
    )
    assert paths(domain) == {**OLD, **NEW}
    assert images.backing == {**RAW, **dict.fromkeys(NEW.values(), ("qcow2", None))}
    assert domain.domain_xml().count("discard='unmap'") == 4
    for check in (False, True):
        assert not convert(domain, images, check).changed


def test_one_disk_elsewhere_and_without_its_source(domain: Domain, images: Images) -> None:
    images.folders.add("/fast")
    done = convert(domain, images, disks=("vdc",), dest_dir="/fast", delete_source=True)
    assert done.steps[-1] == "remove /img/c"
    assert paths(domain) == {**OLD, "vdc": "/fast/c.qcow2"}
    assert "/img/c" not in images.backing
    assert domain.view().journal == Journal()


def test_a_block_device_stays_and_is_not_said_to_go(domain: Domain, images: Images) -> None:
    images.kinds["/img/c"] = "block"
    done = convert(domain, images, delete_source=True)
    assert [step for step in done.steps if step.startswith("remove")] == ["remove /img/a.raw"]
    assert ("/img/a.raw" in images.backing, "/img/c" in images.backing) == (False, True)


def died(domain: Domain, images: Images, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """A run that was to remove the sources died right before that call; `remove`: after the first of them."""
    own = images.remove

    def die(*_arguments: Any) -> None:
        raise Died(call)

    def remove(path: str) -> None:
        if path == "/img/c":
            die()
        own(path)

    with monkeypatch.context() as patch:
        if call == "remove":
            patch.setattr(images, "remove", remove)
        else:
            patch.setattr(domain, call, die)
        with pytest.raises(Died):
            convert(domain, images, delete_source=True)
    assert domain.view().journal != Journal()


def finish(domain: Domain, images: Images, how: str, check: bool) -> Outcome:
    if how == "again":
        return convert(domain, images, check)
    watchdog: Any = FakeWatchdog()
    return Recovery(RecoverOptions(), Guest(domain, images, FakeClock(), watchdog)).run(check)


@pytest.mark.parametrize("how", ["again", "recover"])
def test_sources_that_a_death_left_are_removed(
    domain: Domain, images: Images, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    died(domain, images, monkeypatch, "remove")
    domain.power_on(paused=False)  # it may run meanwhile
    foreseen = finish(domain, images, how, check=True)
    assert "/img/c" in images.backing
    done = finish(domain, images, how, check=False)
    assert done.steps == foreseen.steps
    assert done.steps[0] == "remove /img/c, which an interrupted conversion left"
    assert (domain.view().journal, "/img/c" in images.backing) == (Journal(), False)
    assert not finish(domain, images, how, check=False).changed


@pytest.mark.parametrize("how", ["again", "recover"])
def test_sources_that_the_domain_still_has_stay(
    domain: Domain, images: Images, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    died(domain, images, monkeypatch, "set_config_disks")
    done = finish(domain, images, how, check=False)
    assert done.steps[0] == "remove operation conversion to qcow2 from the journal"
    assert (domain.view().journal, set(images.backing) >= set(RAW)) == (Journal(), True)
    assert paths(domain) == ({**OLD, **NEW} if how == "again" else OLD)


@pytest.mark.parametrize("how", ["used", "changed"])
def test_a_source_that_somebody_took_since_stays(
    domain: Domain, images: Images, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    died(domain, images, monkeypatch, "remove")
    if how == "used":
        images.open_by["/img/c"] = (17,)
    else:
        images.written["/img/c"] = 1
    done = convert(domain, images)
    assert "/img/c was kept" in done.warnings[0]
    assert (domain.view().journal, "/img/c" in images.backing) == (Journal(), True)


def test_a_definition_that_fails_leaves_no_journal(
    domain: Domain, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_layers: dict[str, Layer]) -> None:
        raise VirtopsError("libvirt_error", "No.", "Look.")

    monkeypatch.setattr(domain, "set_config_disks", fail)
    with pytest.raises(VirtopsError):
        convert(domain, images, delete_source=True)
    assert (domain.view().journal, paths(domain), "/img/c" in images.backing) == (Journal(), OLD, True)


@pytest.mark.parametrize("call", ["convert", "same_content", "rename", "set_config_disks"])
def test_a_death_is_made_good_by_the_next_run(
    domain: Domain, images: Images, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def die(*_arguments: Any) -> None:
        raise Died(call)

    with monkeypatch.context() as patch:
        patch.setattr(domain if call == "set_config_disks" else images, call, die)
        with pytest.raises(Died):
            convert(domain, images)
    assert paths(domain) == OLD
    foreseen = convert(domain, images, check=True)
    done = convert(domain, images)
    assert foreseen == done
    assert paths(domain) == {**OLD, **NEW}
    assert set(images.backing) == {*RAW, *NEW.values()}
    if call == "set_config_disks":
        assert done.steps[0] == "take /img/a.qcow2, which holds the same as /img/a.raw (vda)"


@pytest.mark.parametrize("call", ["convert", "rename"])
def test_a_failure_leaves_nothing(domain: Domain, images: Images, call: str) -> None:
    images.fail[call] = VirtopsError("no_space", "Full.", "Make room.")
    with pytest.raises(VirtopsError):
        convert(domain, images)
    assert (paths(domain), images.backing) == (OLD, RAW)


def test_an_image_that_differs_is_not_used(domain: Domain, images: Images) -> None:
    images.same = False
    with pytest.raises(VirtopsError) as caught:
        convert(domain, images)
    assert caught.value.code == "verify_failed"
    assert (paths(domain), images.backing) == (OLD, RAW)


@pytest.mark.parametrize("how", ["runs", "ran"])
def test_a_guest_that_is_started_meanwhile(domain: Domain, images: Images, how: str) -> None:
    own = images.rename

    def start(path: str, name: str) -> None:
        own(path, name)
        if how == "runs" and not domain.view().active:
            domain.power_on(paused=False)
        images.written["/img/c"] = 1

    images.rename = start  # type: ignore[method-assign]
    with pytest.raises(VirtopsError) as caught:
        convert(domain, images)
    assert caught.value.code == "guest_running"
    assert (paths(domain), images.backing) == (OLD, RAW)


def saved(domain: Domain, _images: Images) -> None:
    domain.power_on(paused=False)
    domain._domain.managedSave(0)


REFUSALS = {
    "guest_running": ({}, lambda domain, _images: domain.power_on(paused=False)),
    "memory_saved": ({}, saved),
    "no_such_disk": ({"disks": ("vdx",)}, None),
    "disk_unsuitable": ({"disks": ("vdd",)}, None),
    "no_directory": ({"dest_dir": "/nowhere"}, None),
    "no_space": ({}, lambda _domain, images: setattr(images, "free", 1)),
    "image_exists": ({}, lambda _domain, images: images.backing.update({"/img/c.qcow2": ("raw", None)})),
}


@pytest.mark.parametrize("code", REFUSALS)
def test_refusals(domain: Domain, images: Images, code: str) -> None:
    wish, change = REFUSALS[code]
    if change is not None:
        change(domain, images)
    before = domain.domain_xml(), dict(images.backing)
    for check in (True, False):
        with pytest.raises(VirtopsError) as caught:
            convert(domain, images, check, **wish)
        assert caught.value.code == code
    assert (domain.domain_xml(), images.backing) == before


def test_an_image_of_another_domain_is_left(domain: Domain, images: Images) -> None:
    domain._connection.handle.defineXML(
        NODE[len("<node>") : -len("</node>")].replace("test<", "other<").replace("6695eb01", "7695eb01")
    )
    with pytest.raises(VirtopsError) as caught:
        convert(domain, images)
    assert caught.value.code == "base_shared"


@pytest.mark.parametrize(
    "inside", ["<encryption format='luks'/>", "<slices><slice type='storage' offset='512' size='512'/></slices>"]
)
def test_what_is_no_plain_image_is_left(domain: Domain, images: Images, inside: str) -> None:
    text = domain.domain_xml().replace("<source file='/img/c'/>", "<source file='/img/c'>%s</source>" % inside)
    domain._connection.handle.defineXML(text)
    assert [disk["disk"] for disk in convert(domain, images, check=True).values["disks"]] == ["vda"]  # type: ignore[attr-defined]
    with pytest.raises(VirtopsError) as caught:
        convert(domain, images, disks=("vdc",))
    assert caught.value.code == "disk_unsuitable"
