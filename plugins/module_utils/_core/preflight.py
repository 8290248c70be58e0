# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: would a live backup of a guest succeed? Decided from facts alone.

What the modules themselves refuse is not decided again here: their own errors are facts (`Refusal`). What only shows
once a guest stands on its overlays (a full file system, a long chain, a rule of AppArmor) is decided here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from .extras import is_packaged
from .job_state import JobState, job_words
from .journal import Operation
from .model import CRASHED, DomainView
from .preflight_facts import (
    AGENT,
    APPARMOR,
    BASE_GROWTH,
    CAPABILITIES,
    CHAIN,
    CHECKPOINTS,
    DEFINITION,
    DISKS,
    EXTRAS,
    FAILED,
    IMAGES,
    JOBS,
    JOURNAL,
    OK,
    OVERLAY_SPACE,
    OVERLAYS,
    SHARED,
    STATE,
    TARGET,
    WARNING,
    Capabilities,
    Check,
    GuestFacts,
    Limits,
    failed,
    is_fresh,
    refused,
    resumed,
    warning,
)
from .preflight_space import space_checks
from .refusals import definition_unread, guest_crashed, operation_open
from .strays import left_words, snapshot_of

#: The active commit, as virConnectGetLibVersion counts: 1.2.6. No capability tells of it.
_ACTIVE_COMMIT = 1002006


def judge(guests: Sequence[GuestFacts], host: Capabilities, limits: Limits) -> dict[str, tuple[Check, ...]]:
    """Every check of every guest, by UUID. A guest is ready where none has FAILED."""
    read = [guest for guest in guests if not guest.view.unread]
    fresh = [guest for guest in read if is_fresh(guest, limits)]
    space = space_checks(fresh, limits)
    judged = {guest.view.uuid: _unread(guest.view) for guest in guests if guest.view.unread}
    for guest in read:
        operation = resumed(guest, limits)
        if guest.at_work is not None:
            judged[guest.view.uuid] = _at_work(guest.view.name, guest.at_work)
        elif operation is None:
            judged[guest.view.uuid] = _all_of(guest, host, limits, space[guest.view.uuid])
        else:
            judged[guest.view.uuid] = (*_resumed(guest, operation), *_state(guest), *_denied_of(guest, operation))
    return judged


def _unread(view: DomainView) -> tuple[Check, ...]:
    """Nothing else can be said of it."""
    return (refused(DEFINITION, definition_unread(view.name, view.uuid, view.unread), FAILED),)


def is_ready(checks: Iterable[Check]) -> bool:
    """Warnings are for a human to weigh."""
    return all(check.status != FAILED for check in checks)


def _all_of(guest: GuestFacts, host: Capabilities, limits: Limits, space: tuple[Check, ...]) -> tuple[Check, ...]:
    """Of each thing that was looked at, what was found, or that nothing was."""
    refusals = (refused(refusal.check, refusal.error, FAILED, refusal.disk) for refusal in guest.refusals)
    found = [*refusals, *_journal(guest), *_skipped(guest), *_open_folders(guest), *space, *_left(guest)]
    found += _lacking(guest) if limits.own_copy else []
    if guest.view.active:
        found += [
            *_state(guest),
            *_capabilities(host),
            *_chains(guest, limits),
            *_jobs(guest),
            *_agent(guest, limits),
            *_denied(guest),
            *_definition(guest),
            *_checkpoints(guest),
            *_bitmaps(guest),
            *_shared(guest),
        ]
    else:
        found += [*_loose(guest)]
    sound = _FINE if guest.view.active else {**_FINE, **_FINE_OFF}
    unseen = any(refusal.check in (DISKS, IMAGES) for refusal in guest.refusals)
    told: list[Check] = []
    for name, words in sound.items():
        fine = "" if name == TARGET and not limits.own_copy else words
        of_name = [check for check in found if check.check == name]
        unsure = any(check.status != OK for check in of_name) or (unseen and name in _OF_DISKS)
        told += of_name if unsure or not fine else [*of_name, Check(name, OK, fine)]
    return tuple(told)


