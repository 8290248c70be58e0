# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the read-only modules tell."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core import xml
from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.journal import Journal, JournalDisk, Operation
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import (
    BlockJob,
    Disk,
    DomainView,
    ImageInfo,
    Layer,
    SnapshotRecord,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._core.snapshot import SnapshotOptions
from ansible_collections.virtops.libvirt.plugins.module_utils._service import info, journal_info
from ansible_collections.virtops.libvirt.plugins.module_utils._service.guest import Guest
from ansible_collections.virtops.libvirt.plugins.module_utils._service.recover import RecoverOptions, Recovery
from ansible_collections.virtops.libvirt.plugins.module_utils._service.snapshot import ExternalSnapshot

from .fakes import UNREADABLE, Died, FakeClock, FakeDomain, FakeImages, FakeWatchdog, running_guest

VIEW = DomainView(
    name="web1",
    uuid="1b4e28ba-2fa1-11d2-883f-0016d3cca427",
    state="running",
    persistent=True,
    disks=(Disk("vda", bus="virtio", chain=(Layer("/o", "qcow2"), Layer("/b", "raw"))), Disk("sda", "cdrom")),
    config_disks=(),
    agent="connected",
)
IMAGES = FakeImages({})


def no_records(uuid: str) -> tuple[SnapshotRecord, ...]:
    return ()


VIEWS = (
    VIEW,
    replace(VIEW, name="web2", uuid="1b4e28ba-2fa1-11d2-883f-000000000002", state="shut off"),
    replace(VIEW, name="db[1]", uuid="1b4e28ba-2fa1-11d2-883f-000000000003", state="paused"),
)


def names(patterns: list[str], exclude: list[str] | None = None, states: list[str] | None = None) -> list[str]:
    found = info.guests(VIEWS, patterns, exclude or [], states or [], no_records, IMAGES).values["guests"]
    return [guest["name"] for guest in found]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("patterns", "exclude", "states", "found"),
    [
        (["*"], [], [], ["web1", "web2", "db[1]"]),
        (["web*"], [], [], ["web1", "web2"]),
        (["web?"], ["*2"], [], ["web1"]),
        (["WEB1"], [], [], []),
        (["1B4E28BA-2fa1-11d2-883f-000000000003"], [], [], ["db[1]"]),
        (["*"], ["1b4e28ba-2fa1-11d2-883f-000000000003"], [], ["web1", "web2"]),
        (["db[[]1]"], [], [], ["db[1]"]),
        (["*"], [], ["paused", "shut off"], ["web2", "db[1]"]),
        (["web2"], [], ["running"], []),
        ([], [], [], []),
    ],
)
def test_guests_are_chosen(patterns: list[str], exclude: list[str], states: list[str], found: list[str]) -> None:
    assert names(patterns, exclude, states) == found


def test_a_pattern_that_matches_nobody_is_told() -> None:
    outcome = info.guests(VIEWS, ["web1", "wbe2", "web2"], ["web1"], ["running"], no_records, IMAGES)
    assert outcome.values["unmatched"] == ["wbe2"], "those left out by exclusion or state are there"
    assert not outcome.changed


def test_a_guest_with_an_interrupted_operation() -> None:
    operation = Operation("1", "live_backup", "s", "created", "now", (JournalDisk("vda", "/b", "raw", "/o"),), "crash")
    view = replace(VIEW, journal_found=Journal((operation,)))
    (guest,) = info.guests([view], ["*"], [], [], no_records, IMAGES).values["guests"]  # type: ignore[misc,attr-defined]
    assert guest == {
        "patterns": ["*"],
        "name": "web1",
        "uuid": VIEW.uuid,
        "state": "running",
        "paused_by": None,
        "persistent": True,
        "autostart": False,
        "elsewhere": False,
        "agent": "connected",
        "disks": [
            {
                "name": "vda",
                "bus": "virtio",
                "device": "disk",
                "type": "file",
                "file": "/o",
                "format": "qcow2",
                "readonly": False,
                "shareable": False,
                "transient": False,
            },
            {
                "name": "sda",
                "bus": "",
                "device": "cdrom",
                "type": "file",
                "file": None,
                "format": None,
                "readonly": False,
                "shareable": False,
                "transient": False,
            },
        ],
        "journal": [
            {
                "id": "1",
                "kind": "live_backup",
                "name": "s",
                "phase": "created",
                "started": "now",
                "open": True,
                "noted": True,
                "consistency": "crash",
                "disks": [{"name": "vda", "base": "/b", "base_format": "raw", "overlay": "/o"}],
            }
        ],
        "journal_error": None,
        "journal_of": None,
    }


