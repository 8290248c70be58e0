# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Snapshot records on libvirt's own in-process driver: redefined, current, described, renamed, cloned."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Outcome  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._libvirt.connection import Connection  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._libvirt.domain import Domain  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._service.guest import Guest  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._service.records import RecordOptions, Records  # noqa: E402

from .fakes import FakeClock, FakeImages, FakeWatchdog  # noqa: E402
from .test_snapshot_info import NODE, RECORDS, _xml  # noqa: E402

ODD = "b <é> & 'c'"
OTHER_DOMAIN = "<domain><uuid>6695eb01-f6a4-8304-79aa-97f2502e1930</uuid></domain>"


class TestDomain(Domain):
    """libvirt's test driver has no images, and refuses to be told to leave them alone."""

    __test__ = False

    def delete_snapshot_record(self, name: str, children: str = "keep") -> None:
        flags = libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_CHILDREN if children == "delete" else 0
        self._domain.snapshotLookupByName(name).delete(flags)


@pytest.fixture
def domain(tmp_path: Path) -> Iterator[Domain]:
    (tmp_path / "node.xml").write_text(NODE)
    with Connection(f"test://{tmp_path}/node.xml") as connection:
        found = TestDomain(connection, "test")
        raw = connection.handle.lookupByName("test")
        for record in RECORDS:
            raw.snapshotCreateXML(_xml(raw, *record), libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)
        yield found
        found.close()


def state_of(domain: Domain) -> tuple[list[str], str | None]:
    return sorted(domain.snapshot_xmls(secure=True)), domain.current_snapshot()


def records(domain: Domain, **wish: Any) -> Records:
    return Records(RecordOptions(**wish), Guest(domain, FakeImages({}), FakeClock(), FakeWatchdog()))


def cycle(domain: Domain, **wish: Any) -> Outcome:
    """Check, run, run, check: as the same task is run by a playbook."""
    before = state_of(domain)
    foreseen = records(domain, **wish).run(check=True)
    assert state_of(domain) == before
    done = records(domain, **wish).run(check=False)
    assert (foreseen.steps, foreseen.before, foreseen.after) == (done.steps, done.before, done.after)
    assert set(foreseen.values) == set(done.values)
    after = state_of(domain)
    for check in (False, True):
        assert not records(domain, **wish).run(check).changed
    assert state_of(domain) == after
    return done


def record(domain: Domain, name: str) -> Any:
    found = domain.snapshot(name)
    assert found is not None
    return found


def test_a_record_that_is_as_asked_for(domain: Domain) -> None:
    for text in domain.snapshot_xmls(secure=True):
        assert not records(domain, text=text).run(check=False).changed
    assert not records(domain, name="a").run(check=False).changed


def test_a_whole_tree_on_a_domain_that_lost_it(domain: Domain) -> None:
    texts = domain.snapshot_xmls(secure=True)
    domain.delete_snapshot_record("a", "delete")
    domain.delete_snapshot_record("f", "keep")
    assert domain.snapshot_xmls(secure=False) == ()
    for text in texts:
        name = xml.parse_snapshot(text).name
        done = cycle(domain, text=text, current=name == "d")
        assert done.values["snapshot"]["name"] == name  # type: ignore[index]
    assert state_of(domain) == (sorted(texts), "d")


def test_parents_come_first(domain: Domain) -> None:
    text = next(found for found in domain.snapshot_xmls(True) if xml.parse_snapshot(found).name == ODD)
    domain.delete_snapshot_record("a", "delete")
    with pytest.raises(VirtopsError) as caught:
        records(domain, text=text).run(check=True)
    assert caught.value.code == "no_such_parent"


def test_current(domain: Domain) -> None:
    done = cycle(domain, name=ODD, current=True)
    assert domain.current_snapshot() == ODD
    assert done.steps == ("make snapshot %s the current one" % ODD,)
    assert len(domain.snapshot_xmls(False)) == len(RECORDS)


@pytest.mark.parametrize("text", ["a <b> & 'ö'", ""])
def test_describe(domain: Domain, text: str) -> None:
    cycle(domain, name=ODD, description="first")
    cycle(domain, name=ODD, description=text)
    assert record(domain, ODD).description == (text or None)
    assert record(domain, "c").parent == ODD


def test_rename_takes_the_children_along(domain: Domain) -> None:
    for name in ("e", "c"):  # one that is external, made the parent of another
        text = next(found for found in domain.snapshot_xmls(True) if xml.parse_snapshot(found).name == name)
        if name == "e":
            domain.redefine_snapshot(xml.edited_snapshot(text, parent="c"), False, False)
    domain.write_journal(
        Journal((Operation("1", "snapshot", "c", "created", "now", (JournalDisk("vda", "/a", "raw", "/c"),)),))
    )
    cycle(domain, name="c", new_name="neu & <c>", description="moved")
    assert domain.snapshot("c") is None
    assert record(domain, "neu & <c>").description == "moved"
    assert record(domain, "neu & <c>").parent == ODD
    assert record(domain, "e").parent == "neu & <c>"
    (operation,) = domain.view().journal.operations
    assert operation.name == "neu & <c>"
    domain.write_journal(Journal())


