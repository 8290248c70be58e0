# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whom a set is restored as, where its files wait, and the definition that it gets."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("lxml")

from ansible_collections.virtops.libvirt.plugins.module_utils._core import xml
from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Layer
from ansible_collections.virtops.libvirt.plugins.module_utils._core.restore import (
    Identity,
    RestoreOptions,
    identity_of,
    nvram_path,
    parse_sums,
    place_of_waiting,
    waiting_path,
)

FOLDER = Path(__file__).parent / "xml"
UUID = "11111111-2222-4333-8444-555555555555"
NEW = "99999999-2222-4333-8444-555555555555"


@pytest.mark.parametrize(
    "path", ["/i/web.raw", "/i/web", "/i/a.b.qcow2", "/i/.hidden", "/i/ö é.img", "/i/web.restoring-1"]
)
def test_a_file_that_waits_tells_its_place(path):
    waiting = waiting_path(path, UUID)
    assert waiting != path
    assert place_of_waiting(waiting, UUID) == path
    # What is another domain's, or only looks like it, is nobody's
    assert place_of_waiting(waiting, NEW) is None
    assert place_of_waiting(path, UUID) is None


@pytest.mark.parametrize(
    ("domain", "uuid", "expected"),
    [
        (None, "auto", Identity("web", UUID)),
        ("web", "auto", Identity("web", UUID)),
        ("web", "keep", Identity("web", UUID)),
        ("web2", "keep", Identity("web2", UUID)),
        ("web2", "auto", "copy"),
        ("web2", "new", "copy"),
        (None, "new", "bad_option"),
        ("a/b", "auto", "unsafe_name"),
        ("..", "auto", "unsafe_name"),
        (" ", "auto", "unsafe_name"),
        ("a\nb", "auto", "unsafe_name"),
    ],
)
def test_whom(domain, uuid, expected):
    options = RestoreOptions("/b/web", domain=domain, uuid=uuid)
    if isinstance(expected, str) and expected != "copy":
        with pytest.raises(VirtopsError) as caught:
            identity_of(options, "web", UUID, "m")
        assert caught.value.code == expected
        return
    found = identity_of(options, "web", UUID, "m")
    if expected != "copy":
        assert found == expected
        return
    assert found.is_copy
    assert found.uuid not in (UUID, identity_of(options, "web", UUID, "another host").uuid)
    assert found == identity_of(options, "web", UUID, "m")


def test_the_nvram_of_a_copy():
    copy = Identity("new", NEW, is_copy=True)
    assert nvram_path("/n/web_VARS.qcow2", copy) == "/n/new_VARS.qcow2"
    assert nvram_path("/n/web_VARS.fd", Identity("web", UUID)) == "/n/web_VARS.fd"
    assert nvram_path(None, copy) is None


def test_sums():
    digest = "0" * 64
    assert parse_sums("%s  vda.raw\nnonsense\n%s  ../x\n" % (digest, digest)) == {"vda.raw": digest}


@pytest.mark.parametrize("kind", ["same", "copy"])
def test_the_definition(kind):
    """Of a guest with all that a copy must have for itself."""
    source = (FOLDER / "restore.xml").read_text(encoding="utf-8")
    layers = {"vda": Layer("/new/web.vda.qcow2", "qcow2"), "vdb": Layer("/img/data.raw", "raw")}
    copy = Identity("web copy é", NEW, is_copy=True)
    identity = copy if kind == "copy" else Identity("web", UUID)
    nvram = nvram_path("/nvram/web_VARS.fd", identity)
    found = xml.restored_definition(source, identity, layers, nvram, ("vdc",) if kind == "copy" else ())
    assert found + "\n" == (FOLDER / ("restored-%s.xml" % kind)).read_text(encoding="utf-8")
    moves = {"/new/web.vda.qcow2": "/new/.w", str(nvram): "/nvram/.n"}
    moved = xml.moved_images(found, moves)
    assert "/new/.w" in moved
    assert "/nvram/.n" in moved
    assert xml.moved_images(moved, {new: old for old, new in moves.items()}) == found


def test_what_it_needs():
    needs = xml.host_needs((FOLDER / "restore.xml").read_text(encoding="utf-8"))
    assert (needs.emulator, needs.arch, needs.machine, needs.kind) == ("/usr/bin/qemu", "x86_64", "pc-q35-7.2", "kvm")
    assert (needs.cpu, needs.networks, needs.bridges, needs.links) == ("Nehalem", ("lan",), ("br0",), ("eth1",))
    assert (needs.pools, needs.secrets) == (("fast",), ("0a81f5b2-8403-7b23-c8d6-21ccc2f80d6f",))
    assert ("loader", "/usr/share/CODE.fd") in needs.files


def test_models_of_cpus():
    told = (
        "<domainCapabilities><cpu><mode name='custom' supported='%s'>"
        "<model usable='yes'>A</model><model usable='no'>B</model><model usable='unknown'>C</model>"
        "</mode></cpu></domainCapabilities>"
    )
    assert xml.usable_models(told % "yes") == {"A", "C"}
    assert xml.usable_models(told % "no") is None


@pytest.mark.parametrize(("kind", "expected"), [("dir", "/p"), ("netfs", "/p"), ("logical", None)])
def test_folders_of_pools(kind, expected):
    assert xml.pool_folder("<pool type='%s'><target><path>/p</path></target></pool>" % kind) == expected
