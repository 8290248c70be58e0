# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the flow of a backup of the bases below a snapshot's overlays.

observe -> select -> a complete set is there: done -> refuse -> plan -> (check mode stops here) -> partial set -> NVRAM
and TPM, whose state no snapshot holds, as soon after it as can be -> copies under QEMU's image lock -> bases unchanged?
-> manifest -> final name. A failure removes the partial set; a death leaves it, and the next run of the same host
removes it: what is in it was never checked, and copying again is quick. Another host's is left alone until nobody has
written to it for long.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from .._core import xml
from .._core.backup import (
    DOMAIN_XML,
    MANIFEST,
    BackupWish,
    CopyOrder,
    CopyPort,
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
    RENEWAL,
    Manifest,
    is_own,
    mib,
    removable,
    require_nobody_writes,
    require_own_sets,
    require_same_set,
    require_space,
    set_paths,
)
from .._core.extras import Extras, plan_extras, with_unsteady
from .._core.images import Use
from .._core.journal import Journal
from .._core.model import DomainView, Layer, Outcome
from .._core.ports import Clock, ImagePort, ViewPort
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
    wish: BackupWish, view: DomainView, bases: tuple[Source, ...], images: ImagePort, store: StorePort
) -> None:
    """Refuse, while there is no snapshot yet, a backup of these bases that could not succeed after one."""
    store.check_destination(wish.dest)
    orders = tuple(order_of(wish, source, view, images, store) for source in bases)
    require_space(orders, images.free_bytes(wish.dest) + left_behind(wish, view, store), wish.dest)


def order_of(wish: BackupWish, source: Source, view: DomainView, images: ImagePort, store: StorePort) -> CopyOrder:
    """How this base would be copied; refuses options that do not fit its image."""
    require_local(source.target, source.base)
    return plan_copy(wish, _facts(source, view, images, store))


def extras_of(view: DomainView, targets: frozenset[str], images: ImagePort, store: StorePort) -> Extras:
    """What a set of these disks has besides them, and lacks."""
    return plan_extras(view, targets, store.tpm_root(), images.kind, images.names)


def left_behind(wish: BackupWish, view: DomainView, store: StorePort) -> int:
    """The bytes of the unfinished sets that a backup removes before it copies; refuses another domain's folder."""
    unfinished = _unfinished(set_paths(wish.dest, view, "").parent, view, store)
    return sum(partial.allocated for partial in removable(unfinished, view.uuid))


def _unfinished(parent: str, view: DomainView, store: StorePort) -> tuple[Unfinished, ...]:
    """What is under way in the domain's folder, or was left there; refuses another domain's folder."""
    unfinished = store.unfinished(parent)
    require_own_sets(store.owners(parent), unfinished, view)
    return unfinished


def _facts(source: Source, view: DomainView, images: ImagePort, store: StorePort) -> SourceFacts:
    """A block device holds no allocation that could be asked for: it counts with its whole size."""
    looks = require_sound(view, source.target, Use.COPY, images)
    layers = [look.layer for look in looks]
    base = find(source.base.path, layers, images)
    infos = [look.info for look in looks[layers.index(base) if base else 0 :] if look.info is not None]
    allocation = sum(
        info.allocation if store.is_regular(info.path) and not info.beside else info.virtual_size for info in infos
    )
    regular = store.is_regular(source.base.path)
    return SourceFacts(source, infos[0], tuple(Layer(info.path, info.format) for info in infos), allocation, regular)


