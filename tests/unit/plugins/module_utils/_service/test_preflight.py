# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A preflight looks at every guest of a host, and an error of one is that one's result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.backup import BackupOptions
from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.journal import Journal, JournalDisk, Operation
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import (
    BlockJob,
    Disk,
    DomainView,
    Layer,
    SnapshotRecord,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._core.preflight_facts import Capabilities, Limits, Reserve
from ansible_collections.virtops.libvirt.plugins.module_utils._core.snapshot import DiskOptions, SnapshotOptions
from ansible_collections.virtops.libvirt.plugins.module_utils._service.preflight import Preflight, PreflightOptions

from .fakes import UNREADABLE, FakeImages
from .fakes_backup import FakeHost as FakeStore

WISH = PreflightOptions(
    backup=BackupOptions("/srv/backup"),
    snapshot=SnapshotOptions("preflight", freeze_timeout=3),
    limits=Limits(25, Reserve(5, True), "preferred", "live_backup"),
)


class Images(FakeImages):
    """Some are broken."""

    def __init__(self) -> None:
        super().__init__({})
        self.folders |= {"/srv/backup"}
        self.broken: set[str] = set()

    def chain(self, path: str, image_format: str | None = None) -> tuple[Layer, ...]:
        if path in self.broken:
            raise VirtopsError("image_failed", "It is broken", "Mend it")
        return super().chain(path, image_format)

    info_failure: VirtopsError | None = None

    def info(self, path: str, image_format: str | None = None) -> Any:
        if self.info_failure is not None:
            raise self.info_failure
        return super().info(path, image_format)


class Host:
    """Domains by name, and what libvirt says of them."""

    def __init__(self, images: Images) -> None:
        self.images = images
        self.views: list[DomainView] = []
        self.told = Capabilities(True, 9000000)
        self.deaf: dict[str, VirtopsError] = {}
        self.checkpoint_count: dict[str, int] = {}
        self.recorded: dict[str, tuple[SnapshotRecord, ...]] = {}
        self.calls: list[str] = []

    def add(self, name: str, state: str = "running", **changes: Any) -> DomainView:
        path = f"/img/{name}.raw"
        self.images.backing[path] = ("raw", None)
        disk = Disk("vda", chain=(Layer(path, "raw"),))
        view = replace(DomainView(name, "uuid of " + name, state, True, (disk,), (disk,), "connected"), **changes)
        self.views.append(view)
        return view

    def domains(self) -> tuple[DomainView, ...]:
        return tuple(self.views)

    def records(self, uuid: str, wanted: Callable[[str], bool]) -> tuple[SnapshotRecord, ...]:
        return tuple(record for record in self.recorded.get(uuid, ()) if wanted(record.name))

    def capabilities(self) -> Capabilities:
        return self.told

    def job(self, uuid: str) -> str | None:
        return None

    def checkpoints(self, uuid: str) -> int | None:
        return self.checkpoint_count.get(uuid, 0)

    def keeps_checkpoints(self, uuid: str) -> bool:
        self.calls.append("keeps_checkpoints " + uuid)
        return False

    def deaf_agents(self, views: Sequence[DomainView], seconds: int) -> dict[str, VirtopsError]:
        self.calls.append("deaf_agents %s %d" % (",".join(view.name for view in views), seconds))
        return {uuid: error for uuid, error in self.deaf.items() if uuid in {view.uuid for view in views}}


class Lab:
    def __init__(self) -> None:
        self.images = Images()
        self.host = Host(self.images)
        self.store = FakeStore()
        self.rules: dict[str, str] = {}

    def run(self, wish: PreflightOptions = WISH) -> dict[str, Any]:
        outcome = Preflight(wish, self.host, self.images, self.store, lambda uuid: self.rules.get(uuid, "")).run()
        assert not outcome.changed
        assert self.images.calls == []
        return outcome.values

    def found(self, wish: PreflightOptions = WISH) -> dict[str, list[tuple[str, str, str]]]:
        """Of each guest what is not as it should be."""
        return {
            guest["name"]: [
                (check["check"], check["status"], check["error_code"])
                for check in guest["checks"]
                if check["status"] != "ok"
            ]
            for guest in self.run(wish)["guests"]
        }


@pytest.fixture
def lab() -> Lab:
    return Lab()


def journal(kind: str) -> Journal:
    noted = JournalDisk("vda", "/img/web.raw", "raw", "/img/o.qcow2")
    return Journal((Operation("1", kind, "s", "created", "now", (noted,)),))


def test_guests_are_chosen_as_by_guests_info(lab: Lab) -> None:
    for name, state in (("web1", "running"), ("web2", "shut off"), ("db", "running")):
        lab.host.add(name, state)
    told = lab.run(replace(WISH, guests=("web*", "nobody*"), exclude=("web9",)))
    assert [(guest["name"], guest["ready"], guest["state"]) for guest in told["guests"]] == [("web1", True, "running")]
    assert (told["ready"], told["unmatched"]) == (True, ["nobody*"])
    assert list(lab.found(replace(WISH, states=()))) == ["web1", "web2", "db"]


def test_one_guests_failure_hides_no_other(lab: Lab) -> None:
    lab.host.add("broken", disks=(Disk("vda", source_type="network"),))
    lab.host.add("fine")
    lab.host.add("gone", disks=(Disk("vda", chain=(Layer("/else/where.raw", "raw"),)),))
    lab.images.backing["/else/where.raw"] = ("raw", None)
    told = lab.found()
    assert told["broken"] == [("disks", "failed", "disk_unsuitable")]
    assert told["fine"] == []
    assert told["gone"][0] == ("images", "failed", "no_directory")


def test_an_unsuitable_disk_can_be_left_out(lab: Lab) -> None:
    view = lab.host.add("web")
    lab.host.views = [replace(view, disks=(*view.disks, Disk("vdb", source_type="network")))]
    assert lab.found()["web"][0] == ("disks", "failed", "disk_unsuitable")
    wish = replace(WISH, snapshot=replace(WISH.snapshot, disks=(DiskOptions("vdb", "no"),)))
    assert lab.found(wish) == {"web": []}


def test_jobs_do_not_hide_what_else_is_wrong(lab: Lab) -> None:
    view = lab.host.add("web")
    lab.images.read_only.add("/img/web.raw")
    lab.host.views = [replace(view, disks=(replace(view.disks[0], job=BlockJob("copy")),))]
    assert lab.found()["web"] == [("images", "failed", "not_writable"), ("jobs", "failed", "job_running")]


def test_a_bad_target_is_told_for_each_guest(lab: Lab) -> None:
    lab.host.add("web1")
    lab.host.add("web2")
    lab.store.fail["check_destination"] = VirtopsError("dest_missing", "It is not there", "Make it")
    assert list(lab.found().values()) == [[("target", "failed", "dest_missing")]] * 2


def test_options_that_fit_no_image_are_told(lab: Lab) -> None:
    lab.host.add("web")
    wish = replace(WISH, backup=replace(WISH.backup, compress=True))
    assert lab.found(wish)["web"] == [("target", "failed", "compress_needs_qcow2")]


def test_agents_are_asked_at_once_and_only_where_it_matters(lab: Lab) -> None:
    for name in ("a", "b", "deaf"):
        lab.host.add(name)
    lab.host.add("resumed", journal_found=journal("live_backup"))
    lab.host.add("paused", "paused")
    lab.host.deaf["uuid of deaf"] = VirtopsError("agent_unresponsive", "It does not answer", "Start it")
    wish = replace(WISH, states=("running", "paused"), limits=replace(WISH.limits, quiesce="required"))
    told = lab.found(wish)
    assert lab.host.calls == ["deaf_agents a,b,deaf 3"]
    assert told["deaf"] == [("agent", "failed", "agent_unresponsive")]
    assert told["paused"] == [("agent", "failed", "guest_paused")]
    assert told["a"] == []
    lab.host.calls.clear()
    lab.run(replace(WISH, limits=replace(WISH.limits, quiesce="never")))
    assert lab.host.calls == []


@pytest.mark.parametrize("state", ["running", "shut off", "crashed"])
def test_an_interrupted_backup_is_told_in_whatever_state(lab: Lab, state: str) -> None:
    lab.host.add("web", state, journal_found=journal("live_backup"))
    lab.host.add("off", "shut off", journal_found=journal("other_backup"))
    told = lab.run()
    assert told["ready"]
    assert [guest["name"] for guest in told["guests"]] == ["web"]
    told = [check["check"] for check in told["guests"][0]["checks"]]
    assert told == ["journal", *(["state"] if state == "crashed" else [])]


def test_a_journal_that_cannot_be_read(lab: Lab) -> None:
    lab.host.add("web", journal_found=UNREADABLE)
    assert lab.found()["web"] == [("journal", "failed", "journal_unreadable")]


@pytest.mark.parametrize("state", ["running", "shut off"])
def test_an_image_that_another_domain_stands_on(lab: Lab, state: str) -> None:
    """Also under another name, and by the chain of a domain that is off."""
    lab.host.add("golden")
    lab.images.backing["/img/clone.qcow2"] = ("qcow2", "/link/golden.raw")
    lab.images.backing["/link/golden.raw"] = ("raw", None)
    lab.images.links["/link/golden.raw"] = "/img/golden.raw"
    top, below = Layer("/img/clone.qcow2", "qcow2"), Layer("/link/golden.raw", "raw")
    shown = (top, below) if state == "running" else (top,)
    lab.host.add("clone", state, disks=(Disk("vda", chain=shown),), config_disks=(Disk("vda", chain=(top,)),))
    told = lab.found()
    assert told["golden"] == [("shared", "failed", "base_shared")]
    assert told.get("clone", []) == [], "it merges into its own overlay only"


@pytest.mark.parametrize("persistent", [False, True])
def test_an_overlay_that_a_guest_ended_on_and_was_started_below(lab: Lab, persistent: bool) -> None:
    """A transient domain is gone with its journal, and then started from its old XML: only the file tells."""
    guest = lab.host.add("web", persistent=persistent)
    if not persistent:
        lab.host.views[0] = replace(guest, config_disks=())
    usual = lab.found()["web"]
    made = {
        "/img/web.vda.nightly-1.qcow2": "/link/web.raw",  # the base by another name
        "/img/web.vda.empty.qcow2": "/img/web.raw",
        "/img/web.vda.branch.qcow2": "/img/other.raw",
        "/img/web.vdb.s.qcow2": "/img/web.raw",
        "/img/web2.vda.s.qcow2": "/img/web.raw",
        "/img/web.vda.mine.raw": "/img/web.raw",
    }
    lab.images.backing.update({path: ("qcow2", below) for path, below in made.items()})
    lab.images.backing["/link/web.raw"] = lab.images.backing["/img/other.raw"] = ("raw", None)
    lab.images.links["/link/web.raw"] = "/img/web.raw"
    lab.images.dirty = set(made) - {"/img/web.vda.empty.qcow2"}
    told = lab.run()["guests"][0]
    assert lab.found()["web"] == [*usual, ("overlays", "warning" if persistent else "failed", "overlay_in_use")]
    (check,) = [check for check in told["checks"] if check["check"] == "overlays"]
    assert (check["disk"], told["ready"]) == ("vda", persistent)
    assert "/img/web.vda.nightly-1.qcow2" in check["message"]


def test_overlays_that_are_in_use_are_not_left(lab: Lab) -> None:
    """Another guest may be called so, and a branch of snapshots is of its own."""
    lab.host.add("web")
    path = "/img/web.vda.clone.qcow2"
    lab.images.backing[path] = ("qcow2", "/img/web.raw")
    lab.images.dirty.add(path)
    lab.host.add("clone", disks=(Disk("vda", chain=(Layer(path, "qcow2"), Layer("/img/web.raw", "raw"))),))
    assert [row for row in lab.found()["web"] if row[0] == "overlays"] == []


def test_another_domain_whose_chain_is_broken(lab: Lab) -> None:
    lab.host.add("web")
    lab.host.add("broken", "shut off")
    lab.images.broken.add("/img/broken.raw")
    assert lab.found() == {"web": []}


def test_checkpoints_cost_a_question_only_where_there_are_any(lab: Lab) -> None:
    lab.host.add("web")
    lab.host.add("db")
    lab.host.checkpoint_count["uuid of db"] = 2
    assert lab.found(replace(WISH, limits=replace(WISH.limits, quiesce="never"))) == {
        "web": [],
        "db": [("checkpoints", "failed", "has_checkpoints")],
    }
    assert lab.host.calls == ["keeps_checkpoints uuid of db"]


@pytest.mark.parametrize(
    ("models", "told"), [({"apparmor"}, [("apparmor", "failed", "apparmor_denied")]), ({"dac"}, [])]
)
def test_rules_count_where_apparmor_is_the_driver(lab: Lab, models: set[str], told: list[Any]) -> None:
    lab.host.add("web")
    lab.host.told = replace(lab.host.told, security_models=frozenset(models))
    lab.rules["uuid of web"] = '  deny "/img/web.raw" w,\n'
    assert lab.found()["web"] == told


@pytest.mark.parametrize("code", ["missing_program", "connection_lost"])
def test_what_is_wrong_with_the_host_is_no_guests_fault(lab: Lab, code: str) -> None:
    lab.host.add("web")
    lab.images.info_failure = VirtopsError(code, "c", "r")
    with pytest.raises(VirtopsError) as caught:
        lab.run()
    assert caught.value.code == code


def test_a_domain_whose_definition_cannot_be_read_hides_no_other(lab: Lab) -> None:
    lab.host.add("web")
    lab.host.views.append(DomainView("odd", "u-odd", "running", True, (), (), unread="PCDATA invalid Char value 27"))
    told = lab.run()
    web, odd = sorted(told["guests"], key=lambda guest: str(guest["name"]), reverse=True)
    assert (web["ready"], odd["ready"]) == (True, False)
    assert [check["error_code"] for check in web["checks"] if check["status"] != "ok"] == ["neighbour_unseen"]
    assert [(check["check"], check["error_code"]) for check in odd["checks"]] == [("definition", "invalid_xml")]
    assert odd["checks"][0]["message"] == "The definition of domain odd cannot be read: PCDATA invalid Char value 27"


OFF = replace(WISH, states=())


def test_a_guest_that_is_off_needs_nothing_of_a_snapshot(lab: Lab) -> None:
    """No overlay, no merge, no agent, and nothing of libvirt: only its images and the space for their copies."""
    lab.host.add("off", "shut off")
    lab.host.told = Capabilities(False, 1_000_000)
    lab.host.checkpoint_count["uuid of off"] = 2
    lab.images.read_only.add("/img/off.raw")
    lab.images.free = 1 << 20
    wish = replace(OFF, limits=replace(WISH.limits, max_chain=1, quiesce="required"))
    told = lab.run(wish)
    (guest,) = told["guests"]
    assert lab.found(wish) == {"off": []}
    assert {check["message"] for check in guest["checks"] if check["check"] == "state"} == {
        "It is off: its images are copied as they are, and it cannot be started until the copy has ended"
    }
    assert [use["overlays"] for use in told["file_systems"]] == [0]


def test_the_copy_of_a_guest_that_is_off_has_to_fit(lab: Lab) -> None:
    lab.host.add("off", "shut off")
    lab.images.free = lab.store.free = 1 << 19
    assert lab.found(OFF) == {"off": [("target", "failed", "no_space")]}


@pytest.mark.parametrize("change", [{"saved": True}, {"moved": True}])
def test_one_that_is_not_really_off(lab: Lab, change: dict[str, bool]) -> None:
    lab.host.add("off", "shut off", **change)
    assert [row[:2] for row in lab.found(OFF)["off"]] == [("state", "failed")]


def test_a_template_that_is_off_may_have_clones_where_locks_hold(lab: Lab) -> None:
    lab.host.add("golden", "shut off")
    lab.host.add("clone", disks=(Disk("vda", chain=(Layer("/img/c.qcow2", "qcow2"), Layer("/img/golden.raw", "raw"))),))
    lab.images.backing["/img/c.qcow2"] = ("qcow2", "/img/golden.raw")
    wish = replace(OFF, guests=("golden",))
    assert lab.found(wish) == {"golden": []}
    lab.images.without_locks.add("/img/golden.raw")
    assert lab.found(wish) == {"golden": [("shared", "failed", "base_shared")]}
