# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Jobs as real processes: they are forked, cut off, told to stop and killed here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.job_state import Ended, Word
from ansible_collections.virtops.libvirt.plugins.module_utils._core.ports import Progress
from ansible_collections.virtops.libvirt.plugins.module_utils._host import job_store
from ansible_collections.virtops.libvirt.plugins.module_utils._host.job_store import JobFolder, JobStore, who_works
from ansible_collections.virtops.libvirt.plugins.module_utils._host.locks import DomainLock
from ansible_collections.virtops.libvirt.plugins.module_utils._module import job as job_module
from ansible_collections.virtops.libvirt.plugins.module_utils._module.job import (
    HandedOver,
    Job,
    JobBug,
    JobRun,
    Lock,
    Unfinished,
    follow,
    stopping,
    under_way,
)

UUID = "6695eb01-f6a4-8304-79aa-97f2502e193f"
ID, OTHER_ID = "0" * 31 + "1", "0" * 31 + "2"
SAME = Job(wish=lambda params: {"dest": params["dest"]})


class Place:
    """Where jobs and locks are, and calls of a module that works as a job there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = JobStore(lambda: [str(folder)])

    def call(self, work: Callable[[Progress], dict[str, Any]], job: Job | None = None, **params: Any) -> Ended:
        given = {"uri": "x:///", "domain": "web", "job_id": ID, "follow": None, "lock_timeout": 0, **params}

        @contextmanager
        def lock(name: str, uuid: str) -> Iterator[None]:
            with DomainLock(uuid, lambda: [str(self.folder)], refused=partial(who_works, name, uuid)):
                yield

        def locked(progress: Progress, lock: Lock) -> Ended:
            with lock("web", UUID):
                return Ended(work(progress), ("careful",))

        return JobRun("thing", given, job or Job(), lock, False, self.store).run(locked)

    def begin(self, work: Callable[[Progress], dict[str, Any]], job: Job | None = None, **params: Any) -> JobFolder:
        """A job that goes on, seen at its begin."""
        with pytest.raises(Unfinished):
            self.call(work, job, follow=0, **params)
        folder = self.store.find(params.get("job_id", ID))
        assert folder is not None
        await_that(lambda: (state := folder.state()) is not None and state.has_begun)
        return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    for module in (job_module, job_store):
        monkeypatch.setattr(module, "known_directories", lambda: [str(tmp_path)])
    place = Place(tmp_path)
    yield place
    for folder, state in place.store.running(UUID):
        os.kill(state.pid, signal.SIGKILL)
        await_that(lambda folder=folder: not folder.is_alive())


def await_that(is_so: Callable[[], Any]) -> None:
    for _unused in range(1000):
        if is_so():
            return
        time.sleep(0.01)
    raise AssertionError("it never came")


def until_file(path: Path) -> Callable[[Progress], dict[str, Any]]:
    """Work that lasts until there is a file."""

    def work(_unused: Progress) -> dict[str, Any]:
        await_that(path.exists)
        return {"changed": True, "pid": os.getpid()}

    return work


def pid_of(folder: JobFolder) -> int:
    state = folder.state()
    assert state is not None
    return state.pid


def test_a_job_gives_what_the_work_gives(place: Place) -> None:
    mine = os.getpid()
    ended = place.call(lambda _unused: {"changed": True, "pid": os.getpid(), "odd": "a\udcffb"})
    assert ended.warnings == ("careful",)
    assert (ended.result["changed"], ended.result["odd"], ended.result["pid"] != mine) == (True, "a\udcffb", True)
    assert os.listdir(place.folder) == ["jobs"]


def test_a_job_has_nothing_of_the_connection(place: Place) -> None:
    def look(_unused: Progress) -> dict[str, Any]:
        names = [name for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")]
        return {
            "files": sorted({os.readlink(f"/proc/self/fd/{name}") for name in names}),
            "session": os.getsid(0) == os.getpid(),
            "cwd": os.getcwd(),
        }

    read, write = os.pipe()
    os.set_inheritable(write, True)
    result = place.call(look).result
    os.close(read)
    os.close(write)
    folder = place.folder / "jobs" / ID
    lock = place.folder / f"domain-{UUID}.lock"
    assert result["files"] == sorted([os.devnull, *map(str, (folder / "alive", folder / "log", lock))])
    assert (result["session"], result["cwd"]) == (True, "/")


def test_an_error_comes_with_all_it_tells(place: Place) -> None:
    def fail(_unused: Progress) -> dict[str, Any]:
        raise VirtopsError("some_code", "It broke", "Mend it", [{"disk": "vda"}], ["a step"])

    with pytest.raises(VirtopsError, match=r"It broke\. Mend it\.") as failed:
        place.call(fail)
    assert (failed.value.code, failed.value.partial) == ("some_code", [{"disk": "vda"}])
    assert failed.value.actions == ("a step",)


def test_an_end_without_a_place_for_its_file_is_told_all_the_same(place: Place) -> None:
    """The folder is read-only by now."""

    def work(_unused: Progress) -> dict[str, Any]:
        (place.folder / "jobs" / ID / "result.json").mkdir()
        return {"changed": True}

    assert place.call(work).result == {"changed": True}


def test_a_bug_comes_as_a_traceback(place: Place) -> None:
    def fail(_unused: Progress) -> dict[str, Any]:
        raise ZeroDivisionError("nothing to divide")

    with pytest.raises(JobBug, match=r"(?s)in fail.*ZeroDivisionError: nothing to divide"):
        place.call(fail)


def test_no_memory_stays_that(place: Place) -> None:
    def fail(_unused: Progress) -> dict[str, Any]:
        raise MemoryError

    with pytest.raises(MemoryError):
        place.call(fail)


def test_the_module_is_killed_and_the_job_goes_on(place: Place, tmp_path: Path) -> None:
    go = tmp_path / "go"
    module = os.fork()
    if not module:
        try:
            place.call(until_file(go))
        finally:
            os._exit(0)
    await_that(lambda: place.store.running(UUID))
    for number in (signal.SIGHUP, signal.SIGKILL):
        os.kill(module, number)
    os.waitpid(module, 0)
    go.touch()
    folder = place.store.find(ID)
    assert folder is not None
    end = follow(folder, None)
    assert end is not None
    assert end.ended is not None
    assert end.ended.result["changed"]
    # The call that was cut off is made again: it finds the end, and begins nothing
    assert place.call(lambda _unused: {"never": True}).result == end.ended.result


def test_a_killed_job_is_an_error_of_its_own(place: Place, tmp_path: Path) -> None:
    folder = place.begin(until_file(tmp_path / "never"))
    os.kill(pid_of(folder), signal.SIGKILL)
    with pytest.raises(VirtopsError, match=r"Run the same task or play again.*/log on the hypervisor") as killed:
        follow(folder, None)
    assert killed.value.code == "job_killed"
    assert place.call(lambda _unused: {"done": True}, job_id=OTHER_ID).result == {"done": True}


def test_a_call_follows_for_so_many_seconds(place: Place, tmp_path: Path) -> None:
    def work(progress: Progress) -> dict[str, Any]:
        progress.phase("copy")
        progress.disk("vda", 1, 4)
        await_that((tmp_path / "go").exists)
        return {}

    folder = place.begin(work)
    await_that(lambda: (state := folder.state()) and state.phase == "copy")
    with pytest.raises(Unfinished) as followed:
        follow(folder, 0.05)
    told = followed.value.told
    assert (told["id"], told["state"], told["phase"], told["domain"]["name"]) == (ID, "running", "copy", "web")
    (tmp_path / "go").touch()
    assert follow(folder, 10) is not None


def test_the_same_wish_attaches_and_another_one_is_refused(place: Place, tmp_path: Path) -> None:
    go = tmp_path / "go"
    first = place.begin(until_file(go), SAME, dest="/a")
    with pytest.raises(
        VirtopsError, match=rf"thing \(job {ID}, since .*\) works on domain web.*{first.log}"
    ) as refused:
        place.call(until_file(go), SAME, dest="/b", job_id=OTHER_ID)
    assert refused.value.code == "locked"
    with pytest.raises(VirtopsError, match="works on domain web"):
        place.call(until_file(go), dest="/a", job_id=OTHER_ID)
    with pytest.raises(Unfinished) as followed:
        place.call(until_file(go), SAME, dest="/a", job_id=OTHER_ID, follow=0.1)
    assert followed.value.told["id"] == ID
    threading.Timer(2, go.touch).start()  # time enough to attach on a busy machine
    assert place.call(until_file(go), SAME, dest="/a", job_id=OTHER_ID).result["pid"] == pid_of(first)
    assert [state.id for _unused, state in place.store.all()] == [ID]


def test_check_mode_knows_what_a_task_would_find(place: Place, tmp_path: Path) -> None:
    given = {"uri": "x:///", "domain": "web"}
    assert under_way("thing", given, SAME, UUID) is None
    place.begin(until_file(tmp_path / "never"), SAME, dest="/a")
    for job, dest, same in ((SAME, "/a", True), (SAME, "/b", False), (Job(), "/a", False), (None, "/a", False)):
        found = under_way("thing", {**given, "dest": dest}, job, UUID)
        assert found is not None
        assert (found.state.id, found.same) == (ID, same)


def test_a_lock_without_a_job_names_its_process(place: Place) -> None:
    with (
        DomainLock(UUID, lambda: [str(place.folder)]),
        pytest.raises(VirtopsError, match=rf"\(process {os.getpid()}, since 2.*Z\) works on domain web.*ps -fp"),
    ):
        place.call(lambda _unused: {})


def test_another_wish_waits_for_the_lock(place: Place, tmp_path: Path) -> None:
    go = tmp_path / "go"
    place.begin(until_file(go))
    with pytest.raises(Unfinished) as followed:
        place.call(until_file(go), job_id=OTHER_ID, lock_timeout=60, follow=0)
    assert followed.value.told == {"id": OTHER_ID, "state": "waiting"}
    # Nobody follows it, so it is not begun either
    assert place.store.find(OTHER_ID) is None
    threading.Timer(0.1, go.touch).start()
    assert place.call(lambda _unused: {"done": True}, job_id=OTHER_ID, lock_timeout=60).result == {"done": True}


WAITS = Job(hands_over=lambda _params: True, word=lambda params: params.get("word"))


def await_word(progress: Progress) -> dict[str, Any]:
    """Work that hands over, and waits for a word, or for an order to stop."""
    progress.hand_over({"bases": ["/a"]})
    await_that(lambda: progress.word() or progress.is_stopping())
    word = progress.take_back()
    if word is None or not word.well:
        raise VirtopsError("copy_failed", word.why if word else "no word", "Mend it")
    return {"copied": True}


def wait_for_word(place: Place) -> JobFolder:
    with pytest.raises(HandedOver) as handed:
        place.call(await_word, WAITS)
    assert handed.value.result == {"bases": ["/a"], "job": ID}
    folder = place.store.find(ID)
    assert folder is not None
    return folder


def test_a_job_hands_over_and_goes_on_at_a_word(place: Place) -> None:
    folder = wait_for_word(place)
    with pytest.raises(HandedOver):  # the connection was cut, and the call is made again
        place.call(await_word, WAITS)
    for _unused in range(2):
        assert place.call(await_word, WAITS, word=Word(True)).result == {"copied": True}
    assert folder.handed_over() is None
    # What was said first has counted
    with pytest.raises(VirtopsError, match="before that the copy is complete") as refused:
        place.call(await_word, WAITS, word=Word(False, "no"))
    assert refused.value.code == "copy_not_awaited"


def test_a_job_is_told_that_what_it_waits_for_failed(place: Place) -> None:
    wait_for_word(place)
    for word in (Word(False, "no route"), Word(True)):
        with pytest.raises(VirtopsError, match="no route") as failed:
            place.call(await_word, WAITS, word=word)
        assert failed.value.code == "copy_failed"


def test_a_stop_ends_the_wait_and_a_late_word_changes_nothing(place: Place) -> None:
    folder = wait_for_word(place)
    folder.order_stop()
    await_that(lambda: not folder.is_alive())
    assert folder.handed_over() is None
    for word in (Word(True), Word(False, "late")):
        with pytest.raises(VirtopsError, match="no word") as failed:
            place.call(await_word, WAITS, word=word)
        assert failed.value.code == "copy_failed"


def test_a_killed_job_gets_no_word(place: Place) -> None:
    folder = wait_for_word(place)
    os.kill(pid_of(folder), signal.SIGKILL)
    await_that(lambda: not folder.is_alive())
    with pytest.raises(VirtopsError) as killed:
        place.call(await_word, WAITS, word=Word(True))
    assert killed.value.code == "job_killed"


def test_a_word_is_only_for_the_job_that_waits_for_it(place: Place, tmp_path: Path) -> None:
    wait_for_word(place)
    for params, code in (({"domain": "db"}, "bad_option"), ({"job_id": OTHER_ID}, "no_such_job")):
        with pytest.raises(VirtopsError) as refused:
            place.call(await_word, WAITS, word=Word(True), **params)
        assert refused.value.code == code
    with pytest.raises(VirtopsError, match="works on domain web"):
        place.call(await_word, WAITS, job_id=OTHER_ID)
    place.call(await_word, WAITS, word=Word(True))
    go = tmp_path / "go"
    place.begin(until_file(go), job_id=OTHER_ID)
    for why in ("does not wait", "has ended"):
        with pytest.raises(VirtopsError, match=why) as refused:
            place.call(await_word, WAITS, word=Word(True), job_id=OTHER_ID)
        assert refused.value.code == "copy_not_awaited"
        go.touch()
        folder = place.store.find(OTHER_ID)
        assert folder is not None
        follow(folder, None)


def test_without_a_place_for_jobs_nothing_is_handed_over(place: Place) -> None:
    (place.folder / "jobs").write_text("in the way")
    with pytest.raises(VirtopsError) as refused:
        place.call(await_word, WAITS)
    assert refused.value.code == "no_job_folder"


@pytest.mark.parametrize("how", ["signal", "order"])
def test_a_job_is_told_to_stop(place: Place, how: str) -> None:
    def work(progress: Progress) -> dict[str, Any]:
        await_that(progress.is_stopping)
        return {"stopped": True}

    folder = place.begin(work)
    if how == "signal":
        os.kill(pid_of(folder), signal.SIGTERM)
    else:
        folder.order_stop()
    end = follow(folder, None)
    assert end is not None
    assert end.ended == Ended({"stopped": True}, ("careful",))


def test_an_order_to_stop_is_a_step_and_waits_for_the_end(place: Place) -> None:
    """The job's failure is not what the order did."""

    def work(progress: Progress) -> dict[str, Any]:
        await_that(progress.is_stopping)
        raise VirtopsError("stopped" if place.folder.exists() else "", "It was told to", "Nothing", None, ["a step"])

    place.begin(work)
    assert stopping("other", UUID) == ()
    (step,) = stopping("thing", UUID)
    assert step.words == (f"stop the job {ID} (thing of domain web)",)
    assert step.act() is None
    # It has told its end, and its process may still be about to go
    folder = place.store.find(ID)
    assert folder is not None
    assert folder.require_end() is not None
    await_that(lambda: place.store.running(UUID) == [])


