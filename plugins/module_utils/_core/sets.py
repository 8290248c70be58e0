# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the backup sets that lie in a dest, and what is known of each without reading its images.

What is found out later about a set is noted in it (notes.json), outside of its manifest and of SHA256SUMS.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

from .backup import DIGESTS, DOMAIN_XML, MANIFEST, SAME, SUMS, BackupOptions
from .backup_set import iso8601, stamp_of_iso
from .journal import epoch
from .manifest import NewerSchema, parse_manifest

#: Of a complete set, outside of its manifest and its sums: what was found out later.
NOTES = "notes.json"
#: Bytes of it, at most.
NOTES_LIMIT = 1 << 16
#: Characters of the words of a note, at most.
NOTES_WORDS = 4096

COMPLETE = "complete"
#: Under way, interrupted, or half removed.
UNFINISHED = "unfinished"
#: Ours, but not what was written.
DAMAGED = "damaged"
#: Not ours, or not where and how we put sets: nothing touches it.
FOREIGN = "foreign"
#: Of a later release, whose manifests this one does not know.
UNKNOWN = "unknown"

#: The name of a complete set: its point in time.
STAMP = re.compile(r"[0-9]{8}T[0-9]{6}Z")
#: A set under way, which has its manifest not yet where it is named after a host, too; and one that is being removed.
_HIDDEN = re.compile(r"\.([0-9]{8}T[0-9]{6}Z)(?:\.[0-9a-f]+)?\.(partial|removing)")
REMOVING = ".removing"


class Note(NamedTuple):
    """What came of looking at a set: when (20261120T120000Z), whether all was well, and in words what was not."""

    stamp: str
    ok: bool
    words: str = ""


@dataclass(frozen=True)
class Notes:
    """What is known of a set besides its manifest. `when_made`: its manifest says that it was read back when it was
    made; that is not written to notes.json."""

    verified: Note | None = None
    booted: Note | None = None
    when_made: bool = False

    @property
    def is_verified(self) -> bool:
        """The last time that it was read back, when it was made or later, it was whole."""
        return self.when_made if self.verified is None else self.verified.ok

    @property
    def is_failed(self) -> bool:
        """It was read back after it was made, and was not whole."""
        return self.verified is not None and not self.verified.ok


@dataclass(frozen=True)
class BackupSet:
    """One set, or what lies where one would be. `path` is by its name, for words and for the caller's next call.

    `state` is one of the above, `why` says in words what is wrong with one that is not complete. `domain`, `uuid` and
    `machine` (the host that made it) are "" where nothing tells them; `taken` and `finished` are UTC times as
    20261120T120000Z, `size` and `allocated` bytes. `base` is the set beside it that it is incremental on.
    """

    path: str
    state: str
    why: str = ""
    domain: str = ""
    uuid: str = ""
    machine: str = ""
    taken: str | None = None
    finished: str | None = None
    size: int = 0
    allocated: int = 0
    base: str | None = None
    manifest: Mapping[str, Any] | None = None
    notes: Notes = field(default_factory=Notes)

    @property
    def is_complete(self) -> bool:
        return self.state == COMPLETE

    @property
    def is_verified(self) -> bool:
        """See `Notes`."""
        return self.notes.is_verified

    @property
    def is_half_removed(self) -> bool:
        """Its removal was interrupted: `SetsPort.remove` finishes it."""
        return self.path.endswith(REMOVING)


@dataclass(frozen=True)
class OpenSet:
    """A set that is held: `directory` leads to it whatever it is renamed to. `found` is what it is now, but for its
    chain, `files` the bytes of each file in it; `sums` and `domain_xml` are None where they cannot be read."""

    directory: str
    found: BackupSet
    files: Mapping[str, int]
    sums: bytes | None
    domain_xml: bytes | None


class SetsPort(Protocol):
    """The sets in a dest. Raises `copy_stalled` where the target does not answer."""

    def list(self, dest: str, domain: str | None) -> tuple[BackupSet, ...]:
        """Those of all domains, or of one by its name or UUID; by folder and name, so the oldest first.

        No image is read. What does not belong to a set of ours counts only beside such sets, and is named. Raises
        `dest_missing` and the like, where `dest` cannot be read.
        """

    def open(self, path: str) -> OpenSet | None:
        """Hold one until it is closed; None where it is gone."""

    def close(self, path: str) -> bool:
        """Let go of it. Is it still there, by its name?"""

    def note(self, path: str, notes: Notes) -> None:
        """Note this in the set, and leave what else is noted there: what is None in `notes` says nothing."""

    def remove(self, path: str) -> None:
        """Remove a complete set, or finish an interrupted removal. One that is gone is fine."""


# Reading one


def valid_stamp(text: str) -> str | None:
    """The time, if it is one: 20261320T120000Z is none."""
    if STAMP.fullmatch(text):
        with suppress(ValueError):
            epoch(text)
            return text
    return None


def is_shaped(name: str) -> bool:
    """Is this a name that we give, of a set or of one under way?"""
    return bool(STAMP.fullmatch(name) or _HIDDEN.fullmatch(name))


