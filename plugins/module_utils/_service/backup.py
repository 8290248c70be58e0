# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the flow of a backup of the bases below a snapshot's overlays.

Two parts, so that the guest is on its overlays no longer than the copy takes.

copy: observe -> select -> a complete set is there: done -> a copied one is there: done -> refuse -> plan -> (check mode
stops here) -> partial set -> NVRAM and TPM, whose state no snapshot holds, as soon after it as can be -> copies under
QEMU's image lock -> bases unchanged? -> digests, which say that the set is copied.

finish, best after the merge: read each copied set of this domain and host back from the disk -> compare it with its
digests -> SHA256SUMS, manifest -> final name. It needs neither the snapshot nor the bases, so it also finishes what an
earlier run left.

A failure of the copy removes the partial set, and so does a verification that finds a difference. Where the target
does not answer, nothing is removed. The next run on the same host removes a copy that was interrupted, as copying again
is quick; another host's only when nobody has written to it for long.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, replace
from typing import Any, Protocol

from .._core import xml
from .._core.backup import (
    DIGESTS,
    DOMAIN_XML,
    MANIFEST,
    SUMS,
    BackupOptions,
    CopyOrder,
    CopyPort,
    PlainFile,
    Run,
    Selection,
    SetPaths,
    Source,
    SourceFacts,
    StorePort,
    Unfinished,
    require_identity,
    require_local,
    require_still,
    select,
)
from .._core.backup_copy import plan_copy
from .._core.backup_set import (
    LEASE,
    Manifest,
    awaiting,
    build_sums,
    finished,
    has_same_disks,
    is_own,
    lost,
    mib,
    removable,
    require_nobody_writes,
    require_own_sets,
    require_same_set,
    require_space,
    set_paths,
    verify_orders,
)
from .._core.errors import VirtopsError
from .._core.extras import Extras, plan_extras, with_late, with_unsteady
from .._core.images import Use
from .._core.journal import epoch
from .._core.manifest import build_digests
from .._core.model import DomainView, Layer, Outcome
from .._core.ports import Clock, ImagePort, Progress, Silent, ViewPort
from .._core.refusals import require_going
from .._core.text import counted
from .brake import refuse_short
from .observe import observe
from .sound import find, require_sound


@dataclass(frozen=True)
class _Plan:
    """All that a run will do. `locked` are the images that nothing may write to meanwhile."""

    selection: Selection
    paths: SetPaths
    orders: tuple[CopyOrder, ...]
    locked: tuple[str, ...]
    stale: tuple[Unfinished, ...]
    extras: Extras


def refuse_early(
    options: BackupOptions, view: DomainView, bases: tuple[Source, ...], images: ImagePort, store: StorePort
) -> None:
    """Refuse, while there is no snapshot yet, a backup of these bases that could not succeed after one."""
    store.check_destination(options.dest)
    orders = tuple(order_of(options, source, view, images, store) for source in bases)
    extras = extras_of(view, frozenset(source.target for source in bases), images, store)
    free = store.free_bytes(options.dest) + left_behind(options, view, store)
    require_space(orders, free, options.dest, extras.needs)


def order_of(
    options: BackupOptions, source: Source, view: DomainView, images: ImagePort, store: StorePort
) -> CopyOrder:
    """How this base would be copied; refuses options that do not fit its image."""
    require_local(source.target, source.base)
    return plan_copy(options, facts_of(source, view, images, store))


def extras_of(view: DomainView, targets: frozenset[str], images: ImagePort, store: StorePort) -> Extras:
    """What a set of these disks has besides them, and lacks."""
    return plan_extras(
        view, targets, store.tpm_root(), images.kind, images.names, lambda path: images.identity(path).size
    )


def left_behind(options: BackupOptions, view: DomainView, store: StorePort) -> int:
    """The bytes of the unfinished sets that a backup removes before it copies; refuses another domain's folder."""
    unfinished = _unfinished(set_paths(options.dest, view, "").parent, view, store)
    return sum(partial.allocated for partial in removable(unfinished, view.uuid))


def _unfinished(parent: str, view: DomainView, store: StorePort) -> tuple[Unfinished, ...]:
    """What is under way in the domain's folder, or was left there; refuses another domain's folder."""
    unfinished = store.unfinished(parent)
    require_own_sets(store.owners(parent), unfinished, view)
    return unfinished


