# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""What a preflight asks of libvirt, on its own test driver."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._libvirt import agent, host
from ansible_collections.virtops.libvirt.plugins.module_utils._libvirt.connection import Connection
from ansible_collections.virtops.libvirt.plugins.module_utils._libvirt.domain import Domain
from ansible_collections.virtops.libvirt.plugins.module_utils._libvirt.host import Host

from .conftest import AGENT, libvirt

Define = Callable[..., Any]


def test_what_the_test_driver_can_do(connection: Connection) -> None:
    told = Host(connection).capabilities()
    assert not told.disk_snapshots
    assert told.libvirt_version == connection.handle.getLibVersion() > 1000000


@pytest.mark.parametrize(
    ("stats", "told"),
    [
        ({"type": libvirt.VIR_DOMAIN_JOB_NONE}, None),
        ({"type": libvirt.VIR_DOMAIN_JOB_COMPLETED, "operation": 9}, None),
        ({"type": libvirt.VIR_DOMAIN_JOB_UNBOUNDED, "operation": 9}, "backup"),
        ({"type": libvirt.VIR_DOMAIN_JOB_BOUNDED, "operation": 5}, "migration out"),
        ({"type": libvirt.VIR_DOMAIN_JOB_BOUNDED, "operation": 99}, "unknown"),
        ({"type": libvirt.VIR_DOMAIN_JOB_BOUNDED}, "unknown"),
    ],
)
def test_a_job_of_the_whole_domain(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, stats: dict[str, int], told: str | None
) -> None:
    class Domain:
        def jobStats(self) -> dict[str, int]:
            return stats

    monkeypatch.setattr(Host, "_lookup", lambda *_: Domain())
    assert Host(connection).job("uuid") == told


def test_a_driver_without_jobs(connection: Connection, define: Define) -> None:
    assert Host(connection).job(define("jobless").UUIDString()) is None


def test_checkpoints_are_counted(connection: Connection, define: Define) -> None:
    domain = define("checked")
    asked = Host(connection)
    assert asked.checkpoints(domain.UUIDString()) == 0
    domain.checkpointCreateXML("<domaincheckpoint><name>c</name></domaincheckpoint>")
    try:
        assert asked.checkpoints(domain.UUIDString()) == 1
    finally:
        domain.checkpointLookupByName("c").delete()


def test_agents_that_cannot_answer(connection: Connection, define: Define) -> None:
    define("silent", devices=AGENT)
    define("without")
    asked = Host(connection)
    views = [view for view in asked.domains() if view.name in ("silent", "without")]
    deaf = asked.deaf_agents(views, 1)
    assert [deaf[view.uuid].code for view in views] == ["agent_unresponsive", "no_agent"]
    assert asked.deaf_agents([], 1) == {}


def test_deaf_agents_are_waited_for_at_once(
    connection: Connection, define: Define, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits for the others: one after the other they would never end."""
    names = [f"deaf{number}" for number in range(5)]
    for name in names:
        define(name)
    together = threading.Barrier(len(names), timeout=20)

    def hang(domain: Any, state: str, seconds: int) -> None:
        together.wait()
        raise VirtopsError("agent_unresponsive", "It does not answer", "Start it")

    monkeypatch.setattr(agent, "ping", hang)
    asked = Host(connection)
    views = [view for view in asked.domains() if view.name in names]
    began = time.monotonic()
    assert {error.code for error in asked.deaf_agents(views, 1).values()} == {"agent_unresponsive"}
    assert time.monotonic() - began < 20
    assert host.agent is agent


def test_a_domain_that_goes_away_meanwhile_is_its_own_matter(connection: Connection, define: Define) -> None:
    domain = define("leaves")
    asked = Host(connection)
    (view,) = [view for view in asked.domains() if view.name == "leaves"]
    domain.destroy()
    domain.undefine()
    assert asked.deaf_agents([view], 1)[view.uuid].code == "no_such_domain"


@pytest.mark.parametrize(
    ("methods", "sign"), [(("XMLDesc",), "\x1b"), (("name",), "\x1b"), (("XMLDesc", "name"), "\udcff")]
)
def test_a_domain_whose_name_xml_cannot_hold(
    connection: Connection, define: Define, monkeypatch: pytest.MonkeyPatch, methods: tuple[str, ...], sign: str
) -> None:
    """libvirt 9.0 renames a domain to anything, and its binding gives no text that is not UTF-8."""

    def odd(whole: Callable[..., str]) -> Callable[..., str]:
        def told(*given: Any) -> str:
            return whole(*given).replace("nameless", "name" + sign).encode("utf-8", "surrogateescape").decode("utf-8")

        return told

    for name in ("fine", "nameless"):
        define(name)
    for method in methods:
        monkeypatch.setattr(libvirt.virDomain, method, odd(getattr(libvirt.virDomain, method)))
    views = {view.uuid: view for view in Host(connection).domains()}
    domain = connection.handle.lookupByName("nameless")
    found = views.pop(domain.UUIDString())
    assert (found.state, found.disks, bool(found.unread)) == ("running", (), True)
    assert not any(view.unread for view in views.values())
    with pytest.raises(VirtopsError, match=f"cannot be read.*virsh domrename {found.uuid} NEW") as refusal:
        Domain(connection, "nameless").view()
    assert refusal.value.code == "invalid_xml"
    others = Domain(connection, "fine").other_images()
    assert len(others.unread) == ("XMLDesc" in methods)
