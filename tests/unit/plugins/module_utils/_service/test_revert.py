# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Going back to snapshots on libvirt's own in-process driver; what is inside of the images is told by a fake."""

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
from ansible_collections.virtops.libvirt.plugins.module_utils._core.internal import InternalOptions  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._core.journal import (  # noqa: E402
    Journal,
    JournalDisk,
    Operation,
    Reverted,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import (  # noqa: E402
    BlockJob,
    Disk,
    DomainView,
    FileIdentity,
    Layer,
    Outcome,
    SnapshotDisk,
    SnapshotRecord,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._core.revert import (  # noqa: E402
    RevertOptions,
    journal_after,
    refuse_internal,
    refuse_revert,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._libvirt.connection import Connection  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._libvirt.domain import Domain  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._libvirt.errors import failure  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._service.guest import Guest  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._service.revert import Revert  # noqa: E402

from .fakes import FakeClock, FakeWatchdog  # noqa: E402
from .test_internal import NODE, Images, flow, state_of  # noqa: E402


@pytest.fixture
def domain(tmp_path: Path) -> Iterator[Domain]:
    (tmp_path / "node.xml").write_text(NODE)
    with Connection(f"test://{tmp_path}/node.xml") as connection:
        found = Domain(connection, "test")
        yield found
        found.close()


@pytest.fixture
def images(domain: Domain) -> Images:
    """Snapshots: ran (running), off (shut off)."""
    found = Images(domain)
    flow(domain, found).present(InternalOptions("ran", halt=True), check=False)
    flow(domain, found).present(InternalOptions("off"), check=False)
    return found


def revert(domain: Domain, images: Images, check: bool = False, **wish: Any) -> Outcome:
    return Revert(RevertOptions(**wish), Guest(domain, images, FakeClock(), FakeWatchdog())).run(check)


def checked(domain: Domain, images: Images, **wish: Any) -> Outcome:
    """Check first, then run: the same is told, and the check touches nothing."""
    before = state_of(domain), domain.domain_xml()
    foreseen = revert(domain, images, check=True, **wish)
    assert (state_of(domain), domain.domain_xml()) == before
    done = revert(domain, images, **wish)
    assert foreseen == done
    assert done.after["state"] == domain.state() == done.values["state_after"]
    assert done.after["current"] == domain.current_snapshot()
    return done


@pytest.mark.parametrize(
    ("name", "run_state", "state"),
    [
        ("ran", "snapshot", "running"),
        ("ran", "running", "running"),
        ("ran", "paused", "paused"),
        ("off", "snapshot", "shut off"),  # with running and paused the test driver leaves it off
    ],
)
def test_the_state_afterwards(domain: Domain, images: Images, name: str, run_state: str, state: str) -> None:
    done = checked(domain, images, name=name, run_state=run_state)
    assert done.changed
    assert (done.values["state_before"], done.values["state_after"]) == ("shut off", state)
    domain._domain.isActive()
    assert domain.state() == state


def test_the_current_one(domain: Domain, images: Images) -> None:
    done = checked(domain, images)
    assert done.values["snapshot"]["name"] == "off"  # type: ignore[index]


def test_twice_is_once_where_nothing_happened_since(domain: Domain, images: Images) -> None:
    assert checked(domain, images, name="off").changed
    journal = domain.view().journal
    for check in (False, True):
        again = revert(domain, images, check, name="off")
        assert not again.changed
        assert set(again.values) == {"snapshot", "state_before", "state_after"}
    assert domain.view().journal == journal


@pytest.mark.parametrize("event", ["written", "started", "defined", "other snapshot", "reset", "forgotten"])
def test_what_makes_it_go_back_once_more(domain: Domain, images: Images, event: str) -> None:
    checked(domain, images, name="off")
    wish: dict[str, Any] = {"name": "off"}
    if event == "written":
        images.written["/img/b"] = 1
    elif event == "started":
        domain._domain.create()
    elif event == "defined":
        changed = domain.domain_xml().replace(">8192<", ">4096<")
        domain._connection.handle.defineXML(changed)
    elif event == "other snapshot":
        flow(domain, images).present(InternalOptions("later"), check=False)
    elif event == "reset":
        wish["reset_nvram"] = True
        domain.revert = lambda *_args: None  # type: ignore[method-assign] # as the test driver knows nothing of it
    else:
        domain.write_journal(Journal())
    assert revert(domain, images, **wish).changed


def test_one_that_runs_is_always_taken_back(domain: Domain, images: Images) -> None:
    for _unused in (1, 2):
        assert checked(domain, images, name="ran").changed
    assert domain.view().journal == Journal()


def operation(name: str, phase: str, base: str, overlay: str, kind: str = "snapshot") -> Operation:
    return Operation(name, kind, name, phase, "20261120T120000Z", (JournalDisk("vda", base, "qcow2", overlay),))


def test_an_operation_of_the_past_does_not_rise(domain: Domain, images: Images) -> None:
    past = Journal((operation("nightly", "prepared", "/img/0", "/img/a", "live_backup"),))
    domain.write_journal(past)
    domain._domain.snapshotCreateXML("<domainsnapshot><name>within</name></domainsnapshot>", 0)
    kept = operation("kept", "created", "/img/0", "/img/a")
    domain.write_journal(Journal((kept,)))
    checked(domain, images, name="within")
    journal = domain.view().journal
    assert journal.operations == (kept,)
    assert journal.reverted is not None
    assert not revert(domain, images, name="within").changed


def test_the_journal_afterwards() -> None:
    chain = tuple(Layer(path, "qcow2") for path in ("/img/new", "/img/base", "/img/root"))
    disk = Disk("vda", chain=chain)
    view = DomainView("web", "uuid", "shut off", True, (disk,), (disk,))
    at_snapshot = Journal(
        (
            operation("root", "created", "/img/root", "/img/base"),
            operation("open", "committing", "/img/root", "/img/base"),
        )
    )
    before = Journal(
        (
            operation("here", "created", "/img/base", "/img/old"),
            operation("gone", "created", "/img/old", "/img/older"),
        )
    )
    assert journal_after(before, at_snapshot, view, frozenset({"root"})).operations == (
        operation("root", "created", "/img/root", "/img/base"),
        operation("here", "created", "/img/base", "/img/new"),
    )


def test_a_snapshot_that_was_deleted_since_does_not_rise() -> None:
    """It is in the journal of the snapshot's moment; what stood on its layer stands on the one below now."""
    chain = tuple(Layer(path, "qcow2") for path in ("/img/new", "/img/top", "/img/root"))
    disk = Disk("vda", chain=chain)
    view = DomainView("web", "uuid", "shut off", True, (disk,), (disk,))
    at_snapshot = Journal(
        (operation("deleted", "created", "/img/root", "/img/mid"), operation("kept", "created", "/img/mid", "/img/top"))
    )
    kept = operation("kept", "created", "/img/root", "/img/top")
    assert journal_after(Journal(), at_snapshot, view, frozenset({"kept"})).operations == (kept,)
    assert journal_after(Journal(), at_snapshot, view).operations == (kept,)


def test_an_open_operation_is_refused(domain: Domain, images: Images) -> None:
    domain.write_journal(Journal((operation("n", "prepared", "/a", "/b"),)))
    with pytest.raises(VirtopsError) as caught:
        revert(domain, images, name="off")
    assert caught.value.code == "operation_open"


@pytest.mark.parametrize("wish", [{"name": "nobody"}, {}])
def test_no_such_snapshot(domain: Domain, wish: dict[str, Any]) -> None:
    with pytest.raises(VirtopsError) as caught:
        revert(domain, Images(domain), **wish)
    assert caught.value.code == "no_such_snapshot"


def test_libvirts_own_refusal_says_when_force_is_needed() -> None:
    problem = libvirt.libvirtError("x")
    problem.err = (libvirt.VIR_ERR_SNAPSHOT_REVERT_RISKY, libvirt.VIR_FROM_QEMU, "it is", 2, None, None, None, 0, 0)
    found = failure(problem, "Reverting")
    assert found.code == "revert_risky"
    assert "force: true" in found.remedy


def test_a_name_that_qemu_does_not_take() -> None:
    problem = libvirt.libvirtError(
        "internal error: unable to execute QEMU command 'snapshot-load': Invalid job ID 'a b'"
    )
    found = failure(problem, "Reverting")
    assert found.code == "name_unsuitable"
    assert "Invalid job ID 'a b'" in found.cause


VDA = Disk("vda", chain=(Layer("/img/a", "qcow2"), Layer("/img/0", "qcow2")))
VIEW = DomainView("web", "uuid", "running", True, (VDA,), (VDA,))
RECORD = SnapshotRecord("s", "shutoff", 1, (SnapshotDisk("vda", "internal"),))


@pytest.mark.parametrize(
    ("saved", "inside", "others", "code"),
    [
        ("/img/a", {"/img/a": ("s",)}, (), None),
        ("/img/a", {"/img/a": ("t",)}, (), "snapshot_stale"),
        ("/img/a", {}, (), "snapshot_stale"),
        ("/img/a", {"/img/a": ("s",)}, ("/img/a",), "base_shared"),
        ("/img/0", {"/img/0": ("s",)}, (), "layers_above"),
        ("/img/x", {"/img/x": ("s",)}, (), "chain_changed"),
    ],
)
def test_images_that_are_refused(saved: str, inside: Any, others: tuple[str, ...], code: str | None) -> None:
    def check() -> None:
        refuse_internal(RECORD, {"vda": Layer(saved, "qcow2")}, VIEW, inside, frozenset(others))

    if code is None:
        check()
        return
    with pytest.raises(VirtopsError) as caught:
        check()
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("wish", "view", "code"),
    [
        ({}, replace(VIEW, persistent=False), "run_state_needed"),
        ({"reset_nvram": True}, VIEW, "unsupported"),
        ({}, VIEW.with_disks((replace(VDA, job=BlockJob("copy")),)), "job_running"),
        ({"run_state": "paused"}, replace(VIEW, state="running"), "revert_risky"),
    ],
)
def test_guests_that_are_refused(wish: dict[str, Any], view: DomainView, code: str) -> None:
    with pytest.raises(VirtopsError) as caught:
        refuse_revert(RevertOptions("s", **wish), RECORD, view, 8_000_000)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("wish", "state", "version"),
    [
        ({"run_state": "running"}, "shut off", 8_000_000),
        ({"run_state": "running", "force": True}, "running", 8_000_000),
        ({"run_state": "running"}, "running", 9_000_000),
        ({}, "running", 8_000_000),
    ],
)
def test_libvirt_starts_a_new_qemu_where_it_may(wish: dict[str, Any], state: str, version: int) -> None:
    refuse_revert(RevertOptions("s", **wish), RECORD, replace(VIEW, state=state), version)


def test_the_last_revert_in_the_journal() -> None:
    reverted = Reverted("a <é>", "digest", (("/img/a & b", FileIdentity("", 2, 3, 4)),))
    journal = Journal((operation("kept", "created", "/img/0", "/img/a"),), reverted)
    assert xml.parse_journal(xml.build_journal(journal)) == journal
    alone = journal.drop(journal.operations[0])
    assert alone.reverted == reverted
    assert xml.parse_journal(xml.build_journal(alone)) == alone
    assert alone.put(journal.operations[0]) == journal


def test_the_digest_knows_no_journal_and_no_white_space() -> None:
    text = "<domain><name>w</name>{}<devices>{}</devices></domain>"
    uri = "https://virtops.github.io/xmlns/libvirt/journal/1"
    metadata = "\n<metadata>\n  <v:journal xmlns:v='%s' schema='1'/>\n</metadata>\n" % uri
    digest = xml.definition_digest(text.format("", ""))
    assert xml.definition_digest(text.format(metadata, "\n  ")) == digest
    assert xml.definition_digest(text.format(metadata, "<tpm/>")) != digest
