# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is copied and how, decided from values."""

from __future__ import annotations

import hashlib
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.backup import (
    BackupOptions,
    Copied,
    CopyOrder,
    PlainFile,
    Selection,
    Source,
    SourceFacts,
    Verified,
    VerifyOrder,
    require_still,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._core.backup_copy import plan_copy
from ansible_collections.virtops.libvirt.plugins.module_utils._core.backup_set import (
    Manifest,
    build_sums,
    finished,
    iso8601,
    mib,
    require_same_set,
    require_space,
    set_paths,
    verify_orders,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.extras import (
    Extras,
    Lack,
    is_packaged,
    plan_extras,
    with_unsteady,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._core.journal import (
    COMMITTING,
    CREATED,
    KEPT,
    Journal,
    JournalDisk,
    Operation,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._core.manifest import MANIFEST_LIMIT, parse_manifest
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import (
    BlockJob,
    Disk,
    DomainView,
    ImageInfo,
    Layer,
    Part,
)

RAW, QCOW2 = Layer("/img/a.raw", "raw"), Layer("/img/a.qcow2", "qcow2")
GOLDEN = Layer("/img/golden.qcow2", "qcow2")
MIB = 1024 * 1024


def facts(base: Layer, *below: Layer, regular: bool = True) -> SourceFacts:
    info = ImageInfo(base.path, base.format, 100 * MIB, 10 * MIB, below[0].path if below else None)
    return SourceFacts(Source("vda", base, "/img/o.qcow2"), info, (base, *below), 30 * MIB, regular)


def wish(**options: Any) -> BackupOptions:
    return BackupOptions("/backup", "s1", **options)


def refused(call: Any, *arguments: Any) -> str:
    with pytest.raises(VirtopsError) as caught:
        call(*arguments)
    assert caught.value.cause
    assert caught.value.remedy
    return caught.value.code


@pytest.mark.parametrize(
    ("options", "source", "methods", "file"),
    [
        ({}, facts(RAW), ("reflink", "copy"), "vda.raw"),
        ({}, facts(QCOW2), ("reflink", "copy"), "vda.qcow2"),
        ({"format": "qcow2"}, facts(QCOW2), ("reflink", "copy"), "vda.qcow2"),
        ({"format": "qcow2"}, facts(RAW), ("convert",), "vda.qcow2"),
        ({"format": "raw"}, facts(QCOW2), ("convert",), "vda.raw"),
        ({"compress": True}, facts(QCOW2), ("convert",), "vda.qcow2"),
        ({}, facts(QCOW2, GOLDEN), ("convert",), "vda.qcow2"),
        ({"keep_backing": True}, facts(QCOW2, GOLDEN), ("reflink", "copy"), "vda.qcow2"),
        ({"keep_backing": True}, facts(RAW), ("reflink", "copy"), "vda.raw"),
        ({}, facts(RAW, regular=False), ("convert",), "vda.raw"),
        ({"method": "convert"}, facts(RAW), ("convert",), "vda.raw"),
        ({"method": "copy"}, facts(RAW), ("copy",), "vda.raw"),
        ({"method": "reflink"}, facts(RAW), ("reflink",), "vda.raw"),
    ],
)
def test_the_fastest_method_that_does_what_is_asked(
    options: dict[str, Any], source: SourceFacts, methods: tuple[str, ...], file: str
) -> None:
    order = plan_copy(wish(**options), source)
    assert (order.methods, order.file) == (methods, file)


@pytest.mark.parametrize(
    ("options", "source", "code"),
    [
        ({"compress": True}, facts(RAW), "compress_needs_qcow2"),
        ({"compress": True, "format": "raw"}, facts(QCOW2), "compress_needs_qcow2"),
        ({"keep_backing": True, "format": "raw"}, facts(QCOW2, GOLDEN), "backing_needs_qcow2"),
        ({"method": "copy", "format": "raw"}, facts(QCOW2), "method_unsuitable"),
        ({"method": "reflink", "compress": True}, facts(QCOW2), "method_unsuitable"),
        ({"method": "copy"}, facts(QCOW2, GOLDEN), "method_unsuitable"),
        ({"method": "reflink"}, facts(RAW, regular=False), "method_unsuitable"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], source: SourceFacts, code: str) -> None:
    assert refused(plan_copy, wish(**options), source) == code


def test_what_an_order_carries() -> None:
    order = plan_copy(wish(keep_backing=True, rate_limit=2, verify=False), facts(QCOW2, GOLDEN))
    assert (order.backing, order.rate_limit, order.verify) == (GOLDEN, 2 * MIB, False)
    assert order.needs == 10 * MIB
    assert plan_copy(wish(), facts(QCOW2, GOLDEN)).needs == 30 * MIB
    assert plan_copy(wish(method="reflink"), facts(RAW)).needs == 0


DISK = Disk("vda", chain=(Layer("/img/o.qcow2", "qcow2"), RAW))
SELECTION = Selection("id", "s1", "20261120T120000Z", "crash", (Source("vda", RAW, "/img/o.qcow2"),))


def view(*disks: Disk) -> DomainView:
    return DomainView("web", "uuid", "running", True, disks, ())


def operation(phase: str) -> Journal:
    return Journal((Operation("id", KEPT, "s1", phase, "t", (JournalDisk("vda", RAW.path, "raw", "/img/o.qcow2"),)),))


def test_a_base_that_stands_still() -> None:
    require_still(SELECTION, view(DISK), operation(CREATED))
    later = replace(DISK, chain=(Layer("/img/later.qcow2", "qcow2"), *DISK.chain))
    require_still(SELECTION, view(later), operation(CREATED))


@pytest.mark.parametrize(
    ("disks", "phase", "code"),
    [
        ((DISK,), COMMITTING, "base_modified"),
        ((replace(DISK, chain=(RAW,)),), CREATED, "chain_changed"),
        ((replace(DISK, chain=(DISK.chain[0], QCOW2, RAW)),), CREATED, "chain_changed"),
        ((), CREATED, "chain_changed"),
        ((replace(DISK, job=BlockJob("active-commit")),), CREATED, "job_running"),
    ],
)
def test_a_base_that_does_not(disks: tuple[Disk, ...], phase: str, code: str) -> None:
    assert refused(require_still, SELECTION, view(*disks), operation(phase)) == code


def test_a_commit_of_another_operation_counts() -> None:
    other = replace(operation(COMMITTING).operations[0], id="other", name="s2")
    assert refused(require_still, SELECTION, view(DISK), operation(CREATED).put(other)) == "base_modified"


def test_where_a_set_lies() -> None:
    paths = set_paths("/b", view(), "20261120T120000Z")
    assert paths.final == "/b/web/20261120T120000Z"
    assert paths.partial == "/b/web/.20261120T120000Z.partial"
    for name in ("..", ".", "a/b"):
        assert refused(set_paths, "/b", replace(view(), name=name), "t") == "unsafe_name"


FOUND: dict[str, Any] = {
    "operation": "id",
    "domain": {"uuid": "uuid"},
    "disks": [{"target": "vda", "file": "vda.raw", "format": "raw", "bytes": 5}],
}


def test_a_complete_set_is_found_again() -> None:
    require_same_set(FOUND, {"vda.raw": 5}, SELECTION, wish(), "/b", "uuid")
    require_same_set(FOUND, {"vda.raw": 5}, SELECTION, wish(format="raw"), "/b", "uuid")


@pytest.mark.parametrize(
    ("found", "sizes", "options", "code"),
    [
        ({**FOUND, "operation": "other"}, {"vda.raw": 5}, {}, "set_exists"),
        ({**FOUND, "domain": {"uuid": "other"}}, {"vda.raw": 5}, {}, "set_exists"),
        ({**FOUND, "disks": [{**FOUND["disks"][0], "bytes": None}]}, {}, {}, "set_damaged"),
        (FOUND, {"vda.raw": 5}, {"format": "qcow2"}, "set_exists"),
        ({**FOUND, "disks": []}, {}, {}, "set_exists"),
        (FOUND, {"vda.raw": 4}, {}, "set_damaged"),
        (FOUND, {}, {}, "set_damaged"),
    ],
)
def test_one_that_is_another_or_damaged_is_not(
    found: dict[str, Any], sizes: dict[str, int], options: dict[str, Any], code: str
) -> None:
    assert refused(require_same_set, found, sizes, SELECTION, wish(**options), "/b", "uuid") == code


def test_space() -> None:
    orders = (plan_copy(wish(), facts(RAW)),) * 2
    require_space(orders, 60 * MIB, "/b")
    assert refused(require_space, orders, 60 * MIB - 1, "/b") == "no_space"
    assert [mib(0), mib(1), mib(MIB), mib(MIB + 1)] == [0, 1, 1, 2]


def test_what_is_read_back() -> None:
    """Only with verify: from the disk, compared, and with a look at qcow2's own tables."""
    extra = {"file": "nvram.fd", "bytes": 1, "sha256": "d"}
    disks = [{"file": "vda.raw", "bytes": 9, "target": "vda", "format": "raw"}]
    manifest = {"domain_xml": "domain.xml", "extras": [extra], "disks": disks}
    runs = ((0, 9, "x"),)
    assert verify_orders(manifest, {"vda.raw": runs}, True) == (
        VerifyOrder("vda.raw", 9, "vda", "raw", runs),
        VerifyOrder("domain.xml"),
        VerifyOrder("nvram.fd", 1, sha256="d"),
    )
    assert verify_orders(manifest, {"vda.raw": runs}, False)[0] == VerifyOrder("vda.raw", 9, "vda", from_disk=False)


def test_sums_as_coreutils_write_them(tmp_path: Path) -> None:
    names = ["a\nb", "c\\d", "plain", "with space ü"]
    for name in names:
        (tmp_path / name).write_text(name)
    sums = build_sums({name: hashlib.sha256(name.encode()).hexdigest() for name in names})
    said = subprocess.run(["sha256sum", *names], cwd=tmp_path, check=True, stdout=subprocess.PIPE).stdout
    assert sums.encode() == said


def test_the_manifest_before_and_after() -> None:
    order = CopyOrder("vda", RAW, "vda.raw", "raw", ("copy",), 100, 10, backing=GOLDEN)
    nvram = PlainFile("/nvram/web.fd", "nvram.fd")
    lack = Lack("kernel", None, "/boot/vmlinuz", "it is no part of the disks")
    planned = Manifest(
        SELECTION, "web", "uuid", "hv", "0a", (order,), {}, Extras((nvram,), (lack,)), True, "20261120T120001Z"
    )
    done = planned.complete(
        {"vda": Copied("copy", 100, 10)},
        Extras((replace(nvram, bytes=1, sha256="d", taken="20261120T120002Z"),), (lack,)),
    )
    before = planned.as_dict()
    after = finished(done.as_dict(), {"vda.raw": Verified("abc")}, "20261120T120005Z")
    assert before.keys() == after.keys()
    assert before["disks"][0].keys() == after["disks"][0].keys()
    assert before["disks"][0]["sha256"] is None
    assert before["times"] == {
        "snapshot": "2026-11-20T12:00:00Z",
        "started": "2026-11-20T12:00:01Z",
        "finished": None,
    }
    assert after == {
        "schema_version": 1,
        "operation": "id",
        "snapshot": "s1",
        "domain": {"name": "web", "uuid": "uuid"},
        "hypervisor": "hv",
        "machine": "0a",
        "times": {**before["times"], "finished": "2026-11-20T12:00:05Z"},
        "consistency": "crash",
        "domain_xml": "domain.xml",
        "autostart": True,
        "verified": True,
        "nvram": {"source": "/nvram/web.fd", "file": "nvram.fd", "bytes": 1, "sha256": "d"},
        "extras": [
            {
                "kind": "NVRAM",
                "source": "/nvram/web.fd",
                "file": "nvram.fd",
                "bytes": 1,
                "sha256": "d",
                "taken": "2026-11-20T12:00:02Z",
            }
        ],
        "lacks": [{"kind": "kernel", "name": None, "source": "/boot/vmlinuz", "reason": "it is no part of the disks"}],
        "disks": [
            {
                "target": "vda",
                "source": "/img/a.raw",
                "source_format": "raw",
                "format": "raw",
                "virtual_size": 100,
                "file": "vda.raw",
                "bytes": 100,
                "allocated": 10,
                "sha256": "abc",
                "method": "copy",
                "backing": {"path": "/img/golden.qcow2", "format": "qcow2"},
            }
        ],
    }
    # What is written is what is read, on the same host and by the same release
    assert parse_manifest(json.dumps(after).encode()) == after
    assert parse_manifest(json.dumps(before).encode()) == before
    assert iso8601(None) is None


def changed(path: str, value: object) -> bytes:
    """A manifest with one thing in it that is not as it should be."""
    order = CopyOrder("vda", RAW, "vda.raw", "raw", ("copy",), 100, 10)
    found: Any = Manifest(SELECTION, "web", "uuid", "hv", "0a", (order,), {}).as_dict()
    *way, last = path.split("/")
    inside = found
    for name in way:
        inside = inside[int(name) if name.isdigit() else name]
    if value is None:
        del inside[last]
    else:
        inside[last] = value
    return json.dumps(found).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"1" * 5000,
        b" " * MANIFEST_LIMIT + b"{}",
        changed("schema_version", 2),
        changed("schema_version", True),
        changed("operation", None),
        changed("operation", 5),
        changed("operation", "x" * 5000),
        changed("domain", []),
        changed("domain/uuid", None),
        changed("domain/uuid", {}),
        changed("times", "now"),
        changed("machine", []),
        changed("autostart", "yes"),
        changed("extras", [{"kind": "NVRAM"}]),
        changed("lacks", [[]]),
        changed("nvram", []),
        changed("nvram", {"source": "/a", "file": "../b", "bytes": 1, "sha256": ""}),
        changed("domain_xml", "/etc/shadow"),
        changed("disks", {}),
        changed("disks", None),
        changed("disks", [None]),
        changed("disks", [{}] * 2000),
        changed("disks/0/file", ".."),
        changed("disks/0/file", "a/b"),
        changed("disks/0/bytes", -1),
        changed("disks/0/bytes", "5"),
        changed("disks/0/bytes", 1.5),
        changed("disks/0/virtual_size", 1 << 64),
        changed("disks/0/backing", {"path": []}),
    ],
)
def test_a_manifest_that_anybody_wrote(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_manifest(data)


def test_what_a_manifest_has_besides_is_left_out() -> None:
    assert "more" not in parse_manifest(changed("more", {"a": "b"}))
    assert parse_manifest(changed("machine", None))["hypervisor"] == "hv"


def test_a_disk_twice() -> None:
    order = CopyOrder("vda", RAW, "vda.raw", "raw", ("copy",), 100, 10)
    found = Manifest(SELECTION, "web", "uuid", "hv", "0a", (order, order), {}).as_dict()
    with pytest.raises(ValueError, match="twice"):
        parse_manifest(json.dumps(found).encode())


def extras_of(
    *parts: Part, nvram: str | None = None, names: tuple[str, ...] = (), kind: str = "file", size: int = 7
) -> Extras:
    cdrom = Disk("hda", device="cdrom", chain=(Layer("/iso/seed.iso", "raw"),), readonly=True)
    seen = replace(view(DISK, cdrom, Disk("hdb", device="cdrom")), parts=parts, nvram=nvram)
    return plan_extras(seen, frozenset({"vda"}), "/swtpm", lambda path: kind, lambda folder: names, lambda path: size)


SEED = Lack("disk", "hda", "/iso/seed.iso", "it is a cdrom drive")


def test_extras_of_a_plain_domain() -> None:
    assert extras_of() == Extras((), (SEED,))


def test_the_nvram() -> None:
    assert extras_of(nvram="/nvram/web_VARS.fd").files == (PlainFile("/nvram/web_VARS.fd", "nvram.fd", "NVRAM"),)
    assert extras_of(nvram="/nvram/web", kind="missing") == Extras((), (SEED,))
    assert [lack.kind for lack in extras_of(nvram="/dev/vg/nvram", kind="block").lacks] == ["disk", "NVRAM"]


NAMES = (".lock", "tpm-00.permall", "tpm2-00.permall", "tpm2-00.savestate", "TMP2-00.permall", "tpm2-00.permall.old")


@pytest.mark.parametrize(
    ("part", "files"),
    [
        (Part("TPM state", "", "2.0"), ["/swtpm/%s/tpm2/" + name for name in NAMES[1:4]]),
        (Part("TPM state", "", "1.2"), ["/swtpm/%s/tpm1.2/" + name for name in NAMES[1:4]]),
        (Part("TPM state", "/tpms/web", "2.0"), ["/tpms/web/" + name for name in NAMES[1:4]]),
        (Part("TPM state file", "/tpms/web.state", "2.0"), ["/tpms/web.state"]),
    ],
)
def test_the_state_of_a_tpm(part: Part, files: list[str]) -> None:
    found = extras_of(part, names=NAMES)
    wanted = [path % view().uuid if "%s" in path else path for path in files]
    assert [file.source for file in found.files] == wanted
    assert found.lacks == (SEED,)
    assert [lack.kind for lack in extras_of(part, kind="missing").lacks] == ["disk", "TPM state"]


@pytest.mark.parametrize(
    ("part", "words", "packaged"),
    [
        (Part("loader", "/usr/share/OVMF/OVMF_CODE.fd"), "the loader /usr/share/OVMF/OVMF_CODE.fd", True),
        (Part("TPM", "/dev/tpm0"), "the TPM /dev/tpm0", False),
        (Part("TPM", ""), "the TPM", False),
        (Part("libvirt secret", "2d3f"), "the libvirt secret 2d3f", False),
    ],
)
def test_what_a_set_lacks(part: Part, words: str, packaged: bool) -> None:
    (lack,) = [lack for lack in extras_of(part).lacks if lack != SEED]
    assert lack.words() == words
    assert is_packaged(lack) == packaged


def test_what_a_guest_boots_from() -> None:
    parts = (
        Part("kernel", "/boot/vmlinuz-6.1.0-18"),
        Part("initrd", "/boot/initrd.img"),
        Part("ACPI table", "/acpi/slic.bin"),
        Part("ACPI table", "/acpi/other.bin"),
        Part("loader", "/usr/share/OVMF/OVMF_CODE.fd"),
    )
    found = extras_of(*parts, nvram="/nvram/web.fd")
    assert [file.file for file in found.state] == ["nvram.fd"]
    assert [(file.source, file.file) for file in found.boot] == [
        ("/boot/vmlinuz-6.1.0-18", "kernel"),
        ("/boot/initrd.img", "initrd.img"),
        ("/acpi/slic.bin", "acpi-table.bin"),
        ("/acpi/other.bin", "acpi-table-2.bin"),
    ]
    assert [lack.kind for lack in found.lacks] == ["disk", "loader"]
    assert found.needs == 4 * 7


@pytest.mark.parametrize(
    ("changes", "why"),
    [({"kind": "missing"}, "it is no regular file of this host"), ({"size": (512 << 20) + 1}, "larger than 512 MiB")],
)
def test_boot_files_that_are_not_copied(changes: dict[str, Any], why: str) -> None:
    found = extras_of(Part("kernel", "/boot/vmlinuz"), **changes)
    assert (found.files, found.needs) == ((), 0)
    assert why in found.lacks[-1].reason
    assert found.lacks[-1].words() == "the kernel /boot/vmlinuz"


def test_no_tpm_says_what_that_means() -> None:
    for found in (extras_of(Part("TPM", "/dev/tpm0")), extras_of(Part("TPM state", "", "2.0"))):
        assert "BitLocker" in found.lacks[-1].reason


def test_what_was_written_to_all_the_time() -> None:
    assert [lack.words() for lack in with_unsteady(Extras(), {"/a": "NVRAM"}).lacks] == ["the NVRAM /a"]
