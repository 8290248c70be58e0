# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: what a set holds besides the images of a domain's disks, and what it lacks."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from .backup import PlainFile
from .model import DomainView, Part
from .snapshot import why_not_snapshotable

NVRAM, TPM = "NVRAM", "TPM state"
_TPM_FILE = "TPM state file"

#: What swtpm keeps of a TPM that lasts: libtpms' permanent state, and that of a TPM that was suspended.
_STATE = re.compile(r"tpm2?-00\.(permall|savestate)")
#: Who installs what lies there again: the package.
_PACKAGED = "/usr/"
#: What a guest boots from that has its own kernel or firmware. No snapshot is about it: it may be copied at any time.
_BOOT = ("kernel", "initrd", "dtb", "shim", "loader", "ACPI table")
#: MiB that such a file may have: more is none of these.
BOOT_LIMIT = 512
#: What a name may end with that says something of its file
_SUFFIX = re.compile(r"[.][A-Za-z]{2,5}$")
_NO_TPM = "; a guest that unlocks its disks by it, as with BitLocker, needs its recovery key without it"

_WHY = {
    "TPM": "its state is not in a file of this host" + _NO_TPM,
    "NVRAM": "it is not a file of this host",
    "libvirt secret": "libvirt keeps its value",
    "shared folder": "it is no disk",
    "persistent memory": "it is no disk",
}


@dataclass(frozen=True)
class Lack:
    """Something of the domain that a set does not hold. `name` is a disk's target or what it is known by."""

    kind: str
    name: str | None
    source: str | None
    reason: str

    def words(self) -> str:
        return " ".join(["the", self.kind, *filter(None, [self.name or self.source])])


@dataclass(frozen=True)
class Extras:
    """The small files that a set gets besides the images, and what it will lack. `needs` are the bytes of `boot`."""

    files: tuple[PlainFile, ...] = ()
    lacks: tuple[Lack, ...] = ()
    needs: int = 0

    @property
    def state(self) -> tuple[PlainFile, ...]:
        """Those that the guest writes to, and no snapshot holds."""
        return tuple(file for file in self.files if file.kind in (NVRAM, TPM))

    @property
    def boot(self) -> tuple[PlainFile, ...]:
        """Those that it only reads."""
        return tuple(file for file in self.files if file.kind not in (NVRAM, TPM))


def plan_extras(
    view: DomainView,
    targets: frozenset[str],
    tpm_root: str,
    kind_of: Callable[[str], str],
    names_in: Callable[[str], tuple[str, ...]],
    size_of: Callable[[str], int],
) -> Extras:
    """`targets` are the disks that the set holds, `tpm_root` is where libvirt keeps the state of TPMs; `kind_of`,
    `names_in` and `size_of` look at the host (see ImagePort)."""
    files: list[PlainFile] = []
    lacks = list(_lacking_disks(view, targets))
    if view.nvram is not None:
        kind = kind_of(view.nvram)
        if kind == "file":
            files.append(PlainFile(view.nvram, "nvram" + os.path.splitext(view.nvram)[1], NVRAM))
        elif kind != "missing":  # a domain that never ran has none yet
            lacks.append(Lack(NVRAM, None, view.nvram, "it is no regular file"))
    for part in view.parts:
        if part.kind in (TPM, _TPM_FILE):
            found = _tpm_files(part, view.uuid, tpm_root, kind_of, names_in)
            files += found
            if not found:
                lacks.append(Lack(TPM, None, part.path or tpm_root, "none was found there" + _NO_TPM))
        elif part.kind not in _BOOT:
            lacks.append(_lack_of(part))
    boot = [part for part in view.parts if part.kind in _BOOT]
    why = {part: _why_not_copied(part, kind_of, size_of) for part in boot}
    lacks += [Lack(part.kind, None, part.path, why[part]) for part in boot if why[part]]
    copied = [part for part in boot if not why[part]]
    files += _boot_files(copied)
    return Extras(tuple(files), tuple(lacks), sum(size_of(part.path) for part in copied))


def _why_not_copied(part: Part, kind_of: Callable[[str], str], size_of: Callable[[str], int]) -> str:
    """What a guest boots from is copied unless a package brings it."""
    if part.path.startswith(_PACKAGED):
        return "a package installs it"
    if kind_of(part.path) != "file":
        return "it is no regular file of this host"
    if size_of(part.path) > BOOT_LIMIT << 20:
        return "it is larger than %d MiB" % BOOT_LIMIT
    return ""


def _boot_files(parts: list[Part]) -> list[PlainFile]:
    """Named after what they are; the second of a kind, as of ACPI tables, has a number."""
    files: list[PlainFile] = []
    for part in parts:
        number = sum(file.kind == part.kind for file in files)
        stem = part.kind.lower().replace(" ", "-") + ("-%d" % (number + 1) if number else "")
        suffix = _SUFFIX.search(part.path)
        files.append(PlainFile(part.path, stem + (suffix.group() if suffix else ""), part.kind))
    return files


def _lacking_disks(view: DomainView, targets: frozenset[str]) -> Iterator[Lack]:
    for disk in view.disks:
        if disk.target not in targets and not disk.empty:
            source = disk.active or disk.remote
            reason = why_not_snapshotable(disk) or "the snapshot does not have it"
            yield Lack("disk", disk.target, None if source is None else source.path, reason)


def _lack_of(part: Part) -> Lack:
    reason = _WHY.get(part.kind, "it is no part of the disks")
    if part.kind == "libvirt secret":
        return Lack(part.kind, part.path or None, None, reason)
    return Lack(part.kind, None, part.path or None, reason)


def _tpm_files(
    part: Part,
    uuid: str,
    tpm_root: str,
    kind_of: Callable[[str], str],
    names_in: Callable[[str], tuple[str, ...]],
) -> list[PlainFile]:
    if part.kind == _TPM_FILE:
        return [PlainFile(part.path, "tpm.state", TPM)] if kind_of(part.path) == "file" else []
    folder = tpm_folder(part, uuid, tpm_root)
    names = [name for name in names_in(folder) if _STATE.fullmatch(name)]
    paths = [os.path.join(folder, name) for name in names]
    return [PlainFile(path, os.path.basename(path), TPM) for path in paths if kind_of(path) == "file"]


def tpm_folder(part: Part, uuid: str, tpm_root: str) -> str:
    """Where swtpm keeps the state of this domain's TPM."""
    return part.path or os.path.join(tpm_root, uuid, "tpm1.2" if part.form == "1.2" else "tpm2")


def with_unsteady(extras: Extras, unsteady: Mapping[str, str]) -> Extras:
    """What could be read only while something wrote to it counts as lacking, too: source and kind of each."""
    why = "it was written to while it was copied, so the copy may be inconsistent"
    return replace(extras, lacks=extras.lacks + tuple(Lack(unsteady[path], None, path, why) for path in unsteady))


def with_late(extras: Extras, late: Mapping[str, str]) -> Extras:
    """What the guest wrote to after the moment that the disks are from, source and kind of each, may not fit them."""
    why = "it was written to after the snapshot was begun, so it may not fit the disks"
    return replace(extras, lacks=extras.lacks + tuple(Lack(late[path], None, path, why) for path in late))


def is_packaged(lack: Lack) -> bool:
    """Is it there again where the same packages are installed?"""
    return (lack.source or "").startswith(_PACKAGED)
