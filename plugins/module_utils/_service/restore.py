# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the flow of backup_restore.

open the set -> look at the host -> refuse -> (check mode stops here) -> write each file beside its place, hashed as it
passes -> one write of the definition, with the journal, puts the domain on all of them -> the files go to their places
(`restore_end`) -> autostart, start.

Before that write a failure removes what was written, and what a death left the next run removes by its name: the old
guest is as it was. After it there is only forward.
"""

from __future__ import annotations

import os
import uuid as uuid_module
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from .._core import xml
from .._core.backup_set import stamp_of_iso
from .._core.errors import VirtopsError
from .._core.extras import TPM
from .._core.journal import PREPARED, RESTORE, RESTORE_DISKS, Journal, JournalDisk, Operation
from .._core.model import DomainView, Outcome, is_local
from .._core.plan import Step
from .._core.ports import Clock, ImagePort, Progress
from .._core.refusals import image_shared, refuse_away, refuse_open, require_going
from .._core.restore import (
    FileLook,
    Identity,
    OpenSet,
    Placement,
    PlacePort,
    RestoreHostPort,
    RestoreOptions,
    RestoreOrder,
    SetPort,
    identity_of,
    image_exists,
    nvram_path,
    plan_boot,
    plan_disks,
    plan_extras,
    require_asked_for,
    require_room,
    require_same_domain,
    require_whole,
    shared_disks,
)
from .._core.text import command
from .._core.xml import DomainXml
from .observe import every_image, observe_view
from .restore_end import RestoreEnd, open_restore, written
from .run import Run

#: Of what QEMU reads of its own, whoever it runs as; the owner stays ours.
_READABLE = FileLook("file", -1, -1, 0o644)


@dataclass(frozen=True)
class _Plan:
    """All that a run will do. `view` is the domain that is there; `definition` the one to write, None where no domain
    is on what is restored."""

    found: OpenSet
    identity: Identity
    view: DomainView | None
    placements: tuple[Placement, ...]
    old: dict[str, FileLook]
    left: tuple[str, ...]
    definition: str | None
    operation: Operation
    warnings: tuple[str, ...]


class Restore:
    """Restore a set, or single disks of it. `lock` holds the domain's lock, by its name and UUID."""

    def __init__(
        self,
        options: RestoreOptions,
        host: RestoreHostPort,
        sets: SetPort,
        places: PlacePort,
        images: ImagePort,
        clock: Clock,
        progress: Progress,
        lock: Callable[[str, str], AbstractContextManager[None]],
    ) -> None:
        self._options = options
        self._host = host
        self._sets = sets
        self._places = places
        self._images = images
        self._clock = clock
        self._progress = progress
        self._lock = lock
        #: Newer sets that are not what is restored, in words
        self._passed: tuple[str, ...] = ()

    def run(self, check: bool) -> Outcome:
        """Raises VirtopsError; before the domain is defined nothing is left then, and the old one is as it was."""
        self._require_options()
        path, self._passed = self._sets.newest(self._options.src)
        found = self._sets.open_set(path)
        require_asked_for(found, self._options)
        require_whole(found)
        definition = xml.parse_domain(found.domain_xml, None)
        require_same_domain(found, definition.name, definition.uuid)
        identity = self._identity(found)
        lock, held = self._lock(identity.name, identity.uuid), self._places.hold()
        with lock, held, Run(check, self._clock, self._progress) as run:
            if self._passed:
                run.warnings.append("Newer backups were passed over: %s." % ", ".join(self._passed))
            return self._run(run, found, identity, definition)

    def _require_options(self) -> None:
        options = self._options
        if options.dest is not None and options.pool is not None:
            raise VirtopsError("bad_option", "Both dest and pool are given", "Give one of them")
        if options.disks is not None and not options.disks:
            raise VirtopsError("bad_option", "disks names no disk", "Name the disks to restore, or leave disks out")

    def _identity(self, found: OpenSet) -> Identity:
        """Single disks go to the domain that is there, whatever UUID it has."""
        domain = found.manifest["domain"]
        identity = identity_of(self._options, domain["name"], domain["uuid"], self._sets.machine())
        there = None if self._options.disks is None else self._host.uuid_of(identity.name)
        return identity if there is None else replace(identity, uuid=there)

    def _run(self, run: Run, found: OpenSet, identity: Identity, definition: DomainXml) -> Outcome:
        view = self._view(identity)
        stuck = None if view is None else open_restore(view.journal)
        if view is not None and stuck is not None:
            end = RestoreEnd(self._host.domain(view.uuid), self._images, self._places, self._sets.tpm_root())
            steps = end.steps(view, stuck)
            run.apply(*steps)
            if run.check:
                return self._outcome(run, found, identity, view, self._placements(found, identity, definition))
            view = self._view(identity)
        placements = self._placements(found, identity, definition)
        if view is not None and self._is_there(found, view, placements):
            return self._settle(run, found, identity, view, placements)
        missing = self._missing(placements, view)
        plan = self._plan(found, identity, definition, view, missing)
        run.warnings += plan.warnings
        run.apply(*self._steps(plan))
        return self._settle(run, found, identity, view, placements, plan)

    # -- looking

    def _view(self, identity: Identity) -> DomainView | None:
        """The domain that is there; another one of its name or UUID is never touched."""
        named, owner = self._host.uuid_of(identity.name), self._host.name_of(identity.uuid)
        if named is not None and named != identity.uuid:
            raise VirtopsError(
                "domain_exists",
                "There is a domain %s already, with the UUID %s and not %s" % (identity.name, named, identity.uuid),
                "Give another name with domain, or rename that one (virsh domrename)",
            )
        if owner is None:
            return None
        if owner != identity.name and self._options.disks is None:
            raise VirtopsError(
                "domain_exists",
                "The domain %s has the UUID %s already" % (owner, identity.uuid),
                "Restore to its name, or as a copy with a UUID of its own: domain and uuid: new",
            )
        return observe_view(self._host.domain(identity.uuid).view(), self._images)

    def _placements(self, found: OpenSet, identity: Identity, definition: DomainXml) -> tuple[Placement, ...]:
        options, folder = self._options, self._options.dest
        if options.pool is not None:
            folder = self._host.pool_folder(options.pool)
        disks = plan_disks(options, found.manifest, identity, folder)
        if options.disks is not None:
            return disks
        nvram = nvram_path(definition.nvram, identity)
        extras = plan_extras(found.manifest, identity, nvram, self._sets.tpm_root())
        boot = plan_boot(found.manifest, identity, definition.parts)
        return disks + extras + tuple(one for one in boot if self._images.kind(one.path) == "missing")

    def _is_there(self, found: OpenSet, view: DomainView, placements: tuple[Placement, ...]) -> bool:
        """Was the domain restored from this very set, to these places? With `overwrite` it also must not have been
        used, or changed, since."""
        note = view.journal.restored
        if self._options.disks is not None or note is None or note.name != _name_of(found):
            return False
        for one in placements:
            disk = view.config_disk(one.target) if one.target else None
            if one.target and (disk is None or disk.active is None or disk.active.path != one.path):
                return False
        if not self._options.overwrite:
            return True
        digest = xml.definition_digest(self._host.domain(view.uuid).domain_xml())
        return not view.active and note.definition == digest and note.images == written(view, self._images)

    def _missing(self, placements: tuple[Placement, ...], view: DomainView | None) -> tuple[Placement, ...]:
        """Without single disks that lie as files at their places already, and hold what the set does."""
        if self._options.disks is None:
            return placements
        return tuple(one for one in placements if not self._is_same(one, view))

    def _is_same(self, one: Placement, view: DomainView | None) -> bool:
        there = self._places.look(one.path)
        if there is None or there.kind != "file" or one.path in _own_paths(view):
            return False
        return self._has_bytes_of(one)

    def _plan(
        self,
        found: OpenSet,
        identity: Identity,
        definition: DomainXml,
        view: DomainView | None,
        placements: tuple[Placement, ...],
    ) -> _Plan:
        """Refuses whatever can be told before the first effect."""
        own = _own_paths(view)
        is_whole = self._options.disks is None
        if view is not None and (is_whole or any(one.path in own for one in placements)):
            self._refuse_domain(view)
        old, left = self._look(placements, identity, own)
        self._require_room(placements, left)
        dropped: tuple[str, ...] = ()
        target: str | None = None
        if is_whole:
            restored = frozenset(one.target for one in placements)
            dropped = shared_disks(definition.disks, restored) if identity.is_copy else ()
            layers = {one.target: one.layer for one in placements if one.target}
            nvram = nvram_path(definition.nvram, identity)
            target = xml.restored_definition(found.domain_xml, identity, layers, nvram, dropped)
        elif view is not None:
            target = self._redefinition(view, placements)
        operation = Operation(
            str(uuid_module.uuid4()),
            RESTORE if is_whole else RESTORE_DISKS,
            _name_of(found),
            PREPARED,
            self._clock.utcnow(),
            tuple(
                JournalDisk(
                    one.target or one.kind,
                    one.path,
                    one.format,
                    one.waiting,
                    made=old[one.path].inode[1] if one.path in old else None,
                )
                for one in placements
                if not one.is_boot
            ),
            boot=self._clock.boot(),
        )
        warnings = self._warnings(found, view, placements, dropped, target if is_whole else None)
        if is_whole:
            warnings += self._kept(plan_boot(found.manifest, identity, definition.parts), placements)
        return _Plan(found, identity, view, placements, old, left, target, operation, warnings)

    def _redefinition(self, view: DomainView, placements: tuple[Placement, ...]) -> str | None:
        """The domain's own definition, with the formats of the images that it gets back; None where it has none."""
        paths = {one.path: one for one in placements}
        tops = {disk.target: disk.active.path for disk in view.config_disks if disk.active is not None}
        layers = {target: paths[path].layer for target, path in tops.items() if path in paths}
        below = next((path for path in paths if path in _own_paths(view) and path not in tops.values()), None)
        if below is not None:
            raise VirtopsError(
                "image_in_use",
                "The image %s is below another one in a disk of domain %s" % (below, view.name),
                "Merge that disk's layers first (virtops.libvirt.block_commit), or restore to another file",
            )
        if not layers:
            return None
        return xml.with_disk_layers(self._host.domain(view.uuid).domain_xml(), layers)

    def _refuse_domain(self, view: DomainView) -> None:
        """What is there is replaced only if it is off, at rest, and the user says so."""
        if view.active:
            other = "to another name with domain" if self._options.disks is None else "the disks to other files"
            raise VirtopsError(
                "guest_running",
                "Domain %s is %s, and a guest that runs is never overwritten" % (view.name, view.state),
                "Restore %s, or shut it down (%s) if what it holds may go"
                % (other, command("virsh", "shutdown", view.name)),
            )
        if not self._options.overwrite:
            raise VirtopsError(
                "domain_exists",
                "Domain %s is there already" % view.name,
                "Give overwrite: true to replace it, and lose what it holds now, or another name with domain",
            )
        refuse_away(view)
        refuse_open(view, view.journal)
        records = [record.name for record in self._host.domain(view.uuid).snapshots()]
        if records or any(not operation.open for operation in view.journal.operations):
            raise VirtopsError(
                "has_snapshots",
                "Domain %s has snapshots (%s), which would not fit its restored images"
                % (view.name, ", ".join(records) or "in our journal"),
                "Delete them first (virtops.libvirt.snapshot_external or snapshot_internal, state: absent)",
            )
        if self._host.checkpoints(view.uuid):
            raise VirtopsError(
                "has_checkpoints",
                "Domain %s has checkpoints, which would not fit its restored images" % view.name,
                "Delete them first (virsh checkpoint-delete)",
            )

    def _look(
        self, placements: tuple[Placement, ...], identity: Identity, own: frozenset[str]
    ) -> tuple[dict[str, FileLook], tuple[str, ...]]:
        """What is at the places, and what an interrupted run left beside them."""
        others = every_image(self._host.other_images(identity.uuid), self._images)
        old, left = {}, []
        for one in placements:
            if one.kind == TPM and not self._images.exists(os.path.dirname(one.path)):
                continue  # the folder is libvirt's, and is made
            there, stale = self._places.look(one.path), self._places.look(one.waiting)
            if one.path in others:
                raise image_shared(one.path, one.target or one.kind, "Restore to another file")
            if stale is not None:
                if stale.kind != "file":
                    raise image_exists(one.waiting)
                left.append(one.waiting)
            if there is None:
                continue
            if stale is not None and stale.inode == there.inode and one.path not in own:
                left.append(one.path)  # an interrupted run was about to end
                continue
            if there.kind != "file" or (one.target and one.path not in own):
                raise image_exists(one.path)
            if not one.target and not self._options.overwrite:
                raise image_exists(one.path)
            holders = self._images.holders(one.path)
            if holders:
                raise VirtopsError(
                    "image_locked",
                    "Process %d has %s open" % (holders[0], one.path),
                    "End it, or wait for its end, then try again",
                )
            old[one.path] = there
        for one in placements:
            if one.backing is not None and self._images.kind(one.backing.path) == "missing":
                raise VirtopsError(
                    "base_missing",
                    "The backup of disk %s needs the image %s, which this host does not have"
                    % (one.target, one.backing.path),
                    "Copy that image to its place first",
                )
        return old, tuple(left)

    def _require_room(self, placements: tuple[Placement, ...], left: tuple[str, ...]) -> None:
        free: dict[str, int] = {}
        folders: dict[str, str] = {}
        systems: dict[int, str] = {}
        for one in placements:
            folder = os.path.dirname(one.path)
            while not self._images.exists(folder):  # a TPM's
                folder = os.path.dirname(folder)
            key = self._images.file_key(folder)
            system = systems.setdefault(0 if key is None else key[0], folder)
            folders[os.path.dirname(one.path)] = system
            free.setdefault(system, self._images.free_bytes(folder))
        for path in left:
            found = self._places.look(path)
            free[folders[os.path.dirname(path)]] += 0 if found is None else found.allocated
        require_room(placements, free, folders)

    def _warnings(
        self,
        found: OpenSet,
        view: DomainView | None,
        placements: tuple[Placement, ...],
        dropped: tuple[str, ...],
        definition: str | None,
    ) -> tuple[str, ...]:
        told = (
            [] if found.sums is not None else ["The backup has no SHA256SUMS, so its domain.xml could not be checked."]
        )
        if definition is None:
            return tuple(told)
        for lack in found.manifest.get("lacks", ()):
            words = " ".join(filter(None, [lack["kind"], lack["name"] or lack["source"]]))
            there = lack["source"] and is_local(lack["source"]) and self._images.exists(lack["source"])
            end = ", and is on this host" if there else ""
            told.append("The %s is not in the backup%s: %s." % (words, end, lack["reason"]))
        told += ["The copy does not get the disk %s, which is not in the backup." % target for target in dropped]
        placed = {one.path for one in placements}
        for path in sorted(_own_paths(view) - placed):
            told.append("%s, which the domain had, is not in the backup, and is kept." % path)
        told += self._lacks(definition, placements)
        return tuple(told)

    def _kept(self, boot: tuple[Placement, ...], placements: tuple[Placement, ...]) -> tuple[str, ...]:
        """Other guests may start from it, so what this host has is never replaced."""
        there = [one for one in boot if one not in placements]
        words = "The %s %s is not restored, as this host has another file there."
        return tuple(words % (one.kind, one.path) for one in there if not self._has_bytes_of(one))

    def _has_bytes_of(self, one: Placement) -> bool:
        if self._images.kind(one.path) != "file" or self._images.identity(one.path).size != one.bytes:
            return False
        return self._sets.sha256_of(self._places.way(one.path)) == one.sha256

    def _lacks(self, definition: str, placements: tuple[Placement, ...]) -> list[str]:
        """Refuse what libvirt would not define or, if the guest is to be started, not start."""
        needs, placed = xml.host_needs(definition), {one.path for one in placements}
        lacks = self._host.lacks(needs)
        soft = [*lacks.soft]
        soft += [
            "the network interface %s" % name for name in (*needs.bridges, *needs.links) if not self._has_link(name)
        ]
        soft += [
            "the %s %s" % (kind, path)
            for kind, path in needs.files
            if path not in placed and self._images.kind(path) == "missing"
        ]
        soft += ["a folder %s that QEMU's user may enter" % folder for folder in self._closed(placements)]
        if lacks.hard or (soft and self._options.start):
            raise VirtopsError(
                "host_lacks",
                "This host lacks what the domain needs: %s" % "; ".join((*lacks.hard, *soft)),
                "Provide it, restore on another host, or restore the disks alone (disks). Without start, only a "
                "missing emulator, machine type or CPU is refused",
            )
        return ["This host lacks %s: the guest will not start before it is there." % words for words in soft]

    def _closed(self, placements: tuple[Placement, ...]) -> list[str]:
        """The folders of images that QEMU could not reach: libvirt gives it the files, but no folder."""
        ids = self._host.qemu_ids()
        folders = sorted({os.path.dirname(one.path) for one in placements if one.target})
        there = [folder for folder in folders if self._images.is_directory(folder)]
        return [] if ids is None else [folder for folder in there if not self._images.may_enter(folder, *ids)]

    def _has_link(self, name: str) -> bool:
        return self._images.exists(os.path.join("/sys/class/net", name))

    # -- effects

    def _steps(self, plan: _Plan) -> Iterator[Step]:
        for path in plan.left:
            yield Step(("remove %s, which an interrupted restore left" % path,), partial(self._places.remove, path))
        if not plan.placements:
            return
        words = tuple(
            "copy %s of %s to %s (%d MiB)" % (one.file, plan.found.path, one.path, -(-one.allocated >> 20))
            for one in plan.placements
        )
        yield Step(words, partial(self._copy, plan), partial(self._take_back, plan))
        if plan.definition is None:
            for one in plan.placements:
                yield Step((), partial(self._places.put_new, one.waiting, one.path), final=True)
        else:
            yield from self._switching(plan, plan.definition)
        if self._options.pool is not None:
            name = self._options.pool
            yield Step(("refresh the storage pool %s" % name,), partial(self._host.refresh_pool, name))

    def _switching(self, plan: _Plan, definition: str) -> Iterator[Step]:
        for one in plan.placements:
            if one.is_boot:
                words = "put the %s %s in its place" % (one.kind, one.path)
                yield Step((words,), partial(self._places.put_new, one.waiting, one.path), self._undo_of(one))
        yield Step((), partial(self._refuse_started, plan))
        words = "define %s (%s) on the copies" % (plan.identity.name, plan.identity.uuid)
        yield Step((words,), partial(self._define, plan, definition), final=True)
        moves = {one.waiting: one.path for one in plan.placements if not one.is_boot}
        yield from _Later(self, plan).steps(moves)

    def end_of(self, plan: _Plan) -> RestoreEnd:
        domain = self._host.domain(plan.identity.uuid)
        return RestoreEnd(domain, self._images, self._places, self._sets.tpm_root())

    def _copy(self, plan: _Plan) -> None:
        self._progress.phase("copy")
        for one in plan.placements:
            if one.kind == TPM:
                self._places.make_folder(os.path.dirname(one.path))
        orders = tuple(
            RestoreOrder(
                one.target,
                one.file,
                self._places.way(one.waiting),
                one.bytes,
                one.allocated,
                one.sha256,
                one.format,
                one.virtual_size,
                one.backing,
                self._options.rate_limit * 1024 * 1024,
            )
            for one in plan.placements
        )
        try:
            self._sets.restore_all(
                orders,
                plan.found.path,
                self._options.parallel,
                lambda: require_going(self._progress, "restore"),
                self._progress.disk,
            )
            for one in plan.placements:
                self._places.give(one.waiting, _READABLE if one.is_boot else plan.old.get(one.path))
        except BaseException:
            self._remove_copies(plan)
            raise

    def _take_back(self, plan: _Plan, _cause: VirtopsError) -> bool:
        self._remove_copies(plan)
        return True

    def _undo_of(self, one: Placement) -> Callable[[VirtopsError], bool]:
        def remove(_cause: VirtopsError) -> bool:
            self._places.remove(one.path)
            return True

        return remove

    def _remove_copies(self, plan: _Plan) -> None:
        for one in plan.placements:
            self._places.remove(one.waiting)
            if one.kind == TPM:
                self._places.drop_folder(os.path.dirname(one.path))

    def _refuse_started(self, plan: _Plan) -> None:
        """It may have been, during the copy."""
        now = self._view(plan.identity)
        if now is not None and plan.view is None:
            raise VirtopsError(
                "domain_exists",
                "The domain %s was defined while its backup was copied" % now.name,
                "See who did that, then run the task again",
            )
        if now is not None:
            self._refuse_domain(now)

    def _define(self, plan: _Plan, definition: str) -> None:
        """The one write: before it the domain is the old one, after it the restored one."""
        self._progress.phase("define")
        moves = {one.path: one.waiting for one in plan.placements if one.kind != TPM and not one.is_boot}
        journal = Journal((plan.operation,))
        if self._options.disks is not None and plan.view is not None:
            journal = replace(plan.view.journal, restored=None).put(plan.operation)
        self._host.define(xml.with_journal(xml.moved_images(definition, moves), journal))

    # -- the end

    def _settle(
        self,
        run: Run,
        found: OpenSet,
        identity: Identity,
        view: DomainView | None,
        placements: tuple[Placement, ...],
        plan: _Plan | None = None,
    ) -> Outcome:
        """Autostart and start, which are wanted also of a domain that was restored before."""
        if self._options.disks is None:
            wanted = self._options.autostart
            if wanted is None and plan is not None:
                wanted = bool(found.manifest.get("autostart")) and not identity.is_copy
            has = view is not None and view.autostart
            if wanted is not None and wanted != has:
                words = "%s the autostart of %s" % ("turn on" if wanted else "turn off", identity.name)
                run.apply(Step((words,), lambda: self._host.domain(identity.uuid).set_autostart(bool(wanted))))
            if self._options.start and (view is None or not view.active):
                run.apply(Step(("start %s" % identity.name,), partial(self._start, identity)))
        return self._outcome(run, found, identity, view, placements)

    def _start(self, identity: Identity) -> None:
        self._progress.phase("start")
        self._host.domain(identity.uuid).power_on(paused=False)

    def _outcome(
        self,
        run: Run,
        found: OpenSet,
        identity: Identity,
        view: DomainView | None,
        placements: tuple[Placement, ...],
    ) -> Outcome:
        now = view if run.check else self._view(identity)
        is_whole = self._options.disks is None
        state = "shut off" if now is None else now.state
        if run.check and is_whole and self._options.start:
            state = "running"
        exists = now is not None or is_whole
        values: dict[str, object] = {
            "domain": {"name": identity.name, "uuid": identity.uuid, "state": state} if exists else None,
            "backup": {"path": found.path, "taken": found.manifest["times"]["snapshot"]},
            "disks": [_told(one) for one in placements if one.target],
        }
        before = {} if view is None else {disk.target: disk.active.path for disk in view.disks if disk.active}
        after = {**(before if not is_whole else {}), **{one.target: one.path for one in placements if one.target}}
        if not run.actions:
            after = before
        name = None if view is None else view.name
        return run.outcome(
            {"domain": name, "disks": before},
            {"domain": identity.name if is_whole else name, "disks": after},
            values,
        )


