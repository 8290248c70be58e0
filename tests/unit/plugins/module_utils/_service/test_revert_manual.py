# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Going back to external snapshots where libvirt cannot, on its own in-process driver.

Definitions and records are real, images are told by a fake.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import pytest

libvirt = pytest.importorskip("libvirt")
pytest.importorskip("lxml")

from ansible_collections.virtops.libvirt.plugins.module_utils._core import xml  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._core.journal import (  # noqa: E402
    Journal,
    JournalDisk,
    Operation,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import (  # noqa: E402
    DomainView,
    Layer,
    Outcome,
    SnapshotDisk,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._core.revert import RevertOptions  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._libvirt.connection import Connection  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._libvirt.domain import Domain  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._service.guest import Guest  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._service.recover import (  # noqa: E402
    RecoverOptions,
    Recovery,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._service.revert import Revert  # noqa: E402

from .fakes import Died, FakeClock, FakeImages, FakeWatchdog  # noqa: E402
from .test_internal import NODE, state_of  # noqa: E402

NEW = {"vda": "/img/test.vda.s.revert-1.qcow2", "vdb": "/img/test.vdb.s.revert-1.qcow2"}
KEPT = Operation(
    "1",
    "snapshot",
    "s",
    "created",
    "20261120T120000Z",
    tuple(
        JournalDisk(target, base, "qcow2", base + ".s", FakeImages({}).identity(base))
        for target, base in (("vda", "/img/a"), ("vdb", "/img/b"))
    ),
)

#: What a snapshot without a record stands on: the overlay of n.
BELOW = JournalDisk("vda", "/img/a.s.n", "qcow2", "/img/a.s.n.x")


class TestDomain(Domain):
    """The test driver tells no chains, as QEMU's does of a domain that runs."""

    __test__ = False
    images: FakeImages

    def view(self) -> DomainView:
        view = super().view()
        return view.with_disks(
            tuple(
                replace(disk, chain=self.images.chain(disk.active.path)) if disk.active is not None else disk
                for disk in view.disks
            )
        )

    def restore(self, path: str, definition: str, paused: bool, reset_nvram: bool) -> None:
        """The test driver knows neither the flags nor another definition: it is put into a copy of the image."""
        image, text = Path(path), definition.encode()
        changed = image.with_suffix(".changed")
        changed.write_bytes(image.read_bytes()[:15] + struct.pack("=i", len(text)) + text)
        self._connection.handle.restoreFlags(str(changed), None, 0)
        if paused:
            self.suspend()


@pytest.fixture
def domain(tmp_path: Path, images: FakeImages) -> Iterator[Domain]:
    """It runs on the overlays /img/a.s and /img/b.s of snapshot s."""
    (tmp_path / "node.xml").write_text(NODE)
    with Connection(f"test://{tmp_path}/node.xml") as connection:
        found = TestDomain(connection, "test")
        found.images = images
        overlays = (SnapshotDisk("vda", "external", "/img/a.s", "qcow2"), SnapshotDisk("vdb", "external", "/img/b.s"))
        found.redefine_snapshot(
            xml.build_record("s", (*overlays, SnapshotDisk("hda", "no")), found.domain_xml()), True, False
        )
        found.power_off()
        found.define_on({"vda": Layer("/img/a.s", "qcow2"), "vdb": Layer("/img/b.s", "qcow2")}, Journal())
        found.power_on(paused=False)
        found.write_journal(Journal((KEPT,)))
        yield found
        found.close()


@pytest.fixture
def images() -> FakeImages:
    layers = {"/img/a": ("qcow2", None), "/img/b": ("qcow2", None)}
    return FakeImages({**layers, "/img/a.s": ("qcow2", "/img/a"), "/img/b.s": ("qcow2", "/img/b")})


def revert(domain: Domain, images: FakeImages, check: bool = False, **wish: Any) -> Outcome:
    return Revert(RevertOptions(**{"name": "s", **wish}), Guest(domain, images, FakeClock(), FakeWatchdog())).run(check)


def journal_of(domain: Domain) -> Journal:
    return domain.view().journal


def assert_there(domain: Domain, images: FakeImages, state: str = "shut off") -> None:
    """The end state: on new overlays, which the record and the journal name, and nothing else is left."""
    assert domain.state() == state
    view = domain.view()
    assert {disk.target: disk.active.path for disk in view.disks if disk.active} == NEW
    assert set(images.backing) == {"/img/a", "/img/b", *NEW.values()}
    assert images.written == {}
    (operation,) = journal_of(domain).operations
    assert operation == replace(KEPT, disks=tuple(replace(disk, overlay=NEW[disk.target]) for disk in KEPT.disks))
    record = domain.snapshot("s")
    assert record is not None
    assert {disk.target: disk.file for disk in record.disks if disk.mode == "external"} == NEW
    assert domain.current_snapshot() == "s"


def test_once(domain: Domain, images: FakeImages) -> None:
    before = state_of(domain), domain.domain_xml(), dict(images.backing)
    foreseen = revert(domain, images, check=True)
    assert (state_of(domain), domain.domain_xml(), images.backing) == before
    done = revert(domain, images)
    assert (foreseen.steps, foreseen.before, foreseen.after) == (done.steps, done.before, done.after)
    assert set(foreseen.values) == set(done.values)
    assert done.steps == (
        "create the overlay %s on /img/a (vda)" % NEW["vda"],
        "create the overlay %s on /img/b (vdb)" % NEW["vdb"],
        "turn test off",
        "define test on the new overlays",
        "remove /img/a.s, which only the snapshot's time after stood on",
        "remove /img/b.s, which only the snapshot's time after stood on",
    )
    assert_there(domain, images)
    for check in (False, True):
        assert not revert(domain, images, check).changed
    assert_there(domain, images)


def test_it_goes_on_where_that_is_asked_for(domain: Domain, images: FakeImages) -> None:
    done = revert(domain, images, run_state="running")
    assert done.steps[-1] == "start test, running"
    assert_there(domain, images, "running")
    again = revert(domain, images, run_state="running")
    assert "remove %s, which only the snapshot's time after stood on" % NEW["vda"] in again.steps
    assert not set(images.backing) & set(NEW.values())


CALLS: tuple[tuple[str, bool], ...] = tuple(
    (name, after)
    for name in ("write_journal", "create_overlay", "power_off", "define_on", "redefine_snapshot", "remove")
    for after in (False, True)
)


def kill_at(owner: Any, name: str, after: bool) -> Callable[[], None]:
    own = getattr(owner, name)

    def dying(*arguments: Any) -> None:
        if after:
            own(*arguments)
        raise Died(name)

    setattr(owner, name, dying)
    return lambda: setattr(owner, name, own)


@pytest.mark.parametrize(("call", "after"), CALLS)
def test_a_death_is_made_good_by_the_next_run(domain: Domain, images: FakeImages, call: str, after: bool) -> None:
    revive = kill_at(images if call in ("create_overlay", "remove") else domain, call, after)
    with pytest.raises(Died):
        revert(domain, images)
    revive()
    revert(domain, images)
    view = domain.view()
    assert not view.active
    active = {disk.target: disk.active.path for disk in view.disks if disk.active}
    assert {target: images.backing[path][1] for target, path in active.items()} == {"vda": "/img/a", "vdb": "/img/b"}
    assert images.written == {}
    (operation,) = journal_of(domain).operations
    assert {disk.target: disk.overlay for disk in operation.disks} == active
    assert set(images.backing) == {"/img/a", "/img/b", *active.values()}
    assert domain.current_snapshot() == "s"
    assert not revert(domain, images).changed


@pytest.mark.parametrize(("call", "after"), [("create_overlay", True), ("power_off", True), ("define_on", False)])
def test_or_it_is_undone_by_recover(domain: Domain, images: FakeImages, call: str, after: bool) -> None:
    revive = kill_at(images if call == "create_overlay" else domain, call, after)
    with pytest.raises(Died):
        revert(domain, images)
    revive()
    assert Recovery(RecoverOptions(), Guest(domain, images, FakeClock(), FakeWatchdog())).run(check=False).changed
    assert journal_of(domain).operations == (KEPT,)
    assert not set(NEW.values()) & set(images.backing)
    assert {disk.active.path for disk in domain.view().disks if disk.active} == {"/img/a.s", "/img/b.s"}


@pytest.mark.parametrize("call", ["redefine_snapshot", "remove"])
def test_what_is_left_after_the_switch_recover_removes(domain: Domain, images: FakeImages, call: str) -> None:
    revive = kill_at(images if call == "remove" else domain, call, after=False)
    with pytest.raises(Died):
        revert(domain, images)
    revive()
    assert Recovery(RecoverOptions(), Guest(domain, images, FakeClock(), FakeWatchdog())).run(check=False).changed
    (operation,) = journal_of(domain).operations
    assert {disk.target: disk.overlay for disk in operation.disks} == NEW
    assert set(images.backing) == {"/img/a", "/img/b", *NEW.values()}


def test_a_failure_leaves_nothing(domain: Domain, images: FakeImages) -> None:
    images.fail["create_overlay"] = VirtopsError("no_space", "Full.", "Make room.")
    with pytest.raises(VirtopsError):
        revert(domain, images)
    assert journal_of(domain).operations == (KEPT,)
    assert domain.state() == "running"


def test_an_image_that_was_written_to_is_refused(domain: Domain, images: FakeImages) -> None:
    images.written["/img/b"] = 1
    with pytest.raises(VirtopsError) as caught:
        revert(domain, images)
    assert (caught.value.code, "/img/b" in caught.value.cause) == ("base_modified", True)
    domain.write_journal(Journal())  # then only the time of the last write tells
    images.written["/img/b"] = 62 * 10**9
    with pytest.raises(VirtopsError) as caught:
        revert(domain, images)
    assert caught.value.code == "base_modified"
    images.written["/img/b"] = 61 * 10**9
    assert revert(domain, images, check=True).changed


def test_a_layer_that_another_snapshot_needs_stays(domain: Domain, images: FakeImages) -> None:
    record = xml.build_record(
        "t",
        (
            SnapshotDisk("vda", "external", "/img/a.t", "qcow2"),
            SnapshotDisk("vdb", "external", "/img/b.t", "qcow2"),
            SnapshotDisk("hda", "no"),
        ),
        domain.domain_xml(),
    )
    domain.redefine_snapshot(record.replace("<disks>", "<parent><name>s</name></parent><disks>"), False, False)
    revert(domain, images)
    assert {"/img/a.s", "/img/b.s"} <= set(images.backing)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda d, i: i.folders.clear(), "no_directory"),
        (lambda d, i: d.define_on({"vda": Layer("/img/a", "qcow2")}, Journal()), "base_modified"),
    ],
)
def test_refusals(domain: Domain, images: FakeImages, change: Callable[[Domain, FakeImages], Any], code: str) -> None:
    domain.power_off()
    change(domain, images)
    before = state_of(domain), dict(images.backing)
    for check in (True, False):
        with pytest.raises(VirtopsError) as caught:
            revert(domain, images, check)
        assert caught.value.code == code
    assert (state_of(domain), images.backing) == before