def judge(path: str, files: Mapping[str, int], manifest: bytes | None, notes: bytes | None) -> BackupSet:
    """What lies at `path`, by its name, the bytes of each regular file in it, its manifest and its notes (None where
    there are none). The chain that it stands on is looked at by `with_chains`."""
    name = os.path.basename(path)
    hidden = _HIDDEN.fullmatch(name)
    found = BackupSet(path, FOREIGN, taken=valid_stamp(hidden.group(1) if hidden else name))
    if manifest is None:
        return _without_manifest(found, files, hidden)
    try:
        said = parse_manifest(manifest)
    except NewerSchema as error:
        return replace(found, state=UNKNOWN, why="Its %s has %s" % (MANIFEST, error))
    except ValueError as error:
        return replace(found, state=DAMAGED, why="Its %s cannot be used: %s" % (MANIFEST, error))
    found = replace(
        found,
        domain=said["domain"]["name"],
        uuid=said["domain"]["uuid"],
        machine=said.get("machine", ""),
        finished=_stamp(said["times"]["finished"]),
        base=said.get("base"),
        manifest=said,
        notes=_notes(notes, bool(said.get("verified"))),
    )
    if hidden:
        return replace(found, state=UNFINISHED, why=_why_unfinished(hidden.group(2), files))
    if found.taken is None:
        why = "It has another name than the time of a backup: somebody renamed it"
        return replace(found, taken=_stamp(said["times"]["snapshot"]), why=why)
    if said["times"]["snapshot"] != iso8601(found.taken):
        why = "Its %s is another set's, of %s" % (MANIFEST, said["times"]["snapshot"])
        return replace(found, state=DAMAGED, why=why)
    if said["times"]["finished"] is None:
        return replace(found, state=DAMAGED, why="Its %s is that of a set under way" % MANIFEST)
    why = "; ".join(lost_files(said, files).values())
    return replace(found, state=DAMAGED if why else COMPLETE, why=why)


def expected_files(manifest: Mapping[str, Any]) -> dict[str, int | None]:
    """Each file that a set of this manifest has, but for the manifest, and its bytes, None where nothing tells them."""
    found: dict[str, int | None] = {manifest["domain_xml"]: None}
    # Earlier releases wrote no sums and no list of extras
    if "verified" in manifest:
        found[SUMS] = None
    nvram = [manifest["nvram"]] if manifest.get("nvram") else []
    for entry in (*nvram, *manifest.get("extras", ()), *manifest["disks"]):
        found[entry["file"]] = entry["bytes"]
    return found


def lost_files(manifest: Mapping[str, Any], files: Mapping[str, int]) -> dict[str, str]:
    """The files that are missing or have another length, and the words for each."""
    lost = {file: _why_lost(file, size, files) for file, size in expected_files(manifest).items()}
    return {file: words for file, words in lost.items() if words}


def _without_manifest(found: BackupSet, files: Mapping[str, int], hidden: re.Match[str] | None) -> BackupSet:
    if hidden:
        return replace(found, state=UNFINISHED, why=_why_unfinished(hidden.group(2), files))
    if DOMAIN_XML in files:
        return replace(found, state=DAMAGED, why="%s is missing" % MANIFEST)
    return replace(found, why="It has no %s" % MANIFEST)


def _why_unfinished(kind: str, files: Mapping[str, int]) -> str:
    if kind == "removing":
        return "Its removal was interrupted"
    if DIGESTS in files:
        return "It is copied, and was not verified yet: its backup runs, or was interrupted"
    return "Its backup runs, or was interrupted"


def _why_lost(file: str, size: int | None, files: Mapping[str, int]) -> str:
    if file not in files:
        return "%s is missing" % file
    if size is not None and files[file] != size:
        return "%s has %d bytes instead of %d" % (file, files[file], size)
    return ""


def _stamp(text: str | None) -> str | None:
    return valid_stamp(stamp_of_iso(text or ""))


# Reading several


def with_chains(sets: Iterable[BackupSet]) -> tuple[BackupSet, ...]:
    """The sets of one folder; one whose chain is broken is damaged, too."""
    by_name = {os.path.basename(found.path): found for found in sets}
    return tuple(_with_chain(found, by_name) for found in by_name.values())


def _with_chain(found: BackupSet, by_name: Mapping[str, BackupSet]) -> BackupSet:
    at, seen = found, {os.path.basename(found.path)}
    while found.state == COMPLETE and at.base is not None:
        below = by_name.get(at.base)
        if below is None:
            why = "is gone"
        elif at.base in seen:
            why = "stands on it itself"
        elif below.uuid != found.uuid:
            why = "is of another domain"
        elif below.state != COMPLETE:
            why = "is %s" % below.state
        else:
            seen.add(at.base)
            at = below
            continue
        return replace(found, state=DAMAGED, why="The set %s, which it is incremental on, %s" % (at.base, why))
    return found


