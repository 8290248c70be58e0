# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The flow of a backup, by the sets that it leaves."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.backup import (
    BackupOptions,
    SetPaths,
    Source,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._core.backup_set import LEASE
from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.journal import COMMITTING, PREPARED, Journal
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import BlockJob, Layer, Outcome, Part
from ansible_collections.virtops.libvirt.plugins.module_utils._core.ports import Silent
from ansible_collections.virtops.libvirt.plugins.module_utils._service.backup import Backup, refuse_early

from .fakes import FakeClock
from .fakes_backup import TARGETS, UUID, FakeDomain, FakeHost, base, no_space, overlay

FINAL = "/backup/web/20261120T120000Z"
PARTIAL = "/backup/web/.20261120T120000Z.partial"
OVERLAYS = tuple(overlay(target).path for target in TARGETS)


@pytest.fixture
def host() -> FakeHost:
    return FakeHost()


@pytest.fixture
def domain(host: FakeHost) -> FakeDomain:
    return FakeDomain(host)


def backup(host: FakeHost, domain: FakeDomain, **options: Any) -> Backup:
    wish = BackupOptions(**{"dest": "/backup", "snapshot": None if "overlays" in options else "s1", **options})
    return Backup(wish, domain, host, host, host, FakeClock())


def run(host: FakeHost, domain: FakeDomain, check: bool = False, **options: Any) -> Outcome:
    return backup(host, domain, **options).run(check)


def refused(host: FakeHost, domain: FakeDomain, **options: Any) -> str:
    """It fails, in check mode the same, and leaves everything as it was."""
    before = json.dumps(host.sets)
    codes = []
    for check in (True, False):
        with pytest.raises(VirtopsError) as caught:
            run(host, domain, check, **options)
        codes.append(caught.value.code)
        assert json.dumps(host.sets) == before
    assert codes[0] == codes[1]
    assert not {"begin", "copy_all"} & set(host.calls)
    return codes[0]


def test_a_set_from_check_to_the_second_run(host: FakeHost, domain: FakeDomain) -> None:
    planned = run(host, domain, check=True)
    assert planned.changed
    assert host.sets == {}
    done = run(host, domain)
    assert done.steps == planned.steps
    assert done.values["backup"].keys() == planned.values["backup"].keys()
    assert list(host.sets) == [FINAL]
    assert sorted(host.sets[FINAL]) == ["SHA256SUMS", "domain.xml", "manifest.json", "vda.raw", "vdb.raw"]
    assert host.sets[FINAL]["vda.raw"] == base("vda").path
    manifest = json.loads(host.sets[FINAL]["manifest.json"])
    assert done.values["backup"] == {**manifest, "path": FINAL}
    assert manifest["disks"][0]["sha256"] == "sha of %s" % base("vda").path
    sums = dict(line.split("  ")[::-1] for line in host.sets[FINAL]["SHA256SUMS"].splitlines())
    text = host.sets[FINAL]["manifest.json"].encode()
    assert sums.pop("manifest.json") == hashlib.sha256(text).hexdigest()
    assert sorted(sums) == ["domain.xml", "vda.raw", "vdb.raw"]
    assert manifest["operation"] == "operation-1"
    assert manifest["consistency"] == "filesystem"
    assert manifest["domain"] == {"name": "web", "uuid": UUID}
    for check in (False, True):
        again = run(host, domain, check)
        assert not again.changed
        assert again.values == done.values
        assert again.before == again.after == done.after
    assert host.calls.count("copy_all") == 1


def test_the_definition_is_the_one_without_the_snapshot(host: FakeHost, domain: FakeDomain) -> None:
    run(host, domain)
    text = host.sets[FINAL]["domain.xml"]
    assert base("vda").path in text
    assert overlay("vda").path not in text
    assert "journal" not in text


def test_a_disk_that_only_the_live_domain_has(host: FakeHost, domain: FakeDomain) -> None:
    domain.current = replace(domain.current, config_disks=domain.current.config_disks[:1])
    run(host, domain)
    assert "vdb.raw" in host.sets[FINAL]


@pytest.mark.parametrize("phase", [COMMITTING, PREPARED])
def test_a_snapshot_whose_bases_do_not_stand_still(host: FakeHost, domain: FakeDomain, phase: str) -> None:
    domain.at(phase)
    assert refused(host, domain) == {COMMITTING: "base_modified", PREPARED: "snapshot_unfinished"}[phase]


