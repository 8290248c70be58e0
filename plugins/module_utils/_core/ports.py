# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: what the flows need of libvirt and of the host, as Protocols.

`_libvirt` and `_host` implement them, `_module` joins them, tests give stateful fakes.
Each method names the call it stands for. Failures are `VirtopsError`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from .job_state import Word
from .journal import Journal
from .model import Creation, DomainView, FileIdentity, Hold, ImageInfo, Layer, OtherImages, Signature, SnapshotRecord


class Clock(Protocol):
    """Time, so that tests never sleep."""

    def utcnow(self) -> str:
        """The UTC time as 20261120T120000Z."""

    def boot(self) -> str:
        """The ID of this host's boot: /proc/sys/kernel/random/boot_id."""

    def monotonic(self) -> float:
        """Seconds that never go backwards."""

    def sleep(self, seconds: float) -> None:
        """Wait."""


class Progress(Protocol):
    """Where a flow says how far it is, and asks whether it is to end early."""

    def phase(self, name: str) -> None:
        """What begins now, in one word or two: snapshot, copy, merge, verify, clean up."""

    def step(self, words: str) -> None:
        """A line of the job's log: what was done, on what, in how many seconds and with how many bytes."""

    def disk(self, target: str, done: int, total: int) -> None:
        """Bytes of the phase's work on one disk. May be called often: most calls cost only a look at the clock."""

    def is_stopping(self) -> bool:
        """Is the job told to end at the next point where it leaves nothing open?"""

    def hand_over(self, values: Mapping[str, Any]) -> None:
        """End the call that began the job, with this result: others are to do something now, and to say a word."""

    def word(self) -> Word | None:
        """What they said; None: nothing yet."""

    def take_back(self) -> Word | None:
        """No word counts from now on. Returns the one that came before."""


class Silent:
    """Implements `Progress` where nobody follows: nothing is shown, and no order comes."""

    def phase(self, name: str) -> None:
        """Show nothing."""

    def step(self, words: str) -> None:
        """Write nothing."""

    def disk(self, target: str, done: int, total: int) -> None:
        """Count nothing."""

    def is_stopping(self) -> bool:
        """Never."""
        return False

    def hand_over(self, values: Mapping[str, Any]) -> None:
        """A flow that does so needs a job: `_module.job` refuses it where there is none."""
        raise NotImplementedError

    def word(self) -> Word | None:
        """Nobody says one."""

    def take_back(self) -> Word | None:
        """Nobody said one."""


class ViewPort(Protocol):
    """Reading one domain."""

    def view(self) -> DomainView:
        """virDomainGetXMLDesc (live and inactive), virDomainGetState, virDomainGetBlockJobInfo,
        virDomainHasManagedSaveImage."""

    def snapshot(self, name: str) -> SnapshotRecord | None:
        """virDomainSnapshotLookupByName; None where there is no such record."""

    def snapshots(self) -> tuple[SnapshotRecord, ...]:
        """virDomainListAllSnapshots, in topological order."""

    def domain_xml(self, secrets: bool = True) -> str:
        """The persistent XML (of a transient domain: the live one), with or without passwords."""


class SnapshotInfoPort(ViewPort, Protocol):
    """What snapshot_info needs."""

    def snapshot_xmls(self, secure: bool) -> tuple[str, ...]:
        """virDomainListAllSnapshots, parents first, and virDomainSnapshotGetXMLDesc of each: one call for a record.

        `secure` includes passwords and the like (VIR_DOMAIN_SNAPSHOT_XML_SECURE), over no read-only connection.
        """

    def current_snapshot(self) -> str | None:
        """virDomainSnapshotCurrent: its name; None where there is none."""


class BlockInfoPort(ViewPort, Protocol):
    """What block_info needs."""

    def sizes(self, disk: str) -> tuple[int, int, int] | None:
        """virDomainGetBlockInfo: capacity, allocation and physical size in bytes; None where libvirt cannot tell."""


class GuestPort(ViewPort, Protocol):
    """What every flow needs that changes something."""

    def write_journal(self, journal: Journal, lasting: bool = True) -> None:
        """virDomainSetMetadata(ELEMENT, JOURNAL_URI), LIVE where it runs and CONFIG where it is persistent: replace the
        journal's element; an empty one removes it. One that is not `lasting` ends with the running domain (LIVE only),
        and the one before it counts again."""

    def other_images(self) -> OtherImages:
        """What the host's other domains stand on, by their live and persistent XML."""


