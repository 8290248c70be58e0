# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._libvirt import connection as module
from ansible_collections.virtops.libvirt.plugins.module_utils._libvirt.connection import Activity, Connection

from .conftest import URI


def nowhere(tmp_path: Path) -> str:
    return f"qemu+unix:///system?socket={tmp_path}/none"


@pytest.mark.parametrize("readonly", [True, False])
def test_an_unreachable_uri_is_told(tmp_path: Path, readonly: bool, capfd: pytest.CaptureFixture[str]) -> None:
    uri = nowhere(tmp_path)
    with pytest.raises(VirtopsError) as caught:
        Connection(uri, readonly)
    assert caught.value.code == "uri_unreachable"
    assert uri in caught.value.cause
    assert "libvirtd" in caught.value.remedy
    assert capfd.readouterr().err == "", "libvirt's own error handler is silent"


def test_a_readonly_connection_changes_nothing() -> None:
    with Connection(URI, readonly=True) as connection:
        assert connection.handle.lookupByName("test").isActive()


def test_a_daemon_gets_time_to_come_back(tmp_path: Path) -> None:
    naps: list[float] = []
    with Connection(URI) as connection:
        connection.uri = nowhere(tmp_path)
        with pytest.raises(VirtopsError) as caught:
            connection.reopen(sleep=naps.append)
        assert caught.value.code == "uri_unreachable"
        assert sum(naps) >= 10

        def comes_back(_unused: float) -> None:
            connection.uri = URI

        connection.uri = nowhere(tmp_path)
        connection.reopen(sleep=comes_back)
        assert connection.handle.isAlive()


def test_a_daemon_that_never_answers_is_told_and_not_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "OPEN_SECONDS", 0.2)
    with socket.socket(socket.AF_UNIX) as hanging, Connection(URI) as connection:
        hanging.bind(f"{tmp_path}/none")
        hanging.listen(2)
        with pytest.raises(VirtopsError) as caught:
            Connection(nowhere(tmp_path))
        assert caught.value.code == "libvirt_hangs"
        assert nowhere(tmp_path) in caught.value.cause
        naps: list[float] = []
        connection.uri = nowhere(tmp_path)
        with pytest.raises(VirtopsError) as caught:
            connection.reopen(sleep=naps.append)
        assert (caught.value.code, naps) == ("libvirt_hangs", [])


def test_the_path_of_a_volume() -> None:
    with Connection(URI) as connection:
        pool = connection.handle.storagePoolLookupByName("default-pool")
        volume = pool.createXML("<volume><name>v 1</name><capacity>1</capacity></volume>")
        try:
            assert connection.volume_path("default-pool", "v 1") == volume.path()
            assert connection.volume_path("default-pool", "none") is None
            assert connection.volume_path("none", "v 1") is None
        finally:
            volume.delete()


def test_what_becomes_of_a_domain_is_noted(connection: Connection, define: Callable[..., Any]) -> None:
    domain, other = define("it", off=True), define("other", off=True)
    activity = Activity(connection, domain.UUIDString())
    assert activity.seen() == "The connection to libvirt was lost meanwhile", "it does not listen yet"
    activity.start()
    other.create()
    connection.handle.defineXML(domain.XMLDesc())
    assert activity.seen() == ""
    domain.create()
    domain.destroy()
    assert activity.seen() == "libvirt has told of its start or its end"
    activity.start()
    assert activity.seen() == ""
    connection.reopen()
    assert activity.seen() == "The connection to libvirt was lost meanwhile"
    activity.close()