_FINE = {
    JOURNAL: "No operation is open",
    STATE: "It has not crashed, and it is neither saved with its memory nor at another host",
    CAPABILITIES: "libvirt can take disk snapshots and commit active layers",
    DISKS: "A snapshot can hold each disk that is not left out",
    IMAGES: "The images and the folders for the overlays are there and can be written to",
    CHAIN: "No chain gets too long",
    JOBS: "No job is running",
    AGENT: "",
    OVERLAY_SPACE: "There is space for the overlays",
    BASE_GROWTH: "There is space for the merge",
    TARGET: "The copies fit",
    APPARMOR: "No rule of AppArmor forbids the merge",
    DEFINITION: "The persistent definition names the same images",
    CHECKPOINTS: "It has no checkpoints, and its images no bitmaps",
    SHARED: "No other domain stands on its images",
    OVERLAYS: "No overlay that it has left stands on its images",
    EXTRAS: "",
}
#: Of a guest that is off, where it is something else: its images are copied without a snapshot.
_FINE_OFF = {
    STATE: "It is off: its images are copied as they are, and it cannot be started until the copy has ended",
    CAPABILITIES: "It is off, so that nothing is asked of libvirt",
    DISKS: "Each disk that is not left out can be copied",
    IMAGES: "The images are there",
    CHAIN: "It is off, so that no chain gets longer",
    AGENT: "It is off, so that there is nothing to freeze",
    OVERLAY_SPACE: "It is off, so that there are no overlays",
    BASE_GROWTH: "It is off, so that there is no merge",
    APPARMOR: "It is off, so that there is no merge",
    CHECKPOINTS: "It is off, so that they stay as they are",
    SHARED: "No other domain may write to its images meanwhile",
}
#: What cannot be told of disks that could not be looked at.
_OF_DISKS = frozenset({DISKS, IMAGES, CHAIN, OVERLAY_SPACE, BASE_GROWTH, TARGET, DEFINITION, SHARED, OVERLAYS})


# Each thing that is looked at


def _at_work(name: str, job: JobState) -> tuple[Check, ...]:
    """Its operation is open, and not interrupted."""
    return (
        warning(
            JOBS,
            "locked",
            "A job works on %s: %s. A backup run waits for its end first, or follows it where it makes the same "
            "backup; until then nothing else is checked" % (name, job_words(job)),
            "Nothing to do; virtops.libvirt.job_info with id: %s shows how far the job is" % job.id,
        ),
    )


def _resumed(guest: GuestFacts, operation: Operation) -> tuple[Check, ...]:
    """The run finishes it, unless the guest is in a state that keeps every run from it."""
    stopped = tuple(refused(STATE, found.error, FAILED) for found in guest.refusals if found.check == STATE)
    if stopped:
        return stopped
    name, overlays = guest.view.name, {disk.overlay for disk in operation.disks}
    on = [disk.target for disk in guest.view.disks if disk.active is not None and disk.active.path in overlays]
    stands = "still runs on" if guest.view.active else "is still on"
    where = ", and %s %s its overlay" % (name, stands) if on else ""
    return (
        warning(
            JOURNAL,
            "operation_open",
            "An earlier backup of %s (%s, begun %s) was interrupted%s. The next backup run finishes it before it does "
            "anything else; until then nothing else is checked" % (name, operation.name, operation.started, where),
            "Run the play; virtops.libvirt.journal_info tells what will be done",
        ),
    )


def _journal(guest: GuestFacts) -> Iterator[Check]:
    """One of another workflow is that one's to finish."""
    for operation in guest.journal.operations:
        if operation.open:
            yield refused(JOURNAL, operation_open(guest.view.name, operation), FAILED)
    if guest.view.journal_of is not None:
        yield warning(
            JOURNAL,
            "journal_foreign",
            "The journal in its metadata belongs to the domain with the UUID %s, whose definition was copied. It is "
            "ignored" % guest.view.journal_of,
            "Nothing to do: the next run replaces it",
        )


def _state(guest: GuestFacts) -> Iterator[Check]:
    if guest.view.state == CRASHED:
        yield refused(STATE, guest_crashed(guest.view), WARNING)


def _capabilities(host: Capabilities) -> Iterator[Check]:
    if not host.disk_snapshots:
        yield failed(
            CAPABILITIES,
            "unsupported",
            "This libvirt and QEMU cannot take snapshots of single disks (no <disksnapshot/> in virsh capabilities)",
            "Back this guest up on a hypervisor with a newer QEMU",
        )
    if host.libvirt_version < _ACTIVE_COMMIT:
        yield failed(
            CAPABILITIES, "unsupported", "This libvirt cannot commit an active layer", "Install libvirt 1.2.6 or later"
        )


