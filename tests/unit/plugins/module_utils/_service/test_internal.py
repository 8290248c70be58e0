# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Internal snapshots on libvirt's own in-process driver; what is inside of the images is told by a fake."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

libvirt = pytest.importorskip("libvirt")
pytest.importorskip("lxml")

from ansible_collections.virtops.libvirt.plugins.module_utils._core import xml  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._core.internal import (  # noqa: E402
    InternalOptions,
    plan_internal,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._core.journal import Journal, Operation  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import (  # noqa: E402
    BlockJob,
    Disk,
    DomainView,
    Layer,
    Outcome,
    SnapshotDisk,
    SnapshotRecord,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._libvirt.connection import Connection  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._libvirt.domain import Domain  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._service.guest import Guest  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._service.internal import InternalSnapshot  # noqa: E402

from .fakes import FakeClock, FakeImages, FakeWatchdog  # noqa: E402

NODE = """<node><domain type='test'><name>test</name><uuid>6695eb01-f6a4-8304-79aa-97f2502e193f</uuid>
<memory>8192</memory><os><type arch='i686'>hvm</type></os><devices>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/img/a'/><target dev='vda'/></disk>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/img/b'/><target dev='vdb'/></disk>
<disk type='file' device='cdrom'><target dev='hda' bus='ide'/><readonly/></disk></devices></domain></node>"""
ODD = "b <é> & 'c'"


class Images(FakeImages):
    """What is inside of an image follows the records, unless `stray` says otherwise, or `restored` that it is an older
    one: the test driver has no images."""

    def __init__(self, domain: Domain) -> None:
        super().__init__({"/img/a": ("qcow2", None), "/img/b": ("qcow2", None)})
        self.domain = domain
        self.stray: dict[str, tuple[str, ...]] = {}
        self.restored: set[str] = set()

    def info(self, path: str, image_format: str | None = None) -> Any:
        records = () if path in self.restored else self.domain.snapshots()
        names = tuple(record.name for record in records if not record.external)
        return replace(super().info(path, image_format), internal_snapshots=names + self.stray.get(path, ()))


@pytest.fixture
def domain(tmp_path: Path) -> Iterator[Domain]:
    (tmp_path / "node.xml").write_text(NODE)
    with Connection(f"test://{tmp_path}/node.xml") as connection:
        found = Domain(connection, "test")
        yield found
        found.close()


@pytest.fixture
def images(domain: Domain) -> Images:
    return Images(domain)


def flow(domain: Domain, images: Images) -> InternalSnapshot:
    return InternalSnapshot(Guest(domain, images, FakeClock(), FakeWatchdog()))


def state_of(domain: Domain) -> tuple[list[str], str | None, str]:
    return sorted(domain.snapshot_xmls(secure=True)), domain.current_snapshot(), domain.state()


def cycle(domain: Domain, images: Images, **wish: Any) -> Outcome:
    """Check, run, run, check: as the same task is run by a playbook."""

    def run(check: bool) -> Outcome:
        if "state" in wish:
            return flow(domain, images).absent(wish["name"], wish.get("children", "keep"), check)
        return flow(domain, images).present(InternalOptions(**wish), check)

    before = state_of(domain)
    foreseen = run(check=True)
    assert state_of(domain) == before
    done = run(check=False)
    assert (foreseen.steps, foreseen.before, foreseen.after) == (done.steps, done.before, done.after)
    told, expected = done.values["snapshot"], foreseen.values["snapshot"]
    assert (told is None) == (expected is None)
    if isinstance(told, dict) and isinstance(expected, dict):
        assert {**told, "creation_time": 0} == {**expected, "creation_time": 0}
    after = state_of(domain)
    for check in (False, True):
        assert not run(check).changed
    assert state_of(domain) == after
    return done


def test_a_running_guest_with_its_memory(domain: Domain, images: Images) -> None:
    done = cycle(domain, images, name=ODD, description="what <for>")
    assert done.steps == ("take the internal snapshot %s of vda, vdb, the memory" % ODD,)
    record = domain.snapshot(ODD)
    assert record is not None
    assert (record.state, record.description, record.external) == ("running", "what <for>", False)
    modes = [(disk.target, disk.mode) for disk in record.disks]
    assert modes == [("vda", "internal"), ("vdb", "internal"), ("hda", "no")]
    assert domain.state() == "running"


def test_a_guest_that_is_off(domain: Domain, images: Images) -> None:
    domain._domain.destroy()
    done = cycle(domain, images, name="off", halt=True)
    assert done.steps == ("take the internal snapshot off of vda, vdb",)
    assert done.values["snapshot"]["memory"] == {"snapshot": "no", "file": None}  # type: ignore[index]


def test_halt_turns_it_off_and_not_twice(domain: Domain, images: Images) -> None:
    done = cycle(domain, images, name="parked", halt=True)
    assert done.steps[1:] == ("turn test off at that moment",)
    assert domain.state() == "shut off"
    domain._domain.create()
    with pytest.raises(VirtopsError) as caught:
        flow(domain, images).present(InternalOptions("parked", halt=True), check=False)
    assert caught.value.code == "guest_running"
    assert domain.state() == "running"


def tree(domain: Domain, images: Images) -> None:
    for name in ("a", ODD, "c"):
        flow(domain, images).present(InternalOptions(name), check=False)


@pytest.mark.parametrize(
    ("children", "left"), [("keep", ["a", "c"]), ("delete", ["a"]), ("only", ["a", ODD])], ids=["keep", "all", "only"]
)
def test_delete(domain: Domain, images: Images, children: str, left: list[str]) -> None:
    tree(domain, images)
    done = cycle(domain, images, state="absent", name=ODD, children=children)
    assert [record.name for record in domain.snapshots()] == left
    assert len(done.steps) == 3 - len(left)
    assert done.after["data"] == dict.fromkeys(("/img/a", "/img/b"), left)


def test_one_that_is_not_there(domain: Domain, images: Images) -> None:
    tree(domain, images)
    done = cycle(domain, images, state="absent", name="nobody", children="delete")
    assert (done.changed, done.values["snapshot"]) == (False, None)


def test_data_without_a_record(domain: Domain, images: Images) -> None:
    images.stray = {"/img/b": ("lost",)}
    with pytest.raises(VirtopsError) as caught:
        flow(domain, images).present(InternalOptions("lost"), check=True)
    assert (caught.value.code, "/img/b" in caught.value.cause) == ("snapshot_data_exists", True)
    foreseen = flow(domain, images).absent("lost", "keep", check=True)
    assert foreseen.steps == ("delete snapshot lost in /img/b, which libvirt has no record of",)
    with pytest.raises(VirtopsError) as caught:  # as the fake does not lose them
        flow(domain, images).absent("lost", "keep", check=False)
    assert caught.value.code == "snapshot_data_exists"
    assert domain.snapshots() == ()
    images.stray = {}
    assert not flow(domain, images).absent("lost", "keep", check=False).changed


def test_a_record_whose_data_stay(domain: Domain, images: Images) -> None:
    tree(domain, images)
    images.stray = {"/img/b": (ODD,)}
    with pytest.raises(VirtopsError) as caught:
        flow(domain, images).absent(ODD, "keep", check=False)
    assert caught.value.code == "snapshot_data_exists"


def test_a_record_without_data_is_no_way_back(domain: Domain, images: Images) -> None:
    tree(domain, images)
    images.restored = {"/img/b"}
    before = state_of(domain)
    for check in (True, False):
        with pytest.raises(VirtopsError) as caught:
            flow(domain, images).present(InternalOptions(ODD), check)
        assert (caught.value.code, "/img/b" in caught.value.cause) == ("snapshot_stale", True)
        assert "snapshot_metadata" in caught.value.remedy
    assert state_of(domain) == before


@pytest.mark.parametrize("stray", [False, True], ids=["record", "data only"])
def test_a_name_that_qemu_takes_for_no_job_is_not_deleted_while_the_guest_runs(
    domain: Domain, images: Images, monkeypatch: pytest.MonkeyPatch, stray: bool
) -> None:
    monkeypatch.setattr(domain, "libvirt_version", lambda: 10_009_000)
    domain._domain.destroy()
    if stray:
        images.stray = {"/img/b": (ODD,)}
    else:
        tree(domain, images)
    domain._domain.create()
    before = state_of(domain)
    for check in (True, False):
        with pytest.raises(VirtopsError) as caught:
            flow(domain, images).absent(ODD, "keep", check)
        assert (caught.value.code, "Shut the domain off" in caught.value.remedy) == ("name_unsuitable", True)
    assert state_of(domain) == before
    domain._domain.destroy()
    assert flow(domain, images).absent(ODD, "keep", check=True).changed


def test_external_ones_are_refused(domain: Domain, images: Images) -> None:
    flow(domain, images).present(InternalOptions("a"), check=False)
    overlays = tuple(SnapshotDisk(target, "external", "/img/e" + target, "qcow2") for target in ("vda", "vdb"))
    text = xml.build_record("e", (*overlays, SnapshotDisk("hda", "no")), domain.domain_xml())
    text = text.replace("<disks>", "<parent><name>a</name></parent><disks>")
    domain.redefine_snapshot(text, False, False)
    for name, children in (("e", "keep"), ("a", "delete")):
        before = state_of(domain)
        with pytest.raises(VirtopsError) as caught:
            flow(domain, images).absent(name, children, check=False)
        assert caught.value.code == "not_internal"
        assert "snapshot_external" in caught.value.remedy
        assert state_of(domain) == before
    with pytest.raises(VirtopsError) as caught:
        flow(domain, images).present(InternalOptions("e"), check=False)
    assert caught.value.code == "snapshot_differs"


def test_an_open_operation_is_refused(domain: Domain, images: Images) -> None:
    flow(domain, images).present(InternalOptions("a"), check=False)
    domain.write_journal(Journal((Operation("1", "live_backup", "n", "created", "now", ()),)))
    for run in (
        lambda: flow(domain, images).present(InternalOptions("b"), check=True),
        lambda: flow(domain, images).absent("a", "keep", check=True),
    ):
        with pytest.raises(VirtopsError) as caught:
            run()
        assert caught.value.code == "operation_open"


VDA = Disk("vda", chain=(Layer("/img/a", "qcow2"),))
VIEW = DomainView("web", "uuid", "running", True, (VDA,), (VDA,))


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"chain": (Layer("/img/a.raw", "raw"),)}, "disk_needs_qcow2", "/img/a.raw"),
        ({"source_type": "network", "chain": ()}, "disk_unsuitable", "network"),
        ({"source_type": "vhostuser", "chain": ()}, "disk_unsuitable", "vhostuser"),
        ({"device": "lun"}, "disk_unsuitable", "LUN"),
        ({"shareable": True}, "disk_unsuitable", "shareable"),
        ({"transient": True}, "disk_unsuitable", "transient"),
        ({"job": BlockJob("copy")}, "job_running", "copy"),
        ({"readonly": True}, "nothing_to_snapshot", "web"),
    ],
)
def test_disks_that_are_refused(change: dict[str, Any], code: str, words: str) -> None:
    with pytest.raises(VirtopsError) as caught:
        plan_internal(InternalOptions("s"), VIEW.with_disks((replace(VDA, **change),)), None, Journal(), {}, 9_000_000)
    assert caught.value.code == code
    assert words in caught.value.cause


