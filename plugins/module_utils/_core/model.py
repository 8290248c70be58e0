# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: what we know of domains, disks and images, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from .errors import VirtopsError
from .journal import Journal

CRASHED = "crashed"
#: virDomainState, in virsh's words: those in which a QEMU runs. A crashed guest's is kept (on_crash preserve), with its
#: images open; where it is not kept, libvirt says shut off.
RUNNING_STATES = frozenset({"running", "idle", "paused", "in shutdown", "pmsuspended", "blocked", CRASHED})

#: The reason of a pause (virDomainPausedReason, in virsh's words) when QEMU stopped the guest at a write that failed.
IO_ERROR = "I/O error"
#: Ours for those that libvirt pauses a guest for while it saves its memory.
SAVING = "saving"


def is_local(path: str) -> bool:
    """Is it an image of this host, and not the words for one on the network?"""
    return path.startswith("/")


def is_device(path: str) -> bool:
    """Does its path say that it is a block device?"""
    return path.startswith("/dev/") and not path.startswith("/dev/shm/")


@dataclass(frozen=True)
class Layer:
    """One image of a backing chain: an absolute path (or a device) and its explicit format.

    `format` is "" where it is the lowest that a header names, and no header tells it: nothing opens such an image.
    `odd` is what its file is besides an image, by libvirt's XML (encrypted, a slice of its file); `data_file` the one
    that libvirt has for its data.
    """

    path: str
    format: str
    odd: str = field(default="", compare=False)
    data_file: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class BlockJob:
    """A block job as libvirt shows it: virDomainGetBlockJobInfo joined with the XML's `<mirror>`.

    `kind` is the XML's and virsh's word: commit, active-commit, pull, copy, backup or unknown; empty for one that has
    just ended.
    `target` is the mirror's image (for an active commit: the base). `ready` is the XML's
    `<mirror ready='yes'>`; cur == end alone does not mean that a pivot can succeed. `ending` is its 'pivot' or 'abort':
    somebody asked for the end, which QEMU gives when it can, and nothing else may be asked of the job any more. Not
    `tracked`: the XML shows it, and libvirt has no job.
    `cur` and `end` are bytes, `bandwidth` is bytes/s (0: no limit).
    """

    kind: str
    cur: int = 0
    end: int = 0
    bandwidth: int = 0
    ready: bool = False
    target: str | None = None
    ending: bool = False
    tracked: bool = True


@dataclass(frozen=True)
class Disk:
    """A disk of a domain. `chain` starts with the layer that the guest writes to.

    `chain` is empty for an empty drive and for sources that are not local images. `remote` stands for a source on the
    network: words like a URI, and the format. `volume` names a source in a storage pool as POOL/VOLUME; `snapshot` is
    what the definition says of snapshots: no, internal, external, manual, or nothing. `whole`: its XML tells the chain
    to its end.
    """

    target: str
    device: str = "disk"
    bus: str = ""
    source_type: str = "file"
    chain: tuple[Layer, ...] = ()
    readonly: bool = False
    shareable: bool = False
    transient: bool = False
    job: BlockJob | None = None
    remote: Layer | None = None
    volume: str | None = None
    snapshot: str = ""
    whole: bool = False

    @property
    def active(self) -> Layer | None:
        return self.chain[0] if self.chain else None

    @property
    def on_device(self) -> bool:
        """Is the image a block device? The XML does not say it of a volume."""
        path = self.chain[0].path if self.volume is not None and self.chain else ""
        return self.source_type == "block" or is_device(path)

    @property
    def empty(self) -> bool:
        """A drive without a medium, and not one whose image is somewhere else."""
        return not self.chain and self.source_type in ("file", "block")

    def index_of(self, path: str) -> int | None:
        """The depth of `path` in the chain (0: the active layer), None where it is not in it."""
        for depth, layer in enumerate(self.chain):
            if layer.path == path:
                return depth
        return None

    def below(self, path: str) -> Layer | None:
        """The backing layer of `path` in this chain."""
        depth = self.index_of(path)
        if depth is None or depth + 1 >= len(self.chain):
            return None
        return self.chain[depth + 1]


@dataclass(frozen=True, eq=False)
class FileIdentity:
    """What tells whether an image is still the one that we wrote down; of a file also, whether it is untouched since.

    A file is known by its inode, size and time: the number of its file system may be another one after a reboot or a
    remount. A block device is known by `device`, a name that stays (its WWN, serial or the like; empty for a file), and
    by its size in bytes; nothing tells whether it was written to.
    """

    device: str
    inode: int
    size: int
    mtime_ns: int

    @property
    def key(self) -> tuple[str, int] | tuple[int, int, int]:
        """What has to be the same."""
        return (self.device, self.size) if self.device else (self.inode, self.size, self.mtime_ns)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FileIdentity) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@dataclass(frozen=True)
class Signature:
    """What the first bytes of a file say that it is. Nothing that they name is opened.

    `kind` is qcow2, memory (libvirt's format of a saved guest), empty, block (a device), other or missing; only a
    regular file is one of the first three. `backing` is the absolute name of a qcow2's backing file, `domain` the UUID
    of the guest whose memory it is.
    """

    kind: str
    backing: str | None = None
    domain: str | None = None


