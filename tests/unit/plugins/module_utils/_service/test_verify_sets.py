# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Reading sets back, on real files: each kind of damage is found and named, and nothing else is."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lxml")
if shutil.which("qemu-img") is None:
    pytest.skip("qemu-img is not installed", allow_module_level=True)

from ansible_collections.virtops.libvirt.plugins.module_utils._core.backup import Told, Verified, VerifyOrder
from ansible_collections.virtops.libvirt.plugins.module_utils._core.backup_set import build_sums, iso8601
from ansible_collections.virtops.libvirt.plugins.module_utils._core.choose_sets import Choice
from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Outcome
from ansible_collections.virtops.libvirt.plugins.module_utils._core.sets import Note, Notes
from ansible_collections.virtops.libvirt.plugins.module_utils._host.copy import ImageCopier
from ansible_collections.virtops.libvirt.plugins.module_utils._host.sets import BackupSets
from ansible_collections.virtops.libvirt.plugins.module_utils._service.verify_sets import (
    SetVerification,
    VerifyOptions,
    list_sets,
)

MIB = 1024 * 1024
ONE, TWO, THREE = "20261120T120000Z", "20261121T120000Z", "20261122T120000Z"
UUID, OTHER = "1b4e28ba-2fa1-11d2-883f-0016d3cca427", "1b4e28ba-2fa1-11d2-883f-0016d3cca428"
NOW = "20261123T120000Z"


class StillClock:
    def utcnow(self) -> str:
        return NOW

    def boot(self) -> str:
        return ""

    def monotonic(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        raise AssertionError


class Checker:
    """The helper's end, without the helper."""

    def __init__(self, before: Callable[[str], None] = lambda _directory: None) -> None:
        self.before = before
        self.read: list[str] = []

    def check_all(
        self, orders: tuple[VerifyOrder, ...], directory: str, parallel: int, watch: Callable[[], None], told: Told
    ) -> dict[str, Verified]:
        watch()
        self.before(directory)
        self.read += [os.readlink(directory)]

        def signs(done: dict[str, tuple[int, int]], life: int) -> None:
            for target, (bytes_done, total) in done.items():
                told(target, bytes_done, total)

        return ImageCopier(signs).check_all(orders, directory, parallel)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sum_up(path: Path) -> None:
    files = [file.name for file in path.iterdir() if file.name not in ("SHA256SUMS", "notes.json")]
    (path / "SHA256SUMS").write_text(build_sums({file: sha256(path / file) for file in files}))


@functools.cache
def qcow2(pattern: int) -> bytes:
    with tempfile.NamedTemporaryFile() as file:
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", file.name, "8M"], check=True)
        subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P %d 1M 256k" % pattern, file.name], check=True)
        return Path(file.name).read_bytes()


def make(dest: Path, name: str = "web", stamp: str = ONE, uuid: str = UUID, **fields: Any) -> Path:
    """A set as a backup makes it: a qcow2, a raw image, an NVRAM."""
    path = dest / name / stamp
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.mkdir(mode=0o700)
    disks = []
    for target, image_format in (("vda", "qcow2"), ("vdb", "raw")):
        image, pattern = path / f"{target}.{image_format}", ord(stamp[7]) + ord(uuid[-1])
        if image_format == "raw":
            with image.open("wb") as file:
                file.truncate(8 * MIB)
                file.seek(2 * MIB)
                file.write(bytes([pattern]) * MIB)
        else:
            image.write_bytes(qcow2(pattern))
        disks.append(
            {
                "target": target,
                "source": f"/images/{target}",
                "source_format": image_format,
                "format": image_format,
                "virtual_size": 8 * MIB,
                "file": image.name,
                "bytes": image.stat().st_size,
                "allocated": image.stat().st_blocks * 512,
                "sha256": sha256(image),
                "method": "copy",
                "backing": None,
            }
        )
    (path / "nvram.fd").write_bytes(b"n" * 100)
    nvram = {"source": "/n", "file": "nvram.fd", "bytes": 100, "sha256": sha256(path / "nvram.fd")}
    (path / "domain.xml").write_text(
        f"<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid><os><type>hvm</type></os><devices/></domain>"
    )
    manifest = {
        "schema_version": 1,
        "operation": "o",
        "snapshot": "s",
        "domain": {"name": name, "uuid": uuid},
        "hypervisor": "hv",
        "machine": "0a",
        "times": dict.fromkeys(("snapshot", "started", "finished"), iso8601(stamp)),
        "consistency": "crash",
        "domain_xml": "domain.xml",
        "autostart": False,
        "verified": True,
        "nvram": nvram,
        "extras": [{"kind": "NVRAM", **nvram, "taken": None}],
        "lacks": [],
        "disks": disks,
        **fields,
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    sum_up(path)
    return path


def change(path: Path, **fields: Any) -> None:
    """Another manifest, with sums that fit: what only its content tells."""
    manifest = path / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **fields}))
    sum_up(path)