@pytest.mark.parametrize(
    ("change", "wish", "version", "code"),
    [
        ({"persistent": False}, {"halt": True}, 9_000_000, "transient_domain"),
        ({"persistent": False}, {}, 9_000_000, None),
        ({"pflash": True}, {}, 10_008_000, "uefi_unsupported"),
        ({"pflash": True, "nvram": "/nvram/web.fd"}, {}, 10_009_000, "uefi_unsupported"),
        ({"pflash": True, "nvram": "/nvram/web.qcow2", "nvram_format": "qcow2"}, {}, 10_009_000, None),
    ],
)
def test_guests_that_are_refused(change: dict[str, Any], wish: dict[str, Any], version: int, code: str | None) -> None:
    view = replace(VIEW, **change)
    if code is None:
        assert not plan_internal(InternalOptions("s", **wish), view, None, Journal(), {}, version).found
        return
    with pytest.raises(VirtopsError) as caught:
        plan_internal(InternalOptions("s", **wish), view, None, Journal(), {}, version)
    assert caught.value.code == code


def test_other_disks_are_another_snapshot() -> None:
    record = SnapshotRecord("s", "running", 1, (SnapshotDisk("vdb", "internal"),), memory="internal")
    with pytest.raises(VirtopsError) as caught:
        plan_internal(InternalOptions("s"), VIEW, record, Journal(), {}, 9_000_000)
    assert caught.value.code == "snapshot_differs"
    assert "vdb" in caught.value.cause
    assert "vda" in caught.value.cause


