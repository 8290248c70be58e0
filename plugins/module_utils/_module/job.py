# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: a module's work as a job of its own, and following a job to its end.

The module's process forks the job, waits for it, and returns what came of it. Where its connection is cut, the job
goes on; the action plugin, which has named the job, asks for its end again.
"""

from __future__ import annotations

import functools
import signal
import traceback
import uuid as uuid_module
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from .._core.errors import VirtopsError
from .._core.job_state import Ended, JobEnd, JobState, UnderWay, Word, describe, digest_of, job_gone
from .._core.model import Outcome
from .._core.plan import Step
from .._core.ports import Progress, Silent
from .._core.text import shown, words_shown
from .._host.clock import SystemClock
from .._host.command import failing
from .._host.job_fork import keep_code, start
from .._host.job_progress import JobProgress
from .._host.job_store import JobFolder, JobStore, job_at_work
from .._host.locks import known_directories

#: Seconds between two tries to get a domain's lock. Nothing is held open in between, no connection either.
LOCK_POLL = 1.0
#: Seconds between two looks at a job: the least, the most, and in between a share of the time that it has taken.
_LOOK_SECONDS = (0.01, 0.25)
_LOOK_SHARE = 0.04
#: Seconds after which a folder without a process is one whose module was killed before it forked.
_STILLBORN_SECONDS = 5.0

#: Holds the lock of a domain, by its name and UUID.
Lock = Callable[[str, str], AbstractContextManager[None]]
#: The work of a module: in the job's process, or in the module's own where no folder for a job can be made.
Work = Callable[[Progress, Lock], Ended]


@dataclass(frozen=True)
class Job:
    """Says that a module's work goes on when its connection is cut. Each gets the module's options.

    `wish`: what of the options has to be the same for a task to attach to another one's job that runs on the domain
    already. None: it never attaches, but waits for the lock as `lock_timeout` says. `is_order`: with these options it
    is an order to another one's job, and so neither a job itself nor in need of the lock. `hands_over`: its job waits
    for a word in its middle. `word`: with these options it is that word, to the job `job_id`, which it then follows.
    `foreseen` is what check mode returns while another one's job runs on the domain, whose end nobody can plan; None: a
    plan all the same.
    """

    wish: Callable[[Mapping[str, Any]], Mapping[str, Any] | None] = lambda _params: None
    is_order: Callable[[Mapping[str, Any]], bool] = lambda _params: False
    hands_over: Callable[[Mapping[str, Any]], bool] = lambda _params: False
    word: Callable[[Mapping[str, Any]], Word | None] = lambda _params: None
    foreseen: Callable[[UnderWay], Outcome] | None = None


class Unfinished(Exception):
    """The call has followed the job for as long as it was to; `told` is what is known of the job."""

    def __init__(self, told: dict[str, Any]) -> None:
        super().__init__()
        self.told = told


class HandedOver(Exception):
    """The job waits for a word; `result` is what it has handed over."""

    def __init__(self, result: dict[str, Any]) -> None:
        super().__init__()
        self.result = result


class JobBug(Exception):
    """A bug in a job, with the traceback from there."""


class _Attached(Exception):
    """Another job, of this ID, does the same already."""


class JobRun:
    """One call of a module that works as a job. `lock` is how a domain is locked; the log goes to syslog, too, where
    `system_log`."""

    def __init__(
        self,
        module: str,
        params: Mapping[str, Any],
        job: Job,
        lock: Lock,
        system_log: bool,
        store: JobStore | None = None,
    ) -> None:
        self._params = params
        self._lock_timeout = params.get("lock_timeout", 0)
        self._job = job
        self._lock = lock
        self._system_log = system_log
        self._clock = SystemClock()
        self._began = self._clock.monotonic()
        self._store = store or JobStore()
        job_id = params["job_id"] or uuid_module.uuid4().hex
        self._state = JobState(job_id, module, params.get("domain") or "", self._clock.utcnow())

    def run(self, work: Work) -> Ended:
        """Begin the job, or find the one that an earlier call of this ID has begun, and follow it."""
        word = self._job.word(self._params)
        if word is not None:
            return self._say(word)
        while True:
            try:
                folder = self._begin(work)
            except OSError as problem:
                return self._without_job(work, problem)
            end = follow(folder, self._left)
            if end is not None and end.attached:
                folder.remove()
                other = self._store.find(end.attached)
                end = None if other is None else follow(other, self._left)
            if end is not None and not end.is_locked_out:
                return outcome(end)
            folder.remove()
            waited = self._clock.monotonic() - self._began
            if end is not None and waited >= self._lock_timeout:
                return outcome(end)
            if self._left is not None and self._left <= 0:
                raise Unfinished({"id": self._state.id, "state": "waiting"})
            self._clock.sleep(min(LOCK_POLL, max(0.0, self._lock_timeout - waited)))

    @property
    def _left(self) -> float | None:
        """For how many seconds this call still follows; None: to the end."""
        seconds = self._params["follow"]
        return None if seconds is None else max(0.0, self._began + seconds - self._clock.monotonic())

    def _without_job(self, work: Work, problem: OSError) -> Ended:
        """No merge may fail because there is no space for the job's files."""
        if self._job.hands_over(self._params):
            raise VirtopsError(
                "no_job_folder",
                "There is no place for the files of a job (%s), and without a job nobody could say that the copy is "
                "complete" % problem,
                "Make space in /run, then try again",
            )
        ended = work(Silent(), self._lock)
        told = (
            "This task ran without a job of its own, so a lost connection would have ended it: there is no place for a "
            "job's files (%s)."
        ) % problem
        return replace(ended, warnings=(*ended.warnings, told))

    def _begin(self, work: Work) -> JobFolder:
        """OSError where there is no space for its folder."""

        def prepare(folder: JobFolder) -> tuple[int, str]:
            folder.write("state.json", self._state.as_text())
            return folder.hold(), keep_code(folder)

        made = self._store.make(self._state.id, prepare)
        if made is None:
            found = self._store.find(self._state.id)
            return self._begin(work) if found is None else found
        folder, (alive, archive) = made
        start(folder, alive, archive, lambda: self._work(folder, work))
        return folder

    def _say(self, word: Word) -> Ended:
        """A call that is made again says the same again."""
        folder, state = require_handed_over(self._params, self._store)
        with failing("Telling the job %s that the copy has ended" % state.id):
            first = folder.say(word)
        end = follow(folder, self._left, past_word=True)
        if end is None:
            raise job_gone(state.id)
        ended = outcome(end)
        if not word.well:
            raise _not_waiting(state, "it was told before that the copy is complete" if first.well else "it has ended")
        return ended

    # -- in the job's process

    def _work(self, folder: JobFolder, work: Work) -> JobEnd:
        progress = JobProgress(folder, self._state, self._clock, self._system_log)
        signal.signal(signal.SIGTERM, progress.stop)
        end = self._end_of(lambda: work(progress, lambda name, uuid: self._held(progress, name, uuid)))
        progress.end(end.words)
        return replace(end, began=progress.state.has_begun)

    def _end_of(self, work: Callable[[], Ended]) -> JobEnd:
        try:
            return JobEnd(ended=work())
        except _Attached as other:
            return JobEnd(attached=str(other))
        except VirtopsError as error:
            return JobEnd(error=error)
        except MemoryError as error:
            return JobEnd(no_memory=str(error) or "no memory")
        except BaseException:  # noqa: BLE001
            return JobEnd(bug=traceback.format_exc())

    @contextmanager
    def _held(self, progress: JobProgress, name: str, uuid: str) -> Iterator[None]:
        wish = self._job.wish(self._params)
        digest = "" if wish is None else digest_of(self._state.module, self._params["uri"], uuid, wish)
        with ExitStack() as stack:
            try:
                stack.enter_context(self._lock(name, uuid))
            except VirtopsError as error:
                same = [state.id for _unused, state in self._store.running(uuid) if digest and state.digest == digest]
                if error.code == "locked" and same:
                    raise _Attached(same[0]) from error
                raise
            progress.begin(name, uuid, digest)
            yield


