# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Private to virtops.libvirt: the flow of internal snapshots.

observe -> plan -> (check mode stops here) -> libvirt's call. libvirt keeps data and record in step, and does so in one
call, so there is nothing for a journal to tell.
"""

from __future__ import annotations

from .._core import xml
from .._core.errors import VirtopsError
from .._core.internal import (
    Inside,
    InternalOptions,
    InternalPlan,
    has_no_state,
    leftovers,
    plan_deletion,
    plan_internal,
)
from .._core.journal import epoch
from .._core.model import DomainView, Outcome, SnapshotDisk, SnapshotRecord
from .._core.plan import Step
from .._core.ports import Clock, ImagePort, InternalPort
from .._core.refusals import refuse_open
from .._core.snapshot import unknown_words
from .._core.snapshot_tree import children_of, doomed_by
from .guest import Guest
from .snapshot_info import describe_snapshot


class InternalSnapshot:
    """Take an internal snapshot, or delete one with its data."""

    def __init__(self, guest: Guest[InternalPort]) -> None:
        self._guest = guest
        self._domain = guest.domain
        self._images = guest.images

    # -- present

    def present(self, options: InternalOptions, check: bool) -> Outcome:
        """Raises VirtopsError; the guest is then as before."""
        view = self._guest.observe()
        records = self._domain.snapshots()
        found = next((record for record in records if record.name == options.name), None)
        plan = plan_internal(
            options,
            view,
            found,
            view.journal,
            inside(view, self._images),
            self._domain.libvirt_version(),
        )
        current = self._domain.current_snapshot() if records else None
        request = xml.build_snapshot(
            options.name, options.description, plan.disks, memory="internal" if plan.memory else "no"
        )
        before: dict[str, object] = {"snapshots": _names(records), "state": view.state}
        with self._guest.run(check) as run:
            if found is not None:
                told = describe_snapshot(found, children_of(records)[found.name], current == found.name)
                return run.outcome(before, before, {"snapshot": told})
            words = ["take the internal snapshot %s of %s" % (options.name, _held(plan))]
            words += ["turn %s off at that moment" % view.name] if plan.halt else []
            run.apply(Step(tuple(words), lambda: self._domain.create_internal_snapshot(request, plan.halt)))
            made = (
                _foreseen(options, plan, view, current, self._guest.clock) if check else self._read_back(options.name)
            )
            after: dict[str, object] = {
                "snapshots": _names((*records, made)),
                "state": "shut off" if plan.halt else view.state,
                "snapshot": request,
            }
            return run.outcome(before, after, {"snapshot": describe_snapshot(made, [], True)})

    def _read_back(self, name: str) -> SnapshotRecord:
        made = self._domain.snapshot(name)
        if made is None:
            raise VirtopsError(
                "snapshot_unverified",
                "libvirt reported success, but it has no record of snapshot %r." % name,
                "See in libvirt's log what it did, then run the task again",
            )
        return made

    # -- absent

    def absent(self, name: str, children: str, check: bool) -> Outcome:
        """Delete the snapshot's data and record, and its descendants' as `children` says."""
        view = self._guest.observe()
        records = self._domain.snapshots()
        found = next((record for record in records if record.name == name), None)
        doomed = doomed_by(name, children, records)
        names = inside(view, self._images)
        stray = () if found is not None or children == "only" else leftovers(name, view, names)
        if found is not None or stray:
            refuse_open(view, view.journal)
            plan_deletion(name, doomed, found, view, names, self._domain.libvirt_version())
        current = self._domain.current_snapshot() if records else None
        told = None if found is None else describe_snapshot(found, children_of(records)[name], current == name)
        gone = {record.name for record in doomed} | ({name} if stray else set())
        words = ["delete snapshot %s and its data" % record.name for record in doomed]
        words += ["delete snapshot %s in %s, which libvirt has no record of" % (name, path) for path in stray]
        left = tuple(record for record in records if record not in doomed)
        with self._guest.run(check) as run:
            if stray:
                run.apply(Step((), lambda: self._adopt(name, view)))
            if words:
                run.apply(Step(tuple(words), lambda: self._delete(name, children, gone)))
            elif found is None:
                run.warnings += unknown_words(name, view)
            return run.outcome(
                {"snapshots": _names(records), "data": _data(names, set())},
                {"snapshots": _names(left), "data": _data(names, gone)},
                {"snapshot": told},
            )

    def _delete(self, name: str, children: str, gone: set[str]) -> None:
        self._domain.delete_snapshot(name, children)
        self._check_gone(gone)

    def _adopt(self, name: str, view: DomainView) -> None:
        """libvirt deletes data by their record alone: write one. Data without it are what is left of a libvirtd that
        died while it took the snapshot, or of a record that was deleted alone."""
        disks = tuple(SnapshotDisk(disk.target, "no" if has_no_state(disk) else "internal") for disk in view.disks)
        self._domain.redefine_snapshot(xml.build_record(name, disks, self._domain.domain_xml()), False, False)

    def _check_gone(self, gone: set[str]) -> None:
        """QEMU takes a snapshot that it does not find for one that is deleted."""
        view = self._guest.observe()
        names = inside(view, self._images)
        for name in sorted(gone):
            left = leftovers(name, view, names)
            if left:
                raise VirtopsError(
                    "snapshot_data_exists",
                    "libvirt reported success, but the image %s still has the snapshot %r inside." % (left[0], name),
                    "Run the task again; or delete it with 'qemu-img snapshot -d' once the domain is off",
                )


def inside(view: DomainView, images: ImagePort) -> Inside:
    """The snapshots inside of each qcow2 image of the domain's chains (`qemu-img info`)."""
    layers = {layer.path: layer.format for disk in view.disks for layer in disk.chain if not disk.readonly}
    found = {path: names_inside(path, image_format, images) for path, image_format in layers.items()}
    return {path: names for path, names in found.items() if names}


def names_inside(path: str, image_format: str, images: ImagePort) -> tuple[str, ...]:
    if image_format != "qcow2" or not images.exists(path):
        return ()
    return images.info(path, image_format).internal_snapshots


def _foreseen(
    options: InternalOptions, plan: InternalPlan, view: DomainView, parent: str | None, clock: Clock
) -> SnapshotRecord:
    """What check mode tells of a snapshot that is not there; its time is now."""
    return SnapshotRecord(
        name=options.name,
        state="paused" if view.state == "paused" else ("running" if view.active else "shutoff"),
        creation_time=epoch(clock.utcnow()),
        disks=plan.disks,
        description=options.description,
        parent=parent,
        memory="internal" if plan.memory else "no",
    )


def _held(plan: InternalPlan) -> str:
    kept = [disk.target for disk in plan.disks if disk.mode == "internal"]
    return ", ".join([*kept, "the memory"] if plan.memory else kept)


def _names(records: tuple[SnapshotRecord, ...]) -> list[str]:
    return sorted(record.name for record in records)


def _data(found: Inside, gone: set[str]) -> dict[str, list[str]]:
    """The snapshots inside of each image, as `diff` shows them."""
    return {path: [name for name in names if name not in gone] for path, names in found.items()}
