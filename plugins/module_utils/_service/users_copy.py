# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the images of one point in time are handed over to the user's own tasks to be copied.

It stands where `backup.Backup` stands else, between the snapshot and the merge: hold QEMU's image lock on the bases ->
hand over -> wait for the word that they are copied -> are they still what they were?

Readers are never refused, and need no lock. Whatever ends the wait, the merge comes next, so a copy counts only if the
word came and the bases stood still until then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._core.backup import CopyPort, Selection, Source, SourceFacts, StorePort, require_local
from .._core.errors import VirtopsError
from .._core.job_state import Word
from .._core.model import DomainView, Outcome
from .._core.ports import GuestPort, ImagePort
from .._core.refusals import require_going
from .backup import Point, extras_of, facts_of, locked_layers, without_snapshot
from .guest import Guest
from .observe import observe

#: Seconds between two looks for the word.
LOOK_SECONDS = 0.5


def refuse_early(view: DomainView, bases: tuple[Source, ...], images: ImagePort, store: StorePort) -> None:
    """Refuse, while there is no snapshot yet, bases of which no copy could be made."""
    for source in bases:
        require_local(source.target, source.base)
        facts_of(source, view, images, store)


class UsersCopy:
    """The same parts as those of `Backup`, but that nothing is to be finished after the merge.

    `timeout`: seconds within which the word has to come. `so_far` gives what the module's result has already, which is
    part of what is handed over.
    """

    def __init__(
        self,
        timeout: int,
        guest: Guest[GuestPort],
        store: StorePort,
        copier: CopyPort,
        point: Point,
        so_far: Callable[[], dict[str, object]],
    ) -> None:
        self._timeout = timeout
        self._guest = guest
        self._store = store
        self._copier = copier
        self._point = point
        self._so_far = so_far
        self._bases: list[dict[str, object]] = []
        self._is_copied = False

    def copy(self, check: bool) -> Outcome:
        """Plan, and where not `check`, hand over and wait. Raises `copy_failed` where the word says so,
        `copy_unreported` where none came."""
        view = self._observe()
        selection = self._point.select(view)
        self._point.require_still(selection, view)
        facts = tuple(facts_of(source, view, self._guest.images, self._store) for source in selection.sources)
        self._bases = [self._base(fact) for fact in facts]
        if not check:
            with self._copier.hold(self._point.lockable(locked_layers(facts))):
                self._hand_over(selection, view)
        return Outcome(steps=tuple(_steps(selection, self._timeout)))

    def finish(self, _check: bool) -> Outcome:
        """After the merge there is nothing to do."""
        return Outcome(values={"backup": None, "bases": self._bases, "copied": self._is_copied})

    def _observe(self) -> DomainView:
        return observe(self._guest.domain, self._guest.images)

    def _base(self, fact: SourceFacts) -> dict[str, object]:
        source, info = fact.source, fact.info
        return {
            "disk": source.target,
            "path": source.base.path,
            "format": source.base.format,
            "size": self._guest.images.identity(source.base.path).size,
            "virtual_size": info.virtual_size,
            "needs": [*info.beside, *(layer.path for layer in fact.layers[1:])],
        }

    def _extras(self, selection: Selection, view: DomainView) -> list[dict[str, str]]:
        targets = frozenset(source.target for source in selection.sources)
        files = extras_of(view, targets, self._guest.images, self._store).files
        return [{"kind": file.kind, "path": file.source} for file in files]

    def _hand_over(self, selection: Selection, view: DomainView) -> None:
        """Whatever ends the wait, from then on no word counts."""
        progress, clock = self._guest.progress, self._guest.clock
        began = clock.monotonic()
        progress.hand_over(self._handed(selection, view))
        progress.step("wait for at most %d s for the word that the bases are copied" % self._timeout)
        try:
            word = self._wait(began)
        finally:
            last = progress.take_back()
        word = word or last
        if word is None:
            raise VirtopsError(
                "copy_unreported",
                "Nobody said within %d s that the bases are copied, so no copy of them counts" % self._timeout,
                "If the play that copies them was ended, run it again; if they take longer to copy, give it more time "
                "(copy_timeout)",
            )
        if not word.well:
            raise VirtopsError(
                "copy_failed",
                "The tasks that copy the bases failed: %s" % (word.why.rstrip(".") or "they did not say why"),
                "Mend what the message names, then run the play again",
            )
        self._point.require_still(selection, self._observe())
        progress.step("the bases are copied, in %.1f s" % (clock.monotonic() - began))
        self._is_copied = True

    def _wait(self, began: float) -> Word | None:
        """None where the time is over."""
        progress, clock = self._guest.progress, self._guest.clock
        while clock.monotonic() - began < self._timeout:
            word = progress.word()
            if word is not None:
                return word
            require_going(progress)
            self._point.watch()
            clock.sleep(LOOK_SECONDS)
        return None

    def _handed(self, selection: Selection, view: DomainView) -> dict[str, Any]:
        return {
            "changed": True,
            **self._so_far(),
            "domain": {"name": view.name, "uuid": view.uuid, "state": view.state},
            "consistency": selection.consistency,
            "taken": selection.started,
            "bases": self._bases,
            "extras": self._extras(selection, view),
            "domain_xml": without_snapshot(self._guest.domain, selection, view, secrets=False),
            "copied": False,
        }


def _steps(selection: Selection, timeout: int) -> list[str]:
    return [
        "hand %s (%s) over, and wait for at most %d s for the word that it is copied"
        % (source.base.path, source.target, timeout)
        for source in selection.sources
    ]