class JobPort(ViewPort, Protocol):
    """What waiting for a request needs that libvirt works at although nobody waits for its answer any more."""

    def has_job(self) -> bool:
        """virDomainGetJobInfo: does libvirt save, snapshot or migrate this domain now? Block jobs do not count."""

    def resume(self) -> None:
        """virDomainResume; a domain that runs is fine."""


class UndoPort(JobPort, GuestPort, Protocol):
    """What undoing a snapshot needs that was never taken."""

    def thaw(self, seconds: int) -> int:
        """virDomainFSThaw within `seconds`: the number of file systems thawed."""


class SnapshotPort(UndoPort, Protocol):
    """What creating an external snapshot needs."""

    def agent_ping(self, seconds: int) -> None:
        """Fail unless the guest agent answers within `seconds` and the guest is not frozen."""

    def freeze(self, seconds: int) -> int:
        """virDomainFSFreeze within `seconds`: the number of file systems frozen."""

    def create_snapshot(self, xml: str, how: Creation) -> None:
        """virDomainSnapshotCreateXML, ATOMIC; DISK_ONLY, REUSE_EXT, NO_METADATA, LIVE and HALT as `how` says."""

    def delete_snapshot_record(self, name: str, children: str = "keep") -> None:
        """virDomainSnapshotDelete, METADATA_ONLY; `children` is keep, delete or only."""


class RecordPort(SnapshotInfoPort, GuestPort, Protocol):
    """What work on snapshot records needs, which touches no image."""

    def redefine_snapshot(self, xml: str, current: bool, validate: bool) -> None:
        """virDomainSnapshotCreateXML, REDEFINE, and CURRENT and VALIDATE where asked for."""

    def delete_snapshot_record(self, name: str, children: str = "keep") -> None:
        """virDomainSnapshotDelete, METADATA_ONLY; `children` is keep, delete or only."""


class DataPort(Protocol):
    """What deleting the data of snapshots needs."""

    def libvirt_version(self) -> int:
        """virConnectGetLibVersion: 1,000,000 * major + 1,000 * minor + release."""

    def delete_snapshot(self, name: str, children: str) -> None:
        """virDomainSnapshotDelete, data and record; `children` is keep, delete or only."""


class InternalPort(RecordPort, DataPort, Protocol):
    """What internal snapshots need."""

    def create_internal_snapshot(self, xml: str, halt: bool) -> None:
        """virDomainSnapshotCreateXML, ATOMIC, and HALT where asked for."""


class RevertPort(RecordPort, UndoPort, Protocol):
    """What going back to a snapshot needs."""

    def libvirt_version(self) -> int:
        """virConnectGetLibVersion."""

    def reverts_external(self) -> bool:
        """virConnectGetCapabilities: does this libvirt go back to external snapshots?"""

    def revert(self, name: str, run_state: str, force: bool, reset_nvram: bool) -> None:
        """virDomainRevertToSnapshot; `run_state` is snapshot (as it was), running or paused."""

    def power_off(self) -> None:
        """virDomainDestroy."""

    def power_on(self, paused: bool, reset_nvram: bool = False) -> None:
        """virDomainCreateWithFlags."""

    def saved_definition(self, path: str) -> str:
        """virDomainSaveImageGetXMLDesc, secrets included: the definition that a memory image was saved with."""

    def restore(self, path: str, definition: str, paused: bool, reset_nvram: bool) -> None:
        """virDomainRestoreFlags: go on with a memory image, which stays, on the disks of this definition."""

    def define_on(self, layers: dict[str, Layer], journal: Journal) -> None:
        """virDomainDefineXMLFlags: path and format of these disks, and the journal, in one write."""


class RestorePort(GuestPort, Protocol):
    """What a restored domain needs, also of the end of an interrupted restore."""

    def define(self, definition: str) -> None:
        """virDomainDefineXMLFlags, of this domain."""

    def set_autostart(self, wanted: bool) -> None:
        """virDomainSetAutostart."""

    def power_on(self, paused: bool, reset_nvram: bool = False) -> None:
        """virDomainCreateWithFlags."""