class Backup:
    """Back up the bases of one snapshot, or find that they are backed up."""

    def __init__(
        self,
        wish: BackupWish,
        domain: ViewPort,
        images: ImagePort,
        store: StorePort,
        copier: CopyPort,
        clock: Clock,
    ) -> None:
        self._wish = wish
        self._domain = domain
        self._images = images
        self._store = store
        self._copier = copier
        self._clock = clock

    def run(self, check: bool) -> Outcome:
        """Plan, and where not `check`, apply. Raises VirtopsError; no partial set is left then."""
        self._store.check_destination(self._wish.dest)
        view, journal = self._observe()
        selection = select(self._wish, view, journal, self._images)
        paths = set_paths(self._wish.dest, view, selection.started)
        found = self._store.manifest(paths.final)
        if found is not None:
            return self._present(found, view, selection, paths)
        plan = self._plan(view, journal, selection, paths)
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
            manifest = self._apply(plan, view, manifest)
        return _made(plan, manifest)

    # -- looking

    def _observe(self) -> tuple[DomainView, Journal]:
        view = observe(self._domain, self._images)
        return view, view.journal

    def _present(self, found: dict[str, Any], view: DomainView, selection: Selection, paths: SetPaths) -> Outcome:
        require_same_set(found, self._store.file_sizes(paths.final), selection, self._wish, paths.final, view.uuid)
        state: dict[str, object] = {"path": paths.final, "files": _files_of(found)}
        return Outcome(before=state, after=state, values={"backup": {**found, "path": paths.final}})

    def _plan(self, view: DomainView, journal: Journal, selection: Selection, paths: SetPaths) -> _Plan:
        """Refuses whatever can be told before the first effect."""
        require_still(selection, view, journal)
        for source in selection.sources:
            require_identity(source, self._images.identity(source.base.path))
        facts = tuple(_facts(source, view, self._images, self._store) for source in selection.sources)
        orders = tuple(plan_copy(self._wish, fact) for fact in facts)
        unfinished = _unfinished(paths.parent, view, self._store)
        require_nobody_writes(unfinished, view, paths)
        stale = removable(unfinished, view.uuid)
        free = self._images.free_bytes(self._wish.dest) + sum(partial.allocated for partial in stale)
        require_space(orders, free, self._wish.dest)
        return _Plan(selection, paths, orders, _locked(facts), stale, self._extras(view, selection))

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
        directory = self._store.begin(plan.paths, _text(manifest))
        try:
            # Another host may have begun at the same time: each sees the other's now, if it did not before.
            _unfinished(plan.paths.parent, view, self._store)
            manifest = self._fill(plan, directory, manifest)
            self._store.finish(plan.paths)
        except BaseException:
            self._store.remove(plan.paths.partial)
            raise
        return manifest

    def _fill(self, plan: _Plan, directory: str, manifest: Manifest) -> Manifest:
        extras = self._copy_extras(plan.extras, directory)
        copied = self._copier.copy_all(plan.orders, directory, self._wish.parallel, self._watch(plan))
        view = self._require_unchanged(plan.selection)
        self._store.write(directory, DOMAIN_XML, self._domain_xml(plan.selection, view))
        manifest = manifest.complete(copied, extras, self._clock.utcnow())
        self._store.write(directory, MANIFEST, _text(manifest))
        return manifest

    def _copy_extras(self, extras: Extras, directory: str) -> Extras:
        files, unsteady = [], {}
        for file in extras.files:
            taken = self._clock.utcnow()
            size, digest, steady = self._store.copy_plain(file.source, directory, file.file)
            files.append(replace(file, bytes=size, sha256=digest, taken=taken))
            if not steady:
                unsteady[file.source] = file.kind
        return with_unsteady(replace(extras, files=tuple(files)), unsteady)

    def _watch(self, plan: _Plan) -> Callable[[], None]:
        """The guest writes to its overlays meanwhile. A full file system there stops it, so the copy gives way.

        Other hosts see by its time that the set is being written."""
        overlays = [source.overlay for source in plan.selection.sources]
        renewed = self._clock.monotonic()

        def watch() -> None:
            nonlocal renewed
            refuse_short(self._images, overlays, self._wish.keep_free)
            if self._clock.monotonic() - renewed >= RENEWAL:
                self._store.renew(plan.paths)
                renewed = self._clock.monotonic()

        return watch

    def _require_unchanged(self, selection: Selection) -> DomainView:
        """The same look as before the copy: what it read was that point in time to the end."""
        view, journal = self._observe()
        require_still(selection, view, journal)
        for source in selection.sources:
            require_identity(source, self._images.identity(source.base.path))
        return view

    def _domain_xml(self, selection: Selection, view: DomainView) -> str:
        """The definition as it was without the snapshot: a disk plugged into the live domain only is not in it."""
        known = {disk.target for disk in (view.config_disks if view.persistent else view.disks)}
        bases = {source.target: source.base for source in selection.sources if source.target in known}
        return xml.without_data_files(xml.with_disk_layers(self._domain.domain_xml(), bases, drop_journal=True))


def _text(manifest: Manifest) -> str:
    return json.dumps(manifest.as_dict(), indent=2, ensure_ascii=False) + "\n"


def _locked(facts: tuple[SourceFacts, ...]) -> tuple[str, ...]:
    """Each local layer that is read, once: disks may share a golden image."""
    layers: dict[str, Layer] = {layer.path: layer for fact in facts if fact.regular for layer in fact.layers}
    return tuple(sorted(path for path in layers if path.startswith("/")))


def _made(plan: _Plan, manifest: Manifest) -> Outcome:
    values = manifest.as_dict()
    torn = [lack for lack in manifest.extras.lacks if lack not in plan.extras.lacks]
    return Outcome(
        steps=_steps(plan),
        before={"path": None, "files": []},
        after={"path": plan.paths.final, "files": _files_of(values)},
        values={"backup": {**values, "path": plan.paths.final}},
        warnings=tuple(
            "The copy of %s may be torn: something wrote to it all the time" % lack.words() for lack in torn
        ),
    )


def _steps(plan: _Plan) -> tuple[str, ...]:
    steps = [
        "remove the unfinished set %s: an interrupted run left it, and its copies were never checked" % partial.path
        for partial in plan.stale
    ]
    steps += ["copy the %s %s" % (file.kind, file.source) for file in plan.extras.files]
    for order in plan.orders:
        steps.append(
            "copy %s (%s, %d MiB) as %s by %s"
            % (order.source.path, order.target, mib(order.needs), order.file, " or ".join(order.methods))
        )
    return (*steps, "write the manifest and the domain's XML, and name the set %s" % plan.paths.final)


def _files_of(manifest: dict[str, Any]) -> list[str]:
    nvram = [manifest["nvram"]] if manifest.get("nvram") else []  # earlier releases wrote no list of extras
    files = {entry["file"] for entry in (*nvram, *manifest.get("extras", ()), *manifest["disks"])}
    return sorted([MANIFEST, DOMAIN_XML, *files])