def test_variables_are_reset_at_a_start(domain: Domain, images: FakeImages, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VirtopsError) as caught:
        revert(domain, images, reset_nvram=True)
    assert caught.value.code == "unsupported"
    started: list[tuple[bool, bool]] = []
    monkeypatch.setattr(domain, "power_on", lambda *how: started.append(how))
    done = revert(domain, images, reset_nvram=True, run_state="paused")
    assert started == [(True, True)]
    assert done.steps[-1] == "start test, paused, with fresh UEFI variables"


@pytest.fixture
def memory(domain: Domain, images: FakeImages, tmp_path: Path) -> str:
    """The snapshot has the memory of a guest that was running on the bases, too."""
    path = str(tmp_path / "s.memory")
    overlays = {disk.target: disk.active for disk in domain.view().disks if disk.active}
    journal = domain.view().journal
    domain.power_off()
    domain.define_on({"vda": Layer("/img/a", "qcow2"), "vdb": Layer("/img/b", "qcow2")}, Journal())
    domain.power_on(paused=False)
    domain._domain.save(path)
    domain.define_on(overlays, journal)
    domain.power_on(paused=False)
    text = re.sub("<state>.*?</state>", "<state>running</state>", next(iter(domain.snapshot_xmls(secure=True))))
    assert "<memory snapshot='no'/>" in text
    domain.delete_snapshot("s", "keep")
    domain.redefine_snapshot(
        text.replace("<memory snapshot='no'/>", "<memory snapshot='external' file='%s'/>" % path), True, False
    )
    images.backing[path] = ("raw", None)
    return path