@dataclass(frozen=True)
class _Later:
    """The end of this very restore: its domain may not be there before the step that defines it."""

    flow: Restore
    plan: _Plan

    def steps(self, moves: dict[str, str]) -> tuple[Step, ...]:
        words = tuple("put %s in its place" % place for place in moves.values())
        return (Step((*words, "define %s on its files" % self.plan.identity.name), partial(self._end, moves)),)

    def _end(self, moves: dict[str, str]) -> None:
        for step in self.flow.end_of(self.plan).of(self.plan.identity.name, self.plan.operation, moves):
            step.act()


def _name_of(found: OpenSet) -> str:
    """What the set is called in the journal: DOMAIN/TIME."""
    return "%s/%s" % (found.manifest["domain"]["name"], stamp_of_iso(found.manifest["times"]["snapshot"] or ""))


def _own_paths(view: DomainView | None) -> frozenset[str]:
    """The files that the domain's disks and its NVRAM are on."""
    if view is None:
        return frozenset()
    disks = view.disks + view.config_disks
    writable = [disk for disk in disks if disk.device in ("disk", "lun") and not disk.readonly and not disk.shareable]
    return frozenset(layer.path for disk in writable for layer in disk.chain)


def _told(one: Placement) -> dict[str, Any]:
    return {"disk": one.target, "file": one.path, "format": one.format, "source": one.file, "sha256": one.sha256}