def test_a_set_that_was_complete_before_the_merge_is_found_during_it(host: FakeHost, domain: FakeDomain) -> None:
    run(host, domain)
    domain.at(COMMITTING)
    assert not run(host, domain).changed


def test_refusals(host: FakeHost, domain: FakeDomain) -> None:
    assert refused(host, domain, snapshot="other") == "no_such_snapshot"
    assert refused(host, domain, overlays=("/img/none.qcow2",)) == "overlay_not_in_chain"
    host.free = (2 << 20) - 1
    assert refused(host, domain) == "no_space"
    host.free = 1 << 40
    host.written[base("vdb").path] = 1
    assert refused(host, domain) == "base_modified"
    host.written.clear()
    disks = domain.current.disks
    domain.current = domain.current.with_disks((replace(disks[0], job=BlockJob("commit")), disks[1]))
    assert refused(host, domain) == "job_running"
    host.fail["check_destination"] = VirtopsError("dest_missing", "It is not there", "Create it")
    assert refused(host, domain) == "dest_missing"


def test_a_base_that_changes_under_the_copy(host: FakeHost, domain: FakeDomain) -> None:
    def write() -> None:
        host.written[base("vda").path] = 5

    host.while_copying = write
    with pytest.raises(VirtopsError) as caught:
        run(host, domain)
    assert caught.value.code == "base_modified"
    assert host.sets == {}


def test_the_copy_gives_way_to_an_overlay_that_lacks_space(host: FakeHost, domain: FakeDomain) -> None:
    """Not before it has begun: what is free before, the snapshot's own checks judge."""
    real = host.begin

    def begin(paths: SetPaths, manifest: str) -> str:
        host.free = 0
        return real(paths, manifest)

    host.begin = begin  # type: ignore[method-assign]
    with pytest.raises(VirtopsError) as caught:
        run(host, domain)
    assert caught.value.code == "overlay_space"
    assert "in /img" in caught.value.cause
    assert host.sets == {}


@pytest.mark.parametrize(
    "call", ["copy_all", "write manifest.json", "write domain.xml", "write digests.json", "copy_plain nvram.fd"]
)
@pytest.mark.parametrize("error", [no_space(), KeyboardInterrupt()])
def test_a_failure_of_the_copy_leaves_no_partial_set(
    host: FakeHost, domain: FakeDomain, call: str, error: BaseException
) -> None:
    host.sets["/backup/web/20261119T120000Z"] = {"manifest.json": "{}"}
    domain.current = replace(domain.current, nvram="/nvram/web.fd")
    host.fail[call] = error
    with pytest.raises(type(error)):
        run(host, domain)
    assert list(host.sets) == ["/backup/web/20261119T120000Z"]
    del host.fail[call]
    assert run(host, domain).changed
    assert "nvram.fd" in host.sets[FINAL]


def failed(code: str) -> VirtopsError:
    return VirtopsError(code, "It failed", "Mend it")


@pytest.mark.parametrize("call", ["begin", "copy_all", "write manifest.json"])
def test_a_target_that_does_not_answer_is_not_touched_again(host: FakeHost, domain: FakeDomain, call: str) -> None:
    """The next run removes what is left there."""
    host.fail[call] = failed("copy_stalled")
    with pytest.raises(VirtopsError) as caught:
        run(host, domain)
    assert caught.value.code == "copy_stalled"
    assert host.calls[-1] == call
    assert list(host.sets) == ([] if call == "begin" else [PARTIAL])
    del host.fail[call]
    run(host, domain)
    assert list(host.sets) == [FINAL]


def test_a_removal_that_hangs_does_not_hide_why(host: FakeHost, domain: FakeDomain) -> None:
    host.fail = {"copy_all": no_space(), "remove": failed("copy_stalled")}
    with pytest.raises(VirtopsError) as caught:
        run(host, domain)
    assert caught.value.code == "no_space"