def test_without_a_place_for_jobs_the_work_is_done_all_the_same(place: Place) -> None:
    (place.folder / "jobs").write_text("in the way")
    ended = place.call(lambda _unused: {"pid": os.getpid()})
    assert ended.result == {"pid": os.getpid()}
    assert "a lost connection would have ended it" in ended.warnings[1]


def test_old_jobs_are_dropped_and_running_ones_are_not(place: Place, tmp_path: Path) -> None:
    place.call(lambda _unused: {}, job_id=OTHER_ID)
    folder = place.begin(until_file(tmp_path / "never"))
    for path in (place.folder / "jobs").iterdir():
        os.utime(path, (0, 0))
    with pytest.raises(VirtopsError, match="works on domain web"):
        place.call(lambda _unused: {}, job_id="f" * 32)
    assert [state.id for _unused, state in place.store.all()] == [ID]
    assert folder.is_alive()


def test_the_log_says_what_was_done_and_stays_small(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(progress: Progress) -> dict[str, Any]:
        progress.phase("copy")
        progress.disk("vda", 3 << 20, 4 << 20)
        progress.phase("merge")
        for number in range(4000):
            progress.step("step %d of a job that has very many\nsteps" % number)
        return {"changed": True}

    place.call(work)
    folder = place.store.find(ID)
    assert folder is not None
    assert sum(os.stat(name).st_size for name in (folder.log, folder.log + ".1")) < 300_000
    assert folder.log_lines(2)[1].endswith("ended: changed")
    assert "merge: " in folder.log_lines(2)[0]
    assert "step 3999 of a job that has very many\\nsteps" in folder.log_lines(3)[0]


def test_the_log_says_what_goes_on_and_a_finished_disk_is_finished(place: Place, tmp_path: Path) -> None:
    """Also where its last bytes come within the same second."""

    def work(progress: Progress) -> dict[str, Any]:
        progress.phase("copy")
        progress.disk("vda", 1, 4)
        progress.disk("vda", 4, 4)
        await_that((tmp_path / "go").exists)
        return {}

    folder = place.begin(work)
    await_that(lambda: (state := folder.state()) and state.disks == {"vda": (4, 4)})
    assert folder.log_lines(9)[-1].endswith(" copy begins")


ZIPPED = """
import os, shutil, sys
from ansible_collections.virtops.libvirt.plugins.module_utils._host import job_fork, job_store
from ansible_collections.virtops.libvirt.plugins.module_utils._core.job_state import Ended, JobEnd

def work():
    while os.path.exists(sys.argv[1]):
        pass
    from ansible_collections.virtops.libvirt.plugins.module_utils._core import bounds
    import subprocess
    name = "ansible_collections.virtops.libvirt.plugins.module_utils._core.bounds"
    code = subprocess.call([sys.executable, "-m", name], env={"PYTHONPATH": os.pathsep.join(sys.path)}, cwd="/")
    return JobEnd(ended=Ended({"file": bounds.__file__, "code": code}))

folder, alive = job_store.JobStore(lambda: [sys.argv[2]]).make("0" * 32, lambda folder: folder.hold())
job_fork.start(folder, alive, job_fork.keep_code(folder), work)
"""


def test_it_goes_on_without_the_zip_that_it_came_from(tmp_path: Path) -> None:
    """As AnsiballZ removes it when the module ends: what is imported later, also by a Python that the job starts."""
    utils = Path(sys.modules[JobRun.__module__].__file__ or "").parents[1]
    packed = tmp_path / "payload.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        inner = "ansible_collections/virtops/libvirt/plugins/module_utils/"
        for number in range(1, inner.count("/") + 1):
            archive.writestr("/".join(inner.split("/")[:number]) + "/__init__.py", "")
        for layer in ("_core", "_host"):
            archive.writestr(inner + layer + "/__init__.py", "")
            for path in (utils / layer).glob("[!_]*.py"):
                archive.write(path, inner + layer + "/" + path.name)
    env = {"PYTHONPATH": str(packed), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, "-c", ZIPPED, packed, tmp_path], env=env, check=True, timeout=60)
    packed.unlink()
    folder = JobStore(lambda: [str(tmp_path)]).find("0" * 32)
    assert folder is not None
    end = follow(folder, None)
    assert end is not None
    assert end.ended is not None, "\n".join(folder.log_lines(20))
    assert end.ended.result["file"].startswith(folder.path)
    assert end.ended.result["code"] == 0
    assert not os.path.exists(os.path.join(folder.path, "code.zip"))
