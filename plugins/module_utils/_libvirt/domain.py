# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: one domain, as the flows' ports see it."""

from __future__ import annotations

import re
import uuid as uuid_module
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from .._core import xml
from .._core.errors import VirtopsError
from .._core.journal import JOURNAL_PREFIX, JOURNAL_URI, Journal
from .._core.model import IO_ERROR, SAVING, BlockJob, Creation, Disk, DomainView, Layer, OtherImages, SnapshotRecord
from .._core.refusals import require_read, unread_words
from . import agent
from .connection import Activity, Connection, EventWait
from .errors import LIBVIRT_IMPORT_ERROR, STATES, failure, is_connection_lost, is_number, mapped

if LIBVIRT_IMPORT_ERROR is None:
    import libvirt

#: virDomainBlockJobType by number, in the words of the XML's <mirror job=''>.
JOB_KINDS = ("unknown", "pull", "copy", "commit", "active-commit", "backup")
#: virDomainPausedReason by number, in the words of `virsh domstate --reason`; the others do not matter here.
PAUSED_BY = {0: SAVING, 1: "user", 2: SAVING, 5: IO_ERROR, 9: SAVING}

#: What a name in XML cannot hold, or a reader of XML takes for something else.
_NOT_IN_XML = re.compile("[\x00-\x08\x0b-\x1f\ufffe\uffff]")

#: virDomainShutoffReason by number.
_MIGRATED = 4
#: virDomainJobType: none, completed, failed, cancelled.
_NO_JOB = (0, 3, 4, 5)

#: virDomainSnapshotRevertFlags for what the guest does afterwards.
_REVERT_FLAGS = {"snapshot": 0, "running": 1, "paused": 2}

_READING_OTHERS = "Reading the definitions of the host's other domains"

T = TypeVar("T")


