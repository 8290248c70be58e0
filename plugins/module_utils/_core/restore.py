# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: what a restore writes, where, and as whom, decided from values alone.

Each file is written beside its place, under a name that tells its place (`waiting_path`), and is whole and on the disk
before anything else happens. Then one write of the definition puts the domain on all of them at once. What is left
after that write, also after a death, the definition itself tells: each image with such a name goes to its place.
"""

from __future__ import annotations

import hashlib
import os
import re
import uuid as uuid_module
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from .backup import Told
from .errors import VirtopsError
from .extras import NVRAM, TPM
from .model import Disk, Layer, OtherImages, Part, is_device
from .ports import RestorePort
from .refusals import checked_path
from .sets import FOREIGN, UNFINISHED, UNKNOWN, BackupSet
from .text import command

AUTO, KEEP, NEW = "auto", "keep", "new"
#: The kind of a file that is no extra.
DISK = "disk"

_WAITING = re.compile(r"\.(?P<stem>.+)\.restoring-[0-9a-f]{8}(?P<extension>(?:\.[^.]*)?)")
_SUM = re.compile(r"(?P<digest>[0-9a-f]{64})  (?P<file>[^/\n\\]+)")
#: Of the UUIDs of copies, which are made from the set's domain, the copy's name and the host.
_NAMESPACE = uuid_module.UUID("5f2b6c1e-2a0c-4d8f-9a57-1d2f6f0c7a11")


@dataclass(frozen=True)
class DiskChoice:
    """A disk that is restored, and the file that it goes to; None: see RestoreOptions."""

    name: str
    file: str | None = None


@dataclass(frozen=True)
class RestoreOptions:
    """What the user asked for. `src` is a set, or the folder of a domain's sets: the newest one then. `guest` is whose
    set it has to be; None: the domain's whose name the folder has.

    `disks`: only these, and no definition; None: the whole domain. `dest` and `pool`: where the images go; neither:
    where they were. `rate_limit` is MiB/s of each image, 0: no limit. `stall_timeout` is in seconds.
    """

    src: str
    domain: str | None = None
    dest: str | None = None
    pool: str | None = None
    disks: tuple[DiskChoice, ...] | None = None
    uuid: str = AUTO
    overwrite: bool = False
    start: bool = False
    autostart: bool | None = None
    rate_limit: int = 0
    parallel: int = 4
    stall_timeout: int = 300
    guest: str | None = None


@dataclass(frozen=True)
class Identity:
    """Whom the set is restored as. A copy has nothing that is another domain's."""

    name: str
    uuid: str
    is_copy: bool = False


@dataclass(frozen=True)
class HostNeeds:
    """What a definition needs of its host; `files` are kinds and paths."""

    emulator: str | None = None
    arch: str | None = None
    machine: str | None = None
    kind: str = ""
    cpu: str | None = None
    networks: tuple[str, ...] = ()
    bridges: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    pools: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    files: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class HostLacks:
    """What this host does not have, in words. Without `hard` ones libvirt takes the definition; `soft` ones only keep
    the guest from starting."""

    hard: tuple[str, ...] = ()
    soft: tuple[str, ...] = ()


@dataclass(frozen=True)
class Placement:
    """One file of the set, and its place. `target`: of a disk; "" of an extra, whose `kind` tells what it is.

    `allocated`: the bytes that it may take.
    """

    kind: str
    target: str
    file: str
    path: str
    waiting: str
    format: str
    bytes: int
    allocated: int
    sha256: str
    virtual_size: int = 0
    backing: Layer | None = None

    @property
    def layer(self) -> Layer:
        return Layer(self.path, self.format)

    @property
    def is_boot(self) -> bool:
        """Does the guest only start from it? Then other guests may, too, and it goes to its place before all else."""
        return self.kind not in (DISK, NVRAM, TPM)


