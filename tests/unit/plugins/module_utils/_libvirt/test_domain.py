# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.journal import Journal, JournalDisk, Operation
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Creation, Hold, Layer, OtherImages
from ansible_collections.virtops.libvirt.plugins.module_utils._libvirt import errors
from ansible_collections.virtops.libvirt.plugins.module_utils._libvirt.connection import Connection
from ansible_collections.virtops.libvirt.plugins.module_utils._libvirt.domain import Domain
from ansible_collections.virtops.libvirt.plugins.module_utils._libvirt.host import Host

from .conftest import AGENT, libvirt

Define = Callable[..., Any]
JOURNAL = Journal(
    (Operation("1", "snapshot", "s <é>", "created", "now", (JournalDisk("vda", "/a b", "raw", "/c,d"),), "crash"),)
)


# Looking it up


def test_a_domain_is_found_by_name_and_by_uuid(connection: Connection, define: Define) -> None:
    made = define("found")
    for name in ("found", made.UUIDString(), made.UUIDString().upper()):
        domain = Domain(connection, name)
        assert (domain.name, domain.uuid) == ("found", made.UUIDString())


def test_a_domain_may_have_the_uuid_of_none_as_its_name(connection: Connection, define: Define) -> None:
    define("6695eb01-f6a4-8304-79aa-000000000000", off=True)
    assert Domain(connection, "6695eb01-f6a4-8304-79aa-000000000000").state() == "shut off"


@pytest.mark.parametrize("name", ["nobody", "6695eb01-f6a4-8304-79aa-111111111111", ""])
def test_a_domain_that_is_not_there(connection: Connection, name: str) -> None:
    with pytest.raises(VirtopsError) as caught:
        Domain(connection, name)
    assert caught.value.code == "no_such_domain"
    assert "test:///default" in str(caught.value)


# Reading it


def test_a_running_domain(connection: Connection, define: Define) -> None:
    define("runs", devices=AGENT)
    view = Domain(connection, "runs").view()
    assert (view.state, view.active, view.persistent, view.autostart) == ("running", True, True, False)
    assert view.agent == "disconnected"
    assert [(disk.target, disk.device, disk.chain) for disk in view.disks] == [
        ("vda", "disk", (Layer("/img/runs.qcow2", "qcow2"),)),
        ("hda", "cdrom", ()),
    ]
    assert [disk.target for disk in view.config_disks] == ["vda", "hda"]


def test_a_domain_that_is_off(connection: Connection, define: Define) -> None:
    define("off", off=True)
    view = Domain(connection, "off").view()
    assert (view.state, view.active) == ("shut off", False)
    assert view.disks == view.config_disks
    assert view.disks[0].active == Layer("/img/off.qcow2", "qcow2")


def test_a_transient_domain(connection: Connection, define: Define) -> None:
    define("passing", transient=True)
    domain = Domain(connection, "passing")
    assert (domain.view().persistent, domain.view().config_disks) == (False, ())
    assert "<name>passing</name>" in domain.domain_xml()


def test_a_domain_that_goes_away(connection: Connection, define: Define) -> None:
    made = define("leaving", transient=True)
    domain = Domain(connection, "leaving")
    made.destroy()
    for read in (domain.view, domain.state, domain.snapshots):
        with pytest.raises(VirtopsError) as caught:
            read()
        assert caught.value.code == "no_such_domain"


def test_a_lost_connection_is_opened_again(connection: Connection, define: Define) -> None:
    define("stays")
    domain = Domain(connection, "stays")
    connection.handle.close()
    connection.close()
    connection.reopen()
    assert domain.view().name == "stays"


def test_the_domains_of_a_host_come_by_name(connection: Connection, define: Define) -> None:
    define("zz", off=True)
    define("aa")
    names = [view.name for view in Host(connection).domains()]
    assert names == sorted(names)
    assert {"aa", "zz"} <= set(names)


# The journal


@pytest.mark.parametrize("kind", [{}, {"off": True}, {"transient": True}])
def test_the_journal_travels_with_the_domain(connection: Connection, define: Define, kind: dict[str, bool]) -> None:
    define("writes", **kind)
    domain = Domain(connection, "writes")
    assert domain.view().journal == Journal()
    domain.write_journal(JOURNAL)
    assert domain.view().journal == JOURNAL
    domain.write_journal(JOURNAL)
    assert len(domain.view().journal.operations) == 1
    domain.write_journal(Journal())
    domain.write_journal(Journal())
    assert domain.view().journal == Journal()