def is_of(found: BackupSet, domain: str) -> bool:
    """By the domain's name or UUID, or the name of the folder that it lies in."""
    return domain in (found.domain, found.uuid, os.path.basename(os.path.dirname(found.path)))


def strangers(sets: Iterable[BackupSet]) -> dict[str, str]:
    """Of folders with whole sets of several domains: those that are not of the newest one's, and the words for each.
    By name nobody can tell them apart."""
    newest: dict[str, BackupSet] = {}
    whole = [found for found in sets if found.state == COMPLETE]
    for found in whole:
        newest[os.path.dirname(found.path)] = found
    words = "It is of the domain with the UUID %s, and the newest set of this name, %s, of that with the UUID %s"
    latest = [(found, newest[os.path.dirname(found.path)]) for found in whole]
    return {
        found.path: words % (found.uuid, os.path.basename(last.path), last.uuid)
        for found, last in latest
        if found.uuid != last.uuid
    }


def newest_as_asked(
    sets: Iterable[BackupSet], uuid: str, targets: Set[str], options: BackupOptions, quiesce: str, now: str, age: int
) -> BackupSet | None:
    """The newest whole set of this domain that holds what a backup with these options would, and that is at most `age`
    seconds old; one of the future says nothing of the present."""
    good = [found for found in sets if found.uuid == uuid and _is_as_asked(found, targets, options, quiesce)]
    young = [found for found in good if found.taken is not None and 0 <= epoch(now) - epoch(found.taken) <= age]
    return max(young, key=lambda found: found.taken or "", default=None)


def _is_as_asked(found: BackupSet, targets: Set[str], options: BackupOptions, quiesce: str) -> bool:
    """Nothing that was asked for is weaker in it."""
    if found.state != COMPLETE or found.manifest is None or found.notes.is_failed:
        return False
    disks = found.manifest["disks"]
    return (
        {disk["target"] for disk in disks} == targets
        and all(options.format in (SAME, disk["format"]) for disk in disks)
        and (options.keep_backing or all(disk["backing"] is None for disk in disks))
        and (not options.verify or found.is_verified)
        and (quiesce != "required" or found.manifest["consistency"] in ("filesystem", "offline"))
    )


# Notes


def build_notes(notes: Notes) -> str:
    """As text."""
    told = {"verified": notes.verified, "booted": notes.booted}
    return json.dumps({name: note._asdict() for name, note in told.items() if note is not None}, indent=2) + "\n"


def parse_notes(data: bytes) -> Notes:
    """The same back; ValueError where it is nothing like it."""
    if len(data) > NOTES_LIMIT:
        raise ValueError("it is longer than %d bytes" % NOTES_LIMIT)
    try:
        said = json.loads(data.decode("utf-8", "surrogateescape"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(said, dict):
        raise ValueError("no object")
    return Notes(_note(said.get("verified")), _note(said.get("booted")))


def merged_notes(old: Notes, new: Notes) -> Notes:
    """What is None in the new ones says nothing."""
    return replace(old, verified=new.verified or old.verified, booted=new.booted or old.booted)


def _note(said: object) -> Note | None:
    if said is None:
        return None
    if not isinstance(said, dict):
        raise ValueError("no object")
    stamp, ok, words = (said.get(name) for name in Note._fields)
    if not isinstance(stamp, str) or valid_stamp(stamp) is None or not isinstance(ok, bool):
        raise ValueError("no note")
    if not isinstance(words, str) or len(words) > NOTES_WORDS:
        raise ValueError("no words of at most %d characters" % NOTES_WORDS)
    return Note(stamp, ok, words)


def _notes(data: bytes | None, when_made: bool) -> Notes:
    """Notes that cannot be read may have said that it is damaged."""
    if data is None:
        return Notes(when_made=when_made)
    try:
        return replace(parse_notes(data), when_made=when_made)
    except ValueError:
        return Notes()


# Words and data


def describe_set(found: BackupSet, now: str) -> dict[str, Any]:
    """A set as results show it; `now` is the time that its age is told at."""
    said = found.manifest or {}
    return {
        "path": found.path,
        "state": found.state,
        "why": found.why,
        "domain": {"name": found.domain, "uuid": found.uuid},
        "hypervisor": said.get("hypervisor", ""),
        "taken": iso8601(found.taken),
        "finished": iso8601(found.finished),
        "age": None if found.taken is None else epoch(now) - epoch(found.taken),
        "consistency": said.get("consistency"),
        "size": found.size,
        "allocated": found.allocated,
        "base": found.base,
        "disks": [
            {name: disk[name] for name in ("target", "format", "virtual_size", "file", "bytes")}
            for disk in said.get("disks", ())
        ],
        "lacks": list(said.get("lacks", ())),
        "verified": found.is_complete and found.is_verified,
        "last_verified": _told(found.notes.verified),
        "last_booted": _told(found.notes.booted),
    }


def _told(note: Note | None) -> dict[str, Any] | None:
    return None if note is None else {"time": iso8601(note.stamp), "ok": note.ok, "message": note.words}
