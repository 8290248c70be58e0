# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Modules as Ansible runs them, on libvirt's in-process driver."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("libvirt")
pytest.importorskip("lxml")

from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Outcome
from ansible_collections.virtops.libvirt.plugins.module_utils._host.locks import DomainLock
from ansible_collections.virtops.libvirt.plugins.module_utils._module import entry
from ansible_collections.virtops.libvirt.plugins.module_utils._module.entry import DomainContext, HostContext
from ansible_collections.virtops.libvirt.tests.unit.plugins.module_args import patch_module_args

URI = "test:///default"
UUID = "6695eb01-f6a4-8304-79aa-97f2502e193f"
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a module with these options; its result, with `failed` as Ansible would see it."""

    def call(module: Callable[[], None], check: bool = False, **options: Any) -> dict[str, Any]:
        arguments = {"uri": URI, **options, "_ansible_check_mode": check}
        with patch_module_args(arguments), pytest.raises(SystemExit) as ended:
            module()
        result: dict[str, Any] = json.loads(capfd.readouterr().out)
        assert bool(ended.value.code) == bool(result.get("failed"))
        return result

    return call


@pytest.fixture
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for locks that needs no root."""

    def lock(uuid: str, **more: Any) -> DomainLock:
        return DomainLock(uuid, lambda: [str(tmp_path)], **more)

    monkeypatch.setattr(entry, "DomainLock", lock)
    return tmp_path


def module(flow: Callable[[DomainContext], Outcome], changes: bool) -> Callable[[], None]:
    return lambda: entry.run_domain_module({"word": {"type": "str"}}, flow, changes=changes)


def outcome(_unused: DomainContext) -> Outcome:
    return Outcome(("step one",), {"a": 1}, {"a": 2}, {"more": [1]}, ("careful",))


def test_a_changing_module(run: Run, locks: Path) -> None:
    result = run(module(outcome, changes=True), domain=UUID)
    assert result["changed"] is True
    assert result["actions"] == ["step one"]
    assert result["diff"] == {"before": {"a": 1}, "after": {"a": 2}}
    assert result["domain"] == {"name": "test", "uuid": UUID, "state": "running"}
    assert result["more"] == [1]
    assert "careful" in json.dumps(result["warnings"])


def test_a_reading_module_has_neither_actions_nor_diff(run: Run) -> None:
    result = run(module(outcome, changes=False), domain="test")
    assert result["changed"] is False
    assert not {"actions", "diff"} & result.keys()
    assert result["domain"]["name"] == "test"


@pytest.mark.parametrize(
    ("changes", "check", "locked", "readonly"),
    [(True, False, True, False), (True, True, False, False), (False, False, False, True)],
)
def test_the_lock_is_held_for_a_change_only(
    run: Run, locks: Path, changes: bool, check: bool, locked: bool, readonly: bool
) -> None:
    seen: list[DomainContext] = []

    def flow(context: DomainContext) -> Outcome:
        seen.append(context)
        assert bool(list(locks.iterdir())) == locked
        assert context.domain._connection.readonly == readonly
        return Outcome()

    assert run(module(flow, changes), check, domain="test", word="x")["changed"] is False
    assert (seen[0].check, seen[0].uri, seen[0].params["word"]) == (check, URI, "x")
    assert list(locks.iterdir()) == []


def test_a_domain_at_work_is_refused(run: Run, locks: Path) -> None:
    with DomainLock(UUID, lambda: [str(locks)]):
        result = run(module(outcome, changes=True), domain="test")
    assert (result["failed"], result["error_code"]) == (True, "locked")


