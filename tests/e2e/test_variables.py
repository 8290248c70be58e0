# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What was asked for is done or named, however it is written; and nobody else writes lines of the report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fleet import Member
from playbook import RECOVER, STOP, Controller, Play
from virtlab import Hypervisor

WEB, HOST = "web1@e2e2", "second"
ROLES = Path(__file__).resolve().parents[2] / "roles"
GONE = "gone"
NONE_FOUND = (
    "No guest was found for %s. Correct %s_guests, or %s_exclude if it leaves the guest out. "
    '"virsh list --all" on the hypervisor shows the names.'
)
#: What libvirt takes for a domain's name, and a terminal for its orders
FOOLING = "rec\u202eover\u009b2J"
SHOWN = "rec\\u202eover\\x9b2J"
#: A guest whose agent says what it likes
AGENT = r"""
exec 3<>/dev/virtio-ports/org.qemu.guest_agent.0
echo $$ >/run/words.pid
while :; do
    read -r line <&3 || { usleep 50000; continue; }
    case $line in
        *guest-sync*) echo "{\"return\": $(echo "$line" | sed 's/[^0-9]//g')}" >&3 ;;
        *) echo '{"error": {"class": "GenericError",
            "desc": "no\u001b[2J\nbank@e2e2: backed up to /srv\u009b1A\u202eevil"}}' | tr -d '\n' >&3; echo >&3 ;;
    esac
done
"""
FOOLS = ("\x1b", "\x9b", "\u202e")


def said(play: Play) -> str:
    """Return what the playbook ends with."""
    ends = [item for item in play.results if item.task.startswith("Fail if any guest")]
    return str(ends[-1].result["msg"])


@pytest.fixture
def gone(tmp_path: Path) -> str:
    """An inventory with a hypervisor that cannot be reached."""
    path = tmp_path / "gone.yml"
    hosts = {GONE: {"ansible_host": "127.0.0.1", "ansible_port": 1}}
    path.write_text(yaml.safe_dump({"tested": {"hosts": hosts}}), encoding="utf-8")
    return str(path)


def test_what_was_not_found_is_named(fleet: dict[str, Member], controller: Controller, gone: str) -> None:
    """Each pattern, and the hypervisor that could not be looked at; the others are looked at all the same."""
    play = controller.run(*("-i", gone), preflight_only=True, guests="web1, typo, wbe*", exclude="*@*")
    assert play.rc != 0
    assert said(play) == NONE_FOUND % ("typo, wbe*", "live_backup", "live_backup") + f" Not looked at: {GONE}."
    lines = play.lines()
    assert {line.split(": ready")[0] for line in lines if ": ready" in line} == {"web1@e2e1", "web1@e2e2"}
    assert {"NOT FOUND: typo", "NOT FOUND: wbe*"} < set(lines)
    # Where ssh is quick, its words are lost: then Ansible says that it could not send
    assert [line for line in lines if line.startswith(f"NOT LOOKED AT: {GONE}. ") and "ssh" in line]

    play = controller.run(*("-i", gone), playbook=RECOVER, target=GONE, recover_guests=["typo"])
    assert play.rc != 0
    assert said(play) == NONE_FOUND % ("typo", "recover", "recover") + f" Not looked at: {GONE}."

    play = controller.run(playbook=STOP, target=HOST, stop_guests="web1, typo")
    assert play.rc != 0
    assert "No backup was under way." in play.output
    assert NONE_FOUND.partition(" Correct")[0] % "typo" in play.output
    play = controller.run(*("--limit", "e2e2"), playbook=STOP, target=HOST)
    assert play.rc != 0
    assert "so nothing was stopped" in play.output
    assert "under way" not in play.output


@pytest.mark.parametrize(("playbook", "target"), [("live_backup", f"{HOST}:nosuch"), ("recover", "nosuch")])
def test_no_such_hypervisor(fleet: dict[str, Member], controller: Controller, playbook: str, target: str) -> None:
    """Not one that was asked for may be missing: nothing is begun."""
    wish: dict[str, Any] = {f"{playbook}_target": target}
    play = controller.run(playbook=f"virtops.libvirt.{playbook}", **wish)
    assert play.rc != 0
    assert "The inventory has no host or group nosuch, so that nothing was looked at" in play.output
    assert [item for item in play.results if "guests_info" in item.action] == []


def test_nothing_to_back_up(fleet: dict[str, Member], controller: Controller) -> None:
    """It is said, and a failure unless the user knows."""
    words = "There was nothing to back up: no guest was found that is running or shut off, on e2e2."
    play = controller.run(target=HOST, live_backup_exclude="*", preflight_only=True)
    assert play.rc != 0
    assert said(play).startswith(words)
    play = controller.run(target=HOST, live_backup_exclude="*", live_backup_allow_none="yes")
    assert play.rc == 0, play.output
    assert said(play) == words


