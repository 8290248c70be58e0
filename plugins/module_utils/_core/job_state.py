# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: what is known of a job that goes on without its connection, and how it ended, as values.

They are written to files as JSON, and read back by whoever follows the job: its module, another one, job_info.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .errors import VirtopsError

#: The speed is that of so many seconds.
RATE_SECONDS = 20.0


@dataclass(frozen=True)
class JobState:
    """`digest`: what two tasks have in common that wish the same. `speed`: bytes/s of all disks of the phase."""

    id: str
    module: str
    domain: str
    started: str
    uuid: str = ""
    digest: str = ""
    pid: int = 0
    phase: str = ""
    #: Seconds of each phase that is over.
    phases: dict[str, float] = field(default_factory=dict)
    #: Bytes done and in all, of the disks that the phase works on.
    disks: dict[str, tuple[int, int]] = field(default_factory=dict)
    speed: float = 0.0

    @property
    def has_begun(self) -> bool:
        """The domain's lock is held; one that works on no domain needs none."""
        return bool(self.uuid or self.pid)

    @property
    def words(self) -> str:
        """What it does."""
        return "%s of domain %s" % (self.module, self.domain) if self.domain else self.module

    def as_text(self) -> str:
        """JSON."""
        return json.dumps(asdict(self))


def parse_state(text: str) -> JobState:
    """The reverse of `as_text`."""
    values = json.loads(text)
    return JobState(**{**values, "disks": {disk: (done, total) for disk, (done, total) in values["disks"].items()}})


@dataclass(frozen=True)
class UnderWay:
    """A job that works on the domain already. `same`: a task with these options attaches to it."""

    state: JobState
    same: bool


@dataclass(frozen=True)
class Ended:
    """A module's result, and what it warns of."""

    result: dict[str, Any]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class JobEnd:
    """How a job ended: with a result, with an error that is told, or with a traceback, which is a bug.

    `attached`: it was none, as another one of this ID does the same already. `began`: it had the domain's lock.
    """

    ended: Ended | None = None
    error: VirtopsError | None = None
    no_memory: str = ""
    bug: str = ""
    attached: str = ""
    began: bool = True

    def as_text(self) -> str:
        """JSON."""
        values: dict[str, Any] = {"began": self.began}
        if self.ended is not None:
            values["ended"] = asdict(self.ended)
        if self.error is not None:
            values["error"] = [self.error.code, self.error.cause, self.error.remedy, self.error.partial]
            values["actions"] = self.error.actions
            values["told"] = self.error.told
        texts = {"no_memory": self.no_memory, "bug": self.bug, "attached": self.attached}
        return json.dumps({**values, **{name: text for name, text in texts.items() if text}})

    @property
    def words(self) -> str:
        """For the log."""
        if self.error is not None:
            return "failed (%s): %s" % (self.error.code, self.error)
        if self.ended is not None:
            return "ended: %s" % ("changed" if self.ended.result.get("changed") else "nothing to do")
        return "failed: no memory was left" if self.no_memory else "failed: %s" % self.bug.strip()

    @property
    def is_locked_out(self) -> bool:
        """Did another task work on the domain, so that nothing was looked at?"""
        return not self.began and self.error is not None and self.error.code == "locked"


def parse_end(text: str) -> JobEnd:
    """The reverse of `as_text`."""
    values = json.loads(text)
    if "ended" in values:
        values["ended"] = Ended(values["ended"]["result"], tuple(values["ended"]["warnings"]))
    if "error" in values:
        values["error"] = VirtopsError(*values["error"])
        values["error"].told = values.pop("told", {})
        actions = values.pop("actions")
        values["error"].actions = None if actions is None else tuple(actions)
    return JobEnd(**values)


@dataclass(frozen=True)
class Word:
    """What a job is told of the work that it waits for: well done, or why not."""

    well: bool
    why: str = ""

    def as_text(self) -> str:
        """JSON."""
        return json.dumps(asdict(self))


def parse_word(text: str) -> Word:
    """The reverse of `as_text`."""
    return Word(**json.loads(text))


