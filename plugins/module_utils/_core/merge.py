# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: where the merge of one disk stands, and what comes next. No effects.

A goal is absolute: "these layers are in that image". So a second run, or one after any crash, reads the
chain and goes on from there; a job that vanished tells nothing by itself.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from .errors import VirtopsError
from .journal import COMMIT, PULL
from .model import BlockJob, Disk, DomainView, Layer


@dataclass(frozen=True)
class MergeGoal:
    """The layers `merged` (top first) of disk `target` are to leave the chain, their data to be in `into`.

    A COMMIT's `into` is the base below them (virDomainBlockCommit), a PULL's the active layer above them
    (virDomainBlockRebase). `above` is the layer that stands
    on the topmost of them, None where the guest writes to it: then a commit is an active one, which ends in a pivot.
    `below` is the layer that a PULL leaves under the active one, None where it leaves none.
    """

    target: str
    into: Layer
    merged: tuple[Layer, ...]
    above: str | None = None
    kind: str = COMMIT
    below: Layer | None = None

    @property
    def top(self) -> Layer:
        return self.merged[0]

    @property
    def pivots(self) -> bool:
        return self.kind == COMMIT and self.above is None


class Phase(enum.Enum):
    """Where the merge of one disk stands, derived from the live chain, the job and the persistent XML."""

    #: The layers are in the chain and no job runs: start one.
    IDLE = "idle"
    #: Our job runs: wait.
    COPYING = "copying"
    #: An active commit has caught up and mirrors each write: it may pivot.
    READY = "ready"
    #: The domain is off and the layers are still in its chain: qemu-img commits them.
    OFFLINE = "offline"
    #: The layers are merged, the persistent XML still names one of them (also below the active layer: libvirt keeps the
    #: whole chain there after a snapshot, and the guest would not start any more).
    CONFIG_STALE = "config-stale"
    #: Live and persistent XML show the goal.
    MERGED = "merged"
    #: Somebody asked our job to pivot, or to end: QEMU does it when it can, nothing else can be asked of it.
    ENDING = "ending"
    #: A job that is not this merge holds the disk.
    FOREIGN_JOB = "foreign-job"
    #: The image that the data should be in is not in the chain: a human has to look.
    LOST = "lost"


class Next(enum.Enum):
    """What to do about a phase."""

    START = "start"
    WAIT = "wait"
    PIVOT = "pivot"
    HOLD = "hold"
    COMMIT_OFFLINE = "commit-offline"
    UPDATE_CONFIG = "update-config"
    DONE = "done"
    REFUSE = "refuse"


def next_step(phase: Phase, pivot: bool = True) -> Next:
    """The one table that says what follows a phase."""
    if phase is Phase.READY:
        return Next.PIVOT if pivot else Next.HOLD
    return {
        Phase.IDLE: Next.START,
        Phase.COPYING: Next.WAIT,
        Phase.ENDING: Next.WAIT,
        Phase.OFFLINE: Next.COMMIT_OFFLINE,
        Phase.CONFIG_STALE: Next.UPDATE_CONFIG,
        Phase.MERGED: Next.DONE,
        Phase.FOREIGN_JOB: Next.REFUSE,
        Phase.LOST: Next.REFUSE,
    }[phase]


def phase_of(goal: MergeGoal, view: DomainView) -> Phase:
    """Where the merge stands in this reading."""
    disk = view.disk(goal.target)
    if disk is None or disk.index_of(goal.into.path) is None:
        return Phase.LOST
    layers_left = [layer for layer in goal.merged if disk.index_of(layer.path) is not None]
    if disk.job is not None:
        # A job may be seen for a moment after libvirt has changed the chain: it is at its end.
        phase = _phase_of_job(goal, disk.job)
        return phase if layers_left or phase is Phase.FOREIGN_JOB else Phase.COPYING
    if layers_left:
        return Phase.IDLE if view.active else Phase.OFFLINE
    if _config_is_stale(goal, view):
        return Phase.CONFIG_STALE
    return Phase.MERGED