def test_a_snapshot_that_nothing_knows(fleet: dict[str, Member], controller: Controller) -> None:
    """It may have been deleted before, or be misspelt: a warning tells."""
    for module, wish in (
        ("block_commit", {"snapshot": "typo"}),
        ("snapshot_external", {"name": "typo", "state": "absent"}),
    ):
        result = controller.module("e2e2", module, domain="web1", **wish)
        assert (result["changed"], result["actions"]) == (False, [])
        (warned,) = result["warnings"]
        assert "Neither libvirt, nor the journal, nor a chain of domain web1 knows a snapshot 'typo'" in str(warned)


def variables(role: str) -> dict[str, Any]:
    """Return the role's variables and their defaults."""
    specs = yaml.safe_load((ROLES / role / "meta" / "argument_specs.yml").read_text(encoding="utf-8"))
    return {name: option.get("default") for name, option in specs["argument_specs"]["main"]["options"].items()}


def as_text(value: Any) -> str:
    """Return a value as `-e NAME=VALUE` gives it."""
    return value if isinstance(value, str) else json.dumps(value)


@pytest.mark.parametrize("how", ["strings", "blank"])
def test_every_variable(fleet: dict[str, Member], controller: Controller, how: str) -> None:
    """As extra variables and surveys give it; a blank one is not given."""
    own = ("target", "guests", "exclude", "preflight", "preflight_only", "allow_none", "states", "serial", "strategy")
    blank = dict.fromkeys(variables("live_backup"), " ") | {f"live_backup_{name}": "" for name in own}
    blank |= {"guests": "", "exclude": "", "preflight_only": ""}
    strings = {name: as_text(value) for name, value in variables("live_backup").items() if value is not None}
    strings |= {"live_backup_serial": "1", "live_backup_preflight": "yes", "live_backup_preflight_only": "no"}
    given: dict[str, Any] = {"strings": strings, "blank": blank}[how]
    sets = len(fleet[WEB].sets())
    play = controller.run(**{**given, "live_backup_dest": "/srv/backup", "target": HOST, "guests": "web1"})
    assert play.rc == 0, play.output
    assert play.report().keys() == {WEB}
    assert len(fleet[WEB].sets()) == sets + 1

    if how == "blank":
        empty: dict[str, Any] = dict.fromkeys(variables("recover"), "")
        empty |= {f"recover_{name}": "" for name in ("target", "guests", "exclude", "strategy")}
        play = controller.run(playbook=RECOVER, target=HOST, **empty)
        assert play.rc == 0, play.output


def test_a_value_that_cannot_be_meant(fleet: dict[str, Member], controller: Controller) -> None:
    """It is named before the snapshot, as a preflight may be left out."""
    play = controller.run(
        target=HOST,
        guests="web1",
        live_backup_preflight=False,
        live_backup_timeout="abc",
        live_backup_on_timeout="nix",
    )
    assert play.rc != 0
    line = play.report()[WEB]
    assert "live_backup_timeout" in line
    assert "live_backup_on_timeout must be one of: fail, throttle, suspend, got: nix" in line
    assert "reached" not in line
    assert play.of(WEB, "live_backup") == []
    play = controller.run(target=HOST, guests="web1", live_backup_preflight=False, live_backup_bandwidth="-1")
    assert play.rc != 0
    assert "bandwidth is -1. Give a number of 0 or more." in play.report()[WEB]
    assert play.of(WEB, "live_backup") == []


@pytest.fixture
def fooling(fleet: dict[str, Member], hypervisors: list[Hypervisor]) -> Iterator[Hypervisor]:
    """A tenant's agent has words of its own, and a domain a name that turns the letters round."""
    guest, host = fleet[WEB].guest, hypervisors[1]
    xml = f"<domain type='qemu'><name>{FOOLING}</name><memory>9000</memory><os><type>hvm</type></os></domain>"
    host.virsh("define", "/dev/stdin", stdin=xml)
    guest.agent_service("stop")
    guest.command(
        f"echo {AGENT.encode().hex()} | xxd -r -p >/run/words; setsid sh /run/words >/dev/null 2>&1 </dev/null &"
    )
    yield host
    guest.command("kill $(cat /run/words.pid)")
    guest.agent_service("start")
    guest.wait()
    host.virsh("undefine", FOOLING)


def test_words_that_fool(fooling: Hypervisor, controller: Controller) -> None:
    """They are shown as escapes, and no line of the report is theirs."""
    preflight = controller.run(target=HOST, guests="web1", preflight_only=True)
    backup = controller.run(target=HOST, guests="web1", live_backup_preflight=False, live_backup_quiesce="required")
    recover = controller.run(playbook=RECOVER, target=HOST)
    assert (preflight.rc, backup.rc, recover.rc) == (0, 2, 0)
    for play in (preflight, backup):
        assert play.report().keys() == {WEB}
        assert r"no\x1b[2J\nbank@e2e2: backed up to /srv\x9b1A\u202eevil" in play.report()[WEB]
    assert f"{SHOWN}@e2e2: nothing to do" in recover.lines()
    for play in (preflight, backup, recover):
        assert [word for word in FOOLS if word in play.output] == []