def digest_of(module: str, uri: str, uuid: str, wish: Mapping[str, Any]) -> str:
    """The same for two tasks that wish the same. A digest, as the wish itself is nobody else's business."""
    said = json.dumps([module, uri, uuid, wish], sort_keys=True, default=list)
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()


class Speed:
    """Bytes/s over the last seconds."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, int]] = []

    def of(self, now: float, done: int) -> float:
        """`done` are all bytes of the phase so far; fewer than before begin anew."""
        if self._seen and done < self._seen[-1][1]:
            self._seen = []
        self._seen = [(at, count) for at, count in self._seen if now - at <= RATE_SECONDS]
        self._seen.append((now, done))
        at, count = self._seen[0]
        return (done - count) / (now - at) if now > at else 0.0


def in_phase(state: JobState, name: str, seconds: float) -> JobState:
    """The state at the begin of a phase; the one before took so many seconds. A phase may come more than once."""
    phases = dict(state.phases)
    if state.phase:
        phases[state.phase] = round(phases.get(state.phase, 0.0) + seconds, 2)
    return replace(state, phase=name, phases=phases, disks={}, speed=0.0)


def describe(state: JobState, how: str) -> dict[str, Any]:
    """A job as results show it; `how` is its state, in a word."""
    return {
        "id": state.id,
        "state": how,
        "module": state.module,
        "domain": {"name": state.domain, "uuid": state.uuid},
        "started": state.started,
        "phase": state.phase,
        "phases": state.phases,
        "disks": [{"disk": disk, "done": done, "total": total} for disk, (done, total) in state.disks.items()],
        "speed": int(state.speed),
    }


def job_words(state: JobState) -> str:
    """As messages name a job: its module, its ID, since when it runs, and how far it is."""
    total = sum(total for _unused, total in state.disks.values())
    done = sum(done for done, _unused in state.disks.values())
    percent = ", %d %%" % min(100, 100 * done // total) if total else ""
    phase = ", phase %s%s" % (state.phase, percent) if state.phase else ""
    return "%s (job %s, since %s%s)" % (state.module, state.id, state.started, phase)


def domain_locked(
    domain: str, pid: int | None, since: str = "", job: JobState | None = None, log: str = ""
) -> VirtopsError:
    """For a domain on which another task works: its job, or where it has none its process, and since when."""
    wait = "Wait until it has ended, or let this task wait with a longer lock_timeout"
    if job is not None:
        remedy = "%s. virtops.libvirt.job_info with id: %s shows how far it is; its log on the hypervisor is %s"
        return VirtopsError("locked", "%s works on domain %s" % (job_words(job), domain), remedy % (wait, job.id, log))
    task = "Another task" if pid is None else "Another task (process %d%s)" % (pid, ", since " + since if since else "")
    who = "" if pid is None else ". 'ps -fp %d' on the hypervisor shows what it is" % pid
    return VirtopsError("locked", "%s works on domain %s" % (task, domain), wait + who)


def job_killed(state: JobState, log: str) -> VirtopsError:
    """For a job whose process is gone, and that left no word of how it ended."""
    return VirtopsError(
        "job_killed",
        "The job %s (%s) was ended from outside%s%s"
        % (state.id, state.words, " in the phase %r" % state.phase if state.phase else "", _set_words(state)),
        "Run the same task or play again: it finishes or undoes what was begun. How far the job came is in %s on the "
        "hypervisor" % log,
    )


def _set_words(state: JobState) -> str:
    """What became of the set of a backup. A recovery that was a part of it may have completed an earlier one."""
    if state.module not in ("live_backup", "image_backup") or not state.has_begun:
        return ""
    if state.phase == "verify" or (state.phase == "merge" and "copy" in state.phases and "verify" not in state.phases):
        return ". Its set is copied, but not verified: the next run finishes it, without a new copy"
    if "verify" in state.phases:
        return ". It may have completed a set: see the target's directory"
    return ". It has made no set"


def job_gone(job_id: str) -> VirtopsError:
    """For a job that nobody knows of."""
    return VirtopsError(
        "no_such_job",
        "This hypervisor knows no job %s" % job_id,
        "It was restarted since, or the job ended more than a day ago: run the same task or play again, which finishes "
        "or undoes what is open",
    )
