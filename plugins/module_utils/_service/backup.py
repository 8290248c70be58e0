# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the flow of a backup of the bases below a snapshot's overlays.

observe -> select -> a complete set is there: done -> refuse -> plan -> (check mode stops here) -> partial set
-> copies under QEMU's image lock -> bases unchanged? -> manifest -> final name. A failure removes the partial set; a
death leaves it, and the next run removes it: what is in it was never checked, and copying again is quick.
"""

from __future__ import annotations

import json
import os
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
    PlainFile,
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
from .._core.backup_set import Manifest, mib, require_same_set, require_space, set_paths
from .._core.errors import VirtopsError
from .._core.journal import Journal
from .._core.model import DomainView, Layer, Outcome
from .._core.ports import Clock, ImagePort, ViewPort
from .brake import refuse_short
from .observe import observe


@dataclass(frozen=True)
class _Plan:
    """All that a run will do. `locked` are the images that nothing may write to meanwhile."""

    selection: Selection
    paths: SetPaths
    orders: tuple[CopyOrder, ...]
    locked: tuple[str, ...]
    stale: tuple[Unfinished, ...]
    nvram: PlainFile | None


def refuse_early(
    wish: BackupWish, view: DomainView, bases: tuple[Source, ...], images: ImagePort, store: StorePort
) -> None:
    """Refuse, while there is no snapshot yet, a backup of these bases that could not succeed after one."""
    store.check_destination(wish.dest)
    orders = tuple(order_of(wish, source, images, store) for source in bases)
    require_space(orders, images.free_bytes(wish.dest) + left_behind(wish, view, store), wish.dest)


def order_of(wish: BackupWish, source: Source, images: ImagePort, store: StorePort) -> CopyOrder:
    """How this base would be copied; refuses options that do not fit its image."""
    require_local(source.target, source.base)
    return plan_copy(wish, _facts(source, images, store))


def left_behind(wish: BackupWish, view: DomainView, store: StorePort) -> int:
    """The bytes of this domain's unfinished sets, which a backup removes before it copies."""
    parent = set_paths(wish.dest, view, "").parent
    return sum(partial.allocated for partial in store.unfinished(parent) if partial.owner == view.uuid)