def test_the_merge_comes_between_the_copy_and_its_verification(host: FakeHost, domain: FakeDomain) -> None:
    flow = backup(host, domain)
    assert flow.copy(check=False).changed
    assert sorted(host.sets[PARTIAL]) == ["digests.json", "domain.xml", "manifest.json", "vda.raw", "vdb.raw"]
    domain.journal = Journal()
    domain.current = domain.current.with_disks(tuple(replace(d, chain=d.chain[1:]) for d in domain.current.disks))
    assert flow.finish(check=False).values["backup"] == json.loads(host.sets[FINAL]["manifest.json"]) | {"path": FINAL}
    assert host.verified["vda.raw"].runs == ((0, 5, "run"),)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("call", ["resume", "verify_all", "write SHA256SUMS", "write manifest.json", "finish"])
def test_what_a_death_left_to_be_verified_is_not_copied_again(
    host: FakeHost, domain: FakeDomain, call: str, merged: bool
) -> None:
    """Neither by a run of the same snapshot, nor where that is merged."""
    flow = backup(host, domain)
    flow.copy(check=False)
    host.fail[call] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        flow.finish(check=False)
    assert "digests.json" in host.sets[PARTIAL]
    del host.fail[call]
    if merged:
        domain.journal = Journal()
    planned, done = (
        getattr(backup(host, domain), "finish_left" if merged else "run")(check) for check in (True, False)
    )
    assert planned.steps == done.steps
    assert [step.split(" ")[0] for step in done.steps] == ["compare", "write"]
    assert done.values["backup"]["path"] == FINAL
    assert list(host.sets) == [FINAL]
    assert host.calls.count("copy_all") == 1


def test_what_was_left_of_another_snapshot_is_finished_too(host: FakeHost, domain: FakeDomain) -> None:
    """Where it cannot be, that is only a warning."""
    backup(host, domain).copy(check=False)
    (operation,) = domain.journal.operations
    domain.journal = Journal((replace(operation, id="operation-2", started="20261121T120000Z"),))
    real = host.verify_all

    def verify_all(orders: Any, directory: str, *rest: Any) -> Any:
        if directory == PARTIAL:
            raise failed("verify_failed")
        return real(orders, directory, *rest)

    host.verify_all = verify_all  # type: ignore[method-assign]
    done = run(host, domain)
    assert PARTIAL in done.warnings[0]
    assert list(host.sets) == ["/backup/web/20261121T120000Z"]


def test_another_wish_makes_the_copy_anew(host: FakeHost, domain: FakeDomain) -> None:
    backup(host, domain).copy(check=False)
    done = run(host, domain, format="qcow2")
    assert "unfinished" in done.steps[0]
    assert list(host.sets) == [FINAL]


def test_a_copy_that_is_not_what_was_written_is_removed(host: FakeHost, domain: FakeDomain) -> None:
    host.fail["verify_all"] = failed("verify_failed")
    with pytest.raises(VirtopsError) as caught:
        run(host, domain)
    assert caught.value.code == "verify_failed"
    assert host.sets == {}


def test_one_that_somebody_removed_before_its_verification(host: FakeHost, domain: FakeDomain) -> None:
    flow = backup(host, domain)
    flow.copy(check=False)
    del host.sets[PARTIAL]
    with pytest.raises(VirtopsError) as caught:
        flow.finish(check=False)
    assert caught.value.code == "copy_failed"


@pytest.mark.parametrize("verify", [True, False])
def test_what_is_asked_of_the_copies(host: FakeHost, domain: FakeDomain, verify: bool) -> None:
    host.on_disk = False
    done = run(host, domain, verify=verify)
    assert {order.from_disk for order in host.verified.values()} == {verify}
    assert (host.verified["vda.raw"].runs is None, host.verified["vda.raw"].format) == (not verify, "raw" * verify)
    assert len(done.warnings) == verify  # of a file system that cannot do without its cache


class Stopping(Silent):
    """An order to stop that comes before this call."""

    def __init__(self, host: FakeHost, before: str) -> None:
        self._host = host
        self._before = before

    def is_stopping(self) -> bool:
        return self._before in self._host.calls


@pytest.mark.parametrize(("before", "left"), [("copy_all", []), ("verify_all", [PARTIAL])])
def test_an_order_to_stop(host: FakeHost, domain: FakeDomain, before: str, left: list[str]) -> None:
    flow = Backup(BackupOptions("/backup", "s1"), domain, host, host, host, FakeClock(), Stopping(host, before))
    with pytest.raises(VirtopsError) as caught:
        flow.run(check=False)
    assert (caught.value.code, list(host.sets)) == ("stopped", left)


