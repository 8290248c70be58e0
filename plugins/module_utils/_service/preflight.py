# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the flow of a preflight: look at everything once, touch nothing, and judge.

An error that is met while looking at one guest is one of its results, and hides no other guest.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

from .._core.backup import BackupOptions, CopyOrder, Source, StorePort
from .._core.errors import VirtopsError
from .._core.extras import Extras
from .._core.images import Use
from .._core.job_state import JobState
from .._core.journal import Journal
from .._core.model import Disk, DomainView, Layer, Outcome, is_local
from .._core.offline import plan_offline
from .._core.ports import ImagePort
from .._core.preflight import is_ready, judge
from .._core.preflight_facts import (
    CHECKPOINTS,
    DISKS,
    EXTRAS,
    IMAGES,
    JOBS,
    JOURNAL,
    STATE,
    TARGET,
    Capabilities,
    Check,
    DiskFacts,
    FileSystem,
    GuestFacts,
    HostPort,
    Limits,
    Refusal,
    denied_writes,
    is_fresh,
    resumed,
)
from .._core.preflight_space import usage, usage_as_dict
from .._core.refusals import guest_paused
from .._core.snapshot import PlannedDisk, SnapshotOptions, is_overlay_name, plan_snapshot
from .._core.strays import is_stray_name, with_strays
from .away import require_here
from .backup import extras_of, left_behind, order_of
from .info import is_chosen, unmatched
from .observe import FileSet, chain_of_another, observe_view
from .overlays import kept_for_others, require_place
from .sound import require_sound
from .strays import lost_operations, with_bases
from .users_copy import refuse_early

#: Errors of the host, and of no guest.
_HOPELESS = ("connection_lost", "uri_unreachable", "missing_program")


@dataclass(frozen=True)
class PreflightOptions:
    """Which guests, and the backup that is to be made of them. `freeze_timeout` is in seconds."""

    backup: BackupOptions
    snapshot: SnapshotOptions
    limits: Limits
    guests: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    states: tuple[str, ...] = ("running",)