def follow(folder: JobFolder, seconds: float | None, past_word: bool = False) -> JobEnd | None:
    """The job's end. None where its folder goes away: it was locked out, and the call that began it tries again.

    Raises HandedOver while it waits for a word, unless `past_word`; Unfinished after so many seconds (None: never) of
    one that has the domain's lock, and `job_killed`.
    """
    clock = SystemClock()
    began = clock.monotonic()
    while True:
        end = folder.require_end()
        if end is not None:
            return end
        handed = None if past_word else folder.handed_over()
        if handed is not None:
            raise HandedOver(handed)
        passed = clock.monotonic() - began
        state = folder.state()
        if state is None and passed >= _STILLBORN_SECONDS:
            return None
        if seconds is not None and passed >= seconds and state is not None and state.has_begun:
            raise Unfinished(describe(state, "running"))
        least, most = _LOOK_SECONDS
        clock.sleep(min(most, max(least, passed * _LOOK_SHARE)))


def describe_end(end: JobEnd) -> dict[str, Any]:
    """What the module's result would be: as a task sees it."""
    if end.error is not None:
        return {"failed": True, **describe_failure(end.error)}
    if end.no_memory:
        return {"failed": True, **describe_no_memory(end.no_memory)}
    if end.ended is None:
        return {"failed": True, "msg": "The job met a bug of this collection.", "exception": end.bug}
    warnings = {"warnings": [shown(warning) for warning in end.ended.warnings]} if end.ended.warnings else {}
    return {**words_shown(end.ended.result), **warnings}