def verification(options: VerifyOptions, checker: Checker | None = None) -> SetVerification:
    return SetVerification(options, BackupSets(), checker or Checker(), StillClock())


def verify(dest: Path, check: bool = False, checker: Checker | None = None, **options: Any) -> Outcome:
    """What a run returns, also where it fails."""
    try:
        return verification(VerifyOptions(Choice(dest=str(dest), **options)), checker).run(check)
    except VirtopsError as error:
        if error.code != "set_damaged":
            raise
        return Outcome(error.actions or (), values=error.told)


def problems(outcome: Outcome) -> dict[str, str]:
    sets: Any = outcome.values["sets"]
    return {"/".join(one["path"].split("/")[-2:]): "; ".join(one["problems"]) for one in sets if one["problems"]}


def noted(path: Path) -> Note | None:
    dest = path.parent.parent
    return next(one for one in BackupSets().list(str(dest), None) if one.path == str(path)).notes.verified


def test_whole_ones(tmp_path: Path) -> None:
    paths = [make(tmp_path), make(tmp_path, stamp=TWO), make(tmp_path, name="db", uuid=OTHER)]
    before = [{file.name: file.read_bytes() for file in path.iterdir()} for path in paths]
    outcome = verify(tmp_path)
    assert problems(outcome) == {}
    assert [step.split(" (")[0] for step in outcome.steps] == ["verify %s" % path for path in sorted(paths)]
    assert [one["read"] and one["verified"] for one in outcome.values["sets"]] == [True] * 3  # type: ignore[attr-defined]
    assert [noted(path) for path in paths] == [Note(NOW, True)] * 3
    for path, files in zip(paths, before):
        (path / "notes.json").unlink()
        assert {file.name: file.read_bytes() for file in path.iterdir()} == files


def test_a_check_reads_nothing_and_notes_nothing(tmp_path: Path) -> None:
    path, checker = make(tmp_path), Checker()
    planned = verify(tmp_path, check=True, checker=checker)
    assert (checker.read, noted(path)) == ([], None)
    assert planned.steps == verify(tmp_path).steps
    (path / "vda.qcow2").unlink()
    assert "vda.qcow2 is missing" in problems(verify(tmp_path, check=True))["web/" + ONE]


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