class Preflight:
    """Look at the guests of one hypervisor. `apparmor` gives the rules of a domain by its UUID, `at_work` the job of
    this collection that works on it; a job that looks at its own guest has none."""

    def __init__(
        self,
        options: PreflightOptions,
        host: HostPort,
        images: ImagePort,
        store: StorePort,
        apparmor: Callable[[str], str],
        at_work: Callable[[str], JobState | None] = lambda _uuid: None,
    ) -> None:
        self._options = options
        self._host = host
        self._images = images
        self._store = store
        self._apparmor = apparmor
        self._at_work = at_work
        self._names = functools.cache(images.names)
        #: Of other domains whose chains nobody can tell: the name, and why
        self._unseen: dict[str, tuple[str, str]] = {}

    def run(self) -> Outcome:
        """Raises VirtopsError where the host itself cannot be looked at."""
        capabilities = self._host.capabilities()
        views = self._host.domains()
        owners = self._owners(views)
        wanted = [view for view in views if is_chosen(view, self._options.guests, self._options.exclude)]
        found = [self._guest(view, capabilities, owners) for view in wanted]
        # An interrupted operation is the run's to finish, also on a guest that was shut off meanwhile.
        guests = [
            guest for guest in found if self._is_wanted(guest.view) or resumed(guest, self._options.limits) is not None
        ]
        guests = self._with_agents(guests)
        checks = judge(guests, capabilities, self._options.limits)
        told = [
            {
                "name": guest.view.name,
                "uuid": guest.view.uuid,
                "state": guest.view.state,
                "ready": is_ready(checks[guest.view.uuid]),
                "checks": [_told(check) for check in checks[guest.view.uuid]],
            }
            for guest in guests
        ]
        values: dict[str, object] = {
            "guests": told,
            "ready": all(guest["ready"] for guest in told),
            "file_systems": [usage_as_dict(one) for one in usage(guests, self._options.limits)],
            "unmatched": unmatched(views, self._options.guests),
        }
        return Outcome(values=values)

    def _is_wanted(self, view: DomainView) -> bool:
        return not self._options.states or view.state in self._options.states

    # -- one guest

    def _guest(self, view: DomainView, host: Capabilities, owners: _Owners) -> GuestFacts:
        """All but its agent. Of one that will be resumed, and of one that is not wanted, little is looked at."""
        if view.unread:
            return GuestFacts(view)
        facts = self._with_journal(GuestFacts(view, at_work=self._at_work(view.uuid)))
        if facts.at_work is not None:
            return facts
        try:
            require_here(view, self._images)
        except VirtopsError as error:
            facts = replace(facts, refusals=(*facts.refusals, Refusal(STATE, error)))
        if "apparmor" in host.security_models and view.active:
            facts = replace(facts, denied=denied_writes(self._apparmor(view.uuid)))
        if not self._is_wanted(view) or not is_fresh(facts, self._options.limits):
            return facts
        look = _Look(self._options, self._images, self._store, owners, self._names, view.qemu_ids or host.qemu_ids)
        with look.noting(IMAGES):
            view = observe_view(view, self._images)
        unseen = tuple(found for uuid, found in self._unseen.items() if uuid != view.uuid)
        facts = replace(facts, view=view, unseen=unseen)
        with look.noting(DISKS):
            # Jobs and operations are told by themselves: they must not hide what else is wrong.
            bare = view.with_disks(tuple(replace(disk, job=None) for disk in view.disks))
            if view.active:
                plan = plan_snapshot(self._options.snapshot, bare, None, Journal())
                facts = replace(facts, skipped=plan.skipped, disks=look.disks(view, plan.disks))
            else:
                off = plan_offline(self._options.snapshot, view, Journal())
                facts = replace(facts, skipped=off.skipped, disks=look.disks_off(view, off.disks))
        with look.noting(EXTRAS):
            extras = look.extras(view, facts.disks)
            facts = replace(facts, lacks=extras.lacks, beside=extras.needs)
        if self._options.limits.own_copy:
            with look.noting(TARGET):
                target, reclaimed = look.target(view)
                facts = replace(facts, target=target, reclaimed=reclaimed)
        facts = self._with_libvirts_word(facts, look)
        return replace(facts, refusals=facts.refusals + tuple(look.refusals))

    def _with_journal(self, facts: GuestFacts) -> GuestFacts:
        try:
            journal = facts.view.journal
            seen = with_bases(facts.view, self._images)
            lost = lost_operations(seen, journal, lambda: self._host.records(facts.view.uuid, is_stray_name))
            return replace(facts, journal=with_strays(journal, lost))
        except VirtopsError as error:
            return replace(facts, refusals=(Refusal(JOURNAL, error),))

    def _with_libvirts_word(self, facts: GuestFacts, look: _Look) -> GuestFacts:
        uuid = facts.view.uuid
        if facts.view.active:
            with look.noting(JOBS):
                facts = replace(facts, job=self._host.job(uuid))
        with look.noting(CHECKPOINTS):
            facts = replace(facts, checkpoints=self._host.checkpoints(uuid))
            if facts.checkpoints:
                facts = replace(facts, incremental=self._host.keeps_checkpoints(uuid))
        return facts

    def _with_agents(self, guests: list[GuestFacts]) -> list[GuestFacts]:
        """All agents are asked at once: each deaf one costs its timeout."""
        limits, snapshot = self._options.limits, self._options.snapshot
        if limits.quiesce == "never":
            return guests
        fresh = [guest.view for guest in guests if not guest.view.unread and is_fresh(guest, limits)]
        asked = [view for view in fresh if view.active]
        silent = {view.uuid: guest_paused(view) for view in asked if view.state != "running"}
        running = [view for view in asked if view.state == "running"]
        deaf = {**silent, **self._host.deaf_agents(running, snapshot.ping_timeout)}
        for error in deaf.values():
            if error.code in _HOPELESS:
                raise error
        return [replace(guest, agent=deaf.get(guest.view.uuid)) for guest in guests]

    # -- all domains of the host

    def _owners(self, views: Sequence[DomainView]) -> _Owners:
        """Which domains have a file in a chain, by the file itself: it may have several names."""
        owners: _Owners = {}
        for view in views:
            if view.unread:
                self._unseen[view.uuid] = (view.name, "its definition cannot be read (%s)" % view.unread)
            for path in self._images_of(view):
                key = _file(path, self._images)
                if key is not None:
                    owners.setdefault(key, {})[view.uuid] = view.name
        return owners

    def _images_of(self, view: DomainView) -> Iterator[str]:
        for disk in view.disks + view.config_disks:
            if disk.job is not None and disk.job.target is not None:
                yield disk.job.target
            yield from (layer.path for layer in disk.chain)
            if disk.active is None or view.active:
                continue
            paths, end = chain_of_another(disk.active, self._images)
            yield from paths
            if end is not None and end.changed_ns is None:
                self._unseen.setdefault(view.uuid, (view.name, end.why))


