# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Flows on a guest that is neither running nor simply off: saved with its memory, or crashed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.convergence import Deadline
from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.snapshot import SnapshotOptions
from ansible_collections.virtops.libvirt.plugins.module_utils._service.merge import Merge
from ansible_collections.virtops.libvirt.plugins.module_utils._service.merge_plan import MergeOptions
from ansible_collections.virtops.libvirt.plugins.module_utils._service.recover import RecoverOptions, Recovery
from ansible_collections.virtops.libvirt.plugins.module_utils._service.snapshot import ExternalSnapshot
from ansible_collections.virtops.libvirt.plugins.module_utils._service.snapshot_delete import SnapshotDeletion

from .test_merge import Lab


@pytest.fixture
def lab() -> Lab:
    return Lab()


def save(lab: Lab) -> None:
    """virsh managedsave."""
    lab.domain.state, lab.domain.saved = "shut off", True


def merge(lab: Lab, **wish: Any) -> Callable[[bool], object]:
    return Merge(MergeOptions(**wish), lab.guest).run


def snapshot(lab: Lab, name: str) -> Callable[[bool], object]:
    return ExternalSnapshot(SnapshotOptions(name), lab.guest).run


def deletion(lab: Lab, children: str) -> Callable[[bool], object]:
    return SnapshotDeletion("s1", children, Deadline(), lab.guest).run


def recovery(lab: Lab) -> Callable[[bool], object]:
    return Recovery(RecoverOptions(), lab.guest).run


FLOWS: dict[str, Callable[[Lab], Callable[[bool], object]]] = {
    "commit by name": lambda lab: merge(lab, snapshot="s1", delete_merged=True),
    "commit by path": lambda lab: merge(lab, disks=("vda",), base="/img/a.raw"),
    "pull": lambda lab: merge(lab, disks=("vdb",), pull=True),
    "snapshot": lambda lab: snapshot(lab, "s2"),
    "deletion": lambda lab: deletion(lab, "keep"),
    "deletion of all": lambda lab: deletion(lab, "delete"),
}


def migrate(lab: Lab) -> None:
    """virsh migrate, without --undefinesource."""
    lab.domain.state, lab.domain.moved = "shut off", True


def start_elsewhere(lab: Lab) -> None:
    """A cluster does that when it has lost this host."""
    lab.domain.state = "shut off"
    lab.images.written_to = {"/img/vm.vdb.s1.qcow2"}


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize(
    ("go_away", "code", "remedy"),
    [
        (save, "memory_saved", "virsh start vm"),
        (migrate, "guest_moved", "virsh undefine vm"),
        (start_elsewhere, "guest_moved", "virsh undefine vm"),
    ],
)
def test_a_guest_that_is_not_really_off_is_left_as_it_is(
    lab: Lab, go_away: Callable[[Lab], None], code: str, remedy: str, flow: str, check: bool
) -> None:
    go_away(lab)
    before = lab.chains, lab.domain.journal, dict(lab.images.backing)
    with pytest.raises(VirtopsError) as caught:
        FLOWS[flow](lab)(check)
    assert caught.value.code == code
    assert remedy in caught.value.remedy
    assert (lab.domain.calls, lab.images.calls) == ([], [])
    assert before == (lab.chains, lab.domain.journal, lab.images.backing)


@pytest.mark.parametrize("phase", ["prepared", "created", "committing"])
def test_an_operation_stays_open_until_the_guest_was_started(phase: str) -> None:
    lab = Lab()
    lab.snapshot("w", kind="live_backup")
    journal = lab.journal
    (operation,) = [found for found in journal.operations if found.name == "w"]
    lab.domain.write_journal(journal.put(operation.at(phase)))
    lab.domain.calls.clear()
    save(lab)
    for run in (recovery(lab), merge(lab, snapshot="w")):
        with pytest.raises(VirtopsError) as caught:
            run(False)
        assert caught.value.code == "memory_saved"
    assert lab.domain.calls == []
    lab.domain.state, lab.domain.saved = "running", False
    recovery(lab)(False)
    assert lab.chains["vda"] == ["/img/vm.vda.s1.qcow2", "/img/a.raw"]


def test_what_is_done_already_is_no_failure(lab: Lab) -> None:
    merge(lab, snapshot="s1", delete_merged=True)(False)
    lab.domain.calls.clear()
    save(lab)
    merge(lab, disks=("vda",), base="/img/a.raw")(False)
    recovery(lab)(False)
    deletion(lab, "keep")(False)
    assert lab.domain.calls == []


def test_a_guest_that_is_saved_while_it_is_merged(lab: Lab) -> None:
    def start_commit(*_unused: object) -> None:
        save(lab)
        raise VirtopsError("connection_lost", "libvirtd went away", "Start it")

    lab.domain.start_commit = start_commit  # type: ignore[method-assign]
    with pytest.raises(VirtopsError) as caught:
        merge(lab, snapshot="s1", delete_merged=True)(False)
    assert caught.value.code == "memory_saved"
    assert lab.images.calls == []


def test_a_crashed_guest_is_merged_as_a_running_one(lab: Lab) -> None:
    """Its QEMU has its images open: an offline merge would corrupt them."""
    lab.domain.state = "crashed"
    merge(lab, snapshot="s1", delete_merged=True)(False)
    assert not [call for call in lab.images.calls if call.startswith("commit")]
    assert lab.whole()


def test_a_crashed_guest_cannot_be_frozen(lab: Lab) -> None:
    lab.domain.state = "crashed"
    wish = SnapshotOptions("s2", quiesce="required")
    with pytest.raises(VirtopsError) as caught:
        ExternalSnapshot(wish, lab.guest).run(False)
    assert caught.value.code == "guest_crashed"
    assert "virsh destroy vm" in caught.value.remedy
    assert lab.domain.calls == []


def test_who_holds_a_locked_image_is_told(lab: Lab) -> None:
    """Not the guest's own QEMU, nor what reads all of its layers without a lock."""
    lab.domain.fail["start_commit"] = VirtopsError("image_locked", 'Failed to get "write" lock', "End it")
    lab.images.open_by = {"/img/a.raw": (7, 41, 42), "/img/vm.vda.s1.qcow2": (7, 41)}
    with pytest.raises(VirtopsError) as caught:
        merge(lab, disks=("vda",), base="/img/a.raw")(False)
    assert caught.value.cause == 'Failed to get "write" lock (process 42 has /img/a.raw open)'


def test_an_image_that_a_process_of_this_host_writes_to_did_not_move(lab: Lab) -> None:
    """Its own words tell which one that is."""
    start_elsewhere(lab)
    lab.images.open_by["/img/vm.vdb.s1.qcow2"] = (42,)
    merge(lab, snapshot="s1")(True)


def test_overlays_that_another_host_has_merged(lab: Lab) -> None:
    lab.domain.state = "shut off"
    journal = lab.domain.journal
    for target in ("vda", "vdb"):
        lab.domain.config[target] = lab.domain.live[target].chain
        lab.images.backing.pop("/img/vm.%s.s1.qcow2" % target)
    for run in (merge(lab, snapshot="s1"), merge(lab, disks=("vda",), base="/img/a.raw")):
        with pytest.raises(VirtopsError) as caught:
            run(False)
        assert caught.value.code == "overlay_gone"
    assert (lab.domain.journal, lab.domain.calls, lab.images.calls) == (journal, [], [])
