# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""snapshot_info on libvirt's own in-process driver: each filter says what libvirt's flag of that name says."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

libvirt = pytest.importorskip("libvirt")
pytest.importorskip("lxml")

from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._core.snapshot import SnapshotOptions  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._core.snapshot_tree import Filters  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._libvirt.connection import Connection  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._libvirt.domain import Domain  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._service.guest import Guest  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._service.snapshot import ExternalSnapshot  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._service.snapshot_info import (  # noqa: E402
    SnapshotInfoOptions,
    snapshots,
)

from .fakes import running_guest  # noqa: E402

FLAGS = {
    "roots": "ROOTS",
    "leaves": "LEAVES",
    "has_children": "NO_LEAVES",
    "active": "ACTIVE",
    "inactive": "INACTIVE",
    "disk_only": "DISK_ONLY",
    "internal": "INTERNAL",
    "external": "EXTERNAL",
}
#: name, parent, state, where the disk is kept
RECORDS = (
    *(("a", None, "shutoff", "internal"), ("b <é> & 'c'", "a", "running", "internal")),
    *(("c", "b <é> & 'c'", "disk-snapshot", "external"), ("d", "a", "paused", "internal")),
    *(("e", "d", "shutoff", "external"), ("f", None, "disk-snapshot", "external")),
)


#: A host of each test's own: all connections to test:///default share one.
NODE = """<node><domain type='test'><name>test</name><uuid>6695eb01-f6a4-8304-79aa-97f2502e193f</uuid>
<memory>8192</memory><os><type arch='i686'>hvm</type></os><devices><disk type='file' device='disk'>
<source file='/img/vda'/><target dev='vda' bus='virtio'/></disk></devices></domain></node>"""


@pytest.fixture
def domain(tmp_path: Path) -> Iterator[Domain]:
    (tmp_path / "node.xml").write_text(NODE)
    with Connection(f"test://{tmp_path}/node.xml") as connection:
        found = Domain(connection, "test")
        raw = connection.handle.lookupByName("test")
        for name, parent, state, disk in RECORDS:
            raw.snapshotCreateXML(_xml(raw, name, parent, state, disk), libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)
        yield found
        found.close()


def _xml(raw: Any, name: str, parent: str | None, state: str, disk: str) -> str:
    text = name.replace("&", "&amp;").replace("<", "&lt;")
    above = "<parent><name>%s</name></parent>" % parent.replace("&", "&amp;").replace("<", "&lt;") if parent else ""
    memory = "internal" if state in ("running", "paused") and disk == "internal" else "no"
    source = "<source file='/img/%d'/>" % len(name) if disk == "external" else ""
    return (
        f"<domainsnapshot><name>{text}</name><state>{state}</state><creationTime>1795190400</creationTime>{above}"
        f"<memory snapshot='{memory}'/><disks><disk name='vda' snapshot='{disk}'>{source}</disk></disks>"
        f"{raw.XMLDesc()}</domainsnapshot>"
    )


def _names(domain: Domain, **filters: Any) -> list[str]:
    return [one["name"] for one in snapshots(SnapshotInfoOptions(Filters(**filters)), domain).values["snapshots"]]  # type: ignore[attr-defined]


def test_each_filter_and_each_pair_are_libvirts_own(domain: Domain) -> None:
    raw = domain._domain
    for count in (0, 1, 2, 3):
        for chosen in itertools.combinations(FLAGS, count):
            flags = sum(getattr(libvirt, "VIR_DOMAIN_SNAPSHOT_LIST_" + FLAGS[name]) for name in chosen)
            expected = {snapshot.getName() for snapshot in raw.listAllSnapshots(flags)}
            assert set(_names(domain, **dict.fromkeys(chosen, True))) == expected, chosen
    for start, flags in (("a", 0), ("a", libvirt.VIR_DOMAIN_SNAPSHOT_LIST_DESCENDANTS)):
        expected = {found.getName() for found in raw.snapshotLookupByName(start).listAllChildren(flags)}
        assert set(_names(domain, start=start, descendants=bool(flags))) == expected


