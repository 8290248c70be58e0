# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: what a module's main() calls; the only code that knows AnsibleModule.

It joins the adapters with a flow, and turns the flow's Outcome, or the one VirtopsError that it catches,
into a result. Everything else that is raised is a bug and stays a traceback.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from .._core.bounds import require_in_bounds
from .._core.errors import VirtopsError
from .._core.job_state import Ended, job_words
from .._core.model import Outcome
from .._core.ports import Clock, Progress, Silent, Watchdog
from .._core.text import shown, words_shown
from .._core.xml import LXML_IMPORT_ERROR
from .._host.clock import SystemClock
from .._host.command import marked
from .._host.images import Images
from .._host.job_store import who_works
from .._host.locks import DomainLock
from .._host.watchdog import PythonWatchdog
from .._libvirt import guest_watchdog
from .._libvirt.connection import Connection
from .._libvirt.domain import Domain
from .._libvirt.errors import LIBVIRT_IMPORT_ERROR
from .._libvirt.host import Host
from .._libvirt.restore import RestoreHost
from .._libvirt.trial import Trials
from .._service.guest import Guest
from .job import (
    LOCK_POLL,
    HandedOver,
    Job,
    JobRun,
    Lock,
    Unfinished,
    Work,
    describe_failure,
    describe_no_memory,
    under_way,
)
from .specs import COMMON, DOMAIN, JOB, LOCK, ArgumentSpec, merged, numbers

#: What most modules need of the host's Python.
LIBRARIES = ("libvirt-python", "lxml")


@dataclass(frozen=True)
class DomainContext:
    """What a flow on one domain gets. `check`: plan, and stop before the first effect."""

    params: Mapping[str, Any]
    check: bool
    uri: str
    domain: Domain
    host: Host
    images: Images
    clock: Clock
    watchdog: Watchdog
    progress: Progress = field(default_factory=Silent)

    @property
    def guest(self) -> Guest[Domain]:
        """What a flow works on."""
        return Guest(self.domain, self.images, self.clock, self.watchdog, self.progress)


@dataclass(frozen=True)
class RestoreContext:
    """What a flow gets that may make the domain. It takes the `lock` itself, by name and UUID, once it knows them."""

    params: Mapping[str, Any]
    check: bool
    host: RestoreHost
    images: Images
    clock: Clock
    progress: Progress
    lock: Lock


@dataclass(frozen=True)
class HostContext:
    """What a flow gets that reads all domains, or that is about none that is there."""

    params: Mapping[str, Any]
    check: bool
    uri: str
    host: Host
    connection: Connection
    progress: Progress = field(default_factory=Silent)

    @property
    def trials(self) -> Trials:
        """Guests that end with the module."""
        return Trials(self.connection)


@dataclass(frozen=True)
class LocalContext:
    """What a flow gets that works on the hypervisor itself, without libvirt."""

    params: Mapping[str, Any]
    check: bool
    uri: str
    progress: Progress = field(default_factory=Silent)

    def uuid_of(self, domain: str) -> str:
        """Of a domain by its name or UUID: the one question that may go to libvirt. Raises `no_such_domain`."""
        with Connection(self.uri, readonly=True) as connection:
            return Domain(connection, domain).uuid


def run_domain_module(
    argument_spec: ArgumentSpec,
    flow: Callable[[DomainContext], Outcome],
    *,
    changes: bool,
    needs_secrets: Callable[[Mapping[str, Any]], bool] = lambda _params: False,
    job: Job | None = None,
    **options: Any,
) -> None:
    """Run a module on one domain. `options` go to AnsibleModule; `argument_spec` is without COMMON and DOMAIN.

    A module that only reads opens a read-only connection, unless these parameters make it read what libvirt tells over
    none; one that changes holds the domain's lock meanwhile, and waits for it as `lock_timeout` says. With `job` it
    works in a process of its own, that goes on when the connection is cut; not in check mode, which changes nothing.
    """
    argument_spec = merged(LOCK, argument_spec) if changes else argument_spec
    argument_spec = merged(JOB, argument_spec) if job else argument_spec
    module = _new_module(merged(COMMON, DOMAIN, argument_spec), options)
    readonly = not changes and not needs_secrets(module.params)
    seconds = module.params["lock_timeout"] if changes else 0
    planned = flow
    is_to_another = job is not None and (job.is_order(module.params) or job.word(module.params) is not None)
    if changes and module.check_mode and not is_to_another:
        planned = functools.partial(_foreseen, module, flow, job)
    work = functools.partial(_on_domain, module, planned, changes, readonly)
    if job is not None and job.is_order(module.params):
        run = functools.partial(work, Silent(), lambda _name, _uuid: nullcontext())
    elif job is None or module.check_mode:
        run = functools.partial(_when_free, seconds, functools.partial(work, Silent(), _locked))
    else:
        run = functools.partial(_as_job, module, job, work)
    _finish(module, argument_spec, flow, run)


