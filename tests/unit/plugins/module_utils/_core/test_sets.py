# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is known of a backup set from its name, its manifest and the sizes of its files."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.backup import BackupOptions
from ansible_collections.virtops.libvirt.plugins.module_utils._core.sets import (
    COMPLETE,
    DAMAGED,
    FOREIGN,
    UNFINISHED,
    UNKNOWN,
    BackupSet,
    Note,
    Notes,
    build_notes,
    is_of,
    is_shaped,
    judge,
    merged_notes,
    newest_as_asked,
    parse_notes,
    with_chains,
)

DISK: dict[str, Any] = {
    "target": "vda",
    "source": "/images/web.qcow2",
    "source_format": "qcow2",
    "format": "qcow2",
    "virtual_size": 4096,
    "file": "vda.qcow2",
    "bytes": 100,
    "allocated": 100,
    "sha256": "aa",
    "method": "copy",
    "backing": None,
}
MANIFEST: dict[str, Any] = {
    "schema_version": 1,
    "operation": "o",
    "snapshot": "s",
    "domain": {"name": "web", "uuid": "u"},
    "hypervisor": "hv",
    "machine": "m",
    "times": {
        "snapshot": "2026-11-20T12:00:00Z",
        "started": "2026-11-20T12:00:01Z",
        "finished": "2026-11-20T12:00:09Z",
    },
    "consistency": "crash",
    "domain_xml": "domain.xml",
    "nvram": None,
    "disks": [DISK],
    "verified": True,
}
NAME = "20261120T120000Z"
FILES = {"manifest.json": 900, "domain.xml": 50, "SHA256SUMS": 20, "vda.qcow2": 100}


def text(**fields: Any) -> bytes:
    return json.dumps({**MANIFEST, **fields}).encode()


def found(
    name: str = NAME,
    files: dict[str, int] | None = None,
    manifest: bytes | None = None,
    notes: bytes | None = None,
) -> BackupSet:
    return judge("/b/web/" + name, FILES if files is None else files, text() if manifest is None else manifest, notes)


def test_a_complete_set() -> None:
    one = found()
    assert (one.state, one.why, one.is_complete, one.is_verified) == (COMPLETE, "", True, True)
    assert (one.domain, one.uuid, one.machine, one.base) == ("web", "u", "m", None)
    assert (one.taken, one.finished) == (NAME, "20261120T120009Z")
    assert one.manifest == MANIFEST


def test_a_set_of_an_earlier_release() -> None:
    """It had no sums, no list of extras, no machine, and did not say whether it was read back."""
    old = {name: value for name, value in MANIFEST.items() if name not in ("machine", "verified")}
    files = {name: size for name, size in FILES.items() if name != "SHA256SUMS"}
    one = found(files=files, manifest=json.dumps(old).encode())
    assert (one.state, one.machine, one.is_verified) == (COMPLETE, "", False)