class ConvertPort(GuestPort, Protocol):
    """What putting a domain on converted images needs."""

    def set_config_disks(self, layers: dict[str, Layer]) -> None:
        """Write path and format of these disks into the persistent XML (virDomainDefineXMLFlags)."""


class BrakePort(GuestPort, Protocol):
    """What slowing or stopping a guest's writes needs."""

    def io_tune(self, disk: str) -> dict[str, int]:
        """virDomainGetBlockIoTune, LIVE: the limits by libvirt's names; 0 is none."""

    def set_io_tune(self, disk: str, limits: dict[str, int]) -> None:
        """virDomainSetBlockIoTune, LIVE: never in the persistent XML."""

    def suspend(self) -> None:
        """virDomainSuspend."""

    def resume(self) -> None:
        """virDomainResume; a domain that runs is fine."""


class MergePort(BrakePort, UndoPort, RecordPort, Protocol):
    """What a live merge needs."""

    def start_commit(self, disk: str, base: str, top: str, active: bool, bandwidth: int, relative: bool) -> None:
        """virDomainBlockCommit; `bandwidth` in bytes/s, 0: no limit; `relative` keeps relative backing names."""

    def start_pull(self, disk: str, base: str | None, bandwidth: int, relative: bool) -> None:
        """virDomainBlockRebase; everything above `base` (None: the whole chain) comes into the active layer."""

    def pivot(self, disk: str) -> None:
        """virDomainBlockJobAbort, PIVOT and ASYNC: QEMU may need a while, under steady writes for ever."""

    def set_job_speed(self, disk: str, bandwidth: int) -> None:
        """virDomainBlockJobSetSpeed; bytes/s, 0: no limit."""

    def cancel_job(self, disk: str) -> None:
        """virDomainBlockJobAbort, ASYNC."""

    def wait_event(self, seconds: float) -> None:
        """Return at the next event of this domain, at the latest after `seconds`."""

    def set_config_disks(self, layers: dict[str, Layer]) -> None:
        """Write path and format of these disks into the persistent XML (virDomainDefineXMLFlags)."""


class DeletePort(MergePort, DataPort, Protocol):
    """What the end of external snapshots needs."""


class SnapshotPrunePort(DeletePort, InternalPort, Protocol):
    """What the end of snapshots of both kinds needs."""


class OfflinePort(GuestPort, Protocol):
    """What the backup of a guest that is off needs."""

    def watch_activity(self) -> None:
        """virConnectDomainEventRegisterAny, LIFECYCLE: take note of each start and end from now on."""

    def activity(self) -> str:
        """What was noted up to the last answer of libvirt, or why something may have been missed; "" where the domain
        was off all the time."""


class LiveBackupPort(DeletePort, SnapshotPort, OfflinePort, Protocol):
    """What a whole live backup needs."""


class ReaperPort(Protocol):
    """Programs that outlived their module, or libvirt's knowledge of them. The caller holds the domain's lock."""

    def emulators(self, uuid: str, images: Iterable[str]) -> tuple[int, ...]:
        """The PIDs of the QEMU processes that run this domain, whether or not libvirt knows. One that another user
        runs counts only where it has one of these images of the domain open."""

    def orphans(self, uuid: str) -> tuple[int, ...]:
        """The PIDs of those that work for this domain."""

    def reap(self, uuid: str, pid: int) -> None:
        """kill(2) SIGKILL, and wait for the end; `orphan_stays` where it does not come."""


#: Seconds that we are given beyond what the user allowed before the watchdog acts.
WATCHDOG_GRACE = 5


class Watchdog(Protocol):
    """A detached process that lets go of the guest when we die or take too long."""

    def arm(self, uuid: str, seconds: int, hold: Hold) -> None:
        """Start it; returns when it is ready to let go (imports done, libvirt connected). It takes the place of one
        that is armed already."""

    def disarm(self) -> None:
        """End it without an effect. Calling it when nothing is armed does nothing."""


