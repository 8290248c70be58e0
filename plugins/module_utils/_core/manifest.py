# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: reading a manifest.json, and the digests of copies, that anybody may have written.

Only what a manifest has is taken over, in its form and within limits: the target that keeps the sets is no part of the
hypervisor.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from .backup import Run

#: Bytes of a manifest.json, at most: some hundred disks.
MANIFEST_LIMIT = 1 << 20
#: Bytes of the digests of a set's copies, at most.
DIGESTS_LIMIT = 256 << 20
_TEXT_LIMIT = 4096
_ITEMS_LIMIT = 1000

_Reader = Callable[[Any], Any]


class NewerSchema(ValueError):
    """A manifest of a later release."""


def parse_manifest(data: bytes) -> dict[str, Any]:
    """The manifest; ValueError, with words for it, where it is none; `NewerSchema` where we cannot know."""
    manifest: dict[str, Any] = _MANIFEST(_json(data, MANIFEST_LIMIT))
    targets = [disk["target"] for disk in manifest["disks"]]
    if len(set(targets)) != len(targets):
        raise ValueError("a disk is in it twice")
    return manifest


def build_digests(digests: dict[str, tuple[Run, ...] | None]) -> str:
    """What each copy has to have on the disk, by its file, as text."""
    return json.dumps(digests)


def parse_digests(data: bytes) -> dict[str, tuple[Run, ...] | None]:
    """The same back; ValueError where it is nothing like it."""
    found = _json(data, DIGESTS_LIMIT)
    if not isinstance(found, dict):
        raise ValueError("no object")
    return {_file_name(file): None if runs is None else _runs(runs) for file, runs in found.items()}


def _runs(value: object) -> tuple[Run, ...]:
    """They follow each other."""
    if not isinstance(value, list):
        raise ValueError("no list")
    end, found = 0, []
    for run in value:
        if not isinstance(run, list) or len(run) != 3 or not end <= _count(run[0]) < _count(run[1]):
            raise ValueError("no run of bytes")
        end = run[1]
        found.append((run[0], end, _text(run[2])))
    return tuple(found)


def _json(data: bytes, limit: int) -> object:
    if len(data) > limit:
        raise ValueError("it is longer than %d bytes" % limit)
    try:
        found: object = json.loads(data.decode("utf-8", "surrogateescape"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        raise ValueError("it is no JSON: %s" % error) from None
    return found


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > _TEXT_LIMIT:
        raise ValueError("no text of at most %d characters" % _TEXT_LIMIT)
    return value


def _file_name(value: object) -> str:
    name = _text(value)
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ValueError("no name of a file")
    return name


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise ValueError("no number of bytes")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("neither true nor false")
    return value


def _version(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value > 1:
        raise NewerSchema("the schema version %d, which only later releases know" % value)
    if value != 1 or isinstance(value, bool):
        raise ValueError("a version that this release does not know")
    return 1


def _maybe(read: _Reader) -> _Reader:
    return lambda value: None if value is None else read(value)


def _list_of(read: _Reader) -> _Reader:
    def reader(value: object) -> list[Any]:
        if not isinstance(value, list) or len(value) > _ITEMS_LIMIT:
            raise ValueError("no list of at most %d items" % _ITEMS_LIMIT)
        return [read(item) for item in value]

    return reader


def _object(fields: dict[str, _Reader], later: dict[str, _Reader] | None = None) -> _Reader:
    """With all of `fields`; `later` are those that earlier releases did not write."""

    def reader(value: object) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValueError("no object")
        found = {}
        for name, read in {**fields, **(later or {})}.items():
            if name not in value and name not in fields:
                continue
            if name not in value:
                raise ValueError("%s is missing" % name)
            try:
                found[name] = read(value[name])
            except NewerSchema:
                raise
            except ValueError as error:
                raise ValueError("%s: %s" % (name, error)) from None
        return found

    return reader


_PLAIN_FILE = _object({"source": _text, "file": _file_name, "bytes": _maybe(_count), "sha256": _maybe(_text)})
_EXTRA = _object(
    {
        "kind": _text,
        "source": _text,
        "file": _file_name,
        "bytes": _maybe(_count),
        "sha256": _maybe(_text),
        "taken": _maybe(_text),
    }
)
_LACK = _object({"kind": _text, "name": _maybe(_text), "source": _maybe(_text), "reason": _text})
_DISK = _object(
    {
        "target": _text,
        "source": _text,
        "source_format": _text,
        "format": _text,
        "virtual_size": _count,
        "file": _file_name,
        "bytes": _maybe(_count),
        "allocated": _maybe(_count),
        "sha256": _maybe(_text),
        "method": _maybe(_text),
        "backing": _maybe(_object({"path": _text, "format": _text})),
    }
)
_MANIFEST = _object(
    {
        "schema_version": _version,
        "operation": _text,
        "snapshot": _maybe(_text),
        "domain": _object({"name": _text, "uuid": _text}),
        "hypervisor": _text,
        "times": _object({name: _maybe(_text) for name in ("snapshot", "started", "finished")}),
        "consistency": _text,
        "domain_xml": _file_name,
        "nvram": _maybe(_PLAIN_FILE),
        "disks": _list_of(_DISK),
    },
    later={
        "machine": _text,
        "autostart": _flag,
        "extras": _list_of(_EXTRA),
        "lacks": _list_of(_LACK),
        "verified": _flag,
        "base": _maybe(_file_name),
    },
)