def test_a_rename_that_died_is_finished(domain: Domain) -> None:
    text = next(found for found in domain.snapshot_xmls(True) if xml.parse_snapshot(found).name == "f")
    domain.redefine_snapshot(xml.edited_snapshot(text, name="g"), False, False)
    cycle(domain, name="f", new_name="g")
    assert domain.snapshot("f") is None
    assert domain.snapshot("g") is not None


def test_clone_keeps_both(domain: Domain) -> None:
    cycle(domain, name="f", new_name="g", clone=True)
    assert record(domain, "f").disks == record(domain, "g").disks


@pytest.mark.parametrize("clone", [True, False])
def test_what_was_copied_or_renamed_is_changed_as_any_other(domain: Domain, clone: bool) -> None:
    wish = {"name": "f", "new_name": "g", "clone": clone}
    cycle(domain, **wish, description="one")
    done = cycle(domain, **wish, description="two")
    assert (record(domain, "g").description, done.steps) == ("two", ("write the record of snapshot g",))
    cycle(domain, **wish, current=True)
    assert (record(domain, "g").description, domain.current_snapshot()) == ("two", "g")
    done = cycle(domain, name="a", current=True)
    assert (domain.current_snapshot(), done.values["snapshot"]["current"]) == ("a", True)  # type: ignore[index]


def test_a_rename_that_died_does_not_lose_a_description(domain: Domain) -> None:
    cycle(domain, name="f", new_name="g", clone=True, description="one")
    with pytest.raises(VirtopsError) as caught:
        records(domain, name="f", new_name="g").run(check=False)
    assert (caught.value.code, "description: one, not none" in caught.value.cause) == ("snapshot_differs", True)
    cycle(domain, name="f", new_name="g", description="two")
    assert (domain.snapshot("f"), record(domain, "g").description) == (None, "two")


def test_a_rename_leaves_a_child_current(domain: Domain) -> None:
    text = next(found for found in domain.snapshot_xmls(True) if xml.parse_snapshot(found).name == "e")
    domain.redefine_snapshot(xml.edited_snapshot(text, parent="c"), True, False)
    done = cycle(domain, name="c", new_name="g")
    assert (domain.current_snapshot(), done.values["snapshot"]["current"]) == ("e", False)  # type: ignore[index]


@pytest.mark.parametrize("name", ["f", ODD])
def test_a_rename_to_its_own_name_is_none(domain: Domain, name: str) -> None:
    before = state_of(domain)
    assert not records(domain, name=name, new_name=name).run(check=False).changed
    assert state_of(domain) == before
    cycle(domain, name=name, new_name=name, description="what for")
    assert record(domain, name).description == "what for"


def test_what_is_no_copy_is_told(domain: Domain) -> None:
    for wish in ({"clone": True}, {}):
        with pytest.raises(VirtopsError) as caught:
            records(domain, name="f", new_name="c", **wish).run(check=True)
        assert "parent: %s, not none" % ODD in caught.value.cause
        assert "disks:" not in caught.value.cause


@pytest.mark.parametrize("clone", [True, False])
def test_the_name_of_an_internal_one_stays(domain: Domain, clone: bool) -> None:
    before = state_of(domain)
    with pytest.raises(VirtopsError) as caught:
        records(domain, name=ODD, new_name="x", clone=clone).run(check=False)
    assert caught.value.code == "internal_name"
    assert state_of(domain) == before


@pytest.mark.parametrize(
    ("wish", "code"),
    [
        ({"name": "nobody"}, "no_such_snapshot"),
        ({"name": "nobody", "new_name": "x"}, "no_such_snapshot"),
        ({"name": "f", "new_name": "c"}, "snapshot_differs"),
        ({"name": "x", "text": "<domainsnapshot><name>y</name></domainsnapshot>"}, "bad_option"),
        ({"text": "<domain><name>y</name></domain>"}, "invalid_xml"),
        ({"text": "<!DOCTYPE x><domainsnapshot><name>y</name></domainsnapshot>"}, "invalid_xml"),
        ({"text": "<domainsnapshot><name>y</name>%s</domainsnapshot>" % OTHER_DOMAIN}, "other_domain"),
    ],
)
def test_refusals(domain: Domain, wish: dict[str, Any], code: str) -> None:
    before = state_of(domain)
    for check in (True, False):
        with pytest.raises(VirtopsError) as caught:
            records(domain, **wish).run(check)
        assert caught.value.code == code
    assert state_of(domain) == before


def test_an_open_operation_is_refused(domain: Domain) -> None:
    domain.write_journal(Journal((Operation("1", "live_backup", "n", "created", "now", ()),)))
    with pytest.raises(VirtopsError) as caught:
        records(domain, name="a", current=True).run(check=True)
    assert caught.value.code == "operation_open"
    domain.write_journal(Journal())


@pytest.mark.parametrize(
    ("wanted", "is_so"),
    [
        ("<d><a x='1'>t</a></d>", True),
        ("<d>\n <a>t</a>\n</d>", True),
        ("<d><b/><a>t</a></d>", True),
        ("<d><a x='2'>t</a></d>", False),
        ("<d><a>u</a></d>", False),
        ("<d><a>t</a><a>t</a></d>", False),
        ("<d><c/></d>", False),
        ("<e/>", False),
    ],
)
def test_what_a_record_covers(wanted: str, is_so: bool) -> None:
    assert xml.covers("<d><!-- c --><a x='1' y='2'>t</a><b/></d>", wanted) is is_so
