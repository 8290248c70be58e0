# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What may be done with an image, by what libvirt's XML and qemu-img say of it."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.images import (
    Look,
    Named,
    Place,
    Use,
    flaw,
    named_by,
    needs_rewrite,
    why_not_alone,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Disk, DomainView, ImageInfo, Layer

TOP, BASE = Layer("/img/a.qcow2", "qcow2"), Layer("/img/golden.raw", "raw")
REMOTE = Layer("nbd://server/golden", "raw")
PLACE = Place("vda", "web")
LIVE, SILENT = Named((TOP, BASE), whole=True), Named((TOP,))


def told(**more: Any) -> ImageInfo:
    """What qemu-img says of the top."""
    return ImageInfo(TOP.path, "qcow2", 1 << 30, 1 << 20, **more)


ON_BASE = told(backing_path=BASE.path, backing_format="raw")
DATA = told(beside=("/img/a.data",))
HERE = Layer(TOP.path, "qcow2", data_file="/img/a.data")


def code(look: Look, named: Named, use: Use) -> str:
    found = flaw(look, named, use, PLACE)
    return "" if found is None else found.code


@pytest.mark.parametrize("use", Use)
@pytest.mark.parametrize(
    ("look", "named", "expected"),
    [
        pytest.param(Look(TOP, told()), Named((TOP,), whole=True), "", id="one image"),
        pytest.param(Look(TOP, told()), Named(), "", id="one image of which libvirt says nothing"),
        pytest.param(Look(TOP, ON_BASE, below=BASE), LIVE, "", id="all is told"),
        pytest.param(Look(Layer(TOP.path, "raw", "encrypted")), LIVE, "image_encrypted", id="a raw LUKS container"),
        pytest.param(Look(TOP, told(encrypted=True)), LIVE, "image_encrypted", id="encrypted by its header"),
        pytest.param(Look(Layer(TOP.path, "raw", "a slice of its file")), LIVE, "image_sliced", id="a slice"),
        pytest.param(Look(TOP, told()), LIVE, "image_foreign", id="a header that lacks its backing file"),
        pytest.param(
            Look(TOP, told(backing_path=BASE.path), below=BASE), LIVE, "backing_format", id="no format in the header"
        ),
        pytest.param(
            Look(TOP, told(backing_path=BASE.path)),
            SILENT,
            "backing_format",
            id="no format in the header, nor in the XML",
        ),
        pytest.param(
            Look(TOP, told(backing_path=BASE.path, backing_format="qcow2"), below=BASE),
            LIVE,
            "backing_format",
            id="another format in the header",
        ),
        pytest.param(
            Look(TOP, told(backing_path="/etc/shadow", backing_format="raw")), LIVE, "image_foreign", id="another image"
        ),
        pytest.param(
            Look(TOP, told(backing_path="nbd://evil/x", backing_format="raw")), LIVE, "image_foreign", id="the network"
        ),
        pytest.param(
            Look(TOP, told(backing_path="nbd://evil/x", backing_format="raw")),
            SILENT,
            "image_foreign",
            id="the network, and the XML is silent",
        ),
        pytest.param(
            Look(TOP, told(backing_path='json:{"driver":"nbd"}', backing_format="raw")),
            SILENT,
            "image_foreign",
            id="a json name",
        ),
        pytest.param(Look(TOP, DATA), Named((TOP,), whole=True), "image_foreign", id="data in another file"),
        pytest.param(Look(HERE, DATA), Named((HERE,), whole=True), "", id="data in a file that libvirt names"),
        pytest.param(
            Look(HERE, told(beside=("/img/a.data", "/etc/shadow"))), LIVE, "image_foreign", id="and in one more"
        ),
    ],
)
def test_what_stands_against_every_use(look: Look, named: Named, expected: str, use: Use) -> None:
    assert code(look, named, use) == expected


@pytest.mark.parametrize(
    ("look", "named", "refusing"),
    [
        pytest.param(Look(TOP, ON_BASE), SILENT, {Use.PULL: "image_foreign"}, id="the header alone names the base"),
        pytest.param(Look(TOP, ON_BASE), Named((TOP,), begun=frozenset({BASE.path})), {}, id="a pull that was begun"),
        pytest.param(
            Look(REMOTE), LIVE, dict.fromkeys((Use.COPY, Use.MERGE, Use.PULL), "base_remote"), id="on the network"
        ),
        pytest.param(
            Look(TOP, DATA, held=frozenset(DATA.beside)),
            Named((TOP,), whole=True),
            dict.fromkeys((Use.REVERT, Use.MERGE, Use.PULL), "image_foreign"),
            id="data in a file that QEMU has open",
        ),
    ],
)
def test_what_stands_against_some_uses(look: Look, named: Named, refusing: dict[Use, str]) -> None:
    assert {use: code(look, named, use) for use in Use} == {use: refusing.get(use, "") for use in Use}


def test_the_command_that_mends_a_header() -> None:
    odd = Layer("/img/my golden.raw", "raw")
    known = flaw(Look(TOP, told(backing_path=odd.path), below=odd), LIVE, Use.COPY, PLACE)
    assert known is not None
    assert "qemu-img rebase -u -f qcow2 -F raw -b '/img/my golden.raw' /img/a.qcow2" in known.remedy
    unknown = flaw(Look(TOP, told(backing_path=odd.path)), SILENT, Use.COPY, PLACE)
    assert unknown is not None
    assert "-F FORMAT" in unknown.remedy


def test_the_encrypted_base_is_what_is_told_of() -> None:
    """Not that the header above it says luks, where the XML says raw."""
    luks = Layer(BASE.path, "raw", "encrypted")
    look = Look(TOP, told(backing_path=BASE.path, backing_format="luks"), below=luks)
    assert flaw(look, LIVE, Use.MERGE, PLACE) is None
    assert code(Look(luks), LIVE, Use.MERGE) == "image_encrypted"


@pytest.mark.parametrize("state", ["running", "shut off"])
def test_who_names_the_images(state: str) -> None:
    """Of a domain that is off, `disks` have what the headers say."""
    live, config = Disk("vda", chain=(TOP, BASE), whole=True), Disk("vda", chain=(TOP,), whole=True)
    view = DomainView("web", "uuid", state, True, (live,), (config,))
    assert named_by(view, "vda") == (LIVE if state == "running" else SILENT)
    assert named_by(view, "vdx") == Named()


@pytest.mark.parametrize(
    ("info", "backing", "alone"),
    [
        (told(), None, True),
        (told(encrypted=True), None, False),
        (DATA, None, False),
        (ON_BASE, None, False),
        (ON_BASE, BASE, True),
        (ON_BASE, TOP, False),
    ],
)
def test_a_copy_that_stands_alone(info: ImageInfo, backing: Layer | None, alone: bool) -> None:
    assert (why_not_alone(info, backing) == "") is alone


def test_what_a_plain_copy_would_miss() -> None:
    assert needs_rewrite(told()) == ""
    assert "/img/a.data" in needs_rewrite(DATA)
