# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the journal can make us delete, case by case."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.journal import JournalDisk
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import (
    OtherImages,
    Signature,
    SnapshotDisk,
    SnapshotRecord,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._service.observe import every_image
from ansible_collections.virtops.libvirt.plugins.module_utils._service.ours import Ours, kept_words

from .fakes import FakeImages, running_guest

BASE, OVERLAY = "/img/a.raw", "/img/vm.vda.s1.qcow2"
NOTED = JournalDisk("vda", BASE, "raw", OVERLAY)


def ours(images: FakeImages, *records: SnapshotRecord) -> Ours:
    domain, _unused, _clock, _watchdog = running_guest()
    return Ours(domain.view(), records, images)


@pytest.fixture
def images() -> FakeImages:
    _domain, images, _clock, _watchdog = running_guest()
    images.backing[OVERLAY] = ("qcow2", BASE)
    return images


@pytest.mark.parametrize(
    ("path", "signature", "noted", "why"),
    [
        (OVERLAY, Signature("qcow2", BASE), NOTED, None),
        (OVERLAY, Signature("empty"), NOTED, None),
        (OVERLAY, Signature("qcow2"), NOTED, None),
        (OVERLAY, Signature("missing"), NOTED, None),
        ("/dev/vg/over", Signature("block"), NOTED, None),
        (OVERLAY, Signature("other"), NOTED, "it is no qcow2 image with a backing file"),
        (OVERLAY, Signature("memory", domain="uuid-1"), NOTED, "it is no qcow2 image"),
        (OVERLAY, Signature("qcow2", "/img/golden.raw"), NOTED, "it stands on /img/golden.raw"),
        (OVERLAY, Signature("qcow2", BASE), replace(NOTED, base=""), None),
        (OVERLAY, Signature("qcow2", "/else/where.raw"), replace(NOTED, base=""), "it stands on /else/where.raw"),
        (OVERLAY, Signature("qcow2", BASE), replace(NOTED, made=1), "it is another file than the one that was made"),
        ("/srv/vm.vda.s1.qcow2", Signature("qcow2", BASE), NOTED, None),
        ("/srv/other.vda.s1.qcow2", Signature("qcow2", BASE), NOTED, "it does not lie where the images of vm lie"),
        ("/srv/empty", Signature("empty"), NOTED, "it does not lie where the images of vm lie"),
    ],
)
def test_an_overlay(images: FakeImages, path: str, signature: Signature, noted: JournalDisk, why: str | None) -> None:
    images.backing[path], images.signatures[path] = ("qcow2", BASE), signature
    found = ours(images).why_not(path, [replace(noted, overlay=path)])
    assert found is None if why is None else found is not None and found.startswith(why)


def test_a_damaged_image_without_a_base_may_hold_data(images: FakeImages) -> None:
    images.signatures[OVERLAY] = Signature("qcow2")
    images.dirty.add(OVERLAY)
    assert ours(images).why_not(OVERLAY, [NOTED]) is not None


def test_one_of_several_layers_that_go_into_one_base(images: FakeImages) -> None:
    upper = replace(NOTED, overlay="/img/upper.qcow2")
    images.backing[upper.overlay] = ("qcow2", OVERLAY)
    assert ours(images).why_not(upper.overlay, [upper, NOTED]) is None
    assert ours(images).why_not(upper.overlay, [upper]) is not None
    assert ours(images).why_not(upper.overlay, [upper, replace(NOTED, target="vdb")]) is not None


def test_what_libvirt_knows_lies_at_home(images: FakeImages) -> None:
    """In a chain, or in the record of a snapshot."""
    other = replace(NOTED, overlay="/srv/x.qcow2")
    images.backing[other.overlay] = ("qcow2", BASE)
    record = SnapshotRecord("s1", "disk-snapshot", 0, (SnapshotDisk("vda", "external", "/srv/y.qcow2"),))
    assert ours(images).why_not(other.overlay, [other]) is not None
    assert ours(images, record).why_not(other.overlay, [other]) is None
    assert ours(images).why_not("/img/b.qcow2", []) is None
    assert (ours(images).is_image("/srv/z"), ours(images, record).is_image("/srv/z")) == (False, True)
    assert ours(images).is_image("nbd://host:10809/x")


@pytest.mark.parametrize(
    ("path", "signature", "why"),
    [
        ("/else/m", Signature("memory", domain="uuid-1"), None),
        ("/else/m", Signature("memory", domain="uuid-2"), "it is the memory of another domain (uuid-2)"),
        ("/img/m", Signature("empty"), None),
        ("/else/m", Signature("empty"), "it is no memory"),
        ("/img/m", Signature("other"), "it is no memory"),
    ],
)
def test_a_memory_file(images: FakeImages, path: str, signature: Signature, why: str | None) -> None:
    images.backing[path], images.signatures[path] = ("memory", None), signature
    found = ours(images).why_not_memory(path)
    assert found is None if why is None else found is not None and found.startswith(why)


def test_words() -> None:
    assert kept_words("/x", "it is new") == (
        "/x was kept: the journal names it, and it is new. Look at it before you delete it."
    )


def test_a_neighbour_whose_definition_cannot_be_read_may_stand_on_anything() -> None:
    others = every_image(OtherImages(frozenset(), (), ("The definition of domain odd cannot be read",)), FakeImages({}))
    assert "/img/o.qcow2" not in others
    assert "odd cannot be read" in str(others.claims("/img/o.qcow2", made=1))
