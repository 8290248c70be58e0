# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Private to virtops.libvirt: the flow of image_convert.

observe -> plan -> (check mode stops here) -> new images, written, compared and named -> journal, if the old ones are
to go -> one write of the definition -> old images removed. Until that write nothing but files of ours has changed: the
next run finds whole images again and uses them, and writes the others anew. After it only the journal knows the old
ones.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Container
from contextlib import suppress
from dataclasses import replace
from functools import partial

from .._core.convert import Conversion, ConvertOptions, interrupted, plan_conversions, removal_of
from .._core.errors import VirtopsError
from .._core.images import why_not_alone
from .._core.journal import JournalDisk, Operation
from .._core.model import CRASHED, DomainView, FileIdentity, Layer, Outcome
from .._core.plan import Step, nothing
from .._core.ports import ConvertImagePort, ConvertPort, GuestPort, ImagePort
from .._core.refusals import guest_crashed, refuse_open
from .._core.snapshot import is_in_chain
from .away import require_here
from .guest import Guest
from .interrupted import ending
from .observe import FileSet, OtherFiles, chains
from .overlays import require_folder
from .run import Run


class Convert:
    """Put a domain that is off on qcow2 images instead of its raw ones."""

    def __init__(self, options: ConvertOptions, guest: Guest[ConvertPort], images: ConvertImagePort) -> None:
        self._options = options
        self._guest = guest
        self._domain = guest.domain
        self._images = images

    def run(self, check: bool) -> Outcome:
        """Raises VirtopsError; the domain is then on the images that it had."""
        with self._guest.run(check) as run:
            return self._run(run)

    def _run(self, run: Run) -> Outcome:
        view = self._guest.observe()
        others = self._guest.others()
        plan = plan_conversions(self._options, view, others)
        left = interrupted(view.journal)
        steps, kept = ((), ()) if left is None else finished(left, view, others, self._guest)
        if plan:
            self._refuse(view, left)
        known = {one.source.path: self._images.identity(one.source.path) for one in plan}
        steps += tuple(step for one in plan for step in self._converting(one, others))
        sources = self._doomed(known) if self._options.delete_source else {}
        claims = {path: others.claims(path) for path in sources}
        sources = {path: identity for path, identity in sources.items() if claims[path] is None}
        run.warnings += kept
        run.warnings += ("%s was kept: %s." % (path, claim) for path, claim in claims.items() if claim is not None)
        run.apply(*steps, *(self._switching(plan, known, sources, view) if plan else ()))
        before: dict[str, object] = dict(chains(view))
        return run.outcome(
            {"disks": before},
            {"disks": {**before, **{one.target: [one.path] for one in plan}}},
            {"disks": [{"disk": one.target, "source": one.source.path, "image": one.path} for one in plan]},
        )

    def _converting(self, one: Conversion, others: Container[str]) -> list[Step]:
        if self._is_there(one, others):
            words = "take %s, which holds the same as %s (%s)" % (one.path, one.source.path, one.target)
            return [Step((words,), nothing)]
        self._refuse_space(one)
        steps = []
        if self._images.exists(one.partial):
            words = "remove %s, which an interrupted run left" % one.partial
            steps.append(Step((words,), partial(self._images.remove, one.partial)))
        words = "convert %s into %s (%s)" % (one.source.path, one.path, one.target)
        return [*steps, Step((words,), partial(self._convert, one))]

    def _switching(
        self,
        plan: tuple[Conversion, ...],
        known: dict[str, FileIdentity],
        sources: dict[str, FileIdentity],
        view: DomainView,
    ) -> list[Step]:
        """Where the old images are to go, the journal knows them before the definition does not any more."""
        layers = {one.target: one.image for one in plan}
        define = Step(("define %s on the new images" % view.name,), partial(self._domain.set_config_disks, layers))
        steps = [Step((), partial(self._refuse_newer, plan, known))]
        if not sources:
            return [*steps, define]
        removal = removal_of(plan, sources, str(uuid.uuid4()), self._guest.clock.utcnow())
        removal = replace(removal, boot=self._guest.clock.boot())

        def drop(_cause: VirtopsError) -> bool:
            self._guest.drop(removal)
            return True

        steps += [Step((), partial(self._guest.put, removal), drop), define]
        steps += [Step(("remove %s" % path,), partial(self._images.remove, path), final=True) for path in sources]
        return [*steps, Step((), partial(self._guest.drop, removal))]

    def _doomed(self, known: dict[str, FileIdentity]) -> dict[str, FileIdentity]:
        """A block device stays."""
        return {path: identity for path, identity in known.items() if self._images.kind(path) == "file"}

    def _refuse(self, view: DomainView, left: Operation | None) -> None:
        if view.state == CRASHED:
            raise guest_crashed(view)
        if view.active:
            raise VirtopsError(
                "guest_running",
                "Domain %s is %s, and its images can be converted only while it is off." % (view.name, view.state),
                "Shut it down, then run the task again",
            )
        refuse_open(view, view.journal, None if left is None else left.id)
        require_here(view, self._images, "Start it and shut it down, then run the task again")

    def _is_there(self, one: Conversion, others: Container[str]) -> bool:
        """Did an earlier run come so far? Then only the definition is to be written."""
        require_folder(one.path, "image of disk %s" % one.target, "dest_dir", self._images)
        if not self._images.exists(one.path):
            return False
        if one.path not in others and self._images.kind(one.path) == "file":
            with suppress(VirtopsError):  # no image at all
                whole = not why_not_alone(self._images.info(one.path, "qcow2"), None)
                if whole and self._images.same_content(one.source, one.image):
                    return True
        raise VirtopsError(
            "image_exists",
            "The file %s is there already, and is no copy of %s." % (one.path, one.source.path),
            "Remove or rename it if no domain uses it, or give another directory with dest_dir",
        )

    def _refuse_space(self, one: Conversion) -> None:
        needed = self._images.info(one.source.path, "raw").allocation
        free = self._images.free_bytes(os.path.dirname(one.path))
        if free < needed:
            raise VirtopsError(
                "no_space",
                "Disk %s has %d MiB of data, and the file system of %s has %d MiB of space."
                % (one.target, needed >> 20, one.path, free >> 20),
                "Make space there, or give a directory on another file system with dest_dir",
            )

    def _refuse_newer(self, plan: tuple[Conversion, ...], known: dict[str, FileIdentity]) -> None:
        """The guest may have been started meanwhile, and have written to its raw images."""
        view = self._domain.view()
        written = [path for path, identity in known.items() if self._images.identity(path) != identity]
        if view.active or written:
            for one in plan:
                self._images.remove(one.path)
            raise VirtopsError(
                "guest_running",
                "Domain %s was started while its images were converted, and stays on its raw ones." % view.name,
                "Shut it down, then run the task again",
            )

    def _convert(self, one: Conversion) -> None:
        self._images.remove(one.partial)
        try:
            self._images.convert(one.source, one.partial)
            if not self._images.same_content(one.source, Layer(one.partial, "qcow2")):
                raise VirtopsError(
                    "verify_failed",
                    "The new image of disk %s does not hold what %s holds." % (one.target, one.source.path),
                    "Look for failing storage on the host, then run the task again",
                )
            self._images.rename(one.partial, one.path)
        except VirtopsError:
            self._images.remove(one.partial)
            raise