def _told(check: Check) -> dict[str, object]:
    """Both sentences without a full stop: those who show them add it, and some errors bring one."""
    cut = {key: getattr(check, key) and getattr(check, key).rstrip(".") for key in ("message", "remedy")}
    return {**asdict(check), **cut}


#: A file, by what all its names have in common -> UUID and name of each domain that has it.
_Owners = dict[tuple[int, int], dict[str, str]]


class _Look:
    """Looking at the files of one guest; what goes wrong is kept in `refusals`."""

    def __init__(
        self,
        options: PreflightOptions,
        images: ImagePort,
        store: StorePort,
        owners: _Owners,
        names: Callable[[str], tuple[str, ...]],
        qemu_ids: tuple[int, int] | None,
    ) -> None:
        self._qemu_ids = qemu_ids
        self._options = options
        self._images = images
        self._store = store
        self._owners = owners
        self._names = names
        self.refusals: list[Refusal] = []

    @contextmanager
    def noting(self, check: str, disk: str | None = None) -> Iterator[None]:
        try:
            yield
        except VirtopsError as error:
            self._note(check, error, disk)

    def _note(self, check: str, error: VirtopsError, disk: str | None) -> None:
        if error.code in _HOPELESS:
            raise error
        self.refusals.append(Refusal(check, error, disk))

    def disks(self, view: DomainView, planned: tuple[PlannedDisk, ...]) -> tuple[DiskFacts, ...]:
        found = []
        for disk in planned:
            with self.noting(IMAGES, disk.target):
                found.append(self._disk(view, disk))
        return tuple(found)

    def _disk(self, view: DomainView, planned: PlannedDisk) -> DiskFacts:
        base, seen = planned.base, view.disk(planned.target)
        require_sound(view, planned.target, Use.SNAPSHOT, self._images)
        info = self._images.info(base.path, base.format)
        if not self._images.is_writable(base.path):
            raise VirtopsError(
                "not_writable",
                "The image %s, that the overlay would be merged into, cannot be written to." % base.path,
                "Mount its file system writable",
            )
        require_place(planned, self._images)
        self._require_reach(planned)
        regular = self._store.is_regular(base.path)
        return DiskFacts(
            target=planned.target,
            chain=(base,) if seen is None else seen.chain,
            virtual_size=info.virtual_size,
            allocation=info.allocation,
            overlay_fs=self._file_system(planned.overlay.rpartition("/")[0]),
            base_fs=self._file_system(base.path) if regular else None,
            order=self._order(view, planned),
            shared_with=self._shared_with(view, base.path),
            left=self._left(view, planned),
            extent=None if regular or base.format != "qcow2" else self._images.extent(base.path, info.virtual_size),
            bitmaps=info.bitmaps,
            open_folders=self._open_folders(planned),
        )

    def disks_off(self, view: DomainView, chosen: tuple[Disk, ...]) -> tuple[DiskFacts, ...]:
        """Of a guest that is off, for which no overlay is made."""
        found = []
        for disk in chosen:
            if disk.active is not None:
                with self.noting(IMAGES, disk.target):
                    found.append(self._disk_off(view, disk, disk.active))
        return tuple(found)

    def _disk_off(self, view: DomainView, disk: Disk, image: Layer) -> DiskFacts:
        require_sound(view, disk.target, Use.COPY, self._images)
        info = self._images.info(image.path, image.format)
        bare = PlannedDisk(disk.target, image, image.path)
        return DiskFacts(
            target=disk.target,
            chain=disk.chain,
            virtual_size=info.virtual_size,
            allocation=info.allocation,
            overlay_fs=None,
            order=self._order(view, replace(bare, overlay="")),
            shared_with=self._shared_with(view, image.path),
            left=self._left(view, bare),
            open_folders=self._open_folders(bare),
            loose=not self._images.is_lockable(image.path),
        )

    def _require_reach(self, planned: PlannedDisk) -> None:
        """libvirt gives QEMU's user the overlay, and not the folders above it."""
        folder = os.path.dirname(planned.overlay)
        if self._qemu_ids is None or self._images.may_enter(folder, *self._qemu_ids):
            return
        raise VirtopsError(
            "permission_denied",
            "QEMU runs as user %d, who may not enter the folder %s for the overlay of disk %s."
            % (self._qemu_ids[0], folder, planned.target),
            "Let that user into each folder of the path (chmod o+x, or setfacl -m u:%d:x), or choose another with "
            "overlay_dir" % self._qemu_ids[0],
        )

    def _open_folders(self, planned: PlannedDisk) -> tuple[str, ...]:
        """A device's node lies in /dev."""
        base = (planned.base.path,) if self._store.is_regular(planned.base.path) else ()
        folders = sorted({os.path.dirname(path) for path in (*base, planned.overlay)})
        return tuple(folder for folder in folders if self._images.others_write(folder))

    def _order(self, view: DomainView, planned: PlannedDisk) -> CopyOrder | None:
        source = Source(planned.target, planned.base, planned.overlay)
        try:
            if not self._options.limits.own_copy:
                refuse_early(view, (source,), self._images, self._store)
                return None
            return order_of(self._options.backup, source, view, self._images, self._store)
        except VirtopsError as error:
            self._note(TARGET, error, planned.target)
        return None

    def _shared_with(self, view: DomainView, path: str) -> tuple[str, ...]:
        key = _file(path, self._images)
        owners = {} if key is None else self._owners.get(key, {})
        return tuple(sorted(name for uuid, name in owners.items() if uuid != view.uuid))

    def _left(self, view: DomainView, planned: PlannedDisk) -> tuple[str, ...]:
        folders = {os.path.dirname(path) for path in (planned.base.path, planned.overlay)}
        paths = [
            os.path.join(folder, name)
            for folder in sorted(folders)
            for name in self._names(folder)
            if is_overlay_name(name, view.name, planned.target)
        ]
        left = tuple(path for path in paths if self._is_left(path, planned.base.path))
        return tuple(path for path in left if not kept_for_others(path, _journal(view), self._images))

    def _is_left(self, path: str, base: str) -> bool:
        if _file(path, self._images) in self._owners:
            return False
        try:
            below = self._images.info(path, "qcow2").backing_path
            return below is not None and base in FileSet([below], self._images) and self._images.holds_data(path)
        except VirtopsError:
            return False  # no image, or not one of ours

    def extras(self, view: DomainView, disks: tuple[DiskFacts, ...]) -> Extras:
        return extras_of(view, frozenset(disk.target for disk in disks), self._images, self._store)

    def target(self, view: DomainView) -> tuple[FileSystem, int]:
        options = self._options.backup
        self._store.check_destination(options.dest)
        return self._file_system(options.dest), left_behind(options, view, self._store)

    def _file_system(self, path: str) -> FileSystem:
        key = self._images.file_key(path)
        return FileSystem(0 if key is None else key[0], path, self._images.free_bytes(path))


def _journal(view: DomainView) -> Journal:
    """One that cannot be read is told by another check."""
    try:
        return view.journal
    except VirtopsError:
        return Journal()


def _file(path: str, images: ImagePort) -> tuple[int, int] | None:
    return images.file_key(path) if is_local(path) else None