def facts_of(source: Source, view: DomainView, images: ImagePort, store: StorePort) -> SourceFacts:
    """What the host says of a base; refuses one that no reader could copy. A block device holds no allocation that
    could be asked for: it counts with its whole size."""
    looks = require_sound(view, source.target, Use.COPY, images)
    layers = [look.layer for look in looks]
    base = find(source.base.path, layers, images)
    infos = [look.info for look in looks[layers.index(base) if base else 0 :] if look.info is not None]
    allocation = sum(
        info.allocation if store.is_regular(info.path) and not info.beside else info.virtual_size for info in infos
    )
    regular = store.is_regular(source.base.path)
    return SourceFacts(source, infos[0], tuple(Layer(info.path, info.format) for info in infos), allocation, regular)


class Point(Protocol):
    """The point in time that a set is to hold, and what tells that the images still are at it."""

    def select(self, view: DomainView) -> Selection:
        """Which images are copied; refuses what cannot be."""

    def require_still(self, selection: Selection, view: DomainView) -> None:
        """Refuse images that something writes to, or has written to. Before the copy, and after it."""

    def lockable(self, paths: tuple[str, ...]) -> tuple[str, ...]:
        """Those of these files that QEMU's lock is taken on meanwhile."""

    def watch(self) -> None:
        """Called now and then while the images are copied; raises to give up."""


class SnapshotPoint:
    """Implements `Point`: a snapshot, whose overlays the guest writes to while their bases are copied."""

    def __init__(self, options: BackupOptions, images: ImagePort) -> None:
        self._options = options
        self._images = images
        self._overlays: tuple[str, ...] = ()

    def select(self, view: DomainView) -> Selection:
        """The bases below the overlays."""
        selection = select(self._options, view, view.journal, self._images)
        self._overlays = tuple(source.overlay for source in selection.sources)
        return selection

    def require_still(self, selection: Selection, view: DomainView) -> None:
        """What the copy read was that point in time to the end."""
        require_still(selection, view, view.journal)
        for source in selection.sources:
            require_identity(source, self._images.identity(source.base.path))

    def lockable(self, paths: tuple[str, ...]) -> tuple[str, ...]:
        """All."""
        return paths

    def watch(self) -> None:
        """A full file system below the overlays stops the guest, so the copy gives way."""
        refuse_short(self._images, self._overlays, self._options.keep_free)