def finished(
    operation: Operation, view: DomainView, others: OtherFiles, guest: Guest[GuestPort]
) -> tuple[tuple[Step, ...], tuple[str, ...]]:
    """The steps that remove the raw images which an interrupted run was going to remove, and what is told of others.

    Only where the disk stands on the new image: else the domain still has the raw one. `others` are the images of the
    host's other domains.
    """
    images, ours = guest.images, guest.ours(view)
    own = FileSet((layer.path for disk in view.disks + view.config_disks for layer in disk.chain), images)
    there = [disk for disk in operation.disks if is_in_chain(view, disk.target, disk.overlay)]
    there = [disk for disk in there if images.exists(disk.base)]
    gone = [
        disk.base
        for disk in there
        if disk.base not in own
        and others.claims(disk.base) is None
        and images.identity(disk.base) == disk.identity
        and not images.holders(disk.base)
        and ours.is_image(disk.base)
        and _has_size_of(disk, images)
    ]
    words = (
        "%s was kept: something uses it, has changed it since the conversion, or it is not the raw image that the new "
        "one was made from."
    )
    kept = tuple(words % disk.base for disk in there if disk.base not in gone)
    return ending(operation, gone, "remove %s, which an interrupted conversion left", guest), kept


def _has_size_of(disk: JournalDisk, images: ImagePort) -> bool:
    """Is the raw image as large as the disk that the new one gives the guest? QEMU rounds up to sectors."""
    return -(-images.identity(disk.base).size // 512) * 512 == images.info(disk.overlay, "qcow2").virtual_size