def test_the_journal_survives_the_end_of_the_guest(connection: Connection, define: Define) -> None:
    made = define("survives")
    domain = Domain(connection, "survives")
    domain.write_journal(JOURNAL)
    made.destroy()
    assert domain.view().journal == JOURNAL


def test_a_journal_that_does_not_last_ends_with_the_guest(connection: Connection, define: Define) -> None:
    made = define("ends")
    domain = Domain(connection, "ends")
    domain.write_journal(JOURNAL)
    frozen = Journal(tuple(operation.held(Hold(frozen=True)) for operation in JOURNAL.operations))
    domain.write_journal(frozen, lasting=False)
    assert domain.view().journal == frozen
    made.destroy()
    assert domain.view().journal == JOURNAL


def test_metadata_of_others_stays(connection: Connection, define: Define) -> None:
    made = define("shares")
    made.setMetadata(2, "<note/>", "o", "urn:other", 3)
    domain = Domain(connection, "shares")
    domain.write_journal(JOURNAL)
    domain.write_journal(Journal())
    assert made.metadata(2, "urn:other", 1) == "<note/>"


# Snapshots


def snapshot_tree(made: Any) -> None:
    """root > child > leaf, and root > other"""
    for name, current in (("root", None), ("child", "root"), ("leaf", "child"), ("other", "root")):
        if current is not None:
            made.revertToSnapshot(made.snapshotLookupByName(current))
        made.snapshotCreateXML(f"<domainsnapshot><name>{name}</name></domainsnapshot>")


def test_snapshots_come_parents_first(connection: Connection, define: Define) -> None:
    snapshot_tree(define("tree"))
    domain = Domain(connection, "tree")
    records = domain.snapshots()
    names = [record.name for record in records]
    assert set(names) == {"root", "child", "leaf", "other"}
    assert all(record.parent is None or names.index(record.parent) < names.index(record.name) for record in records)
    leaf = domain.snapshot("leaf")
    assert leaf is not None
    assert (leaf.parent, leaf.external, leaf.state) == ("child", False, "running")
    assert domain.snapshot("nothing") is None