class Backup:
    """Back up the images of one point in time, most often the bases of a snapshot, or find that they are backed up.

    `copy` in the window in which the guest is on its overlays, then the merge, then `finish`; or `run`, which does all.
    `finish_left` before a snapshot is taken. `store` and `copier`: see `_host.helper.backup_target`.

    Raises `stopped` where `progress` has the order to stop: the copy's partial set is removed, a copied one stays.
    """

    def __init__(
        self,
        options: BackupOptions,
        domain: ViewPort,
        images: ImagePort,
        store: StorePort,
        copier: CopyPort,
        clock: Clock,
        progress: Progress | None = None,
        point: Point | None = None,
    ) -> None:
        self._options = options
        self._point = point or SnapshotPoint(options, images)
        self._domain = domain
        self._images = images
        self._store = store
        self._copier = copier
        self._clock = clock
        self._progress = progress or Silent()
        #: The set that `copy` has left, or in check mode would leave, to `finish`, and what is known of it, or of one
        #: that was complete.
        self._mine: SetPaths | None = None
        self._backup: dict[str, Any] | None = None

    def run(self, check: bool) -> Outcome:
        """Copy, finish, and finish what earlier runs left."""
        self._progress.phase("copy")
        copied = self.copy(check)
        self._progress.phase("verify")
        ended, left = self.finish(check), self.finish_left(check)
        return Outcome(
            (*copied.steps, *ended.steps, *left.steps),
            copied.before,
            copied.after,
            ended.values,
            (*copied.warnings, *ended.warnings, *left.warnings),
        )

    def copy(self, check: bool) -> Outcome:
        """Plan, and where not `check`, copy. Raises VirtopsError; no partial set is left then, unless the target does
        not answer (`copy_stalled`)."""
        self._store.check_destination(self._options.dest)
        view = observe(self._domain, self._images)
        selection = self._point.select(view)
        paths = set_paths(self._options.dest, view, selection.started)
        found = self._store.manifest(paths.final)
        if found is not None:
            return self._present(found, view, selection, paths)
        self._mine = paths
        left = self._left(view, selection, paths)
        if left is not None:
            return self._made((), paths, left)
        plan = self._plan(view, selection, paths)
        manifest = Manifest(
            selection,
            view.name,
            view.uuid,
            self._store.hostname(),
            self._store.machine(),
            plan.orders,
            {},
            plan.extras,
            view.autostart,
            self._clock.utcnow(),
        )
        if not check:
            require_going(self._progress)
            manifest = self._apply(plan, view, manifest)
        torn = [lack for lack in manifest.extras.lacks if lack not in plan.extras.lacks]
        warnings = ("The copy of %s may be inconsistent: %s" % (lack.words(), lack.reason) for lack in torn)
        return self._made(_steps(plan), paths, manifest.as_dict(), tuple(warnings))

    def finish(self, check: bool) -> Outcome:
        """Verify what `copy` left, and name it. The value "backup" is its manifest, with its path.

        Raises VirtopsError: `verify_failed` after the set was removed. After all else it stays, and so it does where
        the run is killed; see `finish_left`.
        """
        if self._mine is None or check:  # in check mode there may be nothing yet to look at
            steps = () if self._mine is None else _finishing(self._mine, self._options.verify)
            return Outcome(steps, values={"backup": self._backup})
        return self._finish(self._mine, check)

    def left(self) -> tuple[Unfinished, ...]:
        """What interrupted runs of this domain and host had copied, and what is to be finished."""
        view = self._domain.view()
        parent = set_paths(self._options.dest, view, "").parent
        mine = None if self._mine is None else self._mine.partial
        return tuple(it for it in awaiting(self._store.unfinished(parent), view.uuid) if it.path != mine)

    def finish_left(self, check: bool, left: tuple[Unfinished, ...] | None = None) -> Outcome:
        """`finish` for all of `left`. The value "backup" is the newest, or None. What cannot be finished is a warning,
        unless the target does not answer."""
        found, warnings = Outcome(values={"backup": None}), []
        for partial in self.left() if left is None else left:
            try:
                done = self._finish(_paths_of(partial), check)
            except VirtopsError as error:
                if error.code in ("copy_stalled", "stopped"):
                    raise
                warnings.append("The set %s of an interrupted run could not be finished: %s" % (partial.path, error))
            else:
                found = replace(done, steps=found.steps + done.steps, warnings=found.warnings + done.warnings)
        return replace(found, warnings=(*found.warnings, *warnings))

    # -- looking

    def _present(self, found: dict[str, Any], view: DomainView, selection: Selection, paths: SetPaths) -> Outcome:
        require_same_set(found, self._store.file_sizes(paths.final), selection, self._options, paths.final, view.uuid)
        outcome = self._made((), paths, found)
        return replace(outcome, before=outcome.after)

    def _made(
        self, steps: tuple[str, ...], paths: SetPaths, manifest: dict[str, Any], warnings: tuple[str, ...] = ()
    ) -> Outcome:
        self._backup = {**manifest, "path": paths.final}
        return Outcome(
            steps,
            {"path": None, "files": []},
            {"path": paths.final, "files": _files_of(manifest)},
            {"backup": self._backup},
            warnings,
        )

    def _left(self, view: DomainView, selection: Selection, paths: SetPaths) -> dict[str, Any] | None:
        """The manifest of a set that an interrupted run has copied of this very snapshot."""
        for partial in awaiting(_unfinished(paths.parent, view, self._store), view.uuid):
            found = self._store.manifest(partial.path) if partial.path == paths.partial else None
            usable = found is not None and self._store.digests(partial.path) is not None
            if found is not None and usable and found["operation"] == selection.operation:
                return found if has_same_disks(found, selection, self._options) else None
        return None

    def _plan(self, view: DomainView, selection: Selection, paths: SetPaths) -> _Plan:
        """Refuses whatever can be told before the first effect."""
        self._point.require_still(selection, view)
        facts = tuple(facts_of(source, view, self._images, self._store) for source in selection.sources)
        orders = tuple(plan_copy(self._options, fact) for fact in facts)
        unfinished = _unfinished(paths.parent, view, self._store)
        require_nobody_writes(unfinished, view, paths)
        stale = removable(unfinished, view.uuid, paths.partial)
        free = self._store.free_bytes(self._options.dest) + sum(partial.allocated for partial in stale)
        extras = self._extras(view, selection)
        require_space(orders, free, self._options.dest, extras.needs)
        locked = self._point.lockable(locked_layers(facts))
        return _Plan(selection, paths, orders, locked, stale, extras)

    def _extras(self, view: DomainView, selection: Selection) -> Extras:
        return extras_of(view, frozenset(source.target for source in selection.sources), self._images, self._store)

    # -- effects

    def _apply(self, plan: _Plan, view: DomainView, manifest: Manifest) -> Manifest:
        with self._copier.hold(plan.locked):
            for partial in plan.stale:
                self._store.remove(partial.path, 0 if is_own(partial, view.uuid) else LEASE)
            return self._make(plan, view, manifest)

    def _make(self, plan: _Plan, view: DomainView, manifest: Manifest) -> Manifest:
        """What failed to begin is another's, and stays."""
        directory = self._store.begin(plan.paths, _text(manifest.as_dict()))
        try:
            # Another host may have begun at the same time: each sees the other's now, if it did not before.
            _unfinished(plan.paths.parent, view, self._store)
            return self._fill(plan, directory, manifest)
        except BaseException as error:
            self._give_up(plan.paths, error)
            raise

    def _give_up(self, paths: SetPaths, error: BaseException) -> None:
        """A target that does not answer is not touched again: the next run removes what is left there."""
        if isinstance(error, VirtopsError) and error.code == "copy_stalled":
            return
        try:
            self._store.remove(paths.partial)
        except VirtopsError as failure:
            if failure.code != "copy_stalled":
                raise

    def _fill(self, plan: _Plan, directory: str, manifest: Manifest) -> Manifest:
        extras = self._copy_state(plan, directory)
        for order in plan.orders:
            self._progress.step("begins: %s" % _copying(order))
        began = self._clock.monotonic()
        copied = self._copier.copy_all(plan.orders, directory, self._options.parallel, self._watch, self._progress.disk)
        seconds = self._clock.monotonic() - began
        size = sum(found.allocated for found in copied.values())
        self._progress.step("copied %s, %d MiB, in %.1f s" % (counted(len(copied), "disk"), mib(size), seconds))
        view = self._require_unchanged(plan.selection)
        extras = self._copy_boot_files(extras, directory)
        self._store.write(directory, DOMAIN_XML, without_snapshot(self._domain, plan.selection, view))
        manifest = manifest.complete(copied, extras)
        self._store.write(directory, MANIFEST, _text(manifest.as_dict()))
        digests = {order.file: copied[order.target].runs for order in plan.orders}
        self._store.write(directory, DIGESTS, build_digests(digests))
        self._store.require_in_place(plan.paths)
        return manifest

    def _finish(self, paths: SetPaths, check: bool) -> Outcome:
        """One set that is copied."""
        manifest = self._store.manifest(paths.partial)
        if manifest is None:
            raise lost(paths.partial)
        digests = self._store.digests(paths.partial)
        if digests is None:
            raise VirtopsError(
                "set_damaged",
                "The unfinished set %s has no %s that could be used" % (paths.partial, DIGESTS),
                "Move it away, then try again",
            )
        warnings: tuple[str, ...] = ()
        if not check:
            manifest, warnings = self._verify(paths, manifest, digests)
        return Outcome(
            _finishing(paths, self._options.verify),
            values={"backup": {**manifest, "path": paths.final}},
            warnings=warnings,
        )

    def _verify(
        self, paths: SetPaths, manifest: dict[str, Any], digests: dict[str, tuple[Run, ...] | None]
    ) -> tuple[dict[str, Any], tuple[str, ...]]:
        directory = self._store.resume(paths)
        began = self._clock.monotonic()
        orders = verify_orders(manifest, digests, self._options.verify)
        self._progress.step("begins: read %s of %s back" % (counted(len(orders), "file"), paths.partial))
        try:
            verified = self._copier.verify_all(
                orders, directory, self._options.parallel, lambda: require_going(self._progress), self._progress.disk
            )
        except VirtopsError as error:
            if error.code == "verify_failed":
                self._give_up(paths, error)
            raise
        spent = self._clock.monotonic() - began
        self._progress.step("read %s back in %.1f s" % (counted(len(orders), "file"), spent))
        manifest = finished(manifest, verified, self._clock.utcnow(), self._options.verify)
        text = _text(manifest)
        sums = {file: found.sha256 for file, found in verified.items()}
        sums[MANIFEST] = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
        self._store.write(directory, SUMS, build_sums(sums))
        self._store.write(directory, MANIFEST, text)
        self._store.finish(paths)
        if not self._options.verify or all(found.from_disk for found in verified.values()):
            return manifest, ()
        return manifest, (
            "The copies in %s were compared as they are in this host's page cache: their file system neither does "
            "without it nor lets it be dropped" % paths.final,
        )

    def _copy_state(self, plan: _Plan, directory: str) -> Extras:
        """What the guest writes to, first of all: as near to the moment that the disks are from as can be."""
        files, unsteady = self._copy_plain(plan.extras.state, directory)
        began = (epoch(plan.selection.started) + 1) * 1_000_000_000
        late = {
            file.source: file.kind
            for file in files
            if file.source not in unsteady and self._images.identity(file.source).mtime_ns >= began
        }
        extras = replace(plan.extras, files=(*files, *plan.extras.boot))
        return with_late(with_unsteady(extras, unsteady), late)

    def _copy_boot_files(self, extras: Extras, directory: str) -> Extras:
        """Last, as they belong to no moment."""
        files, unsteady = self._copy_plain(extras.boot, directory)
        return with_unsteady(replace(extras, files=(*extras.state, *files)), unsteady)

    def _copy_plain(self, files: tuple[PlainFile, ...], directory: str) -> tuple[tuple[PlainFile, ...], dict[str, str]]:
        """With what is known of them then; source and kind of those that were written to all the time."""
        copied, unsteady = [], {}
        for file in files:
            taken = self._clock.utcnow()
            size, digest, steady = self._store.copy_plain(file.source, directory, file.file)
            copied.append(replace(file, bytes=size, sha256=digest, taken=taken))
            if not steady:
                unsteady[file.source] = file.kind
        return tuple(copied), unsteady

    def _watch(self) -> None:
        require_going(self._progress)
        self._point.watch()

    def _require_unchanged(self, selection: Selection) -> DomainView:
        """The same look as before the copy."""
        view = observe(self._domain, self._images)
        self._point.require_still(selection, view)
        return view


