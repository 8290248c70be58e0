# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A guest that writes faster than its merge copies: held back for a bounded time, and let go on every path."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Hold, Outcome
from ansible_collections.virtops.libvirt.plugins.module_utils._core.ports import WATCHDOG_GRACE
from ansible_collections.virtops.libvirt.plugins.module_utils._service.recover import RecoverOptions, Recovery

from .fakes import Died
from .test_merge import Lab

OWN_LIMIT = {"total_bytes_sec": 0, "read_bytes_sec": 0, "write_bytes_sec": 50 << 20}
WISH: dict[str, object] = {"snapshot": "s1", "delete_merged": True, "timeout": 20}


@pytest.fixture
def lab() -> Lab:
    lab = Lab()
    lab.domain.never_ready = True
    lab.domain.tunes["vda"] = dict(OWN_LIMIT)
    return lab


def let_go(lab: Lab) -> bool:
    """The guest runs, with its own limits and no others, and nobody waits to let it go."""
    tunes = {target: limits["write_bytes_sec"] for target, limits in lab.domain.tunes.items()}
    return lab.domain.state == "running" and tunes in ({"vda": 50 << 20}, {"vda": 50 << 20, "vdb": 0})


def slow_below(lab: Lab, limit: int) -> None:
    """The merge can end as soon as the guest is limited so far."""
    lab.domain.slow_enough = lambda target: (  # type: ignore[method-assign]
        lab.domain.state != "running"
        or 0 < lab.domain.tunes.get(target, {"write_bytes_sec": 0})["write_bytes_sec"] < limit
    )


def test_fail_never_touches_the_guest(lab: Lab) -> None:
    with pytest.raises(VirtopsError) as caught:
        lab.run(**WISH)
    assert caught.value.code == "timeout"
    assert not any(call.startswith(("set_io_tune", "suspend")) for call in lab.domain.calls)
    assert lab.watchdog.calls == []


def test_throttle_ends_the_merge(lab: Lab) -> None:
    slow_below(lab, 1 << 20)
    outcome = lab.run(**WISH, on_timeout="throttle")
    lab.domain.tunes.clear()
    assert lab.whole()
    assert 0 < outcome.values["held_seconds"] < 60  # type: ignore[operator]
    assert outcome.values["suspended_seconds"] == 0
    assert "slowed" in outcome.warnings[-1]


def test_throttled_for_a_bounded_time_then_given_up(lab: Lab) -> None:
    with pytest.raises(VirtopsError) as caught:
        lab.run(**WISH, on_timeout="throttle", throttle_timeout=30)
    assert caught.value.code == "timeout"
    assert let_go(lab)
    assert not lab.watchdog.armed
    assert lab.clock.seconds < 20 + 30 + 15
    assert lab.chains["vda"][0] == "/img/vm.vda.s1.qcow2"
    limits = [int(call.split()[-1]) for call in lab.domain.calls if call.startswith("set_io_tune vdb")]
    assert limits[:-1] == sorted(limits[:-1], reverse=True)
    assert len(set(limits)) > 2
    (operation,) = lab.journal.operations
    assert operation.hold is None


def test_suspend_comes_after_throttle_and_ends_the_merge(lab: Lab) -> None:
    outcome = lab.run(**WISH, on_timeout="suspend", throttle_timeout=10, suspend_timeout=30)
    assert let_go(lab)
    lab.domain.tunes.clear()
    assert lab.whole()
    assert 0 < outcome.values["suspended_seconds"] < 30  # type: ignore[operator]
    calls = [call.split()[0] for call in lab.domain.calls]
    assert calls.index("set_io_tune") < calls.index("suspend") < calls.index("pivot")


def test_a_pause_that_would_not_help_is_spared(lab: Lab) -> None:
    """Nine MiB are left at each look, and four MiB/s are copied."""
    with pytest.raises(VirtopsError):
        lab.run(**WISH, on_timeout="suspend", throttle_timeout=10, suspend_timeout=1)
    assert "suspend" not in lab.domain.calls
    assert let_go(lab)


def test_short_of_space_brakes_early(lab: Lab) -> None:
    lab.images.free = 100 << 20
    slow_below(lab, 1 << 20)
    lab.run(**{**WISH, "timeout": 3600}, on_timeout="throttle")
    assert lab.clock.seconds < 60
    assert let_go(lab)