def test_a_domain_at_work_is_waited_for(run: Run, locks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bounded time, with nothing held open meanwhile, and what is planned is planned after it."""
    clock = FakeClock()
    monkeypatch.setattr(entry, "SystemClock", lambda: clock)
    with DomainLock(UUID, lambda: [str(locks)]):
        result = run(module(outcome, changes=True), domain="test", lock_timeout=30)
        assert (result["error_code"], clock.now) == ("locked", 30)
    other = DomainLock(UUID, lambda: [str(locks)])
    other.__enter__()
    clock.at(45, lambda: other.__exit__(None, None, None))
    assert run(module(outcome, changes=True), domain="test", lock_timeout="30")["changed"] is True
    assert clock.now == 45
    assert run(module(outcome, changes=True), domain="test", lock_timeout=-1)["error_code"] == "bad_option"


class FakeClock:
    """Time that passes only where somebody waits; once, something happens at a moment."""

    def __init__(self) -> None:
        self.now = 0.0
        self._moment = float("inf")
        self._event: Callable[[], None] = lambda: None

    def at(self, moment: float, event: Callable[[], None]) -> None:
        self._moment, self._event = moment, event

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.now >= self._moment:
            self._moment = float("inf")
            self._event()


def test_words_of_others_are_shown_as_escapes(run: Run, locks: Path) -> None:
    def fails(_unused: DomainContext) -> Outcome:
        raise VirtopsError("some_code", "It said \x1b[2J\nbank: backed up", "Mend \u202eit", [{"error": "a\nb"}])

    def warns(_unused: DomainContext) -> Outcome:
        return Outcome(("delete a\nb",), {}, {}, {"path": "a\nb"}, ("careful\nbank: backed up",))

    result = run(module(fails, changes=True), domain="test")
    assert result["msg"] == "It said \\x1b[2J\\nbank: backed up. Mend \\u202eit."
    assert result["partial"] == [{"error": "a\\nb"}]
    result = run(module(warns, changes=True), domain="test")
    assert (result["actions"], result["path"]) == (["delete a\\nb"], "a\nb")
    assert "careful\\\\nbank" in json.dumps(result["warnings"])


@pytest.mark.parametrize("partial", [None, [{"disk": "vda"}]])
def test_an_expected_failure_is_a_result(run: Run, locks: Path, partial: list[dict[str, Any]] | None) -> None:
    def flow(_unused: DomainContext) -> Outcome:
        raise VirtopsError("some_code", "It broke", "Mend it", partial)

    result = run(module(flow, changes=True), domain="test")
    assert (result["msg"], result["error_code"]) == ("It broke. Mend it.", "some_code")
    assert result.get("partial") == partial
    assert list(locks.iterdir()) == []


def test_a_bug_stays_a_traceback(locks: Path) -> None:
    def flow(_unused: DomainContext) -> Outcome:
        raise ZeroDivisionError

    with patch_module_args({"uri": URI, "domain": "test"}), pytest.raises(ZeroDivisionError):
        module(flow, changes=True)()
    assert list(locks.iterdir()) == []


def test_a_domain_or_a_host_that_is_not_there(run: Run, tmp_path: Path) -> None:
    result = run(module(outcome, changes=False), domain="nobody")
    assert result["error_code"] == "no_such_domain"
    result = run(module(outcome, changes=False), domain="test", uri=f"qemu+unix:///system?socket={tmp_path}/none")
    assert result["error_code"] == "uri_unreachable"


@pytest.mark.parametrize(
    ("name", "package"), [("LIBVIRT_IMPORT_ERROR", "python3-libvirt"), ("LXML_IMPORT_ERROR", "python3-lxml")]
)
def test_a_missing_library_names_the_python_and_the_package(
    run: Run, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setattr(entry, name, "ModuleNotFoundError: No module named 'it'")
    result = run(module(outcome, changes=False), domain="test")
    assert result["error_code"] == "missing_library"
    assert sys.executable in result["msg"]
    assert package in result["msg"]


def test_a_module_that_reads_the_host(run: Run) -> None:
    def flow(context: HostContext) -> Outcome:
        return Outcome(values={"names": [view.name for view in context.host.domains()]}, warnings=("hm",))

    result = run(lambda: entry.run_host_module({}, flow))
    assert (result["changed"], "test" in result["names"]) == (False, True)
    assert "hm" in json.dumps(result["warnings"])