def swap(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def disk_of(path: Path, **fields: Any) -> list[dict[str, Any]]:
    first, second = json.loads((path / "manifest.json").read_text())["disks"]
    return [{**first, **fields}, second]


def rebased(path: Path) -> None:
    """It was so when it was copied, so that its SHA-256 fits."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "raw", str(path.parent / "golden"), "8M"], check=True)
    image = path / "vda.qcow2"
    argv = ["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", str(path.parent / "golden"), str(image)]
    subprocess.run(argv, check=True)
    change(path, disks=disk_of(path, sha256=sha256(image), bytes=image.stat().st_size))


def torn(path: Path) -> None:
    """Its tables are broken, and its SHA-256 fits."""
    image = path / "vda.qcow2"
    with image.open("r+b") as file:
        file.seek(3 * 65536)
        file.write(b"\xff" * 8)
    change(path, disks=disk_of(path, sha256=sha256(image), bytes=image.stat().st_size))


DAMAGES: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "truncated image": (
        lambda path, _o: os.truncate(path / "vda.qcow2", 65536),
        "vda.qcow2 has 65536 bytes instead of",
    ),
    "truncated raw image": (lambda path, _o: os.truncate(path / "vdb.raw", 4 * MIB), "vdb.raw has 4194304 bytes"),
    "longer image": (lambda path, _o: os.truncate(path / "vdb.raw", 9 * MIB), "vdb.raw has 9437184 bytes instead of"),
    "flipped bit": (
        lambda path, _o: flip(path / "vda.qcow2", 400000),
        "vda.qcow2 is not what was written: its SHA-256",
    ),
    "flipped bit in a hole": (lambda path, _o: flip(path / "vdb.raw", 7 * MIB), "vdb.raw is not what was written"),
    "flipped bit of the NVRAM": (lambda path, _o: flip(path / "nvram.fd", 5), "nvram.fd is not what was written"),
    "flipped bit of the definition": (lambda path, _o: flip(path / "domain.xml", 30), "domain.xml is not what was"),
    "missing image": (lambda path, _o: (path / "vda.qcow2").unlink(), "vda.qcow2 is missing"),
    "missing NVRAM": (lambda path, _o: (path / "nvram.fd").unlink(), "nvram.fd is missing"),
    "missing definition": (lambda path, _o: (path / "domain.xml").unlink(), "domain.xml is missing"),
    "missing sums": (lambda path, _o: (path / "SHA256SUMS").unlink(), "SHA256SUMS is missing"),
    "missing manifest": (lambda path, _o: (path / "manifest.json").unlink(), "manifest.json is missing"),
    "image that is a symlink": (
        lambda path, _o: ((path / "vdb.raw").rename(path / "x"), (path / "vdb.raw").symlink_to("x")),
        "vdb.raw is missing",
    ),
    "images of two sets swapped": (lambda path, o: swap(path / "vdb.raw", o / "vdb.raw"), "vdb.raw is not what was"),
    "manifests of two sets swapped": (
        lambda path, o: swap(path / "manifest.json", o / "manifest.json"),
        "Its manifest.json is another set's, of 2026-11-21T12:00:00Z",
    ),
    "manifest of another domain's set": (
        lambda path, _o: (
            make(path.parent.parent, "db", ONE, OTHER),
            shutil.copy(path.parent.parent / "db" / ONE / "manifest.json", path / "manifest.json"),
        ),
        "SHA256SUMS and manifest.json tell different SHA-256 of vda.qcow2|"
        "The copy %s/manifest.json is not what was written|domain.xml is of the domain with the UUID %s" % ("%s", UUID),
    ),
    "truncated manifest": (
        lambda path, _o: os.truncate(path / "manifest.json", 99),
        "Its manifest.json cannot be used",
    ),
    "flipped bit of the manifest": (
        lambda path, _o: (path / "manifest.json").write_text(
            (path / "manifest.json").read_text().replace('"crash"', '"crasj"')
        ),
        "manifest.json is not what was written: its SHA-256",
    ),
    "manifest of a later release": (
        lambda path, _o: change(path, schema_version=2),
        "Its manifest.json has the schema version 2, which only later releases know",
    ),
    "truncated sums": (lambda path, _o: os.truncate(path / "SHA256SUMS", 70), "Its SHA256SUMS cannot be used"),
    "empty sums": (lambda path, _o: os.truncate(path / "SHA256SUMS", 0), "SHA256SUMS has no line for domain.xml"),
    "sums without an image": (
        lambda path, _o: (path / "SHA256SUMS").write_text(
            "".join(x for x in (path / "SHA256SUMS").read_text().splitlines(True) if "vdb" not in x)
        ),
        "SHA256SUMS has no line for vdb.raw",
    ),
    "broken tables": (lambda path, _o: torn(path), "The verification of %s/vda.qcow2 failed"),
    "image that stands on another": (lambda path, _o: rebased(path), "it stands on"),
    "another virtual size": (
        lambda path, _o: change(path, disks=disk_of(path, virtual_size=4 * MIB)),
        "its virtual size is 8388608 instead of 4194304",
    ),
    "another format": (
        lambda path, _o: change(path, disks=[{**one, "format": "qcow2"} for one in disk_of(path)]),
        "The verification of %s/vdb.raw failed",
    ),
    "definition of another domain": (
        lambda path, _o: (
            (path / "domain.xml").write_text((path / "domain.xml").read_text().replace(UUID, OTHER)),
            sum_up(path),
        ),
        f"domain.xml is of the domain with the UUID {OTHER} instead of {UUID}",
    ),
    "definition that is none": (
        lambda path, _o: ((path / "domain.xml").write_text("<domain>"), sum_up(path)),
        "domain.xml cannot be read",
    ),
    "base that is gone": (
        lambda path, _o: change(path, base="20261119T120000Z"),
        "The set 20261119T120000Z, which it is incremental on, is gone",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage(tmp_path: Path, damage: str) -> None:
    """It is named at this set, noted in it, and the set beside it is whole."""
    path, other = make(tmp_path), tmp_path / "web" / TWO
    if damage in ("flipped bit", "manifest of another domain's set") or "swapped" in damage:
        make(tmp_path, stamp=TWO)
    act, words = DAMAGES[damage]
    act(path, other)
    with pytest.raises(VirtopsError) as caught:
        verification(VerifyOptions(Choice(dest=str(tmp_path)))).run(False)
    assert caught.value.code == "set_damaged"
    found = problems(Outcome(values=caught.value.told))
    for part in words.split("|"):
        assert (part % path if "%s" in part else part) in found["web/" + ONE]
        assert (part % path if "%s" in part else part) in str(caught.value)
    assert set(found) == ({"web/" + ONE, "web/" + TWO} if "swapped" in damage else {"web/" + ONE})
    if "later" in damage:  # it is not ours to judge
        assert not (path / "notes.json").exists()
    elif "manifest" not in damage or "flipped" in damage:
        note = noted(path)
        assert note is not None
        assert (note.ok, note.stamp) == (False, NOW)
    assert "proc" not in json.dumps(caught.value.told)


def test_all_that_is_wrong_with_one_is_named(tmp_path: Path) -> None:
    path = make(tmp_path)
    flip(path / "vda.qcow2", 400000)
    flip(path / "vdb.raw", 2 * MIB)
    (path / "nvram.fd").unlink()
    found = problems(verify(tmp_path))["web/" + ONE]
    assert all(words in found for words in ("nvram.fd is missing", "vda.qcow2 is not", "vdb.raw is not"))
    note = noted(path)
    assert note is not None
    assert note.words == found


def test_two_domains_of_one_name(tmp_path: Path) -> None:
    """Both are whole, and nobody can tell them apart by name; by UUID they can be."""
    older, newer = make(tmp_path, uuid=OTHER), make(tmp_path, stamp=TWO)
    found = problems(verify(tmp_path))
    assert set(found) == {"web/" + ONE}
    assert OTHER in found["web/" + ONE]
    assert UUID in found["web/" + ONE]
    assert [noted(path) for path in (older, newer)] == [Note(NOW, True)] * 2
    assert problems(verify(tmp_path, domain=OTHER)) == problems(verify(tmp_path, domain=UUID)) == {}


def test_a_chain_is_as_good_as_its_worst(tmp_path: Path) -> None:
    base, _middle, top = make(tmp_path), make(tmp_path, stamp=TWO, base=ONE), make(tmp_path, stamp=THREE, base=TWO)
    checker = Checker()
    assert problems(verify(tmp_path, checker=checker, newest=True)) == {}
    assert [os.path.basename(path) for path in checker.read] == [ONE, TWO, THREE]
    flip(base / "vda.qcow2", 400000)
    found = problems(verify(tmp_path))
    assert set(found) == {"web/" + stamp for stamp in (ONE, TWO, THREE)}
    assert found["web/" + THREE] == "The set %s, which it is incremental on, is not whole" % TWO
    assert set(problems(verify(tmp_path, names=(THREE,)))) == set()  # no base of it was noted
    assert noted(top) == Note(NOW, True)


def test_which_are_read(tmp_path: Path) -> None:
    for name, uuid in (("web", UUID), ("db", OTHER)):
        for stamp in (ONE, TWO):
            make(tmp_path, name, stamp, uuid)

    def read(**options: Any) -> list[str]:
        steps = verify(tmp_path, check=True, **options).steps
        return ["/".join(step.split(" ")[1].split("/")[-2:]) for step in steps]

    assert read() == ["db/" + ONE, "db/" + TWO, "web/" + ONE, "web/" + TWO]
    assert read(newest=True) == ["db/" + TWO, "web/" + TWO]
    assert read(domain="web") == read(domain=UUID) == read(guests=("w*",)) == ["web/" + ONE, "web/" + TWO]
    assert read(guests=(OTHER.upper(),), newest=True) == read(exclude=("web",), newest=True) == ["db/" + TWO]
    assert read(names=(ONE,)) == ["db/" + ONE, "web/" + ONE]
    assert read(domain="none") == []
    assert verify(tmp_path, check=True, guests=("web", "x*")).values["unmatched"] == ["x*"]
    with pytest.raises(VirtopsError) as caught:
        verify(tmp_path, names=(ONE, THREE))
    assert (caught.value.code, THREE in caught.value.cause, ONE in caught.value.cause) == ("set_missing", True, False)


def test_one_by_its_path(tmp_path: Path) -> None:
    path = make(tmp_path)
    make(tmp_path, stamp=TWO)
    outcome = verification(VerifyOptions(Choice(path=str(path) + "/"))).run(False)
    assert len(outcome.steps) == 1
    assert noted(path) == Note(NOW, True)
    for name, code in ((THREE, "set_missing"), (ONE + ".old", "set_unsuitable")):
        if code == "set_unsuitable":
            path.rename(path.with_name(name))
        with pytest.raises(VirtopsError) as caught:
            verification(VerifyOptions(Choice(path=str(path.with_name(name))))).run(False)
        assert caught.value.code == code


def test_what_is_no_set_is_named_and_left_alone(tmp_path: Path) -> None:
    make(tmp_path)
    partial = tmp_path / "web" / (".%s.partial" % TWO)
    partial.mkdir(mode=0o700)
    (tmp_path / "web" / "things").mkdir(mode=0o700)
    outcome = verify(tmp_path)
    others: Any = outcome.values["others"]
    assert [(os.path.basename(one["path"]), one["state"]) for one in others] == [
        (partial.name, "unfinished"),
        ("things", "foreign"),
    ]
    assert (problems(outcome), os.listdir(partial)) == ({}, [])


@pytest.mark.parametrize("how", ["removed", "renamed", "emptied"])
def test_one_that_goes_meanwhile_is_no_failure(tmp_path: Path, how: str) -> None:
    path = make(tmp_path)
    make(tmp_path, stamp=TWO)

    def remove(_directory: str) -> None:
        """By hand: our own prune refuses a set that is read."""
        if how == "renamed" and path.exists():
            path.rename(path.with_name(".%s.removing" % ONE))
        shutil.rmtree(path, ignore_errors=True)

    if how == "emptied":  # before it is opened
        sets = BackupSets()
        listed = sets.list(str(tmp_path), None)
        shutil.rmtree(path)
        sets.list = lambda _dest, _domain: listed  # type: ignore[method-assign]
        outcome = SetVerification(VerifyOptions(Choice(dest=str(tmp_path))), sets, Checker(), StillClock()).run(False)
    else:
        outcome = verify(tmp_path, checker=Checker(remove))
    others: Any = outcome.values["others"]
    assert [(os.path.basename(one["path"]), one["state"]) for one in others] == [(ONE, "removed")]
    assert problems(outcome) == {}
    assert len(outcome.steps) == 1


def test_where_nothing_can_be_noted_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path)

    def refuse(_self: BackupSets, path: str, notes: Notes) -> None:
        raise VirtopsError("note_failed", "It is read-only", "Mount it writable")

    monkeypatch.setattr(BackupSets, "note", refuse)
    outcome = verify(tmp_path)
    assert problems(outcome) == {}
    assert [warning for warning in outcome.warnings if "could not be noted" in warning]


def test_listing_only(tmp_path: Path) -> None:
    path = make(tmp_path, lacks=[{"kind": "kernel", "name": None, "source": "/k", "reason": "r"}])
    make(tmp_path, stamp=TWO, base=ONE)
    BackupSets().note(str(path), Notes(booted=Note(NOW, False, "no login")))
    first, second = list_sets(BackupSets(), str(tmp_path), "web", NOW).values["sets"]  # type: ignore[misc]
    assert {name: first[name] for name in ("state", "age", "taken", "base", "verified", "last_verified")} == {
        "state": "complete",
        "age": 3 * 86400,
        "taken": "2026-11-20T12:00:00Z",
        "base": None,
        "verified": True,
        "last_verified": None,
    }
    assert first["last_booted"] == {"time": "2026-11-23T12:00:00Z", "ok": False, "message": "no login"}
    assert [disk["target"] for disk in first["disks"]] == ["vda", "vdb"]
    assert (first["lacks"][0]["kind"], second["base"]) == ("kernel", ONE)
    looked = verification(VerifyOptions(Choice(dest=str(tmp_path)), note=False)).look_only()
    assert looked.values["sets"][0]["read"]  # type: ignore[index]
    assert noted(path) is None