def assert_resumed(domain: Domain, images: FakeImages, memory: str, state: str = "running") -> None:
    """On new overlays by both definitions, with the memory image still there."""
    assert Path(memory).exists()
    assert memory in images.backing
    del images.backing[memory]
    assert_there(domain, images, state)
    config = {disk.target: disk.active.path for disk in domain.view().config_disks if disk.active}
    assert config == NEW


@pytest.mark.parametrize(
    ("run_state", "state"), [("snapshot", "running"), ("running", "running"), ("paused", "paused")]
)
def test_it_goes_on_with_the_memory(
    domain: Domain, images: FakeImages, memory: str, run_state: str, state: str
) -> None:
    foreseen = revert(domain, images, check=True, run_state=run_state)
    done = revert(domain, images, run_state=run_state)
    assert done.steps[-1] == "go on with the memory in %s, %s" % (memory, state)
    assert (foreseen.steps, foreseen.after) == (done.steps, done.after)
    assert done.values["state_after"] == state
    assert_resumed(domain, images, memory, state)


def test_it_can_be_gone_back_to_again(domain: Domain, images: FakeImages, memory: str) -> None:
    revert(domain, images)
    assert revert(domain, images).changed
    assert domain.state() == "running"
    assert not set(images.backing) & set(NEW.values())