def _facts(source: Source, images: ImagePort, store: StorePort) -> SourceFacts:
    """A block device holds no allocation that could be asked for: it counts with its whole size."""
    info = images.info(source.base.path, source.base.format)
    layers = images.chain(source.base.path, source.base.format) if info.backing_path else (source.base,)
    regular = store.is_regular(source.base.path)
    allocation = info.allocation if regular else info.virtual_size
    for layer in layers[1:]:
        below = images.info(layer.path, layer.format)
        allocation += below.allocation if store.is_regular(layer.path) else below.virtual_size
    return SourceFacts(source, info, layers, allocation, regular)


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
            return self._present(found, selection, paths)
        plan = self._plan(view, journal, selection, paths)
        manifest = Manifest(
            selection, view.name, view.uuid, self._store.hostname(), plan.orders, {}, plan.nvram, self._clock.utcnow()
        )
        if not check:
            manifest = self._apply(plan, manifest)
        return _made(plan, manifest)

    # -- looking

    def _observe(self) -> tuple[DomainView, Journal]:
        view = observe(self._domain, self._images)
        return view, xml.parse_journal(view.journal_xml)

    def _present(self, found: dict[str, Any], selection: Selection, paths: SetPaths) -> Outcome:
        require_same_set(found, self._store.file_sizes(paths.final), selection, self._wish, paths.final)
        state: dict[str, object] = {"path": paths.final, "files": _files_of(found)}
        return Outcome(before=state, after=state, values={"backup": {**found, "path": paths.final}})

    def _plan(self, view: DomainView, journal: Journal, selection: Selection, paths: SetPaths) -> _Plan:
        """Refuses whatever can be told before the first effect."""
        require_still(selection, view, journal)
        for source in selection.sources:
            require_identity(source, self._images.identity(source.base.path))
        facts = tuple(_facts(source, self._images, self._store) for source in selection.sources)
        orders = tuple(plan_copy(self._wish, fact) for fact in facts)
        stale = self._stale(view, paths)
        free = self._images.free_bytes(self._wish.dest) + sum(partial.allocated for partial in stale)
        require_space(orders, free, self._wish.dest)
        return _Plan(selection, paths, orders, _locked(facts), stale, self._nvram(view))

    def _stale(self, view: DomainView, paths: SetPaths) -> tuple[Unfinished, ...]:
        """What earlier runs for this domain left. Another domain's, of the same name on another host, is not ours."""
        unfinished = self._store.unfinished(paths.parent)
        for partial in unfinished:
            if partial.path == paths.partial and partial.owner not in (None, view.uuid):
                raise VirtopsError(
                    "set_exists",
                    "Another domain's backup is being written to %s" % partial.path,
                    "Give each hypervisor a dest of its own",
                )
        return tuple(partial for partial in unfinished if partial.owner == view.uuid or partial.path == paths.partial)

    def _nvram(self, view: DomainView) -> PlainFile | None:
        """A domain that never ran has none yet."""
        if view.nvram is None or not self._store.is_regular(view.nvram):
            return None
        return PlainFile(view.nvram, "nvram" + os.path.splitext(view.nvram)[1])

    # -- effects

    def _apply(self, plan: _Plan, manifest: Manifest) -> Manifest:
        with self._copier.hold(plan.locked):
            for partial in plan.stale:
                self._store.remove(partial.path)
            return self._make(plan, manifest)

    def _make(self, plan: _Plan, manifest: Manifest) -> Manifest:
        try:
            self._store.begin(plan.paths)
            # Written first, so that whoever finds a partial set knows whose it is.
            self._write(plan.paths.partial, manifest)
            manifest = self._fill(plan, manifest)
            self._store.finish(plan.paths)
        except BaseException:
            self._store.remove(plan.paths.partial)
            raise
        return manifest

    def _fill(self, plan: _Plan, manifest: Manifest) -> Manifest:
        directory = plan.paths.partial
        copied = self._copier.copy_all(plan.orders, directory, self._wish.parallel, self._watch(plan.selection))
        view = self._require_unchanged(plan.selection)
        self._store.write(directory, DOMAIN_XML, self._domain_xml(plan.selection, view))
        nvram = plan.nvram
        if nvram is not None:
            size, digest = self._store.copy_plain(nvram.source, directory, nvram.file)
            nvram = replace(nvram, bytes=size, sha256=digest)
        manifest = manifest.complete(copied, nvram, self._clock.utcnow())
        self._write(directory, manifest)
        return manifest

    def _watch(self, selection: Selection) -> Callable[[], None]:
        """The guest writes to its overlays meanwhile. A full file system there stops it, so the copy gives way."""
        overlays = [source.overlay for source in selection.sources]
        return lambda: refuse_short(self._images, overlays, self._wish.keep_free)

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
        return xml.with_disk_layers(self._domain.domain_xml(), bases, drop_journal=True)

    def _write(self, directory: str, manifest: Manifest) -> None:
        text = json.dumps(manifest.as_dict(), indent=2, ensure_ascii=False)
        self._store.write(directory, MANIFEST, text + "\n")


def _locked(facts: tuple[SourceFacts, ...]) -> tuple[str, ...]:
    """Each local layer that is read, once: disks may share a golden image."""
    layers: dict[str, Layer] = {layer.path: layer for fact in facts if fact.regular for layer in fact.layers}
    return tuple(sorted(path for path in layers if path.startswith("/")))


def _made(plan: _Plan, manifest: Manifest) -> Outcome:
    values = manifest.as_dict()
    return Outcome(
        steps=_steps(plan),
        before={"path": None, "files": []},
        after={"path": plan.paths.final, "files": _files_of(values)},
        values={"backup": {**values, "path": plan.paths.final}},
    )


def _steps(plan: _Plan) -> tuple[str, ...]:
    steps = [
        "remove the unfinished set %s: an interrupted run left it, and its copies were never checked" % partial.path
        for partial in plan.stale
    ]
    for order in plan.orders:
        steps.append(
            "copy %s (%s, %d MiB) as %s by %s"
            % (order.source.path, order.target, mib(order.needs), order.file, " or ".join(order.methods))
        )
    if plan.nvram is not None:
        steps.append("copy the NVRAM %s" % plan.nvram.source)
    return (*steps, "write the manifest and the domain's XML, and name the set %s" % plan.paths.final)


def _files_of(manifest: dict[str, Any]) -> list[str]:
    nvram = [manifest["nvram"]["file"]] if manifest.get("nvram") else []
    return sorted([MANIFEST, DOMAIN_XML, *nvram, *(disk["file"] for disk in manifest["disks"])])