@dataclass(frozen=True)
class Hold:
    """What we hold a running guest back by, and so have to let go of, whatever happens to us.

    `tunes` are the I/O limits that its disks had before ours, by target (virDomainGetBlockIoTune's names and numbers).
    """

    frozen: bool = False
    suspended: bool = False
    tunes: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class SnapshotDisk:
    """A disk in a snapshot's record: `mode` is external, internal or no; `file` the overlay made.

    `block`: the overlay is on a block device.
    """

    target: str
    mode: str
    file: str | None = None
    format: str | None = None
    block: bool = False


@dataclass(frozen=True)
class Creation:
    """How virDomainSnapshotCreateXML is to take an external snapshot.

    `reuse`: the overlays are there already. `memory`: the request names a file for it; without, it has the disks only.
    """

    metadata: bool = True
    reuse: bool = True
    memory: bool = False
    live: bool = False
    halt: bool = False


@dataclass(frozen=True)
class SnapshotRecord:
    """A libvirt snapshot record (virDomainSnapshotGetXMLDesc). `creation_time` is epoch seconds.

    `metadata` is False for one that only our journal knows: it was taken without a record (NO_METADATA).
    """

    name: str
    state: str
    creation_time: int
    disks: tuple[SnapshotDisk, ...] = ()
    description: str | None = None
    parent: str | None = None
    memory: str = "no"
    memory_file: str | None = None
    metadata: bool = True

    @property
    def external(self) -> bool:
        return any(disk.mode == "external" for disk in self.disks) or self.memory == "external"


@dataclass(frozen=True)
class Part:
    """Something that a domain needs besides its disks. `path` is where it lies (of a secret: its UUID), "" where only
    libvirt knows; `form` is the version of a TPM that swtpm emulates."""

    kind: str
    path: str
    form: str = ""


@dataclass(frozen=True)
class DomainView:
    """One reading of a domain.

    `disks` is what the guest uses now (the live XML; of a domain that is off: the persistent
    one). `config_disks` is the persistent XML's view; what it says below the active layer may be stale.
    `agent` is connected, disconnected (a channel, nobody answering) or absent.
    `paused_by` is the reason of state paused: user, I/O error (QEMU stopped it at a failed write), saving or other.
    `journal_found` is the journal in its metadata, or why that cannot be read.
    `journal_of` is the UUID of another domain whose journal came along with a copied definition: it has none itself.
    `memory_bytes` is what the guest has of it at most. `qemu_ids` are the user and group that its QEMU runs as.
    `pflash`: its firmware, as UEFI's, lies in flash, whose variables are `nvram`.
    `saved`: its next start goes on with memory that was saved, on the images of that moment (virsh managedsave).
    `moved`: it was migrated to another host, and this is the definition that it left here. libvirt forgets that when
    its daemon is restarted.
    `unread` is why its definition cannot be read, "" where it was: then nothing is known of it but its name and state.
    """

    name: str
    uuid: str
    state: str
    persistent: bool
    disks: tuple[Disk, ...]
    config_disks: tuple[Disk, ...]
    agent: str = "absent"
    autostart: bool = False
    journal_found: Journal | VirtopsError = field(default_factory=Journal)
    machine: str = ""
    nvram: str | None = None
    parts: tuple[Part, ...] = ()
    paused_by: str | None = None
    pflash: bool = False
    nvram_format: str = "raw"
    memory_bytes: int = 0
    journal_of: str | None = None
    qemu_ids: tuple[int, int] | None = None
    saved: bool = False
    moved: bool = False
    unread: str = ""

    @property
    def active(self) -> bool:
        return self.state in RUNNING_STATES

    @property
    def journal(self) -> Journal:
        """Raises `journal_unreadable`."""
        if isinstance(self.journal_found, VirtopsError):
            raise self.journal_found
        return self.journal_found

    @property
    def qemu_user(self) -> int | None:
        return None if self.qemu_ids is None else self.qemu_ids[0]

    def disk(self, target: str) -> Disk | None:
        return next((disk for disk in self.disks if disk.target == target), None)

    def config_disk(self, target: str) -> Disk | None:
        return next((disk for disk in self.config_disks if disk.target == target), None)

    def with_disks(self, disks: tuple[Disk, ...]) -> DomainView:
        return replace(self, disks=disks)


@dataclass(frozen=True)
class ImageInfo:
    """`qemu-img info`: sizes in bytes. `allocation` is what the file system really holds.

    `backing_path` is absolute; `backing_is_relative` tells that the image itself names it relative to where it lies.
    `backing_format` is what the header says. `beside` are other files that have the image's own data.
    """

    path: str
    format: str
    virtual_size: int
    allocation: int
    backing_path: str | None = None
    backing_format: str | None = None
    backing_is_relative: bool = False
    internal_snapshots: tuple[str, ...] = ()
    corrupt: bool = False
    bitmaps: tuple[str, ...] = ()
    encrypted: bool = False
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class OtherImages:
    """What other domains of the host use: `known` paths, and `tips` whose chains only the images tell.

    `unread` is why the definition of a domain cannot be read, for each such one. `owners` are the names of the domains
    that have the tips.
    """

    known: frozenset[str]
    tips: tuple[Layer, ...] = ()
    unread: tuple[str, ...] = ()
    owners: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What a flow hands back to `_module`: everything of the result but `domain`."""

    steps: tuple[str, ...] = ()
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    values: dict[str, object] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        return bool(self.steps)
