# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The live backup on the oldest and the newest ansible-core; the other tests here run on one between.

They template differently: before 2.19 a template gives text, from 2.19 on a value with its type.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from conftest import NAMES, ODD_NAME
from fleet import Member
from playbook import Controller
from virtlab import Lab

#: Where noxfile.py has put them
CORES = [Path(path) for path in os.environ.get("VIRTOPS_CORES", "").split(os.pathsep) if path]
ODD, WEB = f"{ODD_NAME}@e2e2", "web1@e2e2"
GUESTS: dict[str, Any] = {"target": "second", "guests": "web1, odd*"}


@pytest.fixture(params=CORES, ids=lambda path: path.parent.name)
def on_core(request: pytest.FixtureRequest, lab: Lab, tmp_path: Path) -> Controller:
    """A machine with that ansible-core."""
    return Controller(tmp_path, NAMES, lab, programs=request.param)


def test_live_backup(fleet: dict[str, Member], on_core: Controller) -> None:
    """A whole one, with variables as text; then none, and the report says why."""
    before = {
        alias: (fleet[alias].facts(), fleet[alias].guest.mark(), len(fleet[alias].sets())) for alias in (ODD, WEB)
    }
    play = on_core.run(**GUESTS, live_backup_verify="yes", live_backup_timeout="600", live_backup_disks="[]")
    assert play.rc == 0, play.output
    assert play.guests() == play.report().keys() == {ODD, WEB}
    for alias, (facts, mark, sets) in before.items():
        (made,) = fleet[alias].sets()[sets:]
        assert f"backed up to {made.folder}" in play.report()[alias]
        assert fleet[alias].facts() == facts
        made.check(fleet[alias].targets, mark)

    play = on_core.run(
        **{**GUESTS, "guests": "web1, odd*, typo"}, live_backup_timeout="abc", live_backup_preflight="no"
    )
    assert play.rc != 0
    assert all("live_backup_timeout" in play.report()[alias] for alias in before)
    assert "No guest was found for typo." in play.output
    assert all(len(fleet[alias].sets()) == sets + 1 for alias, (_facts, _mark, sets) in before.items())
