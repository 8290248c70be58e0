# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import mmap
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._host import procs
from ansible_collections.virtops.libvirt.plugins.module_utils._host.locks import DomainLock, Slots
from ansible_collections.virtops.libvirt.plugins.module_utils._host.procs import emulators, file_key, holders


def test_another_process_by_a_hard_link(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"x")
    os.link(path, tmp_path / "link")
    code = "import sys; f = open(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "link")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert holders(str(path)) == (process.pid,)
        assert process.stdin is not None
        process.stdin.close()
    assert holders(str(path)) == ()


@pytest.mark.skipif(os.geteuid() != 0, reason="map_files can be read by root only")
def test_a_mapped_file_is_held(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"x" * 4096)
    fd = os.open(path, os.O_RDONLY)
    mapped = mmap.mmap(fd, 4096, prot=mmap.PROT_READ)
    os.close(fd)
    assert holders(str(path)) == (os.getpid(),)
    mapped.close()
    assert holders(str(path)) == ()


@pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse") or shutil.which("qemu-storage-daemon") is None,
    reason="needs root, FUSE and qemu-storage-daemon",
)
def test_a_file_whose_server_is_gone_is_not_asked(tmp_path: Path) -> None:
    """Whoever has it open would keep each merge from its end."""
    behind, there, path = (tmp_path / name for name in ("behind", "there", "image"))
    for file in (behind, there, path):
        file.touch()
    os.truncate(behind, 1 << 20)
    blocks = ["--blockdev", f"driver=file,node-name=disk,filename={behind}"]
    export = ["--export", f"type=fuse,id=disk,node-name=disk,mountpoint={there},writable=on"]
    look = "import sys; from %s import holders; sys.stdin.read(); print(holders(sys.argv[1]))" % procs.__name__
    argv = [sys.executable, "-c", look, str(path)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    # Not below: whoever is started then closes what we have open there, and waits for that
    with (
        subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as looker,
        subprocess.Popen(["qemu-storage-daemon", *blocks, *export]) as daemon,
    ):
        try:
            deadline = time.monotonic() + 20
            while there.stat().st_size == 0 and time.monotonic() < deadline:
                time.sleep(0.05)
            with there.open("rb"), path.open("rb"):
                daemon.send_signal(signal.SIGSTOP)
                time.sleep(1.5)  # for so long the kernel answers by what it was told
                try:
                    assert looker.communicate(timeout=20)[0] == "(%d,)\n" % os.getpid()
                finally:
                    daemon.send_signal(signal.SIGCONT)
        finally:
            daemon.terminate()


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    assert holders(str(tmp_path / "none")) == ()


def test_each_name_of_a_file_has_the_same_key(tmp_path: Path) -> None:
    path, other = tmp_path / "image", tmp_path / "other"
    for file in (path, other):
        file.write_bytes(b"x")
    os.link(path, tmp_path / "hard")
    (tmp_path / "soft").symlink_to(path)
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    keys = [file_key(str(tmp_path / name)) for name in ("image", "hard", "soft")]
    assert len(set(keys)) == 1
    assert keys[0] is not None
    assert file_key(str(other)) not in keys
    assert file_key(str(tmp_path / "dangling")) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes nodes")
def test_the_nodes_of_one_block_device_have_the_same_key(tmp_path: Path) -> None:
    """As /dev/dm-0 and a node of its own in /dev/mapper, where udev does not make that a symlink."""
    for name, minor in (("one", 200), ("same", 200), ("other", 201)):
        os.mknod(tmp_path / name, stat.S_IFBLK | 0o600, os.makedev(7, minor))
    one, same, other = (file_key(str(tmp_path / name)) for name in ("one", "same", "other"))
    assert one == same != other


def test_the_emulators_of_a_domain(tmp_path: Path) -> None:
    """By libvirt's own command line; not somebody who only names the domain."""
    uuid, program = "1b4e28ba-2fa1-11d2-883f-0016d3cca427", tmp_path / "qemu-system-x86_64"
    shutil.copy(shutil.which("sh") or "", program)
    words = ["-c", "read line", "-name", "guest=web,debug-threads=on", "-uuid"]
    with (
        subprocess.Popen([program, *words, uuid], stdin=subprocess.PIPE) as ours,
        subprocess.Popen([program, *words, uuid.replace("1b", "2c")], stdin=subprocess.PIPE) as other,
        subprocess.Popen(["sh", *words, uuid], stdin=subprocess.PIPE) as another,
        subprocess.Popen(["qemu-x", *words, uuid], executable=shutil.which("sh"), stdin=subprocess.PIPE) as named,
    ):
        assert emulators(uuid, ()) == (ours.pid,)
        for process in (ours, other, another, named):
            assert process.stdin is not None
            process.stdin.close()
    assert emulators(uuid, ()) == ()


#: The first thread ends by itself (exit(2), not exit_group(2)), and another one goes on, with all that is open.
HALF_DEAD = """
import ctypes, fcntl, platform, sys, threading, time
file = open(sys.argv[1], "r+")
fcntl.flock(file, fcntl.LOCK_EX)
threading.Thread(target=time.sleep, args=(600,)).start()
print("ready", flush=True)
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[platform.machine()], 0)
"""


@pytest.fixture
def half_dead(tmp_path: Path) -> Iterator[int]:
    """A process as it looks when it was killed while a thread waits for storage; it holds tmp_path/domain-u.lock."""
    lock = tmp_path / "domain-u.lock"
    lock.touch()
    with subprocess.Popen([sys.executable, "-c", HALF_DEAD, str(lock)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        while "(zombie)" not in Path("/proc/%d/status" % process.pid).read_text():
            time.sleep(0.01)
        lock.write_text("%d\n" % process.pid)
        yield process.pid
        process.kill()


def test_a_process_lives_as_long_as_one_of_its_threads(half_dead: int, tmp_path: Path) -> None:
    thread = procs.stuck_thread(half_dead)
    assert thread not in (None, half_dead)
    assert procs.living(half_dead) == "/proc/%d/task/%d" % (half_dead, thread)
    assert half_dead in procs.holders(str(tmp_path / "domain-u.lock"))
    assert procs.stuck_thread(os.getpid()) is None
    assert procs.living(os.getpid()) == "/proc/%d" % os.getpid()


class Clock:
    """Time passes only while somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def utcnow(self) -> str:
        return ""

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_the_lock_of_a_killed_task_that_never_ends_is_told(half_dead: int, tmp_path: Path) -> None:
    """It is no task that works and ends: nobody has to wait for it."""
    with pytest.raises(VirtopsError) as caught, DomainLock("u", lambda: [str(tmp_path)], Clock()):
        pass
    assert caught.value.code == "orphan_stays"
    assert str(half_dead) in str(caught.value)
    assert "/proc/%d/task/%d/stack" % (half_dead, procs.stuck_thread(half_dead) or 0) in str(caught.value)


def test_a_slot_of_one_does_not_count(half_dead: int, tmp_path: Path) -> None:
    (tmp_path / "domain-u.lock").rename(tmp_path / "copy-0.lock")
    with Slots(1, Clock(), lambda: [str(tmp_path)]).take():
        assert (tmp_path / "copy-1.lock").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_a_users_qemu_counts_where_it_has_an_image_open(tmp_path: Path) -> None:
    """A user may run the real program with whatever words; but not open the guest's images."""
    uuid = "1b4e28ba-2fa1-11d2-883f-0016d3cca427"
    image, other = tmp_path / "image", tmp_path / "other"
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, image.open("w") as mine, other.open("w") as its:
        os.chmod(folder, 0o755)
        program = Path(folder, "qemu-system-x86_64")
        shutil.copy(shutil.which("sh") or "", program)
        words = [program, "-c", "read line", "-uuid", uuid]
        with (
            subprocess.Popen(words, stdin=subprocess.PIPE, user=65534, pass_fds=(mine.fileno(),)) as holding,
            subprocess.Popen(words, stdin=subprocess.PIPE, user=65534, pass_fds=(its.fileno(),)) as idle,
        ):
            assert emulators(uuid, [str(image), str(other)]) == tuple(sorted((holding.pid, idle.pid)))
            assert emulators(uuid, [str(image)]) == (holding.pid,)
            assert emulators(uuid, []) == ()
            for process in (holding, idle):
                assert process.stdin is not None
                process.stdin.close()