class Domain:
    """A domain, found by UUID or name, in this order as virsh does."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self._domain = _lookup(connection, name)
        self.name: str = name_of(self._domain)
        self.uuid: str = self._domain.UUIDString()
        self._events = EventWait(connection, self.uuid)
        self._activity = Activity(connection, self.uuid)

    def close(self) -> None:
        self._events.close()
        self._activity.close()

    def _again(self, call: Callable[[Any], T]) -> T:
        """A call that may as well be made twice: where libvirtd went away, once more over a new connection.

        Not for calls that begin or end something: after a lost answer only a new reading tells what came of them.
        """
        try:
            return call(self._domain)
        except libvirt.libvirtError as problem:
            if not is_connection_lost(problem):
                raise
        self._connection.reopen()
        self._domain = _lookup(self._connection, self.uuid)
        return call(self._domain)

    # ViewPort

    def state(self) -> str:
        """virDomainGetState."""
        with mapped(f"Reading the state of {self.name}"):
            return STATES[self._again(lambda domain: domain.state())[0]]

    def view(self) -> DomainView:
        """One reading; where libvirtd was restarted since the last call, over a new connection."""
        with mapped(f"Reading the domain {self.name}"):
            found = self._again(lambda domain: read_view(self._connection, domain))
        require_read(found)
        return found

    def snapshot(self, name: str) -> SnapshotRecord | None:
        try:
            found = self._again(lambda domain: domain.snapshotLookupByName(name).getXMLDesc())
            return xml.parse_snapshot(found)
        except libvirt.libvirtError as problem:
            if is_number(problem, "VIR_ERR_NO_DOMAIN_SNAPSHOT"):
                return None
            raise failure(problem, f"Reading the snapshot {name} of {self.name}") from problem

    def snapshots(self) -> tuple[SnapshotRecord, ...]:
        with mapped(f"Listing the snapshots of {self.name}"):
            return self._again(lambda _domain: self._snapshots())

    def _snapshots(self) -> tuple[SnapshotRecord, ...]:
        return tuple(xml.parse_record(text) for text in self._snapshot_xmls(0))

    def _snapshot_xmls(self, flags: int) -> tuple[str, ...]:
        found = self._domain.listAllSnapshots(libvirt.VIR_DOMAIN_SNAPSHOT_LIST_TOPOLOGICAL)
        return tuple(snapshot.getXMLDesc(flags) for snapshot in found)

    def domain_xml(self, secrets: bool = True) -> str:
        with mapped(f"Reading the definition of {self.name}"):
            return self._again(lambda _domain: self._domain_xml(secrets))

    def _domain_xml(self, secrets: bool) -> str:
        flags = libvirt.VIR_DOMAIN_XML_SECURE if secrets else 0
        if self._domain.isPersistent():
            flags |= libvirt.VIR_DOMAIN_XML_INACTIVE
        return str(self._domain.XMLDesc(flags))

    # SnapshotInfoPort

    def snapshot_xmls(self, secure: bool) -> tuple[str, ...]:
        flags = libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE if secure else 0
        with mapped(f"Listing the snapshots of {self.name}"):
            return self._again(lambda _domain: self._snapshot_xmls(flags))

    def current_snapshot(self) -> str | None:
        try:
            return str(self._again(lambda domain: domain.snapshotCurrent().getName()))
        except libvirt.libvirtError as problem:
            if is_number(problem, "VIR_ERR_NO_DOMAIN_SNAPSHOT"):
                return None
            raise failure(problem, f"Looking for the current snapshot of {self.name}") from problem

    # BlockInfoPort

    def sizes(self, disk: str) -> tuple[int, int, int] | None:
        try:
            capacity, allocation, physical = self._domain.blockInfo(disk)
        except libvirt.libvirtError as problem:
            if is_connection_lost(problem):
                raise failure(problem, f"Reading the sizes of {disk} of {self.name}", self._domain) from problem
            return None  # an empty drive, a missing image, a driver without the call
        return capacity, allocation, physical

    # GuestPort

    def write_journal(self, journal: Journal, lasting: bool = True) -> None:
        """libvirt has the definition (and a running domain's status) on disk when this returns."""
        with mapped(f"Writing the journal into the metadata of {self.name}"):
            self._again(lambda _domain: self._set_journal(journal, lasting))

    def _set_journal(self, journal: Journal, lasting: bool) -> None:
        flags = libvirt.VIR_DOMAIN_AFFECT_LIVE if self._domain.isActive() or not lasting else 0
        if self._domain.isPersistent() and lasting:
            flags |= libvirt.VIR_DOMAIN_AFFECT_CONFIG
        element = xml.owned_journal(journal, self.uuid)
        both = libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG
        try:
            self._put_journal(element, flags)
        except libvirt.libvirtError as error:
            if flags != both or error.get_error_code() != libvirt.VIR_ERR_SYSTEM_ERROR:
                raise
            # libvirt has changed what it has in memory, and cannot write its status file, as /run is full. It commits
            # and pivots all the same. The definition, which lies elsewhere, then has the journal until there is space.
            self._put_journal(element, libvirt.VIR_DOMAIN_AFFECT_CONFIG)

    def _put_journal(self, element: str | None, flags: int) -> None:
        prefix = None if element is None else JOURNAL_PREFIX
        self._domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, element, prefix, JOURNAL_URI, flags)
        if element is None and flags & libvirt.VIR_DOMAIN_AFFECT_CONFIG:
            self._drop_empty_metadata()

    def _drop_empty_metadata(self) -> None:
        """libvirt leaves the element where the last thing in it was removed. No call takes it out of a running domain,
        which has it until its next start. Nothing depends on it, so a failure is none."""
        with suppress(libvirt.libvirtError):
            flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
            bare = xml.without_empty_metadata(self._domain.XMLDesc(flags))
            if bare is not None:
                self._connection.handle.defineXMLFlags(bare, 0)

    # SnapshotPort

    def agent_ping(self, seconds: int) -> None:
        agent.ping(self._domain, self.view().agent, seconds)

    def freeze(self, seconds: int) -> int:
        return agent.freeze(self._domain, seconds)

    def thaw(self, seconds: int) -> int:
        try:
            return agent.thaw(self._domain, seconds)
        except VirtopsError as error:
            if error.code != "connection_lost":
                raise
        # libvirtd died while the guest was frozen: nobody else may thaw it before we do
        self._connection.reopen()
        self._domain = _lookup(self._connection, self.uuid)
        return agent.thaw(self._domain, seconds)

    def create_snapshot(self, xml: str, how: Creation) -> None:
        flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
        for wanted, flag in (
            (not how.memory, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY),
            (how.reuse, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT),
            (not how.metadata, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA),
            (how.live, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_LIVE),
            (how.halt, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_HALT),
        ):
            flags |= flag if wanted else 0
        with mapped(f"Creating the snapshot of {self.name}", self._domain):
            self._domain.snapshotCreateXML(xml, flags)

    def has_job(self) -> bool:
        try:
            return bool(self._again(lambda domain: domain.jobInfo())[0] not in _NO_JOB)
        except libvirt.libvirtError as problem:
            # It is off; or the driver has no jobs
            if is_number(problem, "VIR_ERR_OPERATION_INVALID", "VIR_ERR_NO_SUPPORT"):
                return False
            raise failure(problem, f"Looking for a job of {self.name}", self._domain) from problem

    def redefine_snapshot(self, xml: str, current: bool, validate: bool) -> None:
        flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE
        if current:
            flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT
        if validate:
            flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_VALIDATE
        with mapped(f"Writing a snapshot record of {self.name}"):
            self._domain.snapshotCreateXML(xml, flags)

    def delete_snapshot_record(self, name: str, children: str = "keep") -> None:
        flags = libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY | _family_flags(children)
        with mapped(f"Deleting the record of the snapshot {name} of {self.name}"):
            self._domain.snapshotLookupByName(name).delete(flags)

    # InternalPort

    def libvirt_version(self) -> int:
        with mapped("Asking libvirt for its version"):
            return int(self._again(lambda _domain: self._connection.handle.getLibVersion()))

    def create_internal_snapshot(self, xml: str, halt: bool) -> None:
        flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
        if halt:
            flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_HALT
        with mapped(f"Creating the snapshot of {self.name}", self._domain):
            self._domain.snapshotCreateXML(xml, flags)

    def delete_snapshot(self, name: str, children: str) -> None:
        with mapped(f"Deleting the snapshot {name} of {self.name}", self._domain):
            self._domain.snapshotLookupByName(name).delete(_family_flags(children))

    # RevertPort

    def revert(self, name: str, run_state: str, force: bool, reset_nvram: bool) -> None:
        flags = _REVERT_FLAGS[run_state]
        if force:
            flags |= 4  # VIR_DOMAIN_SNAPSHOT_REVERT_FORCE
        if reset_nvram:
            flags |= 8  # VIR_DOMAIN_SNAPSHOT_REVERT_RESET_NVRAM, which older bindings do not name
        with mapped(f"Reverting {self.name} to the snapshot {name}", self._domain):
            self._domain.revertToSnapshot(self._domain.snapshotLookupByName(name), flags)

    def reverts_external(self) -> bool:
        with mapped("Asking libvirt what it can do"):
            return xml.has_external_revert(self._again(lambda _domain: self._connection.handle.getCapabilities()))

    def power_off(self) -> None:
        with mapped(f"Turning {self.name} off", self._domain):
            self._domain.destroy()

    def power_on(self, paused: bool, reset_nvram: bool = False) -> None:
        flags = libvirt.VIR_DOMAIN_START_PAUSED if paused else 0
        if reset_nvram:
            flags |= 32  # VIR_DOMAIN_START_RESET_NVRAM, which older bindings do not name
        with mapped(f"Starting {self.name}"):
            self._domain.createWithFlags(flags)

    def saved_definition(self, path: str) -> str:
        with mapped(f"Reading the memory image {path}"):
            flags = 1  # VIR_DOMAIN_SAVE_IMAGE_XML_SECURE, which older bindings do not name
            return str(self._connection.handle.saveImageGetXMLDesc(path, flags))

    def restore(self, path: str, definition: str, paused: bool, reset_nvram: bool) -> None:
        flags = libvirt.VIR_DOMAIN_SAVE_PAUSED if paused else libvirt.VIR_DOMAIN_SAVE_RUNNING
        if reset_nvram:
            flags |= 8  # VIR_DOMAIN_SAVE_RESET_NVRAM
        with mapped(f"Restoring {self.name} from the memory image {path}"):
            self._connection.handle.restoreFlags(path, definition, flags)

    def define_on(self, layers: dict[str, Layer], journal: Journal) -> None:
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
        with mapped(f"Defining {self.name} on new overlays"):
            definition = self._on_layers(self._domain.XMLDesc(flags), layers)
            self._connection.handle.defineXMLFlags(xml.with_journal(definition, journal), 0)

    # BrakePort

    def io_tune(self, disk: str) -> dict[str, int]:
        with mapped(f"Reading the I/O limits of {disk} of {self.name}", self._domain):
            found = self._again(lambda domain: domain.blockIoTune(disk, libvirt.VIR_DOMAIN_AFFECT_LIVE))
        return {name: value for name, value in found.items() if isinstance(value, int)}

    def set_io_tune(self, disk: str, limits: dict[str, int]) -> None:
        with mapped(f"Setting the I/O limits of {disk} of {self.name}", self._domain):
            self._again(lambda domain: domain.setBlockIoTune(disk, limits, libvirt.VIR_DOMAIN_AFFECT_LIVE))

    def suspend(self) -> None:
        with mapped(f"Suspending {self.name}", self._domain):
            self._domain.suspend()

    def resume(self) -> None:
        with mapped(f"Resuming {self.name}", self._domain):
            self._domain.resume()

    # OfflinePort

    def watch_activity(self) -> None:
        with mapped(f"Listening to the events of {self.name}"):
            self._activity.start()

    def activity(self) -> str:
        return self._activity.seen()

    # MergePort

    def start_commit(self, disk: str, base: str, top: str, active: bool, bandwidth: int, relative: bool) -> None:
        flags = libvirt.VIR_DOMAIN_BLOCK_COMMIT_BANDWIDTH_BYTES
        if relative:
            flags |= libvirt.VIR_DOMAIN_BLOCK_COMMIT_RELATIVE
        if active:
            flags |= libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE
        self._events.start()
        with mapped(f"Starting the commit of {disk} of {self.name} into {base}", self._domain):
            self._domain.blockCommit(disk, base, top, bandwidth, flags)

    def start_pull(self, disk: str, base: str | None, bandwidth: int, relative: bool) -> None:
        self._events.start()
        with mapped(f"Starting the pull of {disk} of {self.name}", self._domain):
            if base is None:
                self._domain.blockPull(disk, bandwidth, libvirt.VIR_DOMAIN_BLOCK_PULL_BANDWIDTH_BYTES)
                return
            flags = libvirt.VIR_DOMAIN_BLOCK_REBASE_BANDWIDTH_BYTES
            if relative:
                flags |= libvirt.VIR_DOMAIN_BLOCK_REBASE_RELATIVE
            self._domain.blockRebase(disk, base, bandwidth, flags)

    def pivot(self, disk: str) -> None:
        """Code `not_ready` where the job has not caught up: guest writes may race with a reading of `ready`."""
        flags = libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT | libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_ASYNC
        try:
            self._domain.blockJobAbort(disk, flags)
        except libvirt.libvirtError as problem:
            lost = failure(problem, f"Pivoting {disk} of {self.name}", self._domain)
            if is_number(problem, "VIR_ERR_BLOCK_COPY_ACTIVE"):
                lost.code, lost.remedy = "not_ready", "Wait until the block job is ready, and repeat"
            raise lost from problem

    def set_job_speed(self, disk: str, bandwidth: int) -> None:
        with mapped(f"Limiting the block job of {disk} of {self.name}", self._domain):
            flags = libvirt.VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES
            self._domain.blockJobSetSpeed(disk, bandwidth, flags)

    def cancel_job(self, disk: str) -> None:
        with mapped(f"Cancelling the block job of {disk} of {self.name}", self._domain):
            self._domain.blockJobAbort(disk, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_ASYNC)

    def wait_event(self, seconds: float) -> None:
        self._events.wait(seconds)

    def set_config_disks(self, layers: dict[str, Layer]) -> None:
        with mapped(f"Defining {self.name} on its merged images"):
            self._again(lambda _domain: self._define(layers))

    def _define(self, layers: dict[str, Layer]) -> None:
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
        definition = self._on_layers(self._domain.XMLDesc(flags), layers)
        self._connection.handle.defineXMLFlags(definition, 0)

    def _on_layers(self, definition: str, layers: dict[str, Layer]) -> str:
        return xml.with_disk_layers(definition, layers, volume_path=self._connection.volume_path)

    def other_images(self) -> OtherImages:
        with mapped(_READING_OTHERS):
            domains = self._again(lambda _domain: self._connection.handle.listAllDomains())
        return images_of(domains, self._connection, besides=self.uuid)

    # RestorePort

    def define(self, definition: str) -> None:
        with mapped(f"Defining {self.name}"):
            self._again(lambda _domain: self._connection.handle.defineXMLFlags(definition, 0))

    def set_autostart(self, wanted: bool) -> None:
        with mapped(f"Setting the autostart of {self.name}"):
            self._again(lambda domain: domain.setAutostart(int(wanted)))