def _skipped(guest: GuestFacts) -> Iterator[Check]:
    for disk in guest.skipped:
        words = "It is left out of the backup: %s" % disk.reason
        if not disk.holds:
            yield Check(DISKS, OK, words, disk.target)
            continue
        yield warning(
            DISKS,
            "disk_left_out",
            words,
            "Back it up in another way, or leave it out in disks (snapshot: no)",
            disk.target,
        )


def _open_folders(guest: GuestFacts) -> Iterator[Check]:
    for disk in guest.disks:
        for folder in disk.open_folders:
            yield warning(
                IMAGES,
                "folder_shared",
                "Users other than root may write to the folder %s or to one above it, and so can replace an image. The "
                "modules hold each file that they write to, but libvirt opens and chowns images by their names, at "
                "each start and snapshot" % folder,
                "Let only root write to these folders, or choose another with overlay_dir for the overlays",
                disk.target,
            )


def _chains(guest: GuestFacts, limits: Limits) -> Iterator[Check]:
    for disk in guest.disks:
        layers = len(disk.chain) + 1
        if layers > limits.max_chain:
            yield failed(
                CHAIN,
                "chain_too_long",
                "The chain would have %d layers, and %d is the limit (max_chain)" % (layers, limits.max_chain),
                "Merge layers that are not needed any more with virtops.libvirt.block_commit; some releases of libvirt "
                "cannot start a guest on more than about 25",
                disk.target,
            )


def _jobs(guest: GuestFacts) -> Iterator[Check]:
    for disk in guest.view.disks:
        if disk.job is not None:
            yield failed(
                JOBS,
                "job_running",
                "A block job (%s) of somebody else is running" % disk.job.kind,
                "Wait for its end, or end it with 'virsh blockjob'",
                disk.target,
            )
    if guest.job is not None:
        yield failed(
            JOBS,
            "libvirt_busy",
            "A job (%s) of somebody else holds the whole domain" % guest.job,
            "Wait for its end, or end it with 'virsh domjobabort'",
        )


def _agent(guest: GuestFacts, limits: Limits) -> Iterator[Check]:
    if limits.quiesce == "never":
        yield Check(AGENT, OK, "No freeze was asked for")
    elif guest.agent is None:
        yield Check(AGENT, OK, "The agent answers")
    elif limits.quiesce == "required":
        yield refused(AGENT, guest.agent, FAILED)
    else:
        check = refused(AGENT, guest.agent, WARNING)
        yield replace(check, message="The backup would be crash-consistent only: %s" % check.message)


def _denied(guest: GuestFacts) -> Iterator[Check]:
    for disk in guest.disks:
        if disk.base.path in guest.denied:
            yield _denied_check(disk.target, disk.base.path, FAILED)


def _denied_of(guest: GuestFacts, operation: Operation) -> Iterator[Check]:
    """It was started on its overlays. Whether to go on is the recovery's to say."""
    for disk in operation.disks:
        if disk.base in guest.denied and guest.view.active:
            yield _denied_check(disk.target, disk.base, WARNING)


def _denied_check(target: str, path: str, status: str) -> Check:
    check = failed(
        APPARMOR,
        "apparmor_denied",
        "AppArmor denies this guest to write to %s, so that a live merge into it fails: the guest was started on an "
        "overlay" % path,
        "Shut the guest down and run virtops.libvirt.recover: an offline merge is not denied",
        target,
    )
    return replace(check, status=status)


def _definition(guest: GuestFacts) -> Iterator[Check]:
    view = guest.view
    if not view.persistent:
        yield warning(
            DEFINITION,
            "transient_domain",
            "The domain is transient: if it ends on its overlays, its definition and the journal are lost; if it is "
            "then created again on the bases, what it wrote since is lost",
            "Make it persistent: virsh dumpxml, then virsh define",
        )
        return
    for facts in guest.disks:
        config = view.config_disk(facts.target)
        if config is None or config.active is None:
            message = "The disk is not in the persistent definition"
        elif config.active.path != facts.base.path:
            message = "The persistent definition names %s, but the guest runs on %s" % (
                config.active.path,
                facts.base.path,
            )
        else:
            continue
        yield warning(
            DEFINITION,
            "definition_differs",
            message,
            "Compare virsh dumpxml with virsh dumpxml --inactive, and correct the latter before the next start of the "
            "guest",
            facts.target,
        )


