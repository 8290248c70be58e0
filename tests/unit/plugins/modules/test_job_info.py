# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Which jobs are shown, how each ended, and what is waited for."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("libvirt")
pytest.importorskip("lxml")

from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.job_state import Ended, JobEnd, JobState
from ansible_collections.virtops.libvirt.plugins.module_utils._host.job_store import JobFolder, JobStore
from ansible_collections.virtops.libvirt.plugins.modules import job_info
from ansible_collections.virtops.libvirt.tests.unit.plugins.module_args import patch_module_args

URI = "test:///default"
UUID = "6695eb01-f6a4-8304-79aa-97f2502e193f"
SET = "/srv/backup/web/20261120T120000Z"
Call = Callable[..., dict[str, Any]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Run the module on the jobs below this directory; its result."""
    monkeypatch.setattr(job_info, "known_directories", lambda: [str(tmp_path)])

    def run(**options: Any) -> dict[str, Any]:
        with patch_module_args({"uri": URI, **options}), pytest.raises(SystemExit):
            job_info.main()
        result: dict[str, Any] = json.loads(capfd.readouterr().out)
        return result

    return run


def make(place: Path, number: int, domain: str, end: JobEnd | None, uuid: str = UUID) -> tuple[JobFolder, int]:
    """A job that has begun, and what keeps it alive."""

    def prepare(folder: JobFolder) -> int:
        state = JobState(folder.id, "live_backup", domain, "2026112%dT120000Z" % number, uuid, pid=os.getpid())
        folder.write("state.json", state.as_text())
        return folder.hold()

    made = JobStore(lambda: [str(place)]).make("%032x" % number, prepare)
    assert made is not None
    folder, alive = made
    if end is not None:
        folder.end_with(end, alive)
        os.close(alive)
    return folder, alive


@pytest.fixture
def three(tmp_path: Path) -> None:
    make(tmp_path, 1, "web", JobEnd(ended=Ended({"changed": True, "backup": {"path": SET}})))
    make(tmp_path, 2, "web", JobEnd(error=VirtopsError("no_space", "It is full", "Make space")))
    _folder, alive = make(tmp_path, 3, "db", None, "0" * 8 + UUID[8:])
    os.close(alive)


@pytest.mark.usefixtures("three")
def test_the_list_tells_how_each_ended(call: Call) -> None:
    told = [(job["state"], job["error_code"], job["msg"], job["path"]) for job in call()["jobs"]]
    assert told[:2] == [("ended", None, None, SET), ("failed", "no_space", "It is full. Make space.", None)]
    assert told[2][:2] == ("killed", "job_killed")
    (job,) = call(id="%032x" % 2)["jobs"]
    assert (job["error_code"], job["result"]["error_code"], job["log"]) == ("no_space", "no_space", [])


@pytest.mark.usefixtures("three")
def test_the_jobs_of_a_domain(call: Call) -> None:
    assert [job["id"] for job in call(domain="web")["jobs"]] == ["%032x" % number for number in (1, 2)]
    assert [job["state"] for job in call(domain="db")["jobs"]] == ["killed"]
    # The domain of this UUID is called "test" by now
    assert len(call(domain="test")["jobs"]) == 2


@pytest.mark.usefixtures("three")
def test_a_wrong_name_is_no_domain_without_jobs(call: Call) -> None:
    assert call(domain="wbe")["error_code"] == "no_such_domain"


def test_a_domain_without_jobs(call: Call) -> None:
    assert call(domain="test")["jobs"] == []


def test_who_waits_says_for_what(call: Call) -> None:
    assert call(wait=5)["error_code"] == "bad_option"


def test_all_jobs_of_a_domain_are_waited_for_and_no_longer_than_asked(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _one, alive = make(tmp_path, 1, "web", None)
    _other, alive_too = make(tmp_path, 2, "web", None)
    waited = []
    follow = job_info.follow

    def noted(folder: JobFolder, seconds: float) -> object:
        waited.append((folder.id, seconds))
        return follow(folder, 0.01)

    monkeypatch.setattr(job_info, "follow", noted)
    assert [job["state"] for job in call(domain="web", wait=50)["jobs"]] == ["running"] * 2
    assert [job_id for job_id, _unused in waited] == ["%032x" % number for number in (1, 2)]
    assert waited[0][1] >= waited[1][1] > 0
    os.close(alive)
    os.close(alive_too)