def knows_no_metadata_only(domain: Domain, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The test driver deletes records, but refuses the flag that says so: take it off, and tell of it."""
    real, seen = domain._domain.snapshotLookupByName, []

    class Snapshot:
        def __init__(self, name: str) -> None:
            self.snapshot = real(name)

        def delete(self, flags: int) -> None:
            seen.append(flags & libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)
            self.snapshot.delete(flags & ~libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)

    monkeypatch.setattr(domain._domain, "snapshotLookupByName", Snapshot)
    return seen


@pytest.mark.parametrize(
    ("children", "left"),
    [("keep", {"root", "leaf", "other"}), ("delete", {"root", "other"}), ("only", {"root", "child", "other"})],
)
def test_a_record_goes_with_or_without_its_children(
    connection: Connection, define: Define, monkeypatch: pytest.MonkeyPatch, children: str, left: set[str]
) -> None:
    snapshot_tree(define("pruned"))
    domain = Domain(connection, "pruned")
    flags = knows_no_metadata_only(domain, monkeypatch)
    domain.delete_snapshot_record("child", children)
    assert flags == [libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY]
    assert {record.name for record in domain.snapshots()} == left


def test_deleting_a_record_that_is_not_there_fails(connection: Connection, define: Define) -> None:
    define("empty")
    with pytest.raises(VirtopsError) as caught:
        Domain(connection, "empty").delete_snapshot_record("nothing")
    assert caught.value.code == "no_such_snapshot"


def test_what_the_driver_cannot_do_is_told(connection: Connection, define: Define) -> None:
    define("plain")
    domain = Domain(connection, "plain")
    for call in (
        lambda: domain.start_commit("vda", "/a", "/b", True, 0, False),
        lambda: domain.pivot("vda"),
        lambda: domain.cancel_job("vda"),
    ):
        with pytest.raises(VirtopsError) as caught:
            call()
        assert caught.value.code == "unsupported"


# The guest agent


def test_freeze_and_thaw(connection: Connection, define: Define) -> None:
    define("frozen")
    domain = Domain(connection, "frozen")
    assert domain.freeze(1) > 0
    assert domain.thaw(1) > 0
    assert domain.thaw(1) == 0


@pytest.mark.parametrize(("devices", "code"), [("", "no_agent"), (AGENT, "agent_unresponsive")])
def test_no_agent_is_told_without_asking_it(connection: Connection, define: Define, devices: str, code: str) -> None:
    define("mute", devices=devices)
    with pytest.raises(VirtopsError) as caught:
        Domain(connection, "mute").agent_ping(1)
    assert caught.value.code == code
    assert "quiesce" in caught.value.remedy


# Definitions


def test_the_definition_gets_other_images(connection: Connection, define: Define) -> None:
    define("merged", off=True)
    domain = Domain(connection, "merged")
    domain.set_config_disks({"vda": Layer("/img/a, b.raw", "raw")})
    assert domain.view().config_disks[0].chain == (Layer("/img/a, b.raw", "raw"),)
    assert domain.view().uuid == domain.uuid


def test_the_definition_of_a_running_domain_changes_apart(connection: Connection, define: Define) -> None:
    define("split")
    domain = Domain(connection, "split")
    domain.set_config_disks({"vda": Layer("/img/next.raw", "raw")})
    view = domain.view()
    assert view.disks[0].active == Layer("/img/split.qcow2", "qcow2")
    assert view.config_disks[0].active == Layer("/img/next.raw", "raw")
    assert "/img/next.raw" in domain.domain_xml()


def test_the_images_of_the_other_domains(connection: Connection, define: Define) -> None:
    define("mine")
    define("theirs")
    define("idle", off=True)
    found = Domain(connection, "mine").other_images()
    assert {"/img/theirs.qcow2", "/img/idle.qcow2"} <= found.known
    assert "/img/mine.qcow2" not in found.known
    assert Layer("/img/idle.qcow2", "qcow2") in found.tips
    assert isinstance(found, OtherImages)


class Gone:
    """A domain or a connection over which nothing comes any more, as after the death of libvirtd."""

    def __getattr__(self, _unused: str) -> Callable[..., Any]:
        return self._fail

    def _fail(self, *_: object) -> None:
        error = libvirt.libvirtError("gone")
        error.err = (libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_FROM_RPC, "gone", 2, None, None, None, -1, -1)
        raise error

    def name(self) -> str:
        return "survives"

    def close(self) -> None:
        """A connection that is lost can be closed."""


@pytest.fixture
def abandoned(connection: Connection, define: Define) -> Domain:
    """A domain that was looked up before libvirtd was restarted."""
    define("survives", devices=AGENT)
    domain = Domain(connection, "survives")
    connection.handle, domain._domain = Gone(), Gone()
    return domain


@pytest.mark.parametrize(
    "call",
    [
        lambda domain: domain.state(),
        lambda domain: domain.view(),
        lambda domain: domain.snapshot("none"),
        lambda domain: domain.snapshots(),
        lambda domain: domain.domain_xml(),
        lambda domain: domain.write_journal(Journal()),
        lambda domain: domain.thaw(1),
        lambda domain: domain.set_config_disks({"vda": Layer("/img/next.raw", "raw")}),
        lambda domain: domain.other_images(),
        lambda domain: domain.has_job(),
    ],
)
def test_what_may_be_done_twice_survives_a_restart_of_libvirtd(
    abandoned: Domain, call: Callable[[Domain], object]
) -> None:
    call(abandoned)


@pytest.mark.parametrize(
    "call",
    [
        lambda domain: domain.freeze(1),
        lambda domain: domain.create_snapshot("<domainsnapshot/>", Creation()),
        lambda domain: domain.start_commit("vda", "/a", "/b", True, 0, False),
        lambda domain: domain.pivot("vda"),
        lambda domain: domain.cancel_job("vda"),
    ],
)
def test_what_begins_or_ends_something_is_not_done_twice(abandoned: Domain, call: Callable[[Domain], object]) -> None:
    with pytest.raises(VirtopsError) as caught:
        call(abandoned)
    assert caught.value.code == "connection_lost"


# Snapshots


class _Handle:
    """What libvirt's QEMU driver would be asked; the test driver knows no external snapshots."""

    def __init__(self) -> None:
        self.flags = 0
        self.job = 0

    def snapshotCreateXML(self, _xml: str, flags: int) -> None:
        self.flags = flags

    def jobInfo(self) -> list[int]:
        return [self.job, *[0] * 11]


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        (Creation(), {"DISK_ONLY", "REUSE_EXT"}),
        (Creation(metadata=False), {"DISK_ONLY", "REUSE_EXT", "NO_METADATA"}),
        (Creation(reuse=False), {"DISK_ONLY"}),
        (Creation(memory=True), {"REUSE_EXT"}),
        (Creation(memory=True, live=True, halt=True), {"REUSE_EXT", "LIVE", "HALT"}),
    ],
)
def test_how_an_external_snapshot_is_asked_for(
    connection: Connection, define: Define, monkeypatch: pytest.MonkeyPatch, how: Creation, wanted: set[str]
) -> None:
    define("asked")
    domain, handle = Domain(connection, "asked"), _Handle()
    monkeypatch.setattr(domain, "_domain", handle)
    domain.create_snapshot("<domainsnapshot/>", how)
    names = ("ATOMIC", "DISK_ONLY", "REUSE_EXT", "NO_METADATA", "LIVE", "HALT", "QUIESCE")
    found = {name for name in names if handle.flags & getattr(libvirt, f"VIR_DOMAIN_SNAPSHOT_CREATE_{name}")}
    assert found == wanted | {"ATOMIC"}


