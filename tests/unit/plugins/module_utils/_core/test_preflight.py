# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a live backup would succeed, decided from facts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.backup import CONVERT, COPY, REFLINK, CopyOrder
from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.extras import Lack
from ansible_collections.virtops.libvirt.plugins.module_utils._core.job_state import JobState
from ansible_collections.virtops.libvirt.plugins.module_utils._core.journal import (
    COMMIT,
    COMMITTING,
    CREATED,
    KEPT,
    Journal,
    JournalDisk,
    Operation,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import BlockJob, Disk, DomainView, Layer
from ansible_collections.virtops.libvirt.plugins.module_utils._core.preflight import is_ready, judge
from ansible_collections.virtops.libvirt.plugins.module_utils._core.preflight_facts import (
    FAILED,
    OK,
    WARNING,
    Capabilities,
    Check,
    DiskFacts,
    FileSystem,
    GuestFacts,
    Limits,
    Refusal,
    Reserve,
    denied_writes,
    parse_reserve,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._core.preflight_space import usage
from ansible_collections.virtops.libvirt.plugins.module_utils._core.snapshot import SkippedDisk

MIB = 1024 * 1024
BASE = Layer("/img/a.qcow2", "qcow2")
DISK = Disk("vda", chain=(BASE,))
VIEW = DomainView("web", "uuid-1", "running", True, (DISK,), (DISK,), "connected")
IMAGES = FileSystem(1, "/img", 1000 * MIB)
BACKUP = FileSystem(2, "/srv/backup", 1000 * MIB)
ORDER = CopyOrder("vda", BASE, "vda.qcow2", "qcow2", (COPY,), 100 * MIB, 40 * MIB)
FACTS = DiskFacts("vda", (BASE,), 100 * MIB, 40 * MIB, IMAGES, replace(IMAGES, path=BASE.path), ORDER)
GUEST = GuestFacts(VIEW, disks=(FACTS,), target=BACKUP)
HOST = Capabilities(True, 9000000, frozenset({"none", "dac"}))
LIMITS = Limits(25, Reserve(10, True), "preferred", "live_backup")
DEAF = VirtopsError("agent_unresponsive", "It does not answer", "Start it")


def disk(**changes: Any) -> GuestFacts:
    return replace(GUEST, disks=(replace(FACTS, **changes),))


def view(**changes: Any) -> GuestFacts:
    return replace(GUEST, view=replace(VIEW, **changes))


def free(images: int | None = None, backup: int | None = None) -> GuestFacts:
    """The free space in MiB."""
    made = GUEST
    if images is not None:
        at = replace(IMAGES, free=images * MIB)
        made = replace(made, disks=(replace(FACTS, overlay_fs=at, base_fs=at),))
    if backup is not None:
        made = replace(made, target=replace(BACKUP, free=backup * MIB))
    return made


def operation(kind: str, phase: str = CREATED) -> Journal:
    noted = JournalDisk("vda", "/img/a.qcow2", "qcow2", "/img/o.qcow2")
    return Journal((Operation("1", kind, "s", phase, "now", (noted,)),))


def checks(guest: GuestFacts, host: Capabilities = HOST, limits: Limits = LIMITS) -> tuple[Check, ...]:
    return judge((guest,), host, limits)[guest.view.uuid]


def found(guest: GuestFacts, host: Capabilities = HOST, limits: Limits = LIMITS) -> list[tuple[str, ...]]:
    told = [check for check in checks(guest, host, limits) if check.status != OK]
    assert all(check.message and check.remedy and check.error_code for check in told)
    return [(check.check, check.status, str(check.error_code)) for check in told]


def test_a_guest_at_work_is_told_to_be_that_and_nothing_else() -> None:
    """Neither its open operation nor its block job is anything that was interrupted."""
    job = JobState("1f", "live_backup", "a", "20261120T120000Z", "uuid-1", phase="merge", disks={"vda": (1, 2)})
    busy = replace(view(disks=(replace(DISK, job=BlockJob("copy")),)), journal=operation("live_backup"), at_work=job)
    (check,) = checks(busy)
    assert (check.check, check.status, check.error_code) == ("jobs", WARNING, "locked")
    assert "live_backup (job 1f, since 20261120T120000Z, phase merge, 50 %)" in check.message
    assert "interrupted" not in check.message


def test_a_guest_with_nothing_wrong_is_told_each_check_once() -> None:
    told = checks(GUEST)
    assert is_ready(told)
    assert {check.status for check in told} == {OK}
    assert [check.check for check in told] == [
        *("journal", "state", "capabilities", "disks", "images", "chain", "jobs", "agent", "overlay_space"),
        *("base_growth", "target", "apparmor", "definition", "checkpoints", "shared", "overlays", "extras"),
    ]
    assert {(check.remedy, check.error_code) for check in told} == {(None, None)}


@pytest.mark.parametrize(
    ("guest", "told"),
    [
        (disk(chain=(BASE,) * 24), []),
        (disk(chain=(BASE,) * 25), [("chain", FAILED, "chain_too_long")]),
        (view(disks=(replace(DISK, job=BlockJob("copy")),)), [("jobs", FAILED, "job_running")]),
        # A job on a disk that no snapshot holds makes libvirt refuse the snapshot all the same
        (view(disks=(DISK, Disk("vdb", job=BlockJob("pull")))), [("jobs", FAILED, "job_running")]),
        (replace(GUEST, refusals=(Refusal("state", DEAF),)), [("state", FAILED, "agent_unresponsive")]),
        (view(state="crashed"), [("state", WARNING, "guest_crashed")]),
        (replace(GUEST, job="migration out"), [("jobs", FAILED, "libvirt_busy")]),
        (replace(GUEST, agent=DEAF), [("agent", WARNING, "agent_unresponsive")]),
        (view(persistent=False, config_disks=()), [("definition", WARNING, "transient_domain")]),
        (view(config_disks=()), [("definition", WARNING, "definition_differs")]),
        (
            view(config_disks=(Disk("vda", chain=(Layer("/b", "raw"),)),)),
            [("definition", WARNING, "definition_differs")],
        ),
        (replace(GUEST, checkpoints=None), []),
        (replace(GUEST, checkpoints=1), [("checkpoints", WARNING, "has_checkpoints")]),
        (replace(GUEST, checkpoints=1, incremental=False), [("checkpoints", FAILED, "has_checkpoints")]),
        (disk(bitmaps=("b",)), [("checkpoints", WARNING, "has_bitmaps")]),
        (replace(disk(bitmaps=("b",)), checkpoints=1), [("checkpoints", WARNING, "has_checkpoints")]),
        (replace(GUEST, unseen=(("db", "It is gone"),)), [("shared", WARNING, "neighbour_unseen")]),
        (disk(shared_with=("db",)), [("shared", FAILED, "base_shared")]),
        (disk(left=("/img/web.vda.s.qcow2",)), [("overlays", WARNING, "overlay_in_use")]),
        (disk(left=("/img/web.vda.live-backup-1.qcow2",)), [("overlays", FAILED, "overlay_in_use")]),
        (
            replace(disk(left=("/img/web.vda.s.qcow2",)), view=replace(VIEW, persistent=False, config_disks=())),
            [("definition", WARNING, "transient_domain"), ("overlays", FAILED, "overlay_in_use")],
        ),
        (replace(GUEST, denied=frozenset({"/img/golden.qcow2"})), []),
        (replace(GUEST, denied=frozenset({BASE.path})), [("apparmor", FAILED, "apparmor_denied")]),
        (replace(GUEST, refusals=(Refusal("images", DEAF, "vda"),)), [("images", FAILED, "agent_unresponsive")]),
        (replace(GUEST, journal=operation(KEPT)), []),
        (replace(GUEST, journal=operation(KEPT, COMMITTING)), [("journal", FAILED, "operation_open")]),
        (replace(GUEST, journal=operation(COMMIT)), [("journal", FAILED, "operation_open")]),
    ],
)
def test_what_is_found(guest: GuestFacts, told: list[tuple[str, ...]]) -> None:
    assert found(guest) == told
    assert is_ready(checks(guest)) == all(status != FAILED for _unused, status, _code in told)


@pytest.mark.parametrize(
    ("quiesce", "state", "told"),
    [
        ("required", "running", [("agent", FAILED, "agent_unresponsive")]),
        ("preferred", "running", [("agent", WARNING, "agent_unresponsive")]),
        ("never", "running", []),
        ("required", "shut off", []),
    ],
)
def test_a_deaf_agent_counts_as_it_was_asked_for(quiesce: str, state: str, told: list[tuple[str, ...]]) -> None:
    guest = replace(view(state=state), agent=DEAF)
    assert found(guest, limits=replace(LIMITS, quiesce=quiesce)) == told


@pytest.mark.parametrize(
    ("host", "told"),
    [
        (replace(HOST, disk_snapshots=False), [("capabilities", FAILED, "unsupported")]),
        (replace(HOST, libvirt_version=1002005), [("capabilities", FAILED, "unsupported")]),
    ],
)
def test_a_host_that_cannot(host: Capabilities, told: list[tuple[str, ...]]) -> None:
    assert found(GUEST, host) == told


def test_skipped_disks_come_with_their_reason() -> None:
    told = checks(replace(GUEST, skipped=(SkippedDisk("hda", "it is a cdrom drive"),)))
    assert [(check.disk, check.status, check.message) for check in told if check.check == "disks"] == [
        ("hda", OK, "It is left out of the backup: it is a cdrom drive"),
        (None, OK, "A snapshot can hold each disk that is not left out"),
    ]


def test_a_skipped_disk_with_something_on_it_is_worth_a_warning() -> None:
    guest = replace(GUEST, skipped=(SkippedDisk("vdb", "it is shareable", holds=True),))
    assert found(guest) == [("disks", WARNING, "disk_left_out")]
    assert is_ready(checks(guest))


@pytest.mark.parametrize(
    ("extent", "lacks"),
    [
        (None, False),
        ((40, 50), False),  # 10 % of 100 MiB are kept for what the guest writes
        ((41, 50), True),
        ((95, 100), False),  # it has all but 5 MiB already
        ((95, 99), True),
        ((120, 120), False),
    ],
)
def test_a_qcow2_on_a_device_that_is_too_small_for_the_merge(extent: tuple[int, int] | None, lacks: bool) -> None:
    guest = disk(base_fs=None, extent=None if extent is None else (extent[0] * MIB, extent[1] * MIB))
    assert found(guest) == [("base_growth", FAILED, "no_space")] * lacks


def test_how_much_data_a_device_holds_only_the_copy_tells() -> None:
    thin = replace(ORDER, needs=2000 * MIB, unsure=True)
    assert found(disk(order=thin)) == [("target", WARNING, "no_space")]
    two = replace(GUEST, disks=(replace(FACTS, order=thin), replace(FACTS, order=replace(ORDER, needs=1001 * MIB))))
    assert found(two) == [("target", FAILED, "no_space")]


def test_nothing_is_claimed_of_disks_that_could_not_be_seen() -> None:
    guest = GuestFacts(VIEW, target=BACKUP, refusals=(Refusal("disks", DEAF),))
    fine = {check.check for check in checks(guest) if check.status == OK}
    assert fine == {"journal", "state", "capabilities", "jobs", "agent", "apparmor", "checkpoints", "extras"}


def test_what_sets_will_lack() -> None:
    """Disks are told by themselves, and what a package installs is no reason to warn."""
    disk, loader = Lack("disk", "vdb", "/b", "it is shareable"), Lack("loader", None, "/usr/share/x.fd", "why")
    kernel, secret = Lack("kernel", None, "/boot/vmlinuz", "why"), Lack("libvirt secret", "2d3f", None, "why")
    assert found(replace(GUEST, lacks=(disk, loader))) == []
    (told,) = [check for check in checks(replace(GUEST, lacks=(disk, loader))) if check.check == "extras"]
    assert "/usr/share/x.fd" in told.message
    assert found(replace(GUEST, lacks=(disk, loader, kernel, secret))) == [("extras", WARNING, "not_in_set")]
    (told,) = [check for check in checks(replace(GUEST, lacks=(loader, kernel, secret))) if check.check == "extras"]
    assert told.message.endswith("the kernel /boot/vmlinuz (why), the libvirt secret 2d3f (why)")
    assert found(replace(GUEST, refusals=(Refusal("extras", DEAF),))) == [("extras", FAILED, "agent_unresponsive")]


# An interrupted operation


@pytest.mark.parametrize("state", ["running", "shut off"])
@pytest.mark.parametrize("phase", ["prepared", CREATED, COMMITTING])
def test_an_interrupted_backup_is_never_in_the_way_of_its_own_recovery(state: str, phase: str) -> None:
    """Whatever else is wrong: full file systems, jobs (they may be its own), a deaf agent, a long chain."""
    guest = replace(
        free(images=0, backup=0),
        view=replace(VIEW, state=state, disks=(replace(DISK, chain=(BASE,) * 40, job=BlockJob("active-commit")),)),
        journal=operation("live_backup", phase),
        agent=DEAF,
        job="backup",
        refusals=(Refusal("target", DEAF),),
    )
    assert found(guest, limits=replace(LIMITS, quiesce="required")) == [("journal", WARNING, "operation_open")]


@pytest.mark.parametrize(
    ("state", "path", "where"),
    [
        ("running", "/img/o.qcow2", ", and web still runs on its overlay."),
        ("shut off", "/img/o.qcow2", ", and web is still on its overlay."),
        ("running", "/img/a.qcow2", "."),
    ],
)
def test_what_is_said_of_an_interrupted_backup(state: str, path: str, where: str) -> None:
    """Whether it still stands on the overlay is told as it is."""
    disks = (replace(DISK, chain=(Layer(path, "qcow2"),)),)
    guest = replace(GUEST, view=replace(VIEW, name="web", state=state, disks=disks), journal=operation("live_backup"))
    (told,) = [check for check in checks(guest) if check.status != OK]
    assert told.message == (
        "An earlier backup of web (s, begun now) was interrupted%s The next backup run finishes it before it does "
        "anything else; until then nothing else is checked" % where
    )


def test_an_interrupted_backup_that_no_run_can_finish_now() -> None:
    """Its cause is told, and not that the run would finish it."""
    saved = VirtopsError("memory_saved", "Its memory is saved.", "Start it")
    guest = replace(GUEST, journal=operation("live_backup"), refusals=(Refusal("state", saved),))
    assert found(guest) == [("state", FAILED, "memory_saved")]


def test_it_was_restarted_on_its_overlays_under_apparmor() -> None:
    guest = replace(GUEST, journal=operation("live_backup"), denied=frozenset({"/img/a.qcow2"}))
    assert found(guest) == [("journal", WARNING, "operation_open"), ("apparmor", WARNING, "apparmor_denied")]
    assert found(replace(guest, view=replace(VIEW, state="shut off"))) == [("journal", WARNING, "operation_open")]


# Space


@pytest.mark.parametrize(
    ("guest", "told"),
    [
        # 10 % of 100 MiB for the overlay, and as much again for the merge
        (free(images=20), []),
        (free(images=19), [("base_growth", WARNING, "no_space")]),
        (free(images=10), [("base_growth", WARNING, "no_space")]),
        (free(images=9), [("overlay_space", FAILED, "no_space"), ("base_growth", FAILED, "no_space")]),
        # A base that is nearly whole grows by what it lacks only, and one that is whole not at all
        (replace(free(images=10), disks=(replace(free(images=10).disks[0], allocation=100 * MIB),)), []),
        (disk(base_fs=FileSystem(3, "/thin", 9 * MIB)), [("base_growth", FAILED, "no_space")]),
        (disk(base_fs=FileSystem(3, "/thin", 9 * MIB), allocation=91 * MIB), []),
        (disk(base_fs=None), []),
        (free(backup=40), []),
        (free(backup=39), [("target", FAILED, "no_space")]),
        (replace(free(backup=39), reclaimed=1 * MIB), []),
        (replace(GUEST, target=None, refusals=(Refusal("target", DEAF),)), [("target", FAILED, "agent_unresponsive")]),
    ],
)
def test_space_for_one_guest(guest: GuestFacts, told: list[tuple[str, ...]]) -> None:
    assert found(guest) == told


def three(**changes: Any) -> tuple[GuestFacts, ...]:
    guest = replace(GUEST, **changes)
    return tuple(replace(guest, view=replace(VIEW, name=f"web{n}", uuid=f"uuid-{n}")) for n in (1, 2, 3))


def statuses(guests: tuple[GuestFacts, ...], check: str) -> list[str]:
    judged = judge(guests, HOST, LIMITS)
    return [one.status for guest in guests for one in judged[guest.view.uuid] if one.check == check]


def test_copies_of_several_guests_into_one_target() -> None:
    """Each alone fits, and two together: the third is the one that is told."""
    guests = three(target=replace(BACKUP, free=100 * MIB))
    assert statuses(guests, "target") == [OK, OK, FAILED]
    (told,) = (check for check in judge(guests, HOST, LIMITS)["uuid-3"] if check.check == "target")
    assert "40 MiB" in told.message
    assert "100 MiB free" in told.message
    assert "80 MiB" in told.message


@pytest.mark.parametrize(
    "order", [replace(ORDER, compress=True, methods=(CONVERT,)), replace(ORDER, methods=(REFLINK, COPY))]
)
def test_copies_that_may_take_less_are_a_warning(order: CopyOrder) -> None:
    guests = three(target=replace(BACKUP, free=100 * MIB), disks=(replace(FACTS, order=order),))
    assert statuses(guests, "target") == [OK, OK, WARNING]


def test_a_guest_that_does_not_fit_takes_no_space_from_those_after_it() -> None:
    first, second, third = three(target=replace(BACKUP, free=100 * MIB))
    second = replace(second, disks=(replace(FACTS, order=replace(ORDER, needs=90 * MIB)),))
    assert statuses((first, second, third), "target") == [OK, FAILED, OK]


def test_an_interrupted_guest_takes_none_either() -> None:
    first, second, third = three(target=replace(BACKUP, free=100 * MIB))
    first = replace(first, journal=operation("live_backup"))
    assert statuses((first, second, third), "target") == [OK, OK]
    assert [(one.path, one.copies) for one in usage((first, second, third), LIMITS)][-1] == ("/srv/backup", 80 * MIB)


def test_overlays_of_several_guests_on_one_file_system() -> None:
    at = replace(IMAGES, free=25 * MIB)
    guests = three(disks=(replace(FACTS, overlay_fs=at, base_fs=None),))
    assert statuses(guests, "overlay_space") == [OK, OK, WARNING]


def test_copies_and_overlays_on_one_file_system() -> None:
    at = FileSystem(1, "/img", 45 * MIB)
    guests = three(disks=(replace(FACTS, overlay_fs=at, base_fs=None),), target=at)[:1]
    assert (statuses(guests, "target"), statuses(guests, "overlay_space")) == ([OK], [WARNING])


def test_the_sums_are_told_by_file_system() -> None:
    told = usage(three(), LIMITS)
    assert [(one.path, one.free, one.copies, one.overlays) for one in told] == [
        ("/img", 1000 * MIB, 0, 30 * MIB),
        ("/srv/backup", 1000 * MIB, 120 * MIB, 0),
    ]


@pytest.mark.parametrize(
    ("text", "size", "reserved"),
    [("5%", 1000, 50), ("100%", 1000, 1000), ("0", 1000, 0), (" 2 ", 10 * MIB, 2 * MIB), ("2048", 10 * MIB, 10 * MIB)],
)
def test_a_reserve(text: str, size: int, reserved: int) -> None:
    assert parse_reserve(text).of(size) == reserved


@pytest.mark.parametrize("text", ["", "%", "-1", "1.5%", "101%", "5 GiB"])
def test_a_reserve_that_cannot_be_meant(text: str) -> None:
    with pytest.raises(VirtopsError) as caught:
        parse_reserve(text)
    assert caught.value.code == "bad_option"


# What virt-aa-helper writes for a guest that was started on an overlay (libvirt 9.0)
RULES = """\
  "/var/log/libvirt/**/web.log" w,
  "/var/lib/libvirt/qemu/domain-1-web/monitor.sock" rw,
  "/run/libvirt/**/web.pid" rwk,
  "/var/lib/libvirt/images/web/web.vda.s, 1.qcow2" rwk,
  "/var/lib/libvirt/images/web/vda.qcow2" rk,
  # don't audit writes to readonly files
  deny "/var/lib/libvirt/images/web/vda.qcow2" w,
  "/var/lib/libvirt/images/golden é.qcow2" rk,
  # don't audit writes to readonly files
  deny "/var/lib/libvirt/images/golden é.qcow2" w,
  # deny "/a/comment" w,
  deny "/only/reads" r,
  "/dev/vhost-net" rw,
"""


def test_rules_of_apparmor() -> None:
    folder = "/var/lib/libvirt/images"
    assert denied_writes(RULES) == {f"{folder}/web/vda.qcow2", f"{folder}/golden é.qcow2"}
    assert denied_writes("") == frozenset()


def test_free_space_is_rounded_down() -> None:
    at = replace(IMAGES, free=300 * 1024)
    told = [one for one in judge((disk(overlay_fs=at, base_fs=at),), HOST, LIMITS)[GUEST.view.uuid] if one.status != OK]
    words = [one.message for one in told if "MiB free" in one.message]
    assert words
    assert all("has 0 MiB free" in one for one in words)