class ImagePort(Protocol):
    """Images and files on the hypervisor."""

    def info(self, path: str, image_format: str) -> ImageInfo:
        """`qemu-img info -U`: metadata only, so that it also works on a running guest's image.

        Formats are never guessed: a guest could have written any header to its raw disk.
        """

    def chain(self, path: str, image_format: str) -> tuple[Layer, ...]:
        """What the headers say, active layer first, absolute paths.

        It ends with the first one that is not to be opened: on the network, or of a format that no header tells ("").
        """

    def below(self, image: Layer) -> Layer | None:
        """What the header of another domain's image names as its backing file, without opening that; None where it
        names none, and where the image is not of its format."""

    def create_overlay(self, path: str, base: Layer, virtual_size: int, user: int | None = None) -> None:
        """`qemu-img create -f qcow2` on `base`, with its owner and permissions; fails where `path` exists.

        `user` is who QEMU runs as: in a folder that others write to only that owner is believed; else it is ours, 0600.
        """

    def holds_data(self, path: str) -> bool:
        """Was anything written to this qcow2 overlay since it was made? Zeros count."""

    def same_content(self, one: Layer, other: Layer) -> bool:
        """`qemu-img compare`: would a guest read the same from both, with all that is below them?"""

    def commit(self, top: Layer, base: Layer, check: Callable[[], None] | None = None) -> None:
        """`qemu-img commit -d -b BASE TOP`: all layers above base up to top go into base.

        `check` is called now and then; it raises to stop this, which can be begun again.
        """

    def rebase(self, path: str, base: Layer | None, check: Callable[[], None] | None = None) -> None:
        """`qemu-img rebase`: copy into `path` what it needs, so that it stands on `base` (None: on nothing).

        The base is named by a relative path where the images from `path` down to it name each other so. `check` as for
        `commit`.
        """

    def rebase_unsafe(self, path: str, base: Layer) -> None:
        """`qemu-img rebase -u`: change only what the header of `path` says of its backing file, relative as above."""

    def keep_time(self, path: str, mtime_ns: int) -> None:
        """utimensat(2) of a regular file: when it was last written; where that is not allowed, nothing happens."""

    def identity(self, path: str) -> FileIdentity:
        """stat(2) of the image, symlinks followed; of a block device what names it for good, and its size."""

    def file_key(self, path: str) -> tuple[int, int] | None:
        """stat(2): what all names of one file have in common, and all nodes of one block device; None where there is
        no file, or none that we may look at."""

    def exists(self, path: str) -> bool:
        """lstat(2): a dangling symlink exists too."""

    def kind(self, path: str) -> str:
        """stat(2): file, block, other, or missing; symlinks are followed."""

    def signature(self, path: str) -> Signature:
        """What the file's first bytes say that it is; no symlink is followed, and nothing else is opened."""

    def is_directory(self, path: str) -> bool:
        """Whether there is a directory; a symlink to one counts."""

    def names(self, directory: str) -> tuple[str, ...]:
        """What is in it; nothing where it cannot be read."""

    def is_writable(self, path: str) -> bool:
        """Whether this process may write to it."""

    def may_enter(self, directory: str, user: int, group: int) -> bool:
        """May this user reach files in the directory? True where we cannot ask."""

    def extent(self, device: str, virtual_size: int) -> tuple[int, int] | None:
        """Where the qcow2 on this block device ends, and where the device does; None: it has room for all of it."""

    def others_write(self, folder: str) -> bool:
        """May another user put something else where we make a file in it? `path_unsafe` where the way there leads
        through a symlink that such a user may have made."""

    def free_bytes(self, directory: str) -> int:
        """statvfs(3): what an unprivileged process may still write there."""

    def size_bytes(self, directory: str) -> int:
        """statvfs(3): the size of its file system."""

    def holders(self, path: str) -> tuple[int, ...]:
        """The processes of this host that have the file open (or mapped), as PIDs."""

    def is_being_written(self, path: str) -> bool:
        """QEMU's lock: does a process write to the image, of this host or of another that shares it? False where the
        file system has no locks."""

    def is_lockable(self, path: str) -> bool:
        """Does QEMU's lock on it hold? Not on a block device, of which each QEMU has a node of its own, nor on a file
        system without locks."""

    def remove(self, path: str) -> None:
        """unlink(2) and fsync of the directory; a path that is gone is fine, and a device stays."""


class ConvertImagePort(ImagePort, Protocol):
    """What converting images needs besides."""

    def convert(self, source: Layer, path: str) -> None:
        """`qemu-img convert -O qcow2` to a new file with the source's owner and mode, brought to the disk."""

    def rename(self, path: str, name: str) -> None:
        """rename(2) and fsync of the directory; fails where `name` exists."""