@dataclass(frozen=True)
class RestoreOrder:
    """One file to write: `file` of the set to the new file `path`. It must have this SHA-256."""

    target: str
    file: str
    path: str
    bytes: int
    allocated: int
    sha256: str
    format: str = ""
    virtual_size: int = 0
    backing: Layer | None = None
    rate_limit: int = 0


@dataclass(frozen=True)
class FileLook:
    """What is at a path: file, block or other, and whose it is. `allocated`: the bytes that it takes; `inode` is its
    number, with that of its file system."""

    kind: str
    user: int
    group: int
    mode: int
    allocated: int = 0
    inode: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class OpenSet:
    """A complete set, as it is on the storage. `sums`: of SHA256SUMS; None where there is none."""

    path: str
    manifest: Mapping[str, Any]
    domain_xml: str
    sums: Mapping[str, str] | None
    digests: Mapping[str, str]


class SetPort(Protocol):
    """Reading a set, and copying out of it. Raises `copy_stalled` where its storage does not answer."""

    def newest(self, src: str) -> tuple[str, tuple[str, ...]]:
        """The path of the set that `src` means: itself, or the newest complete set in it that is of the domain with the
        folder's name; and what is newer and was passed over, in words."""

    def open_set(self, path: str) -> OpenSet:
        """Read what is small of it, and hold it, so that no rename puts another in its place."""

    def machine(self) -> str:
        """What tells this host from others."""

    def tpm_root(self) -> str:
        """Where libvirt keeps the state of emulated TPMs."""

    def sha256_of(self, path: str) -> str:
        """Of a file of this host."""

    def restore_all(
        self,
        orders: tuple[RestoreOrder, ...],
        path: str,
        parallel: int,
        watch: Callable[[], None],
        told: Told,
    ) -> Mapping[str, int]:
        """Write each, hashed as it passes, and bring it to the disk: the bytes that each takes, by file."""


class PlacePort(Protocol):
    """The places of images on this host. A path that another user may lead elsewhere is refused (`path_unsafe`)."""

    def hold(self) -> AbstractContextManager[object]:
        """Folders that were walked to are held until the end."""

    def look(self, path: str) -> FileLook | None:
        """lstat(2); None where nothing is there. `dest_missing` where its folder is missing."""

    def way(self, path: str) -> str:
        """The same path through the folder that is held, for others of our processes."""

    def give(self, path: str, like: FileLook | None) -> None:
        """Give a new file the owner and permissions of another, and bring its name to the disk."""

    def put(self, waiting: str, path: str) -> None:
        """Let `path` be the file `waiting`, which keeps its name where the file system has hard links. In one moment,
        and it is on the disk."""

    def put_new(self, waiting: str, path: str) -> None:
        """The same where nothing may be there: `image_exists`."""

    def make_folder(self, path: str) -> None:
        """The folder of a TPM's state, and that above it, where they are missing."""

    def names(self, folder: str) -> tuple[str, ...]:
        """What is in it; nothing where it is missing."""

    def drop_folder(self, path: str) -> None:
        """The reverse, where nothing is in them."""

    def remove(self, path: str) -> None:
        """unlink(2) of a file; one that is gone is fine."""


class RestoreHostPort(Protocol):
    """What a restore needs of libvirt."""

    def uuid_of(self, name: str) -> str | None:
        """virDomainLookupByName; None where there is no such domain."""

    def name_of(self, uuid: str) -> str | None:
        """virDomainLookupByUUIDString; the same."""

    def domain(self, uuid: str) -> RestorePort:
        """The domain, which there is."""

    def define(self, definition: str) -> None:
        """virDomainDefineXMLFlags."""

    def other_images(self, uuid: str) -> OtherImages:
        """What the host's domains but this one stand on."""

    def lacks(self, needs: HostNeeds) -> HostLacks:
        """virConnectGetDomainCapabilities, and look-ups of networks, pools and secrets."""

    def qemu_ids(self) -> tuple[int, int] | None:
        """virConnectGetCapabilities: the user and group that QEMU runs as; None where it does not say."""

    def checkpoints(self, uuid: str) -> int | None:
        """virDomainListAllCheckpoints: how many; None where this libvirt has none."""

    def pool_folder(self, name: str) -> str:
        """virStoragePoolGetXMLDesc: the folder of an active pool that is a folder; `pool_unsuitable` else."""

    def refresh_pool(self, name: str) -> None:
        """virStoragePoolRefresh: libvirt then knows the new volumes."""