def test_an_unreadable_journal_hides_no_guest() -> None:
    broken = replace(VIEWS[1], journal_found=UNREADABLE)
    first, second = info.guests([VIEW, broken], ["*"], [], [], no_records, IMAGES).values["guests"]  # type: ignore[misc,attr-defined]
    assert first["journal_error"] is None
    assert second["journal"] == []
    assert "its schema is 99" in second["journal_error"]


class SizedDomain(FakeDomain):
    def sizes(self, disk: str) -> tuple[int, int, int] | None:
        active = self.live[disk].active
        return (100, 10, 20) if active and self.images.exists(active.path) else None


def lab(state: str = "running") -> tuple[SizedDomain, FakeImages]:
    made, images, _unused, _ignored1 = running_guest()
    domain = SizedDomain(images, list(made.live.values()), state)
    return domain, images


@pytest.mark.parametrize("state", ["running", "shut off"])
def test_disks_come_with_their_whole_chains(state: str) -> None:
    domain, images = lab(state)
    disks = {disk["name"]: disk for disk in info.block(domain, images, []).values["disks"]}  # type: ignore[attr-defined]
    assert list(disks) == ["vda", "vdb", "sda"]
    assert [(x["path"], x["format"], x["depth"], x["exists"], x["size"]) for x in disks["vdb"]["chain"]] == [
        ("/img/b.qcow2", "qcow2", 0, True, 1 << 30),
        ("/img/golden.raw", "raw", 1, True, 1 << 30),
    ]
    assert (disks["vda"]["capacity"], disks["vda"]["allocation"], disks["vda"]["physical"]) == (100, 10, 20)
    assert (disks["sda"]["chain"], disks["sda"]["capacity"], disks["sda"]["job"]) == ([], None, None)
    assert domain.calls == []
    assert images.calls == []


def test_only_the_disks_that_are_asked_for() -> None:
    domain, images = lab()
    disks = info.block(domain, images, ["vdb"]).values["disks"]
    assert [disk["name"] for disk in disks] == ["vdb"]  # type: ignore[attr-defined]
    with pytest.raises(VirtopsError) as caught:
        info.block(domain, images, ["vdb", "vdz"])
    assert caught.value.code == "no_such_disk"
    assert "vda, vdb, sda" in str(caught.value)


def test_a_job_is_told() -> None:
    domain, images = lab()
    domain.live["vda"] = replace(domain.live["vda"], job=BlockJob("active-commit", 5, 9, 7, True, "/img/a.raw"))
    (disk,) = info.block(domain, images, ["vda"]).values["disks"]  # type: ignore[misc,attr-defined]
    assert disk["job"] == {
        "type": "active-commit",
        "cur": 5,
        "end": 9,
        "bandwidth": 7,
        "ready": True,
        "target": "/img/a.raw",
        "progress": 100.0,
    }


def test_layers_that_are_missing_or_elsewhere() -> None:
    domain, images = lab()
    chain = (Layer("/img/gone.qcow2", "qcow2"), Layer("nbd://host/export", "raw"))
    domain.live["vda"] = replace(domain.live["vda"], chain=chain)
    outcome = info.block(domain, images, ["vda"])
    (disk,) = outcome.values["disks"]  # type: ignore[misc,attr-defined]
    assert [(layer["exists"], layer["size"]) for layer in disk["chain"]] == [(False, None), (None, None)]
    assert outcome.warnings == ()