def _phase_of_job(goal: MergeGoal, job: BlockJob) -> Phase:
    if not job.kind:
        return Phase.ENDING
    if not goal.pivots:
        return Phase.COPYING if job.kind == goal.kind else Phase.FOREIGN_JOB
    if job.kind != "active-commit" or job.target not in (None, goal.into.path):
        return Phase.FOREIGN_JOB
    if job.ending:
        return Phase.ENDING
    # cur == end comes before ready='yes', and both are 0 at the start; a pivot needs both.
    return Phase.READY if job.ready and job.cur == job.end else Phase.COPYING


def _config_is_stale(goal: MergeGoal, view: DomainView) -> bool:
    config = view.config_disk(goal.target)
    if not view.persistent or config is None:
        return False
    return any(config.index_of(layer.path) is not None for layer in goal.merged)


def config_layer(goal: MergeGoal, view: DomainView) -> Layer:
    """What the persistent XML is to name as this disk's source; below it, the images themselves tell the chain."""
    config = view.config_disk(goal.target)
    if config is None or config.active is None or any(config.active.path == layer.path for layer in goal.merged):
        return goal.into
    return config.active


def goal_to_base(disk: Disk, base: str, top: str | None, domain: str) -> MergeGoal | None:
    """Everything from `top` (unset: the active layer) down to above `base` goes into `base`.

    None where that is so already. A base that is not in the chain is refused.
    """
    depth = disk.index_of(base)
    if depth is None:
        raise VirtopsError(
            "base_not_in_chain",
            "The base %s is not in the chain of disk %s of domain %s (%s)."
            % (base, disk.target, domain, " <- ".join(layer.path for layer in disk.chain) or "empty"),
            "Choose a base from that chain; virtops.libvirt.block_info shows it",
        )
    first = 0 if top is None else disk.index_of(top)
    if first is None or first == depth:
        return None
    if first > depth:
        raise VirtopsError(
            "top_below_base",
            "The top %s lies below the base %s in the chain of disk %s of domain %s."
            % (top, base, disk.target, domain),
            "Exchange them: data flows from top down into base",
        )
    above = disk.chain[first - 1].path if first > 0 else None
    return MergeGoal(disk.target, disk.chain[depth], disk.chain[first:depth], above)


def goal_to_pull(disk: Disk, base: str | None, domain: str) -> MergeGoal | None:
    """Everything between the active layer and `base` (unset: the whole chain below it) comes into the active layer.

    None where that is so already. A base that is not below the active layer is refused.
    """
    depth = len(disk.chain) if base is None else disk.index_of(base)
    if not depth:
        raise VirtopsError(
            "base_not_in_chain",
            "The base %s is not below the active layer of disk %s of domain %s (%s)."
            % (base, disk.target, domain, " <- ".join(layer.path for layer in disk.chain) or "empty"),
            "Choose a base from that chain, or none to have it all in one image; virtops.libvirt.block_info shows it",
        )
    active, merged = disk.chain[0], disk.chain[1:depth]
    if not merged:
        return None
    if active.format == "raw":
        raise VirtopsError(
            "disk_unsuitable",
            "The active layer %s of disk %s of domain %s is raw and has no backing to pull from."
            % (active.path, disk.target, domain),
            "Look at the chain with virtops.libvirt.block_info",
        )
    below = None if base is None else disk.chain[depth]
    return MergeGoal(disk.target, active, merged, active.path, PULL, below)


def goal_of_layer(disk: Disk, overlay: str, base: str | None, domain: str) -> MergeGoal | None:
    """The one layer `overlay` goes into the layer below it; None where it is in the chain no more.

    `base` is what we wrote down when we made the overlay: a chain that differs is not ours to merge.
    """
    depth = disk.index_of(overlay)
    below = disk.below(overlay)
    if depth is None:
        return None
    if below is None or (base is not None and below.path != base):
        raise VirtopsError(
            "chain_changed",
            "The overlay %s of disk %s of domain %s stands on %s, not on %s as it was made."
            % (overlay, disk.target, domain, below.path if below else "nothing", base),
            "Somebody changed the chain: look at it with virtops.libvirt.block_info, and name base and top",
        )
    return MergeGoal(disk.target, below, (disk.chain[depth],), disk.chain[depth - 1].path if depth else None)