def images_of(domains: Iterable[Any], connection: Connection, besides: str) -> OtherImages:
    """What these domains stand on, without the one with this UUID."""
    found = tuple(_images_of_each(domains, connection, besides))
    tips = {layer for one in found for layer in one.tips}
    return OtherImages(
        frozenset(path for one in found for path in one.known),
        tuple(sorted(tips, key=lambda layer: layer.path)),
        tuple(why for one in found for why in one.unread),
        {path: name for one in found for path, name in one.owners.items()},
    )


def _images_of_each(domains: Iterable[Any], connection: Connection, besides: str) -> Iterator[OtherImages]:
    """By the live and persistent XML of each; one that is undefined meanwhile is left out."""
    for domain in domains:
        if domain.UUIDString() == besides:
            continue
        try:
            found = xml.images(*definitions(domain), connection.volume_path)
            yield replace(found, owners={tip.path: name_of(domain) for tip in found.tips})
        except xml.BadXml as error:
            yield OtherImages(frozenset(), (), (unread_words(name_of(domain), error.why),))
        except libvirt.libvirtError as problem:
            if not is_number(problem, "VIR_ERR_NO_DOMAIN"):
                raise failure(problem, _READING_OTHERS) from problem


def _lookup(connection: Connection, name: str) -> Any:
    """virDomainLookupByUUIDString where it is a UUID, virDomainLookupByName otherwise or after that."""
    with mapped(f"Looking for the domain {name}"):
        if _is_uuid(name):
            try:
                return connection.handle.lookupByUUIDString(name)
            except libvirt.libvirtError as problem:
                if not is_number(problem, "VIR_ERR_NO_DOMAIN"):
                    raise
        try:
            return connection.handle.lookupByName(name)
        except libvirt.libvirtError as problem:
            if not is_number(problem, "VIR_ERR_NO_DOMAIN"):
                raise
    raise VirtopsError(
        "no_such_domain",
        f"There is no domain {name} at {connection.uri}",
        "Give the name or the UUID of one that virsh list --all shows there",
    )