# Who


def identity_of(options: RestoreOptions, name: str, uuid: str, machine: str) -> Identity:
    """As the user asked: without another name, the guest itself.

    The UUID of a copy is always the same for one name on one host, so that a run finds again what another one began.
    """
    wanted = options.domain or name
    if not wanted.strip() or wanted in (".", "..") or "/" in wanted or not wanted.isprintable():
        raise VirtopsError(
            "unsafe_name", "The name %r cannot be the name of a domain" % wanted, "Give another name with domain"
        )
    keep = options.uuid == KEEP or (options.uuid == AUTO and wanted == name)
    if keep:
        return Identity(wanted, uuid)
    if wanted == name and options.disks is None:
        raise VirtopsError(
            "bad_option",
            "A copy with a new UUID would have the name of the domain %s" % name,
            "Give the copy another name with domain, or leave uuid out",
        )
    return Identity(wanted, str(uuid_module.uuid5(_NAMESPACE, "\0".join((uuid, wanted, machine)))), True)


# Is it whole?


def parse_sums(text: str) -> dict[str, str]:
    """SHA256SUMS as we write it: the digests by file."""
    found = (_SUM.fullmatch(line) for line in text.splitlines())
    return {line["file"]: line["digest"] for line in found if line is not None}


def require_whole(found: OpenSet) -> None:
    """Refuse a set whose parts do not belong together. Its images are hashed when they are copied."""
    manifest = found.manifest
    files = [*manifest["disks"], *_extras(manifest)]
    for entry in files:
        if entry["bytes"] is None or entry["sha256"] is None:
            raise damaged(found.path, "its manifest has no length or no SHA-256 of %s" % entry["file"])
    for file, digest in found.digests.items():
        if found.sums is not None and found.sums.get(file) != digest:
            raise damaged(found.path, "%s has another SHA-256 than SHA256SUMS says" % file)
    for entry in files:
        if found.sums is not None and found.sums.get(entry["file"]) != entry["sha256"]:
            raise damaged(found.path, "manifest.json and SHA256SUMS have different SHA-256 of %s" % entry["file"])
    if manifest.get("base") is not None:
        raise VirtopsError(
            "unsupported",
            "The backup %s is incremental on %s" % (found.path, manifest["base"]),
            "Restore it by hand with qemu-img convert, as the guide Restore says",
        )


def require_same_domain(found: OpenSet, name: str, uuid: str) -> None:
    """Refuse a set whose definition, of this domain, is not that of its images."""
    domain = found.manifest["domain"]
    if (name, uuid) != (domain["name"], domain["uuid"]):
        raise damaged(
            found.path,
            "its domain.xml is of %s (%s), and its manifest.json of %s (%s)"
            % (name, uuid, domain["name"], domain["uuid"]),
        )


def require_asked_for(found: OpenSet, options: RestoreOptions) -> None:
    """Refuse the set of another domain than the one that is meant: its domain would be overwritten."""
    name, folder = found.manifest["domain"]["name"], os.path.basename(os.path.dirname(found.path))
    if options.guest is not None and name != options.guest:
        cause = "The backup %s is of the domain %s, not of %s" % (found.path, name, options.guest)
        raise VirtopsError("set_foreign", cause, "Give the path of a backup of %s, see backup_info" % options.guest)
    if options.guest is None and name not in (folder, options.domain):
        raise VirtopsError(
            "set_foreign",
            "The backup %s lies in the folder of %s, and is of the domain %s" % (found.path, folder, name),
            "If %s is what you mean, say so (guest: %s); otherwise choose another backup, see backup_info"
            % (name, name),
        )