@pytest.mark.parametrize(
    ("name", "change", "manifest", "state", "why"),
    [
        (".%s.partial" % NAME, {}, text(), UNFINISHED, "Its backup runs, or was interrupted"),
        (".%s.partial" % NAME, {"digests.json": 1}, text(), UNFINISHED, "It is copied, and was not verified yet"),
        (".%s.0af.partial" % NAME, {}, None, UNFINISHED, "Its backup runs"),
        (".%s.removing" % NAME, {}, text(), UNFINISHED, "Its removal was interrupted"),
        (".%s.removing" % NAME, {}, None, UNFINISHED, "Its removal was interrupted"),
        (NAME, {}, text(schema_version=2), UNKNOWN, "the schema version 2, which only later releases know"),
        (NAME, {}, text(schema_version="2"), DAMAGED, "a version that this release does not know"),
        (NAME, {}, b"{", DAMAGED, "it is no JSON"),
        (NAME, {}, b"\xff\xfe", DAMAGED, "it is no JSON"),
        (NAME, {}, text()[:-100], DAMAGED, "it is no JSON"),
        (NAME, {}, text(disks=[DISK, DISK]), DAMAGED, "a disk is in it twice"),
        (NAME, {}, None, DAMAGED, "manifest.json is missing"),
        (NAME, {"domain.xml": None}, None, FOREIGN, "It has no manifest.json"),
        ("20261121T120000Z", {}, text(), DAMAGED, "is another set's, of 2026-11-20T12:00:00Z"),
        (NAME, {}, text(times={**MANIFEST["times"], "finished": None}), DAMAGED, "that of a set under way"),
        (NAME + ".keep", {}, text(), FOREIGN, "somebody renamed it"),
        (NAME, {"vda.qcow2": None}, text(), DAMAGED, "vda.qcow2 is missing"),
        (NAME, {"vda.qcow2": 99}, text(), DAMAGED, "vda.qcow2 has 99 bytes instead of 100"),
        (NAME, {"domain.xml": None}, text(), DAMAGED, "domain.xml is missing"),
        (NAME, {"SHA256SUMS": None}, text(), DAMAGED, "SHA256SUMS is missing"),
        (NAME, {"more": 7, "notes.json": 1}, text(), COMPLETE, ""),
    ],
)
def test_states(name: str, change: dict[str, int | None], manifest: bytes | None, state: str, why: str) -> None:
    files = {file: size for file, size in {**FILES, **change}.items() if size is not None}
    one = judge("/b/web/" + name, files, manifest, None)
    assert one.state == state, one.why
    assert why in one.why if why else not one.why
    assert one.is_half_removed == ("removing" in name)


def test_names() -> None:
    assert is_shaped(NAME)
    assert is_shaped(".%s.partial" % NAME)
    assert is_shaped(".%s.0123abcd.partial" % NAME)
    assert is_shaped(".%s.removing" % NAME)
    assert not any(map(is_shaped, ("", "lost+found", NAME + "x", ".partial", "%s.partial" % NAME)))


def test_whose_it_is() -> None:
    assert all(is_of(found(), domain) for domain in ("web", "u"))
    assert is_of(judge("/b/old/" + NAME, {}, None, None), "old")
    assert not is_of(found(), "db")


def increment(stamp: str, base: str | None, uuid: str = "u", state: str = COMPLETE) -> BackupSet:
    return BackupSet("/b/web/" + stamp, state, uuid=uuid, base=base)


@pytest.mark.parametrize(
    ("sets", "why"),
    [
        ([increment("3", "2"), increment("2", "1"), increment("1", None)], ""),
        ([increment("3", "1")], "The set 1, which it is incremental on, is gone"),
        ([increment("3", "2"), increment("2", "1")], "The set 1, which it is incremental on, is gone"),
        ([increment("3", "1"), increment("1", None, uuid="other")], "is of another domain"),
        ([increment("3", "1"), increment("1", None, state=DAMAGED)], "is damaged"),
        ([increment("3", "3")], "stands on it itself"),
        ([increment("3", "2"), increment("2", "3")], "stands on it itself"),
        ([increment("3", "gone", state=UNFINISHED)], ""),
    ],
)
def test_chains(sets: list[BackupSet], why: str) -> None:
    first = with_chains(sets)[0]
    assert why in first.why if why else first == sets[0]
    assert (first.state == DAMAGED) == bool(why)


QCOW2, RAW = {"target": "vda", "format": "qcow2", "backing": None}, {"target": "vdb", "format": "raw", "backing": None}
NOW, NOON = "20261120T130000Z", "20261120T120000Z"


def candidate(taken: str = NOON, **fields: Any) -> BackupSet:
    manifest = {"disks": [QCOW2, RAW], "consistency": "crash", **fields.pop("manifest", {})}
    given = {"state": COMPLETE, "uuid": "u", "notes": Notes(when_made=True), **fields}
    return BackupSet("/b/web/" + taken, taken=taken, manifest=manifest, **given)


