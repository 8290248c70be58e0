# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: argument specs as values that merge, each with its doc fragment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._core.choose_sets import Choice
from .._core.convergence import FAIL, POLICIES, Deadline
from .._core.keep import PERIODS, Keep, require_keep
from .._core.snapshot import FREEZE_SECONDS

ArgumentSpec = dict[str, dict[str, Any]]

#: Doc fragment virtops.libvirt.connection.
COMMON: ArgumentSpec = {"uri": {"type": "str", "default": "qemu:///system"}}
#: Doc fragment virtops.libvirt.domain.
DOMAIN: ArgumentSpec = {"domain": {"type": "str", "required": True}}
#: Of every module that changes a domain; doc fragment virtops.libvirt.domain.lock.
LOCK: ArgumentSpec = {"lock_timeout": {"type": "int", "default": 0}}
#: Of every module whose work goes on without its connection; doc fragment virtops.libvirt.domain.job.
JOB: ArgumentSpec = {"follow": {"type": "int"}, "job_id": {"type": "str"}}
#: What block_commit and block_pull have in common; doc fragment virtops.libvirt.merge.
MERGE: ArgumentSpec = {
    "disks": {"type": "list", "elements": "str", "default": []},
    "bandwidth": {"type": "int", "default": 0},
    "wait": {"type": "bool", "default": True},
    "timeout": {"type": "int", "default": 3600},
    "delete_merged": {"type": "bool", "default": False},
}
#: Which guests of a hypervisor are meant.
GUESTS: ArgumentSpec = {
    "guests": {"type": "list", "elements": "str", "default": ["*"]},
    "exclude": {"type": "list", "elements": "str", "default": []},
    "states": {
        "type": "list",
        "elements": "str",
        "choices": ["running", "idle", "paused", "in shutdown", "shut off", "crashed", "pmsuspended"],
        "default": [],
    },
}
#: What snapshot_external and preflight_info have in common.
SNAPSHOT: ArgumentSpec = {
    "disks": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "snapshot": {"type": "str", "choices": ["external", "no"], "default": "external"},
            "file": {"type": "path"},
            "format": {"type": "str", "choices": ["qcow2"], "default": "qcow2"},
        },
    },
    "overlay_dir": {"type": "path"},
    "quiesce": {"type": "str", "choices": ["required", "preferred", "never"], "default": "never"},
    "freeze_timeout": {"type": "int", "default": FREEZE_SECONDS},
}
#: What a preflight asks of chains and of space.
PREFLIGHT: ArgumentSpec = {
    "max_chain": {"type": "int", "default": 25},
    "overlay_reserve": {"type": "str", "default": "5%"},
}
#: How little space may be left where overlays grow.
KEEP_FREE: ArgumentSpec = {"keep_free": {"type": "int", "default": 256}}
#: What happens to a guest whose writes the merge cannot keep up with; doc fragment virtops.libvirt.deadline.
DEADLINE: ArgumentSpec = {
    **KEEP_FREE,
    "on_timeout": {"type": "str", "choices": list(POLICIES), "default": FAIL},
    "throttle_timeout": {"type": "int", "default": 60},
    "suspend_timeout": {"type": "int", "default": 10},
}
#: What image_backup and a snapshot for a backup have in common.
BACKUP: ArgumentSpec = {
    "dest": {"type": "path", "required": True},
    "format": {"type": "str", "choices": ["same", "qcow2", "raw"], "default": "same"},
    "compress": {"type": "bool", "default": False},
    "method": {"type": "str", "choices": ["auto", "reflink", "copy", "convert"], "default": "auto"},
    "keep_backing": {"type": "bool", "default": False},
}
#: Who makes the copy.
COPIER: ArgumentSpec = {"copy": {"type": "str", "choices": ["own", "user"], "default": "own"}}
#: What a copy has besides.
COPY: ArgumentSpec = {
    "verify": {"type": "bool", "default": True},
    "rate_limit": {"type": "int", "default": 0},
    "parallel": {"type": "int", "default": 4},
    "stall_timeout": {"type": "int", "default": 300},
}
#: What a prune keeps; doc fragment virtops.libvirt.keep.
KEEP: ArgumentSpec = {
    **{"keep_%s" % period: {"type": "int", "default": 0} for period in PERIODS},
    "min_age": {"type": "int", "default": 0},
}
#: Of what prunes backup sets besides.
KEEP_UNVERIFIED: ArgumentSpec = {"keep_unverified": {"type": "bool", "default": False}}


def keep(params: Mapping[str, Any]) -> Keep:
    """The options of KEEP, and keep_unverified where there is that option, as a value."""
    policy = Keep(
        **{period: params["keep_%s" % period] for period in PERIODS},
        min_age=params["min_age"],
        keep_unverified=params.get("keep_unverified", False),
    )
    require_keep(policy)
    return policy


#: What reading backup sets has in common with a copy; doc fragment virtops.libvirt.sets.
READ: ArgumentSpec = {name: COPY[name] for name in ("rate_limit", "parallel", "stall_timeout")}
#: Which sets are meant; doc fragment virtops.libvirt.sets.choice.
CHOICE: ArgumentSpec = {
    "dest": {"type": "path"},
    "path": {"type": "path"},
    "domain": {"type": "str"},
    "guests": {"type": "list", "elements": "str", "default": ["*"]},
    "exclude": {"type": "list", "elements": "str", "default": []},
    "sets": {"type": "list", "elements": "str", "default": []},
}
#: What of it goes together.
CHOICE_RULES: dict[str, Any] = {
    "required_one_of": [("dest", "path")],
    "mutually_exclusive": [("dest", "path"), ("path", "domain"), ("path", "sets"), ("path", "newest")],
}


def choice(params: Mapping[str, Any]) -> Choice:
    """The options of CHOICE, and newest, as a value."""
    return Choice(
        dest=params["dest"] or "",
        path=params["path"] or "",
        domain=params["domain"],
        guests=tuple(params["guests"]),
        exclude=tuple(params["exclude"]),
        names=tuple(params["sets"]),
        newest=bool(params["newest"]),
    )


def deadline(params: Mapping[str, Any]) -> Deadline:
    """The options of DEADLINE, and the timeout, as a value."""
    return Deadline(**{name: params[name] for name in ("timeout", *DEADLINE)})


def numbers(spec: ArgumentSpec, params: Mapping[str, Any], within: str = "") -> dict[str, int]:
    """The numeric options that have a value, by their names; one in an option by both names, with a dot."""
    found: dict[str, int] = {}
    for name, option in spec.items():
        value = params.get(name)
        if value is None:
            continue
        if option["type"] == "int":
            found[within + name] = value
        for part in value if isinstance(value, list) else [value]:
            if "options" in option:
                found.update(numbers(option["options"], part, "%s%s." % (within, name)))
    return found


def merged(*specs: ArgumentSpec) -> ArgumentSpec:
    """One spec of several; an option that two of them define is a bug."""
    result: ArgumentSpec = {}
    for spec in specs:
        twice = result.keys() & spec.keys()
        if twice:
            raise ValueError(f"options defined twice: {sorted(twice)}")
        result.update(spec)
    return result
