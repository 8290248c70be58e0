# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A drill ends with a note in the set, whatever came of it, and leaves nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.choose_sets import Choice
from ansible_collections.virtops.libvirt.plugins.module_utils._core.drill import DrillOptions, Exported
from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Outcome
from ansible_collections.virtops.libvirt.plugins.module_utils._core.ports import Silent
from ansible_collections.virtops.libvirt.plugins.module_utils._core.sets import BackupSet, Note, Notes
from ansible_collections.virtops.libvirt.plugins.module_utils._service.drill import Drill

from .fakes import FakeClock

SRC = "/srv/backup/web/20261120T120000Z"
NOW = "20261120T120000Z"
XML = """<domain><name>web</name><uuid>u</uuid><memory>1024</memory><os/><devices>
<disk type='file' device='disk'><source file='/img/web.raw'/><target dev='vda'/></disk></devices></domain>"""


class Lab:
    """A set, and a host on which it may be booted. `up_after` are the seconds until the guest is."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        disk = {"target": "vda", "file": "vda.raw", "format": "raw", "virtual_size": 512, "bytes": 512, "backing": None}
        self.found = BackupSet(SRC, "complete", domain="web", manifest={"disks": [disk], "lacks": []})
        self.noted: list[Notes] = []
        self.calls: list[str] = []
        self.folder, self.console_path = "/scratch", "/scratch/console.log"
        self.up_after, self.ends_after = 2.0, 1e9
        self.check: tuple[int, str] = (0, "fine")
        self.fails: list[VirtopsError] = []

    def run(self, check: bool = False, **options: Any) -> Outcome:
        wanted = DrillOptions(Choice(path=SRC), timeout=10, **options)
        slot: Any = nullcontext
        return Drill(wanted, self, self, self.scratch, slot, self.clock, Silent()).run(check)  # type: ignore[arg-type]

    # SetsPort

    def list(self, dest: str, domain: str | None) -> tuple[BackupSet, ...]:
        assert (dest, domain) == ("/srv/backup", "web")
        return (self.found,)

    def note(self, path: str, notes: Notes) -> None:
        assert path == SRC
        self.noted.append(notes)

    # ScratchPort

    @contextmanager
    def scratch(self, path: str) -> Iterator[Lab]:
        assert path == SRC
        self.calls.append("scratch")
        try:
            yield self
        finally:
            self.calls.append("gone")

    def serve(self, image: Exported) -> str:
        return "/scratch/%s.nbd" % image.target

    def overlay(self, image: Exported, socket: str) -> str:
        return socket.replace("nbd", "qcow2")

    def read(self, file: str) -> str:
        assert file == "domain.xml"
        return XML

    def hand_over(self) -> None:
        self.calls.append("hand over")

    def console(self) -> str:
        return "login:" if self.clock.monotonic() >= self.up_after else "booting"

    # TrialHost and TrialGuest

    @contextmanager
    def boot(self, xml: str) -> Iterator[Lab]:
        for error in self.fails:
            raise error
        assert "/scratch/vda.qcow2" in xml
        assert "/img/web.raw" not in xml
        self.calls.append("boot")
        try:
            yield self
        finally:
            self.calls.append("destroy")

    def is_running(self) -> bool:
        return self.clock.monotonic() < self.ends_after

    def answers(self) -> bool:
        return self.clock.monotonic() >= self.up_after

    def execute(self, command: tuple[str, ...], seconds: int) -> tuple[int, str]:
        assert (command, seconds) == (("/bin/check",), 60)
        return self.check


@pytest.fixture
def lab() -> Lab:
    return Lab()


@pytest.mark.parametrize("options", [{}, {"pattern": "login:$"}])
def test_a_set_that_boots(lab: Lab, options: dict[str, Any]) -> None:
    planned = lab.run(check=True, command=("/bin/check",), **options)
    assert (lab.calls, lab.noted) == ([], [])
    done = lab.run(command=("/bin/check",), **options)
    assert done.steps == planned.steps
    assert done.values.keys() == planned.values.keys()
    assert lab.calls == ["scratch", "hand over", "boot", "destroy", "gone"]
    assert lab.noted == [Notes(booted=Note(NOW, True))]
    (told,) = done.values["sets"]  # type: ignore[misc]
    assert (told["check"], told["boot_seconds"], told["problem"]) == ({"rc": 0, "output": "fine"}, 2.0, "")


@pytest.mark.parametrize(
    ("what", "value", "words"),
    [
        ("up_after", 99, "within 10 s its agent did not answer"),
        ("ends_after", 1, "within 1 s its guest ended. Its console ends with: booting"),
        ("check", (3, "no nginx"), "ended with exit code 3: no nginx"),
    ],
)
def test_one_that_does_not_is_noted(lab: Lab, what: str, value: Any, words: str) -> None:
    setattr(lab, what, value)
    with pytest.raises(VirtopsError) as caught:
        lab.run(command=("/bin/check",))
    assert caught.value.code == "drill_failed"
    assert "1 of 1 backup sets did not boot as they should: %s: " % SRC in caught.value.cause
    (told,) = caught.value.told["sets"]
    assert words in told["problem"]
    assert lab.calls[-2:] == ["destroy", "gone"]
    assert lab.noted == [Notes(booted=Note(NOW, False, told["problem"]))]


def test_one_that_cannot_be_tried_has_no_note(lab: Lab) -> None:
    lab.found = replace(lab.found, state="damaged", why="vda.raw is missing")
    with pytest.raises(VirtopsError) as caught:
        lab.run()
    assert "vda.raw is missing" in caught.value.cause
    assert (lab.calls, lab.noted) == ([], [])


def test_what_is_the_hosts_fault_says_nothing_about_the_set(lab: Lab) -> None:
    lab.fails.append(VirtopsError("libvirt_error", "No KVM", "Look"))
    with pytest.raises(VirtopsError):
        lab.run()
    assert lab.noted == []