@pytest.mark.parametrize("after", [False, True])
def test_a_death_at_the_memory(domain: Domain, images: FakeImages, memory: str, after: bool) -> None:
    revive = kill_at(domain, "restore", after)
    with pytest.raises(Died):
        revert(domain, images)
    revive()
    assert domain.state() == ("running" if after else "shut off")
    revert(domain, images)
    assert domain.state() == "running"
    assert images.written == {}


def test_memory_that_cannot_be_restored(
    domain: Domain, images: FakeImages, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: Any) -> None:
        raise VirtopsError("libvirt_failed", "Another CPU.", "Look.")

    monkeypatch.setattr(domain, "restore", fail)
    with pytest.raises(VirtopsError) as caught:
        revert(domain, images)
    assert "virsh start" in caught.value.remedy
    assert domain.state() == "shut off"
    monkeypatch.undo()
    revert(domain, images)
    assert domain.state() == "running"


def test_memory_that_is_gone(domain: Domain, images: FakeImages, memory: str) -> None:
    before = state_of(domain)
    del images.backing[memory]
    for can in (True, False):
        with pytest.raises(VirtopsError) as caught:
            revert(domain, images, check=can)
        assert (caught.value.code, memory in caught.value.cause) == ("snapshot_stale", True)
    assert state_of(domain) == before
    images.backing[memory] = ("raw", None)
    Path(memory).unlink()  # and one that cannot be read
    with pytest.raises(VirtopsError):
        revert(domain, images)
    assert state_of(domain) == before


def test_writing_the_memory_may_have_taken_long(domain: Domain, images: FakeImages, memory: str) -> None:
    """The disks are switched after it, and only then their images rest."""
    domain.write_journal(Journal())
    images.written["/img/b"] = 1000 * 10**9
    with pytest.raises(VirtopsError) as caught:
        revert(domain, images)
    assert caught.value.code == "base_modified"
    images.written[memory] = 950 * 10**9
    assert revert(domain, images, check=True).changed