def _family_flags(children: str) -> int:
    """virDomainSnapshotDelete: this snapshot alone, with its descendants, or only those."""
    flags: dict[str, int] = {
        "keep": 0,
        "delete": libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_CHILDREN,
        "only": libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_CHILDREN_ONLY,
    }
    return flags[children]


def _is_uuid(name: str) -> bool:
    with suppress(ValueError):
        return bool(uuid_module.UUID(name))
    return False


def definitions(domain: Any) -> tuple[str, str | None]:
    """virDomainGetXMLDesc, live and INACTIVE; the latter is None of a transient domain."""
    try:
        live = domain.XMLDesc(0)
        config = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE) if domain.isPersistent() else None
    except UnicodeDecodeError as problem:
        raise xml.bad_xml("it is not UTF-8") from problem
    return live, config


def name_of(domain: Any) -> str:
    """virDomainGetName; libvirt's binding gives no name that is not UTF-8."""
    try:
        return str(domain.name())
    except UnicodeDecodeError:
        return str(domain.UUIDString())


def read_view(connection: Connection, domain: Any, jobs: bool = True) -> DomainView:
    """Read a domain; libvirt errors are the caller's to map. One whose definition cannot be read has `unread`.

    libvirt lets a domain be renamed to what XML cannot hold, and then writes that as it is, or leaves it out.
    """
    try:
        live, config = definitions(domain)
        parsed = xml.parse_domain(live, config, connection.volume_path)
        if _NOT_IN_XML.search(name_of(domain)):
            raise xml.bad_xml("the name of the domain has a control character in it")
    except xml.BadXml as error:
        return _unread(domain, error.why)
    persistent = config is not None
    number, reason = domain.state()
    state = STATES[number]
    view = DomainView(
        name=parsed.name,
        uuid=parsed.uuid,
        state=state,
        persistent=persistent,
        disks=parsed.disks,
        config_disks=parsed.config_disks,
        agent=parsed.agent,
        autostart=bool(persistent and domain.autostart()),
        journal_found=parsed.journal,
        machine=parsed.machine,
        nvram=parsed.nvram,
        parts=parsed.parts,
        paused_by=PAUSED_BY.get(reason, "other") if state == "paused" else None,
        pflash=parsed.pflash,
        nvram_format=parsed.nvram_format,
        memory_bytes=parsed.memory_bytes,
        journal_of=parsed.journal_of,
        qemu_ids=parsed.qemu_ids,
        saved=bool(persistent and domain.hasManagedSaveImage()),
        moved=(state, reason) == ("shut off", _MIGRATED),
    )
    if not view.active:
        return replace(view, disks=view.config_disks or view.disks)
    if not jobs:
        return view
    return replace(view, disks=tuple(_with_job(domain, disk) for disk in view.disks))


def _unread(domain: Any, why: str) -> DomainView:
    state = STATES[domain.state()[0]]
    return DomainView(name_of(domain), domain.UUIDString(), state, bool(domain.isPersistent()), (), (), unread=why)


def _with_job(domain: Any, disk: Disk) -> Disk:
    """virDomainGetBlockJobInfo joined with the <mirror>: only the XML knows whether it is ready."""
    if disk.active is None:
        return disk
    try:
        info = domain.blockJobInfo(disk.target, libvirt.VIR_DOMAIN_BLOCK_JOB_INFO_BANDWIDTH_BYTES)
    except libvirt.libvirtError as problem:
        # The guest went off since its XML was read, or the driver has no block jobs
        if is_number(problem, "VIR_ERR_OPERATION_INVALID", "VIR_ERR_NO_SUPPORT"):
            return disk
        raise
    if not info:
        return disk if disk.job is None else replace(disk, job=replace(disk.job, tracked=False))
    seen = disk.job or BlockJob(kind=JOB_KINDS[info["type"]] if info["type"] < len(JOB_KINDS) else "unknown")
    return replace(disk, job=replace(seen, cur=info["cur"], end=info["end"], bandwidth=info["bandwidth"]))