def describe_failure(error: VirtopsError) -> dict[str, Any]:
    done = {**error.told, "partial": error.partial, "actions": None if error.actions is None else list(error.actions)}
    partial = words_shown({name: value for name, value in done.items() if value is not None})
    return {"msg": shown(str(error)), "error_code": error.code, **partial}


def describe_no_memory(text: str) -> dict[str, Any]:
    return {
        "msg": "This module found no memory left on its host. Give it more: see its limits (ulimit -v, those of its "
        "service or container) and what else runs there, then run it again.",
        "error_code": "no_memory",
        "exception": text,
    }


def stopping(module: str, uuid: str) -> tuple[Step, ...]:
    """The steps that tell each job of this module on a domain to end, and wait until it has; none where none runs."""
    found = [(folder, state) for folder, state in JobStore(known_directories).running(uuid) if state.module == module]
    words = "stop the job %s (%s of domain %s)"
    return tuple(
        Step((words % (state.id, module, state.domain),), functools.partial(_stop, folder)) for folder, state in found
    )


def _stop(folder: JobFolder) -> None:
    """Raises what the job raised where it did not end at rest."""
    folder.order_stop()
    end = follow(folder, None, past_word=True)
    error = None if end is None else end.error
    if error is not None and error.code != "stopped":
        # What the job did before is not what this order did
        raise VirtopsError(error.code, error.cause, error.remedy, error.partial)


def under_way(module: str, params: Mapping[str, Any], job: Job | None, uuid: str) -> UnderWay | None:
    """The job that a task with these options would find on the domain, for check mode, which begins none."""
    state = job_at_work(uuid)
    if state is None:
        return None
    wish = None if job is None else job.wish(params)
    return UnderWay(state, wish is not None and state.digest == digest_of(module, params["uri"], uuid, wish))


def require_handed_over(params: Mapping[str, Any], store: JobStore) -> tuple[JobFolder, JobState]:
    """The job `job_id`: it waits for a word, has got one, or has ended. Refuses one that never waited."""
    folder = store.find(params["job_id"])
    state = None if folder is None else folder.state()
    if folder is None or state is None:
        raise job_gone(params["job_id"])
    if params["domain"] not in (state.domain, state.uuid):
        raise VirtopsError(
            "bad_option",
            "The job %s is of the domain %s, and not of %s" % (state.id, state.domain, params["domain"]),
            "Give the job_id that the task with copy: user has returned as job",
        )
    end = folder.require_end()
    if folder.word() is None and folder.handed_over() is None and (end is None or end.ended is not None):
        raise _not_waiting(state, "it does not wait for one" if end is None else "it has ended")
    return folder, state


def _not_waiting(state: JobState, why: str) -> VirtopsError:
    return VirtopsError(
        "copy_not_awaited",
        "The job %s (%s of domain %s) heeds no word on a copy: %s" % (state.id, state.module, state.domain, why),
        "Give the job_id that the task with copy: user has returned as job, and say only one word to each job",
    )


def outcome(end: JobEnd) -> Ended:
    """The job's result; raises what the job raised."""
    if end.error is not None:
        raise end.error
    if end.no_memory:
        raise MemoryError(end.no_memory)
    if end.ended is None:
        raise JobBug("\n" + end.bug)
    return end.ended
