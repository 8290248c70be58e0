# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""All guests of libvirt's in-process driver, after a boot."""

from __future__ import annotations

import os
import re
import socket
import struct
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

libvirt = pytest.importorskip("libvirt")
pytest.importorskip("lxml")

from ansible_collections.virtops.libvirt.plugins.module_utils._boot import recover  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._core.journal import JOURNAL_PREFIX, JOURNAL_URI  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._host.boottime import booted_at  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._host.locks import DomainLock  # noqa: E402
from ansible_collections.virtops.libvirt.plugins.module_utils._libvirt.connection import Connection  # noqa: E402

URI = "test:///default"
BEFORE, BOOT, AFTER, NOW = "20261120T115959Z", "20261120T120000Z", "20261120T120001Z", "20261120T120100Z"
NOW_BOOT = "1f2e3d4c-0000-4000-8000-000000000001"
XML = """
<domain type='test'>
  <name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>8</memory><os><type arch='i686'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/><source file='/img/{name}.raw'/><target dev='vda' bus='virtio'/>
    </disk>
  </devices>
</domain>
"""
JOURNAL = (
    "<journal schema='1'><operation id='{id}' kind='live_backup' name='s1' phase='{phase}' started='{started}'>"
    "<disk target='vda' base='/img/base.raw' base_format='raw' overlay='{overlay}'/></operation></journal>"
)
Define = Callable[..., None]


@pytest.fixture(autouse=True)
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for locks that needs no root."""
    monkeypatch.setattr(
        recover, "DomainLock", lambda domain, **more: DomainLock(domain, lambda: [str(tmp_path)], **more)
    )
    return tmp_path


@pytest.fixture
def connection() -> Iterator[Connection]:
    """Without the driver's own domain."""
    with Connection(URI) as opened:
        opened.handle.lookupByName("test").destroy()
        yield opened
        opened.handle.lookupByName("test").create()


@pytest.fixture
def define(connection: Connection) -> Iterator[Define]:
    """Make a running guest, with an open operation in this phase that was begun at this time."""
    made = []

    def make(name: str, phase: str = "", started: str = BEFORE, overlay: str = "/img/none.qcow2") -> None:
        domain = connection.handle.defineXML(XML.format(name=name, uuid=uuid.uuid4()))
        domain.create()
        made.append(domain)
        if phase:
            journal = JOURNAL.format(id=uuid.uuid4(), phase=phase, started=started, overlay=overlay)
            flags = libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG
            domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, journal, JOURNAL_PREFIX, JOURNAL_URI, flags)

    yield make
    for domain in made:
        domain.destroy()
        domain.undefine()


def run(connection: Connection) -> tuple[int, dict[str, str]]:
    """The exit code, and what is said of each guest."""
    said: list[str] = []
    found = recover.recover_all(connection, 60, recover.Boot(NOW_BOOT, BOOT, NOW), said.append)
    assert found.saved == ()
    return int(found.needy), dict(line.split(": ", 1) for line in said if not line.startswith("test: "))


def test_a_healthy_host(connection: Connection, define: Define, locks: Path) -> None:
    define("a")
    define("b")
    definitions = [domain.XMLDesc(0) for domain in connection.handle.listAllDomains()]
    assert run(connection) == (0, {"a": "nothing to do", "b": "nothing to do"})
    assert [domain.XMLDesc(0) for domain in connection.handle.listAllDomains()] == definitions
    assert os.listdir(locks) == []


def test_what_the_boot_interrupted_is_healed_once(connection: Connection, define: Define) -> None:
    define("a", "prepared")
    define("b")
    code, said = run(connection)
    assert code == 0
    assert said == {"a": "healed: remove operation s1 from the journal", "b": "nothing to do"}
    assert run(connection) == (0, {"a": "nothing to do", "b": "nothing to do"})


def test_what_was_begun_since_the_boot_is_left_alone(connection: Connection, define: Define) -> None:
    """A play may be at work on it, between two of its tasks."""
    define("a", "prepared", AFTER)
    assert run(connection) == (0, {"a": "nothing to do"})
    assert "s1" in connection.handle.lookupByName("a").XMLDesc(0)


def test_a_saved_guest_is_recovered_once_it_was_started(
    connection: Connection, define: Define, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """systemd is told before the wait for it; of one that goes on being saved nothing is said again."""
    define("a", "prepared")
    define("b")
    saved = connection.handle.lookupByName("a")
    saved.managedSave(0)
    looks: list[str] = []

    def wait(_seconds: float) -> None:
        looks.append(capfd.readouterr().out)
        if len(looks) == 3:
            saved.create()

    monkeypatch.setattr(recover.time, "sleep", wait)
    monkeypatch.setattr(recover, "_tell_ready", lambda: looks.append("ready"))
    monkeypatch.setattr(recover, "booted_at", lambda: BOOT)
    monkeypatch.setattr(recover, "_connect", lambda _uri: nullcontext(connection))
    assert recover.main(["--uri", URI]) == 0
    assert (looks[0], looks[2:]) == ("ready", [""])
    assert "a: left as it is, because its memory is saved" in looks[1]
    assert capfd.readouterr().out == "a: healed: remove operation s1 from the journal\n"


def test_systemd_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        recover._tell_ready()
        assert systemd.recv(100) == b"READY=1"
    monkeypatch.delenv("NOTIFY_SOCKET")
    recover._tell_ready()


@pytest.mark.parametrize(
    ("started", "boot", "healed"),
    [
        (BEFORE, "", True),
        (AFTER, "", False),
        ("20261121T120000Z", "", True),  # by a clock that was a day ahead
        ("20261121T120000Z", "another", True),
        (AFTER, "another", True),
        (BEFORE, NOW_BOOT, False),
        ("20251120T120000Z", NOW_BOOT, False),
    ],
)
def test_the_clock_counts_only_without_a_boot_id(
    connection: Connection, define: Define, started: str, boot: str, healed: bool
) -> None:
    define("a", "prepared", started)
    domain = connection.handle.lookupByName("a")
    journal = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, JOURNAL_URI)
    journal = journal.replace("phase=", f"boot='{boot}' phase=") if boot else journal
    flags = libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG
    domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, journal, JOURNAL_PREFIX, JOURNAL_URI, flags)
    assert run(connection)[1]["a"].startswith("healed: ") == healed


