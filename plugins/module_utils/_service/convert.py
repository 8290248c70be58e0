# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Private to virtops.libvirt: the flow of image_convert.

observe -> plan -> (check mode stops here) -> new images, written, compared and named -> one write of the definition ->
old images removed if that was asked for. Until that write nothing but files of ours has changed, so there is nothing
for a journal to tell: the next run finds whole images again and uses them, and writes the others anew.
"""

from __future__ import annotations

import os

from .._core import xml
from .._core.convert import Conversion, ConvertWish, plan_conversions
from .._core.errors import VirtopsError
from .._core.model import DomainView, FileIdentity, Layer, Outcome
from .._core.ports import ConvertImagePort, ConvertPort
from .._core.refusals import refuse_open
from .observe import chains, every_image, observe
from .overlays import require_folder


class Convert:
    """Put a domain that is off on qcow2 images instead of its raw ones."""

    def __init__(self, wish: ConvertWish, domain: ConvertPort, images: ConvertImagePort) -> None:
        self._wish = wish
        self._domain = domain
        self._images = images

    def run(self, check: bool) -> Outcome:
        """Raises VirtopsError; the domain is then on the images that it had."""
        view = observe(self._domain, self._images)
        others = every_image(self._domain.other_images(), self._images)
        plan = plan_conversions(self._wish, view, xml.odd_sources(self._domain.domain_xml()), others)
        if plan:
            self._refuse(view)
        known = {one.source.path: self._images.identity(one.source.path) for one in plan}
        there = {one.target for one in plan if self._is_there(one, others)}
        steps: list[str] = []
        for one in plan:
            if one.target in there:
                steps.append("take %s, which holds the same as %s (%s)" % (one.path, one.source.path, one.target))
                continue
            self._refuse_space(one)
            if self._images.exists(one.partial):
                steps.append("remove %s, which an interrupted run left" % one.partial)
            steps.append("convert %s into %s (%s)" % (one.source.path, one.path, one.target))
        if plan:
            steps.append("define %s on the new images" % view.name)
        if self._wish.delete_source:
            steps += ["remove %s" % one.source.path for one in plan]
        if plan and not check:
            self._apply(plan, there, known)
        before = chains(view)
        return Outcome(
            steps=tuple(steps),
            before={"disks": before},
            after={"disks": {**before, **{one.target: [one.path] for one in plan}}},
            values={
                "disks": [{"disk": one.target, "source": one.source.path, "image": one.path} for one in plan],
            },
        )

    def _refuse(self, view: DomainView) -> None:
        if view.active:
            raise VirtopsError(
                "guest_running",
                "Domain %s is %s, and its images can be converted only while it is off." % (view.name, view.state),
                "Shut it down, then run the task again",
            )
        refuse_open(view, xml.parse_journal(view.journal_xml))
        if self._domain.has_saved_memory():
            raise VirtopsError(
                "memory_saved",
                "Domain %s was saved with its memory, and would go on with that on its raw images." % view.name,
                "Start it and shut it down, then run the task again",
            )

    def _is_there(self, one: Conversion, others: frozenset[str]) -> bool:
        """Did an earlier run come so far? Then only the definition is to be written."""
        require_folder(one.path, "image of disk %s" % one.target, "dest_dir", self._images)
        if not self._images.exists(one.path):
            return False
        if one.path not in others and self._images.kind(one.path) == "file":
            info = self._images.info(one.path)
            whole = info.format == "qcow2" and info.backing_path is None
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

    def _apply(self, plan: tuple[Conversion, ...], there: set[str], known: dict[str, FileIdentity]) -> None:
        for one in plan:
            if one.target not in there:
                self._convert(one)
        self._refuse_newer(plan, known)
        self._domain.set_config_disks({one.target: one.image for one in plan})
        if self._wish.delete_source:
            for one in plan:
                self._images.remove(one.source.path)

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