def not_complete(found: BackupSet) -> VirtopsError:
    """The error for what is no complete set, by what it is instead."""
    if found.state == UNFINISHED:
        return VirtopsError(
            "set_under_way",
            "The backup %s is not complete. %s" % (found.path, found.why),
            "Run the backup's play again, which finishes it, or restore another set",
        )
    if found.state == UNKNOWN:
        return VirtopsError(
            "set_unknown",
            "The backup %s was made by a later release. %s" % (found.path, found.why),
            "Restore it with that release of the collection",
        )
    if found.state == FOREIGN:
        return VirtopsError(
            "set_missing",
            "There is no backup in %s. %s" % (found.path, found.why),
            "Look for its path with virtops.libvirt.backup_info",
        )
    return damaged(found.path, found.why[:1].lower() + found.why[1:])


def damaged(path: str, why: str) -> VirtopsError:
    """The error for a set that is not to be restored."""
    return VirtopsError(
        "set_damaged",
        "The backup %s is damaged: %s" % (path, why),
        "Restore another set. What is left of this one can be looked at by hand (sha256sum -c SHA256SUMS)",
    )


def image_exists(path: str) -> VirtopsError:
    """The refusal to replace a file that is nobody's, or another's."""
    return VirtopsError(
        "image_exists",
        "The file %s is there already, and is no image of the domain that is restored" % path,
        "Move it away if no domain uses it, or give another folder for the images with dest",
    )


