# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""An overlay that was merged, and that another domain may stand on, is kept, known as merged, and deleted later."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Layer, OtherImages, Signature
from ansible_collections.virtops.libvirt.plugins.module_utils._core.xml import build_journal, parse_journal

from . import test_merge, test_strays

FIRST, SECOND = test_strays.FIRST, test_strays.SECOND
VDA = "/img/vm.vda.%s.qcow2" % FIRST
TIP = "/else/nb.qcow2"


class Lab(test_strays.Lab, test_merge.MergeLab):
    """A running guest on an overlay with data, beside a domain whose base is missing."""

    def __init__(self) -> None:
        super().__init__()
        self.snapshot(FIRST)
        self.images.dirty |= {VDA, VDA.replace("vda", "vdb")}
        self.images.backing[TIP] = ("qcow2", "/else/gone.qcow2")
        self.images.times[TIP] = test_merge.STARTED
        self.domain.others = OtherImages(frozenset({TIP}), (Layer(TIP, "qcow2"),), owners={TIP: "nb"})

    def mend(self) -> None:
        """The neighbour is undefined."""
        self.domain.others = OtherImages(frozenset())

    def merge(self, name: str = FIRST) -> test_merge.Outcome:
        return self.run(snapshot=name, delete_merged=True)

    @property
    def noted(self) -> bool:
        return self.journal.merged_as(VDA) is not None


@pytest.fixture
def lab() -> Lab:
    return Lab()


@pytest.mark.parametrize("by", ["recover", "merge"])
@pytest.mark.parametrize("persistent", [True, False])
def test_the_run_that_keeps_it_and_the_next_ones_are_green(lab: Lab, by: str, persistent: bool) -> None:
    lab.domain.persistent = persistent
    done = getattr(lab, by)()
    assert [("domain nb" in text, "recover" in text) for text in done.warnings if VDA in text] == [(True, True)]
    assert not [text for text in done.steps if text.startswith(f"delete the merged overlay {VDA}")]
    assert (lab.images.exists(VDA), lab.noted, lab.told()) == (True, True, [])
    assert lab.journal.operations == ()

    again = lab.recover()
    assert (again.steps, again.values["operations"]) == ((), [])
    assert [text for text in again.warnings if VDA in text and "domain nb" in text]
    lab.snapshot(SECOND)
    assert [text for text in lab.merge(SECOND).warnings if VDA in text and "domain nb" in text]
    assert lab.images.exists(VDA)


@pytest.mark.parametrize("by", ["recover", "merge"])
def test_it_goes_once_the_neighbour_is_mended(lab: Lab, by: str) -> None:
    lab.merge()
    lab.mend()
    step = "delete the merged overlay %s, which was kept for another domain" % VDA
    if by == "recover":
        assert step in lab.recover(check=True).steps
        assert lab.images.exists(VDA)
        assert step in lab.recover().steps
    else:
        lab.snapshot(SECOND)
        assert step in lab.merge(SECOND).steps
    assert (lab.images.exists(VDA), lab.domain.journal, lab.recover().steps) == (False, None, ())


def test_one_that_was_written_to_since_may_hold_the_newest_data(lab: Lab) -> None:
    """The guest was started from an older definition, and went on in it."""
    lab.merge()
    lab.mend()
    lab.images.times[VDA] = 1
    for run in (lambda: lab.recover(check=True), lab.recover, lambda: lab.snapshot(SECOND)):
        with pytest.raises(VirtopsError) as caught:
            run()
        assert caught.value.code == "overlay_in_use"
    assert lab.images.exists(VDA)
    assert not lab.noted


def test_one_that_is_in_the_chain_again_is_a_layer(lab: Lab) -> None:
    lab.merge()
    lab.mend()
    disk = lab.domain.live["vda"]
    lab.domain.live["vda"] = replace(disk, chain=lab.images.chain(VDA))
    lab.domain.config["vda"] = lab.domain.live["vda"].chain
    assert lab.told() == [(FIRST, True, False)]
    with pytest.raises(VirtopsError, match="its journal is gone"):
        lab.snapshot(SECOND)


def test_a_forged_note_deletes_nothing_else(lab: Lab) -> None:
    lab.merge()
    lab.mend()
    lab.images.signatures[VDA] = Signature("qcow2", "/img/somebody.raw")
    done = lab.recover()
    assert [text for text in done.warnings if VDA in text and "it stands on" in text]
    assert (lab.images.exists(VDA), lab.noted) == (True, False)


def test_one_that_a_process_holds_waits(lab: Lab) -> None:
    lab.merge()
    lab.mend()
    lab.images.open_by[VDA] = (7,)
    assert [text for text in lab.recover().warnings if VDA in text and "PID 7" in text]
    assert (lab.images.exists(VDA), lab.noted) == (True, True)


def test_one_that_was_moved_away_is_forgotten(lab: Lab) -> None:
    lab.merge()
    for path in (VDA, VDA.replace("vda", "vdb")):
        del lab.images.backing[path]
    assert lab.recover().steps
    assert lab.domain.journal is None


def test_an_older_release_reads_no_open_operation(lab: Lab) -> None:
    """It looks at the elements that it knows: operation and reverted."""
    lab.merge()
    text = lab.domain.journal or ""
    assert "<operation" not in text
    assert 'schema="1"' in text
    journal = parse_journal(text)
    assert build_journal(journal) == text
    assert not any(operation.open for operation in journal.operations)


def test_the_words_of_one_that_nobody_knows(lab: Lab) -> None:
    lab.merge()
    lab.forget()
    with pytest.raises(VirtopsError) as caught:
        lab.snapshot(SECOND)
    assert caught.value.cause.startswith("An old overlay lies beside the disk vda of vm, and it is not known")
    assert caught.value.cause.endswith("merged: %s." % VDA)
    assert "'mv %s FOLDER'" % VDA in caught.value.remedy


def test_a_neighbour_that_comes_while_the_next_merge_runs_keeps_it(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.merge()
    neighbours = lab.domain.others
    lab.mend()
    lab.snapshot(SECOND)
    pivot = lab.domain.pivot

    def pivoted(target: str) -> None:
        lab.domain.others = neighbours
        pivot(target)

    monkeypatch.setattr(lab.domain, "pivot", pivoted)
    assert [text for text in lab.merge(SECOND).warnings if VDA in text and "domain nb" in text]
    assert (lab.images.exists(VDA), lab.noted) == (True, True)
