# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Another user of the hypervisor, who may write to the folder of an image, against modules that run as root."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fleet import until
from playbook import Controller
from virtlab import Disk, Guest, Hypervisor

FOLDER = "/srv/stranger"
SECRET = "/etc/virtlab-secret"
WORDS = "root's alone"
#: Waits for a name to appear, and puts a symlink to another file there.
SWAP = """
import os, sys, time
name, target = sys.argv[1:]
print(os.getuid(), flush=True)
deadline = time.monotonic() + 60
while not os.path.lexists(name) and time.monotonic() < deadline:
    pass
os.symlink(target, name + ".new")
os.rename(name + ".new", name)
print("swapped", flush=True)
"""


@pytest.fixture
def guest(hypervisors: list[Hypervisor]) -> Iterator[Guest]:
    """One that is off, whose image lies in a folder of the user's."""
    hypervisor = hypervisors[0]
    hypervisor.exec(["install", "-d", "-o", "nobody", FOLDER])
    hypervisor.exec(["install", "-m", "600", "/dev/stdin", SECRET], stdin=WORDS)
    guest = hypervisor.guest("stranger").define([Disk("vda", format="raw", size_mib=16, path=f"{FOLDER}/vda.raw")])
    hypervisor.exec(["chown", "nobody", f"{FOLDER}/vda.raw"])
    yield guest
    guest.cleanup()
    hypervisor.exec(["rm", "-rf", FOLDER, SECRET])


@contextmanager
def swapping(hypervisor: Hypervisor, name: str) -> Iterator[None]:
    """The user waits for a file, and has put root's own in its place when this ends."""
    user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "python3", "-c", SWAP]
    command = hypervisor.enter([*user, name, SECRET])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "65534\n"
            yield
            assert process.stdout.readline() == "swapped\n"
        finally:
            process.kill()


def test_a_swap_while_root_writes_reaches_no_other_file(
    hypervisors: list[Hypervisor], controller: Controller, guest: Guest
) -> None:
    """Root's file is neither written to nor given away, and the domain stays on its image."""
    hypervisor = hypervisors[0]

    def assert_kept() -> None:
        look = hypervisor.exec(["stat", "-c", "%u %a", SECRET]).stdout.strip()
        assert (look, hypervisor.exec(["cat", SECRET]).stdout) == ("0 600", WORDS)
        assert f"{FOLDER}/vda.raw" in hypervisor.virsh("dumpxml", guest.name)

    with swapping(hypervisor, f"{FOLDER}/.vda.qcow2.partial"):
        result = controller.module(hypervisor.name, "image_convert", domain=guest.name)
    assert_kept()
    assert result.get("error_code") == "path_unsafe", result
    # The swap has to come between two calls of root's: once in a while it comes too late, to a file that is made
    with swapping(hypervisor, f"{FOLDER}/{guest.name}.vda.one.qcow2"):
        result = controller.module(hypervisor.name, "snapshot_external", domain=guest.name, name="one")
    assert_kept()
    assert result.get("error_code") in ("path_unsafe", "snapshot_failed"), result


def test_a_link_of_another_user_is_refused_before_anything_is_done(
    hypervisors: list[Hypervisor], controller: Controller, guest: Guest
) -> None:
    """Where the image's folder itself is such a link, and where the guest's memory would be written through a name."""
    hypervisor = hypervisors[0]
    hypervisor.exec(["sh", "-c", f"ln -s /etc {FOLDER}/way && chown -h nobody {FOLDER}/way"])
    before = hypervisor.virsh("dumpxml", guest.name)
    for module, options in (
        ("image_convert", {"dest_dir": f"{FOLDER}/way"}),
        ("snapshot_external", {"name": "one", "overlay_dir": f"{FOLDER}/way"}),
    ):
        result = controller.module(hypervisor.name, module, domain=guest.name, **options)
        assert result.get("error_code") == "path_unsafe", result
        assert "symlink" in result["msg"]
    assert hypervisor.virsh("dumpxml", guest.name) == before
    until("no file there", lambda: not list(hypervisor.outside("/etc").glob("vda*")), 1)


def test_what_is_no_image_does_not_make_root_wait(
    hypervisors: list[Hypervisor], controller: Controller, guest: Guest
) -> None:
    """A FIFO in the place of the image: nobody ever writes to it."""
    hypervisor = hypervisors[0]
    pipe = f"rm {FOLDER}/vda.raw && mkfifo {FOLDER}/vda.raw"
    hypervisor.exec(["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "sh", "-c", pipe])
    for module, options in (("snapshot_external", {"name": "one"}), ("image_convert", {})):
        play = controller.start_module(hypervisor.name, module, domain=guest.name, **options).end(timeout=60)
        result = play.results[-1].result
        assert result.get("error_code") == "no_image", result