def test_one_that_needs_a_human_stops_no_other(connection: Connection, define: Define, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.qcow2"
    name = b"/img/base.raw"
    overlay.write_bytes(b"QFI\xfb" + struct.pack(">IQI", 3, 200, len(name)) + bytes(180) + name)  # damaged
    define("a", "prepared", overlay=str(overlay))
    define("b", "prepared")
    code, said = run(connection)
    assert code == 1
    assert said["a"].startswith("NEEDS A HUMAN (image_failed): ")
    assert said["b"].startswith("healed: ")


def test_what_is_not_ours_is_kept_and_named(connection: Connection, define: Define, tmp_path: Path) -> None:
    """Whoever may write to the domain's metadata can put any file's name there."""
    text, memory = tmp_path / "text", tmp_path / "memory"
    text.write_text("precious")
    memory.write_text("precious")
    define("a", "prepared", overlay=str(text))
    domain = connection.handle.lookupByName("a")
    forged = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, JOURNAL_URI)
    revert = (
        f"<operation id='r' kind='revert' name='revert to s' phase='created' started='{BEFORE}'>"
        f"<disk target='vda' base='/img/a.raw' base_format='raw' overlay='{text}'/></operation>"
    )
    forged = forged.replace("phase=", f"memory='{memory}' phase=").replace("</journal>", revert + "</journal>")
    flags = libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG
    domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, forged, JOURNAL_PREFIX, JOURNAL_URI, flags)
    code, said = run(connection)
    assert code == 0
    assert f"{text} was kept: the journal names it" in said["a"]
    assert f"{memory} was kept: the journal names it" in said["a"]
    assert (text.read_text(), memory.read_text()) == ("precious", "precious")
    assert run(connection) == (0, {"a": "nothing to do"})


def test_a_journal_that_came_along_with_a_copied_definition(connection: Connection, define: Define) -> None:
    """It tells of another domain's disks."""
    define("a", "prepared")
    domain = connection.handle.lookupByName("a")
    forged = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, JOURNAL_URI)
    forged = forged.replace("<journal ", f"<journal domain='{uuid.uuid4()}' ")
    flags = libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG
    domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, forged, JOURNAL_PREFIX, JOURNAL_URI, flags)
    assert run(connection) == (0, {"a": "nothing to do"})
    assert "s1" in domain.XMLDesc(0)


def test_a_bug_is_shown_and_stops_no_other(
    connection: Connection, define: Define, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    define("a", "prepared")
    define("b")

    def broken(*_unused: object, **_ignored: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(recover, "Recovery", broken)
    code, said = run(connection)
    assert code == 1
    assert said["a"].startswith("NEEDS A HUMAN")
    assert said["b"] == "nothing to do"
    assert "RuntimeError: a bug" in capfd.readouterr().err


def test_one_that_somebody_works_on(connection: Connection, define: Define, locks: Path) -> None:
    define("a", "prepared")
    with DomainLock(connection.handle.lookupByName("a").UUIDString(), lambda: [str(locks)]):
        code, said = run(connection)
    assert code == 1
    assert said["a"].startswith("NEEDS A HUMAN (locked): ")


def test_a_recovery_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recover.signal, "setitimer", _sooner(recover.signal.setitimer))
    with pytest.raises(VirtopsError) as caught, recover._at_most(60, "a"):
        time.sleep(30)
    assert caught.value.code == "timeout"
    time.sleep(0.15)  # and nothing comes later


def _sooner(setitimer: Callable[..., object]) -> Callable[..., object]:
    def set_sooner(which: int, seconds: float, interval: float = 0.0) -> object:
        return setitimer(which, seconds / 6000, interval / 50)

    return set_sooner


def test_what_it_says_when_libvirt_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recover, "CONNECT_SECONDS", 0)
    assert recover.main(["--uri", "test:///nonexistent"]) == 1
    assert "test:///nonexistent" in capfd.readouterr().out


def test_the_time_of_the_boot() -> None:
    """PID 1 is not younger than we are, and times of that form compare as text."""
    found = booted_at()
    assert re.fullmatch(r"20\d{6}T\d{6}Z", found)
    assert found <= time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    assert os.stat("/proc/1").st_ctime <= time.time()


def test_a_guest_whose_definition_cannot_be_read_is_named_and_hides_no_other(
    connection: Connection, define: Define, monkeypatch: pytest.MonkeyPatch
) -> None:
    define("a", "prepared")
    define("odd", "prepared")
    whole = libvirt.virDomain.XMLDesc
    monkeypatch.setattr(
        libvirt.virDomain, "XMLDesc", lambda domain, flags=0: whole(domain, flags).replace("<name>odd", "<name>\x1b")
    )
    code, said = run(connection)
    assert (code, said["a"]) == (1, "healed: remove operation s1 from the journal")
    assert said["odd"].startswith("NEEDS A HUMAN (invalid_xml): The definition of domain odd cannot be read: ")


def test_no_name_moves_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    recover._say("odd\x1b[31m:\nnothing  to do")
    assert capsys.readouterr().out == "odd\\x1b[31m: nothing to do\n"