def test_what_is_told_of_one(domain: Domain) -> None:
    outcome = snapshots(SnapshotInfoOptions(Filters(name="b <é> & 'c'"), xml=True), domain)
    assert not outcome.changed
    (told,) = outcome.values["snapshots"]  # type: ignore[attr-defined]
    assert "<name>b &lt;é&gt; &amp;" in told.pop("xml")
    assert told == {
        "name": "b <é> & 'c'",
        "description": None,
        "parent": "a",
        "children": ["c"],
        "creation_time": 1795190400,
        "state": "running",
        "kind": "internal",
        "memory": {"snapshot": "internal", "file": None},
        "disks": [{"name": "vda", "snapshot": "internal", "file": None, "format": None}],
        "current": False,
        "metadata": True,
    }


def test_none_is_current_until_one_is(domain: Domain) -> None:
    assert snapshots(SnapshotInfoOptions(), domain).values["current"] is None
    assert _names(domain, current=True) == []
    raw = domain._domain
    raw.snapshotCreateXML(
        _xml(raw, "d", "a", "paused", "internal"),
        libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT,
    )
    assert snapshots(SnapshotInfoOptions(), domain).values["current"] == "d"
    assert _names(domain, current=True) == ["d"]


def test_children_of_nobody(domain: Domain) -> None:
    with pytest.raises(VirtopsError) as caught:
        _names(domain, start="nobody")
    assert caught.value.code == "no_such_snapshot"


class WithoutRecords:
    """The fake domain of the other flows, as snapshot_info asks it."""

    def __init__(self, domain: Any) -> None:
        self._domain = domain

    def __getattr__(self, name: str) -> Any:
        return getattr(self._domain, name)

    def snapshot_xmls(self, secure: bool) -> tuple[str, ...]:
        return ()

    def current_snapshot(self) -> str | None:
        raise AssertionError("there is none to ask for")


def test_a_snapshot_without_metadata_is_in_the_journal() -> None:
    fake, images, clock, watchdog = running_guest()
    ExternalSnapshot(SnapshotOptions("s1", metadata=False), Guest(fake, images, clock, watchdog)).run(False)
    found: Any = WithoutRecords(fake)
    (told,) = snapshots(SnapshotInfoOptions(Filters(metadata=False)), found).values["snapshots"]  # type: ignore[attr-defined]
    assert (told["name"], told["kind"], told["metadata"], told["state"]) == ("s1", "external", False, "disk-snapshot")
    assert [disk["file"] for disk in told["disks"]] == ["/img/vm.vda.s1.qcow2", "/img/vm.vdb.s1.qcow2"]
    assert _names(found, metadata=True) == []


def test_a_snapshot_without_metadata_has_its_memory_told() -> None:
    fake, images, clock, watchdog = running_guest()
    wish = SnapshotOptions("s1", metadata=False, memory="/img/s1.ram")
    ExternalSnapshot(wish, Guest(fake, images, clock, watchdog)).run(False)
    (told,) = snapshots(SnapshotInfoOptions(Filters(active=True)), WithoutRecords(fake)).values["snapshots"]  # type: ignore[arg-type,attr-defined]
    assert (told["state"], told["memory"]) == ("running", {"snapshot": "external", "file": "/img/s1.ram"})


@pytest.mark.parametrize("filters", [Filters(), Filters(start="a", descendants=True), Filters(current=True)])
def test_each_record_is_read_once(domain: Domain, monkeypatch: pytest.MonkeyPatch, filters: Filters) -> None:
    """With n records, n descriptions are fetched, and nothing else is asked for each: so the cost grows with n."""
    asked = []
    ways = [name for name in vars(libvirt.virDomainSnapshot) if not name.startswith("_")]

    def counted(name: str) -> Any:
        real = getattr(libvirt.virDomainSnapshot, name)

        def call(self: Any, *arguments: Any) -> Any:
            asked.append(name)
            return real(self, *arguments)

        return call

    for name in ways:
        monkeypatch.setattr(libvirt.virDomainSnapshot, name, counted(name))
    snapshots(SnapshotInfoOptions(filters, xml=True), domain)
    assert asked.count("getXMLDesc") == len(RECORDS)
    assert len([name for name in asked if name != "getXMLDesc"]) <= 1