def run_restore_module(
    argument_spec: ArgumentSpec,
    flow: Callable[[RestoreContext], Outcome],
    *,
    subject: Callable[[Mapping[str, Any]], str],
    **options: Any,
) -> None:
    """Run a module, as a job, on a domain that may not be there yet; `subject` is what the job is known by until the
    flow has told the domain's name. The value "domain" is the flow's own."""
    argument_spec = merged(LOCK, JOB, argument_spec)
    module = _new_module(merged(COMMON, argument_spec), options)
    work = functools.partial(_on_restored, module, flow)
    if module.check_mode:
        run = functools.partial(work, Silent(), lambda _name, _uuid: nullcontext())
    else:
        params = {**module.params, "domain": subject(module.params)}
        run = functools.partial(_restore_as_job, module, params, work)
    _finish(module, argument_spec, flow, run)


def run_host_module(
    argument_spec: ArgumentSpec,
    flow: Callable[[HostContext], Outcome],
    *,
    changes: bool = False,
    job: Job | None = None,
    **options: Any,
) -> None:
    """Run a module on the whole host, so without a lock; over a read-only connection unless it changes something."""
    _run_unlocked(argument_spec, job, options, lambda module: functools.partial(_on_host, module, flow, changes), flow)


def run_local_module(
    argument_spec: ArgumentSpec,
    flow: Callable[[LocalContext], Outcome],
    *,
    changes: bool,
    needs: Callable[[Mapping[str, Any]], Container[str]] = lambda _params: LIBRARIES,
    job: Job | None = None,
    **options: Any,
) -> None:
    """Run a module that works on files of the host's own, and on no domain, so without a lock.

    By default it needs the libraries all the same: what it installs needs them, and what it tells of needed them.
    """
    _run_unlocked(
        argument_spec, job, options, lambda module: functools.partial(_on_local, module, flow, changes), flow, needs
    )


def _run_unlocked(
    argument_spec: ArgumentSpec,
    job: Job | None,
    options: dict[str, Any],
    work_of: Callable[[AnsibleModule], Work],
    flow: Callable[..., Outcome],
    needs: Callable[[Mapping[str, Any]], Container[str]] = lambda _params: LIBRARIES,
) -> None:
    argument_spec = merged(JOB, argument_spec) if job else argument_spec
    module = _new_module(merged(COMMON, argument_spec), options, needs)
    work = work_of(module)
    run = functools.partial(work, Silent(), _unlocked)
    if job is not None and not module.check_mode:
        run = functools.partial(_as_job, module, job, work, _unlocked)
    _finish(module, argument_spec, flow, run)


@contextmanager
def _locked(name: str, uuid: str) -> Iterator[None]:
    with DomainLock(uuid, refused=functools.partial(who_works, name, uuid)), marked(uuid):
        yield


@contextmanager
def _unlocked(_name: str, _uuid: str) -> Iterator[None]:
    yield


def _foreseen(
    module: AnsibleModule, flow: Callable[[DomainContext], Outcome], job: Job | None, context: DomainContext
) -> Outcome:
    """In check mode: while a job of another task works on the domain, what there is now is not what a real run finds
    when it has its turn."""
    found = under_way(_name_of(module), module.params, job, context.domain.uuid)
    if found is None:
        return flow(context)
    if not found.same and not module.params["lock_timeout"]:
        raise who_works(context.domain.name, context.domain.uuid, None, "")
    if job is not None and job.foreseen is not None:
        return job.foreseen(found)
    outcome = flow(context)
    told = "A real run would first wait for the end of %s, so that it may find something else to do." % job_words(
        found.state
    )
    return replace(outcome, warnings=(*outcome.warnings, told))


def _name_of(module: AnsibleModule) -> str:
    return str(module._name.rpartition(".")[2])


def _as_job(module: AnsibleModule, job: Job, work: Work, lock: Lock = _locked) -> Ended:
    return JobRun(_name_of(module), module.params, job, lock, system_log=not module.no_log).run(work)


def _restore_as_job(module: AnsibleModule, params: Mapping[str, Any], work: Work) -> Ended:
    name = module._name.rpartition(".")[2]
    return JobRun(name, params, Job(), _locked, system_log=not module.no_log).run(work)