def _extras(manifest: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Earlier releases wrote only `nvram`."""
    if "extras" in manifest:
        return list(manifest["extras"])
    return [{**manifest["nvram"], "kind": NVRAM}] if manifest.get("nvram") else []


# What goes where


def waiting_path(path: str, uuid: str) -> str:
    """Where a file is until it goes to its place: beside it, with its extension, which AppArmor's rules look at."""
    folder, name = os.path.split(path)
    stem, extension = os.path.splitext(name)
    mark = hashlib.sha256(uuid.encode()).hexdigest()[:8]
    return os.path.join(folder, ".%s.restoring-%s%s" % (stem, mark, extension))


def place_of_waiting(path: str, uuid: str) -> str | None:
    """The reverse; None of a path that is not such a one of this domain."""
    folder, name = os.path.split(path)
    found = _WAITING.fullmatch(name)
    if found is None:
        return None
    place = os.path.join(folder, found["stem"] + found["extension"])
    return place if waiting_path(place, uuid) == path else None


def plan_disks(
    options: RestoreOptions, manifest: Mapping[str, Any], identity: Identity, folder: str | None
) -> tuple[Placement, ...]:
    """Where each image goes; `folder` is `dest`, or that of the pool."""
    disks = {disk["target"]: disk for disk in manifest["disks"]}
    choices = options.disks if options.disks is not None else tuple(DiskChoice(target) for target in disks)
    unknown = next((choice.name for choice in choices if choice.name not in disks), None)
    if unknown is not None:
        raise VirtopsError(
            "no_such_disk",
            "The backup has no disk %s" % unknown,
            "Name one of: %s" % (", ".join(disks) or "it has none"),
        )
    found = [_placement(disks[choice.name], choice.file, identity, folder) for choice in choices]
    paths = [one.path for one in found]
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        raise VirtopsError(
            "image_exists",
            "Two files of the backup would go to %s" % twice,
            "Name each disk once, with a file of its own",
        )
    return tuple(found)


def _placement(disk: Mapping[str, Any], file: str | None, identity: Identity, folder: str | None) -> Placement:
    source = str(disk["source"])
    if file is not None:
        path = checked_path(file)
    elif folder is None and not identity.is_copy:
        path = checked_path(source)
    else:
        name = "%s.%s.%s" % (identity.name, disk["target"], disk["format"])
        path = os.path.join(checked_path(folder or os.path.dirname(source)), name)
    if is_device(path):
        raise VirtopsError(
            "restore_device",
            "Disk %s would go to %s, and only files are restored, as a block device cannot be given back what it held"
            % (disk["target"], path),
            "Give a folder for the images with dest, or restore this disk alone to a file (disks), and write that to "
            "the device by hand: %s"
            % command("qemu-img", "convert", "-n", "-f", disk["format"], "-O", "raw", "FILE", path),
        )
    backing = disk["backing"]
    return Placement(
        DISK,
        disk["target"],
        disk["file"],
        path,
        waiting_path(path, identity.uuid),
        disk["format"],
        disk["bytes"],
        disk["bytes"] if disk["allocated"] is None else min(disk["allocated"], disk["bytes"]),
        disk["sha256"],
        disk["virtual_size"],
        None if backing is None else Layer(backing["path"], backing["format"]),
    )


def plan_extras(
    manifest: Mapping[str, Any], identity: Identity, nvram: str | None, tpm_root: str
) -> tuple[Placement, ...]:
    """The NVRAM goes to `nvram`, and a TPM's state to where libvirt looks for that of this UUID."""
    found = []
    for extra in _extras(manifest):
        if extra["kind"] == NVRAM and nvram is not None:
            path = nvram
        elif extra["kind"] == TPM:
            path = _tpm_path(extra["source"], manifest["domain"]["uuid"], identity, tpm_root)
        else:
            continue
        size = extra["bytes"]
        waiting = waiting_path(path, identity.uuid)
        found.append(Placement(extra["kind"], "", extra["file"], path, waiting, "", size, size, extra["sha256"]))
    return tuple(found)


def plan_boot(manifest: Mapping[str, Any], identity: Identity, parts: tuple[Part, ...]) -> tuple[Placement, ...]:
    """What the guest starts from, where its definition names it: no manifest alone makes a file of this host."""
    named = {(part.kind, part.path) for part in parts}
    found = []
    for extra in _extras(manifest):
        path, size = extra["source"], extra["bytes"]
        if extra["kind"] not in (NVRAM, TPM) and (extra["kind"], path) in named:
            waiting = waiting_path(checked_path(path), identity.uuid)
            found.append(Placement(extra["kind"], "", extra["file"], path, waiting, "", size, size, extra["sha256"]))
    return tuple(found)


def _tpm_path(source: str, uuid: str, identity: Identity, tpm_root: str) -> str:
    own = os.path.join(tpm_root, uuid) + "/"
    if source.startswith(own) and ".." not in source.split("/"):
        return os.path.join(tpm_root, identity.uuid, source[len(own) :])
    if identity.is_copy:
        folder = "tpm1.2" if os.path.basename(source).startswith("tpm-") else "tpm2"
        return os.path.join(tpm_root, identity.uuid, folder, os.path.basename(source))
    return checked_path(source)


def nvram_path(definition: str | None, identity: Identity) -> str | None:
    """The NVRAM's place, where the definition has one: a copy gets its own, by libvirt's naming."""
    if definition is None or not identity.is_copy:
        return definition
    return os.path.join(os.path.dirname(definition), identity.name + "_VARS" + os.path.splitext(definition)[1])


def shared_disks(disks: tuple[Disk, ...], restored: frozenset[str]) -> tuple[str, ...]:
    """The disks that a copy must not have: it would write to the original's."""
    return tuple(
        disk.target
        for disk in disks
        if disk.target not in restored
        and not disk.empty
        and disk.device in ("disk", "lun")
        and not disk.readonly
        and not disk.shareable
    )


def require_room(placements: tuple[Placement, ...], free: Mapping[str, int], folders: Mapping[str, str]) -> None:
    """`free` bytes by file system, `folders`: the file system of each folder."""
    for system, has in free.items():
        needed = sum(one.allocated for one in placements if folders[os.path.dirname(one.path)] == system)
        if needed > has:
            raise VirtopsError(
                "no_space",
                "The restored files need %d MiB in the file system of %s, which has %d MiB free"
                % (-(-needed >> 20), system, has >> 20),
                "Make space there, or choose another folder with dest",
            )