def without_snapshot(domain: ViewPort, selection: Selection, view: DomainView, secrets: bool = True) -> str:
    """The definition as it was without the snapshot: a disk plugged into the live domain only is not in it."""
    known = {disk.target for disk in (view.config_disks if view.persistent else view.disks)}
    bases = {source.target: source.base for source in selection.sources if source.target in known}
    return xml.without_data_files(xml.with_disk_layers(domain.domain_xml(secrets), bases, drop_journal=True))


def _text(manifest: dict[str, Any]) -> str:
    return json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"


def _paths_of(partial: Unfinished) -> SetPaths:
    """Of a set by the name that `set_paths` gave it."""
    parent, name = os.path.split(partial.path)
    return SetPaths(parent, os.path.join(parent, name[1:].partition(".")[0]), partial.path)


def locked_layers(facts: tuple[SourceFacts, ...]) -> tuple[str, ...]:
    """Each local layer that is read, once: disks may share a golden image."""
    layers: dict[str, Layer] = {layer.path: layer for fact in facts if fact.regular for layer in fact.layers}
    return tuple(sorted(path for path in layers if path.startswith("/")))


def _finishing(paths: SetPaths, verify: bool) -> tuple[str, ...]:
    read = "compare the copies on the disk with what was written" if verify else "read the copies for their SHA-256"
    return read, "write %s, and name the set %s" % (SUMS, paths.final)


def _steps(plan: _Plan) -> tuple[str, ...]:
    steps = [
        "remove the unfinished set %s: an interrupted run left it, and its copies were never checked" % partial.path
        for partial in plan.stale
    ]
    steps += ["copy the %s %s" % (file.kind, file.source) for file in plan.extras.state]
    steps += map(_copying, plan.orders)
    steps += ["copy the %s %s" % (file.kind, file.source) for file in plan.extras.boot]
    return (*steps, "write the manifest and the domain's XML")


def _copying(order: CopyOrder) -> str:
    words = "copy %s (%s, %d MiB) as %s by %s"
    return words % (order.source.path, order.target, mib(order.needs), order.file, " or ".join(order.methods))


def _files_of(manifest: dict[str, Any]) -> list[str]:
    nvram = [manifest["nvram"]] if manifest.get("nvram") else []  # earlier releases wrote no list of extras
    files = {entry["file"] for entry in (*nvram, *manifest.get("extras", ()), *manifest["disks"])}
    return sorted([MANIFEST, DOMAIN_XML, SUMS, *files])