class BrokenImages(FakeImages):
    """qemu-img cannot read any of them."""

    def info(self, path: str, image_format: str | None = None) -> ImageInfo:
        raise VirtopsError("qemu_img_failed", f"{path} is broken", "Mend it")

    def chain(self, path: str, image_format: str | None = None) -> tuple[Layer, ...]:
        raise VirtopsError("qemu_img_failed", f"the chain of {path} is broken", "Mend it")


@pytest.mark.parametrize(("state", "warned"), [("running", 1), ("shut off", 2)])
def test_an_unreadable_image_is_a_warning(state: str, warned: int) -> None:
    domain, _unused = lab(state)
    images = BrokenImages({"/img/a.raw": ("raw", None)})
    domain.live = {"vda": domain.live["vda"]}
    outcome = info.block(domain, images, [])
    (disk,) = outcome.values["disks"]  # type: ignore[misc,attr-defined]
    assert [(layer["path"], layer["exists"], layer["size"]) for layer in disk["chain"]] == [("/img/a.raw", True, None)]
    assert len(outcome.warnings) == warned
    assert "/img/a.raw is broken" in outcome.warnings[-1]


def test_a_lost_connection_is_no_warning() -> None:
    domain, images = lab()

    def lost() -> DomainView:
        raise VirtopsError("connection_lost", "It is gone", "Wait")

    domain.view = lost  # type: ignore[method-assign]
    with pytest.raises(VirtopsError) as caught:
        info.block(domain, images, [])
    assert caught.value.code == "connection_lost"


# journal_info


def snapshotted(kind: str = "live_backup", die_after: str | None = None) -> tuple[FakeDomain, FakeImages, FakeClock]:
    domain, images, clock, watchdog = running_guest()
    domain.die_after = die_after
    wish = SnapshotOptions("s", kind=kind)
    if die_after is None:
        ExternalSnapshot(wish, Guest(domain, images, clock, watchdog)).run(check=False)
    else:
        with pytest.raises(Died):
            ExternalSnapshot(wish, Guest(domain, images, clock, FakeWatchdog())).run(check=False)
        domain.revive()
    domain.calls.clear()
    images.calls.clear()
    return domain, images, clock


def operation_of(domain: FakeDomain, images: FakeImages, clock: FakeClock) -> dict[str, Any]:
    (operation,) = journal_info.journal(Guest(domain, images, clock, FakeWatchdog())).values["operations"]  # type: ignore[misc,attr-defined]
    told: dict[str, Any] = operation
    return told


def test_an_interrupted_operation_is_told_as_guests_info_does_and_how_it_stands() -> None:
    domain, images, clock = snapshotted()
    told = operation_of(domain, images, clock)
    (guest,) = info.guests([domain.view()], ["*"], [], [], no_records, IMAGES).values["guests"]  # type: ignore[misc,attr-defined]
    short = guest["journal"][0]
    assert {key: told[key] for key in short if key != "disks"} == {key: short[key] for key in short if key != "disks"}
    for mine, brief in zip(told["disks"], short["disks"]):
        assert {key: mine[key] for key in brief} == brief
    assert [(disk["in_chain"], disk["overlay_exists"], disk["base_unchanged"]) for disk in told["disks"]] == [
        (True, True, True),
        (True, True, True),
    ]
    assert told["disks"][0]["identity"] == {
        "device": "",
        "inode": images.identity("/img/a.raw").inode,
        "size": 1 << 20,
        "mtime_ns": 0,
    }


def test_its_recovery_is_what_recover_then_does() -> None:
    domain, images, clock = snapshotted()
    words = operation_of(domain, images, clock)["recovery"]
    assert (domain.calls, images.calls) == ([], []), "looking changes nothing"
    assert "The play that began it (live_backup) finishes its backup first" in words
    done = Recovery(RecoverOptions(), Guest(domain, images, clock, FakeWatchdog())).run(check=False)
    assert words.startswith("virtops.libvirt.recover would: %s." % "; ".join(done.steps))
    assert journal_info.journal(Guest(domain, images, clock, FakeWatchdog())).values == {"operations": []}