def partial(uuid: str = UUID, machine: str = "0a") -> dict[str, str]:
    return {"manifest.json": json.dumps({"domain": {"uuid": uuid}, "machine": machine})}


def test_what_a_death_left_is_removed_first(host: FakeHost, domain: FakeDomain) -> None:
    """Ours by its domain and host, whatever its time; another's, if nobody has written to it for long."""
    earlier, other, expired = (f"/backup/web/.2026111{day}T120000Z.partial" for day in (9, 8, 7))
    host.sets[PARTIAL] = partial()
    host.sets[earlier] = partial()
    host.sets[other] = partial(machine="0b")
    host.sets[expired] = partial("another", machine="0b")
    host.ages[expired] = LEASE
    host.free = (2 << 20) - 21  # the removal of three of them makes room
    planned = run(host, domain, check=True)
    assert [step.split(":")[0] for step in planned.steps if "unfinished" in step] == [
        "remove the unfinished set " + path for path in (expired, earlier, PARTIAL)
    ]
    assert len(host.sets) == 4
    assert run(host, domain).steps == planned.steps
    assert sorted(host.sets) == [other, FINAL]
    assert "remove %s if expired" % expired in host.calls


@pytest.mark.parametrize(
    ("there", "files", "code"),
    [
        (PARTIAL, partial(machine="0b"), "set_under_way"),
        (PARTIAL, {}, "set_under_way"),
        (PARTIAL, partial("another"), "set_foreign"),
        ("/backup/web/.20261118T120000Z.partial", partial("another", machine="0b"), "set_foreign"),
        ("/backup/web/20261118T120000Z", partial("another"), "set_foreign"),
        (FINAL, partial("another"), "set_exists"),
    ],
)
def test_what_another_made_is_not_touched(
    host: FakeHost, domain: FakeDomain, there: str, files: dict[str, str], code: str
) -> None:
    if there == FINAL:
        run(host, domain)
        manifest = json.loads(host.sets[FINAL]["manifest.json"])
        manifest["domain"]["uuid"] = "another"
        files = {**host.sets[FINAL], "manifest.json": json.dumps(manifest)}
        host.calls.clear()
    host.sets[there] = files
    assert refused(host, domain) == code
    if code == "set_foreign":
        bases = [Source(target, base(target), overlay(target).path) for target in TARGETS]
        with pytest.raises(VirtopsError) as caught:
            refuse_early(BackupOptions("/backup"), domain.view(), tuple(bases), host, host)
        assert caught.value.code == code


def test_a_set_that_another_host_begins_at_the_same_time(host: FakeHost, domain: FakeDomain) -> None:
    """Its own is made undone, the other's is not: be it begun before ours or just after it."""

    def other() -> None:
        host.sets["/backup/web/.20261120T120001Z.partial"] = partial("another", machine="0b")

    host.begun = other
    with pytest.raises(VirtopsError) as caught:
        run(host, domain)
    assert caught.value.code == "set_foreign"
    assert list(host.sets) == ["/backup/web/.20261120T120001Z.partial"]
    host.sets = {}
    host.fail["begin"] = VirtopsError("set_under_way", "Another", "Wait")
    with pytest.raises(VirtopsError):
        run(host, domain)
    assert host.calls[-1] == "begin"


def test_overlays_of_a_journalled_snapshot_are_that_snapshot(host: FakeHost, domain: FakeDomain) -> None:
    done = run(host, domain, overlays=OVERLAYS)
    assert done.values["backup"]["operation"] == "operation-1"
    assert not run(host, domain).changed


def test_overlays_without_a_journal(host: FakeHost, domain: FakeDomain) -> None:
    domain.journal = Journal()
    done = run(host, domain, overlays=OVERLAYS[:1]).values["backup"]
    assert done["path"] == "/backup/web/20261120T115900Z"
    assert (done["snapshot"], done["consistency"]) == (None, "unknown")
    assert [disk["target"] for disk in done["disks"]] == ["vda"]
    assert not run(host, domain, overlays=OVERLAYS[:1]).changed
    host.written[base("vda").path] = 60
    assert run(host, domain, overlays=OVERLAYS[:1]).values["backup"]["path"] == "/backup/web/20261120T120000Z"