@pytest.mark.parametrize(("job", "busy"), [(0, False), (1, True), (2, True), (3, False), (4, False), (5, False)])
def test_whether_libvirt_works_at_a_domain(
    connection: Connection, define: Define, monkeypatch: pytest.MonkeyPatch, job: int, busy: bool
) -> None:
    define("busy")
    domain, handle = Domain(connection, "busy"), _Handle()
    assert not domain.has_job()
    handle.job = job
    monkeypatch.setattr(domain, "_domain", handle)
    assert domain.has_job() == busy


# Waiting


def test_an_event_ends_the_wait(connection: Connection, define: Define) -> None:
    made = define("wakes")
    domain = Domain(connection, "wakes")
    domain.wait_event(0.01)
    made.suspend()
    begun = time.monotonic()
    domain.wait_event(30)
    assert time.monotonic() - begun < 30
    domain.close()


def test_without_a_connection_the_wait_ends_too(connection: Connection, define: Define) -> None:
    define("left")
    domain = Domain(connection, "left")
    domain.wait_event(0.01)
    connection.close()
    domain.wait_event(0.01)
    connection.reopen()
    domain.close()


def test_without_an_event_the_wait_ends_too(connection: Connection, define: Define) -> None:
    define("sleeps")
    domain = Domain(connection, "sleeps")
    domain.wait_event(0.01)
    domain.wait_event(0)
    domain.close()
    domain.wait_event(0.01)


class Died:
    """A libvirt domain whose QEMU ends under each call; libvirt notices after some looks."""

    def __init__(self, said: str, states: list[int]) -> None:
        self._said = said
        self._states = states

    def suspend(self) -> None:
        raise libvirt.libvirtError(self._said)

    def state(self) -> list[int]:
        return [self._states.pop(0) if len(self._states) > 1 else self._states[0], 0]


RUNNING, SHUTOFF = 1, 5


@pytest.mark.parametrize(
    "said",
    [
        "Unable to read from monitor: Connection reset by peer",
        "Unable to write to monitor: Broken pipe",
        "End of file from qemu monitor",
        "internal error: End of file from qemu monitor (vm='web')",
        "operation failed: QEMU monitor was closed",
        "operation failed: domain is no longer running",
        "operation failed: guest unexpectedly quit",
        "Requested operation is not valid: domain is not running",
        "Guest agent is not responding: Guest agent disappeared while executing command",
        "Unable to write to agent: Broken pipe",
        "internal error: End of file from agent socket",
        "internal error: Missing monitor reply object",
    ],
)
def test_whatever_libvirt_says_when_qemu_ends(
    connection: Connection, define: Define, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    define("dies")
    monkeypatch.setattr(errors, "_PAUSE", 0)
    domain = Domain(connection, "dies")
    domain._domain = Died(said, [RUNNING, RUNNING, SHUTOFF])
    with pytest.raises(VirtopsError) as caught:
        domain.suspend()
    assert caught.value.code == "guest_ended"
    assert said in caught.value.cause
    assert "now shut off" in caught.value.cause
    domain._domain = Died(said, [RUNNING])
    with pytest.raises(VirtopsError) as caught:
        domain.suspend()
    assert caught.value.code != "guest_ended"