def test_a_guest_that_is_paused_already_is_left_paused(lab: Lab) -> None:
    lab.domain.state, lab.domain.paused_by = "paused", "user"
    lab.run(**WISH, on_timeout="suspend")
    assert lab.domain.state == "paused"
    assert not any(call.startswith(("set_io_tune", "suspend", "resume")) for call in lab.domain.calls)


def test_what_is_put_back_is_journalled_before_it_is_changed(lab: Lab) -> None:
    lab.domain.die_before = "set_io_tune"
    with pytest.raises(Died):
        lab.run(**WISH, on_timeout="throttle")
    (operation,) = lab.journal.operations
    assert operation.hold == Hold(tunes={"vda": OWN_LIMIT, "vdb": dict.fromkeys(OWN_LIMIT, 0)})
    assert lab.watchdog.hold == operation.hold
    assert lab.watchdog.seconds == 60 + WATCHDOG_GRACE


@pytest.mark.parametrize("call", ["set_io_tune", "suspend"])
@pytest.mark.parametrize("by", ["merge", "recover"])
def test_killed_while_it_holds_the_guest_back(lab: Lab, call: str, by: str) -> None:
    """And the watchdog with it: the next run lets go, and says so."""
    lab.domain.die_after = call
    with pytest.raises(Died):
        lab.run(**WISH, on_timeout="suspend", throttle_timeout=10, suspend_timeout=30)
    assert not let_go(lab)
    assert lab.watchdog.armed
    lab.domain.revive()
    lab.domain.never_ready = False
    steps = {check: _again(lab, by, check).steps for check in (True, False)}
    assert steps[True] == steps[False]
    assert "let go" in steps[False][0]
    assert let_go(lab)
    lab.domain.tunes.clear()
    assert lab.whole()


def _again(lab: Lab, by: str, check: bool) -> Outcome:
    if by == "merge":
        return lab.run(check, **WISH)
    return Recovery(RecoverOptions(), lab.guest).run(check)


def test_a_merge_that_is_refused_lets_go_all_the_same(lab: Lab) -> None:
    lab.domain.die_after = "suspend"
    with pytest.raises(Died):
        lab.run(**WISH, on_timeout="suspend", throttle_timeout=10, suspend_timeout=30)
    lab.domain.revive()
    lab.domain.live["vda"] = replace(lab.domain.live["vda"], chain=lab.domain.live["vda"].chain[:1], job=None)
    with pytest.raises(VirtopsError):
        _again(lab, "recover", False)
    assert let_go(lab)


def test_the_guest_goes_off_while_it_is_held_back(lab: Lab) -> None:
    real = lab.domain.set_io_tune

    def ended(disk: str, limits: dict[str, int]) -> None:
        real(disk, limits)
        lab.domain.state = "shut off"
        lab.domain.tunes.clear()
        for name, found in lab.domain.live.items():
            lab.domain.live[name] = replace(found, job=None)

    lab.domain.set_io_tune = ended  # type: ignore[method-assign]
    lab.run(**WISH, on_timeout="throttle")
    assert lab.whole()


def test_a_guest_that_qemu_paused_at_a_full_file_system_runs_on_after_the_merge(lab: Lab) -> None:
    lab.domain.never_ready = False
    lab.domain.state, lab.domain.paused_by = "paused", "I/O error"
    foreseen = lab.run(True, **WISH)
    done = lab.run(**WISH)
    assert foreseen.steps == done.steps
    assert lab.domain.state == "running"
    assert lab.whole()


def test_a_pivot_that_does_not_end_is_no_failure_of_the_next_run(lab: Lab) -> None:
    """QEMU has been told to pivot, and the guest's writes leave it no time."""
    lab.domain.never_ready = False
    real = lab.domain.pivot

    def told(disk: str) -> None:
        job = lab.domain.live[disk].job
        assert job is not None
        lab.domain.live[disk] = replace(lab.domain.live[disk], job=replace(job, ready=False, ending=True))
        lab.domain.never_ready = True

    lab.domain.pivot = told  # type: ignore[method-assign]
    with pytest.raises(VirtopsError) as caught:
        lab.run(**WISH)
    assert caught.value.code == "job_ending"
    assert not any(call.startswith("cancel_job") for call in lab.domain.calls)
    for name in ("vda", "vdb"):  # in the end it gets the time
        job = lab.domain.live[name].job
        assert job is not None
        lab.domain.live[name] = replace(lab.domain.live[name], job=replace(job, ready=True))
        real(name)
    lab.run(**WISH)
    lab.domain.tunes.clear()
    assert lab.whole()