def test_two_overlays_of_one_disk(host: FakeHost, domain: FakeDomain) -> None:
    domain.journal = Journal()
    later = Layer("/img/vda.s2.qcow2", "qcow2")
    disk = domain.current.disks[0]
    domain.current = domain.current.with_disks((replace(disk, chain=(later, *disk.chain)),))
    assert refused(host, domain, overlays=(later.path, OVERLAYS[0])) == "overlays_of_one_disk"


def test_every_local_layer_that_is_read_is_locked(host: FakeHost, domain: FakeDomain) -> None:
    host.backing["/img/golden.qcow2"] = None
    for target in TARGETS:
        host.backing[base(target).path] = "/img/golden.qcow2"
    seen = []
    host.while_copying = lambda: seen.extend(sorted(host.held))
    run(host, domain)
    assert seen == ["/img/golden.qcow2", base("vda").path, base("vdb").path]


def test_an_nvram_that_is_not_there_yet(host: FakeHost, domain: FakeDomain) -> None:
    domain.current = replace(domain.current, nvram="/nvram/web.fd")
    host.missing.add("/nvram/web.fd")
    assert run(host, domain).values["backup"]["nvram"] is None


def test_what_no_snapshot_holds_is_copied_before_the_disks(host: FakeHost, domain: FakeDomain) -> None:
    state = Part("TPM state", "", "2.0")
    boot = (Part("kernel", "/boot/vmlinuz"), Part("initrd", "/boot/huge.img"))
    domain.current = replace(domain.current, nvram="/nvram/web.fd", parts=(state, *boot))
    host.sizes["/boot/vmlinuz"] = 7
    host.folders["/swtpm/%s/tpm2" % UUID] = (".lock", "tpm2-00.permall")
    planned = run(host, domain, check=True)
    done = run(host, domain)
    assert done.steps == planned.steps
    wanted = ["copy_plain nvram.fd", "copy_plain tpm2-00.permall", "copy_all", "copy_plain kernel"]
    assert [call for call in host.calls if call.startswith("copy")] == wanted
    manifest = done.values["backup"]
    assert [(extra["kind"], extra["file"]) for extra in manifest["extras"]] == [
        ("NVRAM", "nvram.fd"),
        ("TPM state", "tpm2-00.permall"),
        ("kernel", "kernel"),
    ]
    assert manifest["nvram"]["file"] == "nvram.fd"
    assert [lack["kind"] for lack in manifest["lacks"]] == ["initrd"]
    names = ["SHA256SUMS", "domain.xml", "kernel", "manifest.json", "nvram.fd", "tpm2-00.permall"]
    names += ["vda.raw", "vdb.raw"]
    assert done.after["files"] == names
    assert done.warnings == ()
    del host.sets[FINAL]["tpm2-00.permall"]
    with pytest.raises(VirtopsError) as caught:
        run(host, domain)
    assert caught.value.code == "set_damaged"


def test_what_the_guest_wrote_to_after_the_snapshot_may_not_fit(host: FakeHost, domain: FakeDomain) -> None:
    domain.current = replace(domain.current, nvram="/nvram/web.fd")
    host.written["/nvram/web.fd"] = 62  # seconds after the last write to the bases, two after the snapshot
    done = run(host, domain)
    assert "it was written to after the snapshot was begun" in done.warnings[0]
    assert [lack["source"] for lack in done.values["backup"]["lacks"]] == ["/nvram/web.fd"]


def test_boot_files_need_space_too(host: FakeHost, domain: FakeDomain) -> None:
    domain.current = replace(domain.current, parts=(Part("kernel", "/boot/vmlinuz"),))
    host.sizes["/boot/vmlinuz"] = 3 << 20
    host.free = 4 << 20
    with pytest.raises(VirtopsError) as caught:
        run(host, domain, check=True)
    assert caught.value.code == "no_space"
    host.free = 5 << 20
    run(host, domain)


def test_an_nvram_that_never_stands_still(host: FakeHost, domain: FakeDomain) -> None:
    domain.current = replace(domain.current, nvram="/nvram/web.fd")
    host.unsteady.add("/nvram/web.fd")
    done = run(host, domain)
    assert "/nvram/web.fd" in done.warnings[0]
    assert [lack["kind"] for lack in done.values["backup"]["lacks"]] == ["NVRAM"]