def _checkpoints(guest: GuestFacts) -> Iterator[Check]:
    if not guest.checkpoints:
        return
    told = "Checkpoints of another backup tool: %d" % guest.checkpoints
    if not guest.incremental:
        yield failed(
            CHECKPOINTS,
            "has_checkpoints",
            "%s. This libvirt takes no snapshot beside one" % told,
            "Delete them with 'virsh checkpoint-delete' if no other backup needs them",
        )
    else:
        yield warning(
            CHECKPOINTS,
            "has_checkpoints",
            "%s. What the guest writes until the merge may be missing from them" % told,
            "Let the tool that made them begin with a full backup after this one",
        )


def _bitmaps(guest: GuestFacts) -> Iterator[Check]:
    """Those of checkpoints are told as checkpoints."""
    for disk in guest.disks if not guest.checkpoints else ():
        if disk.bitmaps:
            yield warning(
                CHECKPOINTS,
                "has_bitmaps",
                "The image %s has bitmaps of another backup tool inside (%s). What the guest writes until the merge "
                "may be missing from them" % (disk.base.path, ", ".join(disk.bitmaps)),
                "Let the tool that made them begin with a full backup after this one; 'qemu-img bitmap --remove' ends "
                "those that nothing uses",
                disk.target,
            )


def _shared(guest: GuestFacts) -> Iterator[Check]:
    for disk in guest.disks:
        if disk.shared_with:
            yield failed(
                SHARED,
                "base_shared",
                "The image %s also belongs to %s, so nothing can be merged into it"
                % (disk.base.path, ", ".join(disk.shared_with)),
                "Give each domain an overlay or a copy of its own",
                disk.target,
            )
    for name, why in guest.unseen:
        yield warning(
            SHARED,
            "neighbour_unseen",
            "It is not known which images the domain %s uses: %s. The overlays are merged, but kept, because it may "
            "use them" % (name, why),
            "Repair or undefine that domain. Then virtops.libvirt.recover, or the next live backup, deletes them",
        )


def _loose(guest: GuestFacts) -> Iterator[Check]:
    """Of a guest that is off. A file that another domain uses, be it as its base, is safe by QEMU's lock."""
    for disk in guest.disks:
        if not disk.loose:
            continue
        if disk.shared_with:
            yield failed(
                SHARED,
                "base_shared",
                "The image %s also belongs to %s, and no lock keeps that domain from writing to it"
                % (disk.base.path, ", ".join(disk.shared_with)),
                "Give each domain an image of its own, or leave the disk out in disks (snapshot: no)",
                disk.target,
            )
        yield Check(
            STATE,
            OK,
            "No lock keeps the guest from being started on %s while it is copied; if it is, the copy is thrown away"
            % disk.base.path,
            disk.target,
        )


def _left(guest: GuestFacts) -> Iterator[Check]:
    """A transient domain takes its journal with it when it ends: then these files alone tell that it ended on its
    overlays. Of another domain they are most often what a merge by hand left; but those of a live backup, which deletes
    them with its journal."""
    for disk in guest.disks:
        for path in disk.left:
            cause, remedy = left_words(path, disk.target, guest.view.name)
            check = failed(OVERLAYS, "overlay_in_use", cause, remedy, disk.target)
            ours = snapshot_of(path, guest.view.name, disk.target) is not None
            yield replace(check, status=WARNING if guest.view.persistent and not ours else FAILED)


def _lacking(guest: GuestFacts) -> Iterator[Check]:
    """Disks are told by themselves; what a package brings is there again where the package is."""
    if any(refusal.check == EXTRAS for refusal in guest.refusals):
        return
    lacks = [lack for lack in guest.lacks if lack.kind != "disk"]
    missing = [lack for lack in lacks if not is_packaged(lack)]
    if missing:
        told = ", ".join("%s (%s)" % (lack.words(), lack.reason) for lack in missing)
        yield warning(
            EXTRAS,
            "not_in_set",
            "A set will not hold all that this guest needs to be restored: %s" % told,
            "Back this up separately; manifest.json lists it as 'lacks'",
        )
    elif lacks:
        told = ", ".join(lack.words() for lack in lacks)
        yield Check(EXTRAS, OK, "A set will lack only what a package installs: %s" % told)
    else:
        yield Check(EXTRAS, OK, "A set will hold all that the guest needs besides its disks")