def _when_free(seconds: int, run: Callable[[], Ended]) -> Ended:
    """Try again while another task holds the domain's lock, which is taken before anything is looked at or done."""
    clock = SystemClock()
    end = clock.monotonic() + seconds
    while True:
        try:
            return run()
        except VirtopsError as error:
            if error.code != "locked" or clock.monotonic() >= end:
                raise
        clock.sleep(min(LOCK_POLL, end - clock.monotonic()))


def _on_domain(
    module: AnsibleModule,
    flow: Callable[[DomainContext], Outcome],
    changes: bool,
    readonly: bool,
    progress: Progress,
    lock: Lock,
) -> Ended:
    uri = module.params["uri"]
    with Connection(uri, readonly=readonly) as connection:
        domain = Domain(connection, module.params["domain"])
        context = DomainContext(
            params=module.params,
            check=module.check_mode,
            uri=uri,
            domain=domain,
            host=Host(connection),
            images=Images(),
            clock=SystemClock(),
            watchdog=PythonWatchdog(uri, guest_watchdog.__name__),
            progress=progress,
        )
        try:
            with ExitStack() as held:
                if changes and not module.check_mode:
                    held.enter_context(lock(domain.name, domain.uuid))
                outcome = flow(context)
            found = {"name": domain.name, "uuid": domain.uuid, "state": domain.state()}
        finally:
            domain.close()
    return Ended(_result(outcome, changes) | {"domain": found}, outcome.warnings)


def _on_restored(
    module: AnsibleModule, flow: Callable[[RestoreContext], Outcome], progress: Progress, lock: Lock
) -> Ended:
    with Connection(module.params["uri"]) as connection:
        tools = RestoreHost(connection), Images(), SystemClock(), progress, lock
        outcome = flow(RestoreContext(module.params, module.check_mode, *tools))
    return Ended(_result(outcome, changes=True), outcome.warnings)


def _on_host(
    module: AnsibleModule, flow: Callable[[HostContext], Outcome], changes: bool, progress: Progress, lock: Lock
) -> Ended:
    uri = module.params["uri"]
    with Connection(uri, readonly=not changes or module.check_mode) as connection, lock("", ""):
        outcome = flow(HostContext(module.params, module.check_mode, uri, Host(connection), connection, progress))
    return Ended(_result(outcome, changes), outcome.warnings)


def _on_local(
    module: AnsibleModule, flow: Callable[[LocalContext], Outcome], changes: bool, progress: Progress, lock: Lock
) -> Ended:
    with lock("", ""):
        outcome = flow(LocalContext(module.params, module.check_mode, module.params["uri"], progress))
    return Ended(_result(outcome, changes), outcome.warnings)


def _result(outcome: Outcome, changes: bool) -> dict[str, Any]:
    if not changes:
        return {"changed": False, **outcome.values}
    return {
        "changed": outcome.changed,
        "actions": list(outcome.steps),
        "diff": {"before": outcome.before, "after": outcome.after},
        **outcome.values,
    }


def _new_module(
    argument_spec: ArgumentSpec,
    options: dict[str, Any],
    needs: Callable[[Mapping[str, Any]], Container[str]] = lambda _params: LIBRARIES,
) -> AnsibleModule:
    module = AnsibleModule(argument_spec=argument_spec, supports_check_mode=True, **options)
    for library, package, problem in (
        ("libvirt-python", "python3-libvirt (SUSE: python3-libvirt-python)", LIBVIRT_IMPORT_ERROR),
        ("lxml", "python3-lxml", LXML_IMPORT_ERROR),
    ):
        if problem is not None and library in needs(module.params):
            module.fail_json(
                msg=f"The Python library {library} is missing for {sys.executable}. Install the package {package} "
                "for that Python, or set ansible_python_interpreter to one that has it, as /usr/bin/python3 has.",
                error_code="missing_library",
                exception=problem,
            )
    return module


def _finish(
    module: AnsibleModule, argument_spec: ArgumentSpec, flow: Callable[..., Outcome], run: Callable[[], Ended]
) -> None:
    try:
        # A flow stands in its module's file, and __name__ is __main__ there
        require_in_bounds(Path(inspect.getfile(flow)).stem, numbers(argument_spec, module.params))
        ended = run()
    except MemoryError as error:
        module.fail_json(**describe_no_memory(str(error)))
    except VirtopsError as error:
        module.fail_json(**describe_failure(error))
    except HandedOver as handed:
        module.exit_json(**words_shown(handed.result))
    except Unfinished as followed:
        module.exit_json(changed=False, running_job=followed.told)
    else:
        for warning in ended.warnings:
            module.warn(shown(warning))
        module.exit_json(**words_shown(ended.result))