def test_a_revert_has_no_backup_to_finish() -> None:
    domain, images, clock = snapshotted()
    (operation,) = xml.parse_journal(domain.journal).operations
    domain.journal = xml.build_journal(Journal((replace(operation, kind="revert"),)))
    assert "backup" not in operation_of(domain, images, clock)["recovery"]


def test_a_run_that_died_before_the_switch() -> None:
    domain, images, clock = snapshotted(die_after="write_journal")
    told = operation_of(domain, images, clock)
    assert told["phase"] == "prepared"
    assert [(d["in_chain"], d["overlay_exists"], d["base_unchanged"]) for d in told["disks"]] == [
        (False, False, None),
        (False, False, None),
    ]
    assert told["recovery"] == "virtops.libvirt.recover would: remove operation s from the journal."


def test_a_base_that_was_written_to_and_a_job() -> None:
    domain, images, clock = snapshotted()
    domain.live["vda"] = replace(domain.live["vda"], job=BlockJob("active-commit", 5, 9, 7, True, "/img/a.raw"))
    images.written["/img/b.qcow2"] = 1
    vda, vdb = operation_of(domain, images, clock)["disks"]
    assert (vda["job"]["type"], vda["base_unchanged"]) == ("active-commit", True)
    assert (vdb["job"], vdb["base_unchanged"]) == (None, False)


def test_a_snapshot_that_is_kept_needs_no_recovery() -> None:
    domain, images, clock = snapshotted("snapshot")
    told = operation_of(domain, images, clock)
    assert (told["open"], told["recovery"]) == (False, None)


def test_a_recovery_that_a_human_has_to_decide() -> None:
    domain, images, clock = snapshotted()
    overlay = domain.live["vda"].chain[0]
    domain.live["vda"] = replace(domain.live["vda"], chain=(overlay, Layer("/img/other.qcow2", "qcow2")))
    images.backing["/img/other.qcow2"] = ("qcow2", None)
    words = operation_of(domain, images, clock)["recovery"]
    assert words.startswith("virtops.libvirt.recover would refuse: ")


def test_a_journal_that_cannot_be_read_is_a_failure() -> None:
    domain, images, clock = snapshotted()
    domain.journal = "<journal schema='99'/>"
    with pytest.raises(VirtopsError) as caught:
        journal_info.journal(Guest(domain, images, clock, FakeWatchdog()))
    assert caught.value.code == "journal_unreadable"


def test_a_definition_that_cannot_be_read_is_told_beside() -> None:
    odd = DomainView("odd", "u", "running", True, (), (), unread="PCDATA invalid Char value 27")
    (guest,) = info.guests([odd], ["*"], [], [], no_records, IMAGES).values["guests"]  # type: ignore[misc,attr-defined]
    assert guest["name"] == "odd"
    assert "PCDATA" in guest["journal_error"]


def test_a_forged_operation_names_a_file_that_is_not_ours() -> None:
    domain, images, clock = snapshotted(die_after="write_journal")
    (operation,) = xml.parse_journal(domain.journal).operations
    victim = "/img/notes.txt"
    images.backing[victim] = ("raw", None)
    disk = replace(operation.disks[0], overlay=victim, made=images.identity(victim).inode)
    domain.journal = xml.build_journal(Journal((replace(operation, disks=(disk,)),)))
    kept = "%s was kept: the journal names it, and it is no qcow2 image" % victim
    assert kept in operation_of(domain, images, clock)["recovery"]
    done = Recovery(RecoverOptions(), Guest(domain, images, clock, FakeWatchdog())).run(check=False)
    assert [kept in warning for warning in done.warnings] == [True]
    assert images.exists(victim)