@pytest.mark.parametrize(
    ("there", "asked", "does"),
    [
        (candidate(), {}, True),
        (candidate("20261120T115959Z"), {}, False),
        (candidate("20261120T130001Z"), {}, False),
        (candidate(uuid="v"), {}, False),
        (candidate(state=DAMAGED), {}, False),
        (candidate(state=UNFINISHED), {}, False),
        (candidate(manifest={"disks": [QCOW2]}), {}, False),
        (candidate(manifest={"disks": [QCOW2, RAW, {**RAW, "target": "vdc"}]}), {}, False),
        (candidate(), {"format": "qcow2"}, False),
        (candidate(manifest={"disks": [QCOW2, {**QCOW2, "target": "vdb"}]}), {"format": "qcow2"}, True),
        (candidate(manifest={"disks": [QCOW2, {**RAW, "backing": {"path": "/g"}}]}), {}, False),
        (candidate(manifest={"disks": [QCOW2, {**RAW, "backing": {"path": "/g"}}]}), {"keep_backing": True}, True),
        (candidate(notes=Notes()), {}, False),
        (candidate(notes=Notes()), {"verify": False}, True),
        (candidate(notes=Notes(Note(NOON, True))), {}, True),
        (candidate(notes=Notes(Note(NOON, False), when_made=True)), {"verify": False}, False),
        (candidate(), {"quiesce": "required"}, False),
        (candidate(manifest={"consistency": "filesystem"}), {"quiesce": "required"}, True),
        (candidate(manifest={"consistency": "offline"}), {"quiesce": "required"}, True),
        (candidate(), {"quiesce": "never"}, True),
    ],
)
def test_whether_a_set_is_what_is_asked_for(there: BackupSet, asked: dict[str, Any], does: bool) -> None:
    quiesce = asked.pop("quiesce", "preferred")
    options = BackupOptions("/b", **asked)
    found = newest_as_asked([there], "u", {"vda", "vdb"}, options, quiesce, NOW, 3600)
    assert found == (there if does else None)


def test_the_newest_of_several() -> None:
    sets = [candidate(), candidate("20261120T123000Z"), candidate("20261120T121500Z")]
    options = BackupOptions("/b")
    assert newest_as_asked(sets, "u", {"vda", "vdb"}, options, "never", NOW, 3600) == sets[1]


def test_notes_and_back() -> None:
    notes = Notes(Note(NAME, False, 'vda: "bytes" 0 to 5 differ ü'), Note(NAME, True))
    assert parse_notes(build_notes(notes).encode()) == notes
    assert parse_notes(build_notes(Notes()).encode()) == Notes()


def test_what_is_noted_counts_before_what_was_said_when_it_was_made() -> None:
    bad, good = (build_notes(Notes(Note(NAME, ok))).encode() for ok in (False, True))
    assert (found(notes=bad).is_verified, found(notes=bad).notes.is_failed) == (False, True)
    assert (found(notes=good).is_verified, found(notes=good).notes.is_failed) == (True, False)
    assert found(notes=good, manifest=text(verified=False)).is_verified
    assert not found(manifest=text(verified=False)).is_verified


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"[" * 100000,
        b'{"verified": 1}',
        b'{"verified": {"stamp": "now", "ok": true, "words": ""}}',
        b'{"verified": {"stamp": "20261120T120000Z", "ok": 1, "words": ""}}',
        b'{"verified": {"stamp": "20261120T120000Z", "ok": true}}',
        b" " * (1 << 17) + b"{}",
    ],
)
def test_notes_that_cannot_be_used_say_nothing_good(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_notes(data)
    assert found(notes=data).state == COMPLETE
    assert not found(notes=data).is_verified


def test_notes_are_added_to() -> None:
    old, new = Notes(Note(NAME, True), Note(NAME, True)), Notes(verified=Note("20261121T120000Z", False, "bad"))
    assert merged_notes(old, new) == Notes(new.verified, old.booted)