@pytest.fixture
def asked(domain: Domain, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The reverts that were asked of a libvirt that makes them."""
    names: list[str] = []
    monkeypatch.setattr(domain, "reverts_external", lambda: True)
    monkeypatch.setattr(domain, "revert", lambda name, *_more: names.append(name))
    return names


def test_libvirt_does_it_where_it_can(domain: Domain, images: FakeImages, asked: list[str]) -> None:
    foreseen = revert(domain, images, check=True)
    assert asked == []
    done = revert(domain, images)
    assert asked == ["s"]
    assert foreseen.after == done.after
    assert done.after["disks"] == {"vda": ["(a new overlay)", "/img/a"], "vdb": ["(a new overlay)", "/img/b"]}


def take_above(domain: Domain, images: FakeImages, name: str, current: bool) -> None:
    """Snapshot `name` of the guest on the overlays of s; it goes on on its own."""
    above = {disk.target: "%s.%s" % (disk.active.path, name) for disk in domain.view().disks if disk.active}
    disks = tuple(SnapshotDisk(target, "external", path, "qcow2") for target, path in above.items())
    text = xml.build_record(name, (*disks, SnapshotDisk("hda", "no")), domain.domain_xml())
    journal = domain.view().journal
    domain.redefine_snapshot(text.replace("<disks>", "<parent><name>s</name></parent><disks>"), current, False)
    images.backing.update({path: ("qcow2", path[: -len(name) - 1]) for path in above.values()})
    domain.power_off()
    domain.define_on({target: Layer(path, "qcow2") for target, path in above.items()}, journal)
    domain.power_on(paused=False)


def switch_to(domain: Domain, images: FakeImages, suffix: str) -> None:
    """As the guest is after another revert to s, of which only libvirt knew, and no longer does."""
    journal = domain.view().journal
    new = {"vda": Layer("/img/a.%s" % suffix, "qcow2"), "vdb": Layer("/img/b.%s" % suffix, "qcow2")}
    images.backing.update({layer.path: ("qcow2", layer.path[: -len(suffix) - 1]) for layer in new.values()})
    domain.power_off()
    domain.define_on(new, journal)
    domain.power_on(paused=False)


def test_what_libvirt_forgot_it_must_not_delete(domain: Domain, images: FakeImages, asked: list[str]) -> None:
    """s, n; back to s, where libvirt made overlays; a snapshot taken and deleted, or s described: it forgot those."""
    take_above(domain, images, "n", current=False)
    moment = {"vda": "/img/a.s", "vdb": "/img/b.s"}
    switch_to(domain, images, "r")
    foreseen = revert(domain, images, check=True, name="n")
    done = revert(domain, images, name="n")
    assert asked == []
    assert (foreseen.steps, foreseen.after) == (done.steps, done.after)
    assert "create the overlay /img/test.vda.n.revert-1.qcow2 on /img/a.s (vda)" in done.steps
    assert {"/img/a", "/img/b", *moment.values()} <= set(images.backing)
    active = {disk.target: disk.active.path for disk in domain.view().disks if disk.active}
    assert {target: images.backing[path][1] for target, path in active.items()} == moment
    assert images.written == {}


@pytest.mark.parametrize("name", ["n", "s"])
def test_nor_what_stands_below_another_snapshot(
    domain: Domain, images: FakeImages, asked: list[str], name: str
) -> None:
    """s was made the current one, with n above it."""
    take_above(domain, images, "n", current=False)
    assert domain.current_snapshot() == "s"
    revert(domain, images, name=name)
    assert asked == []
    assert {"/img/a", "/img/a.s", "/img/b", "/img/b.s"} <= set(images.backing)


def test_it_is_asked_with_the_newest_as_the_current_one(domain: Domain, images: FakeImages, asked: list[str]) -> None:
    take_above(domain, images, "n", current=True)
    revert(domain, images)
    assert asked == ["s"]


@pytest.mark.parametrize(
    "change",
    [
        lambda domain, images: setattr(domain, "current_snapshot", lambda: None),
        lambda domain, images: images.kinds.update({"/img/b": "block"}),
        lambda domain, images: domain.write_journal(Journal((KEPT, replace(KEPT, id="2", name="x", disks=(BELOW,))))),
    ],
)
def test_the_guest_is_taken_back_without_libvirt(
    domain: Domain, images: FakeImages, asked: list[str], change: Callable[[Domain, FakeImages], Any]
) -> None:
    take_above(domain, images, "n", current=True)
    change(domain, images)
    assert revert(domain, images, check=True).steps == revert(domain, images).steps
    assert asked == []


@pytest.mark.parametrize("call", ["create_overlay", "redefine_snapshot", "remove"])
def test_what_we_began_libvirt_does_not_go_on_with(
    domain: Domain, images: FakeImages, asked: list[str], call: str
) -> None:
    images.kinds["/img/b"] = "block"
    revive = kill_at(domain if call == "redefine_snapshot" else images, call, after=True)
    with pytest.raises(Died):
        revert(domain, images)
    revive()
    images.kinds.clear()
    revert(domain, images)
    assert asked == []
    assert images.written == {}
    assert len(images.backing) == 4
    assert len(journal_of(domain).operations) == 1


def test_a_transient_guest_is_told_why_libvirt_must_not(
    domain: Domain, images: FakeImages, monkeypatch: pytest.MonkeyPatch, asked: list[str]
) -> None:
    view = replace(domain.view(), persistent=False, config_disks=())
    monkeypatch.setattr(domain, "view", lambda: view)
    assert revert(domain, images, check=True, run_state="running").changed
    images.kinds["/img/b"] = "block"
    with pytest.raises(VirtopsError) as caught:
        revert(domain, images, check=True, run_state="running")
    assert (caught.value.code, "disk vdb" in caught.value.cause) == ("transient_domain", True)
    monkeypatch.setattr(domain, "reverts_external", lambda: False)
    with pytest.raises(VirtopsError) as caught:
        revert(domain, images, check=True, run_state="running")
    assert caught.value.cause.endswith("and this libvirt cannot.")


def test_a_saved_memory_is_respected(domain: Domain, images: FakeImages) -> None:
    domain._domain.managedSave(0)
    with pytest.raises(VirtopsError) as caught:
        revert(domain, images)
    assert caught.value.code == "memory_saved"


def test_the_journal_in_a_definition() -> None:
    journal = Journal((KEPT,))
    bare = "<domain><name>w</name><metadata><a:b xmlns:a='urn:x'/></metadata></domain>"
    text = xml.with_journal(bare, journal)
    assert xml.parse_domain(text, None).journal == journal
    assert xml.with_journal(text, journal) == text
    assert xml.definition_digest(xml.with_journal(text, Journal())) == xml.definition_digest(bare)