def test_data_in_a_layer_below_and_of_an_image_elsewhere_count_as_there() -> None:
    record = SnapshotRecord("s", "running", 1, (SnapshotDisk("vda", "internal"),), memory="internal")
    chains = {
        "below": (Layer("/img/top", "qcow2"), Layer("/img/a", "qcow2")),
        "elsewhere": (Layer("nbd://host/a", "qcow2"),),
    }
    for chain in chains.values():
        view = VIEW.with_disks((replace(VDA, chain=chain),))
        assert plan_internal(InternalOptions("s"), view, record, Journal(), {"/img/a": ("s",)}, 9_000_000).found


def test_data_below_other_layers_are_not_deleted_by_half(domain: Domain, images: Images) -> None:
    flow(domain, images).present(InternalOptions("a"), check=False)
    images.backing["/img/a"] = ("qcow2", "/img/below")
    images.backing["/img/below"] = ("qcow2", None)
    domain._domain.destroy()  # of a guest that is off the images tell the chain
    own = images.info
    images.info = lambda path, kind=None: replace(  # type: ignore[method-assign]
        own(path, kind), internal_snapshots=("a",) if path == "/img/below" else ()
    )
    with pytest.raises(VirtopsError) as caught:
        flow(domain, images).absent("a", "keep", check=False)
    assert caught.value.code == "layers_above"
    assert "/img/below" in caught.value.cause
    assert domain.snapshot("a") is not None


def test_firmware_in_the_definition() -> None:
    text = (
        "<domain><name>w</name><uuid>u</uuid><os><loader type='pflash'>/c</loader><nvram format='qcow2'>/n</nvram></os>"
        "</domain>"
    )
    parsed = xml.parse_domain(text, None)
    assert (parsed.pflash, parsed.nvram, parsed.nvram_format) == (True, "/n", "qcow2")
    assert not xml.parse_domain("<domain><os><loader type='rom'/></os></domain>", None).pflash
