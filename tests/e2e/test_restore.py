# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A hypervisor is gone, and only a guest's set is left: another one gets the guest, also if that is interrupted."""

from __future__ import annotations

import subprocess
from typing import Any

from endstate import processes
from fleet import Member, kill_jobs, locks, until
from playbook import RESTORE, Controller
from virtlab import BACKUP, IMAGES, Disk, Hypervisor, lost

NAME = "lost & found"


def test_on_another_host(hypervisors: list[Hypervisor], controller: Controller) -> None:
    """Backed up while it writes. The restore's job is killed, which leaves nothing but hidden files, and run again."""
    old, new = hypervisors
    member = Member(old.guest(NAME), (Disk("vda"), Disk("vdb", format="raw", fill_mib=16)))
    guest, folder = new.guest(NAME), new.outside(f"{IMAGES}/{NAME}")
    wish: dict[str, Any] = {"target": new.name, "restore_guests": NAME, "restore_from": BACKUP, "restore_start": "yes"}
    try:
        member.define()
        member.boot()
        mark = member.guest.mark()
        backup = controller.run(target=old.name, guests=[NAME])
        assert backup.rc == 0, backup.output
        (found,) = member.sets()
        before, held = found.files(), locks(new)
        # The storage of the backups, at another host
        new.exec(["mkdir", "-m", "700", "-p", f"{BACKUP}/{NAME}", f"{IMAGES}/{NAME}"])
        subprocess.run(["cp", "-a", "--sparse=always", found.path(), new.outside(f"{BACKUP}/{NAME}")], check=True)
        member.guest.cleanup()

        closed = controller.run("--check", playbook=RESTORE, **wish)
        assert "that QEMU's user may enter" in closed.lines()[0]
        assert list(folder.iterdir()) == []
        folder.chmod(0o711)
        planned = controller.run("--check", playbook=RESTORE, **wish)
        assert planned.rc == 0, planned.output
        assert f"{NAME}@{new.name}: would be restored from " in planned.lines()[0]
        limited = controller.run("--limit", new.name, playbook=RESTORE, **wish)
        assert limited.rc == 2
        assert "--limit leaves out" in limited.output
        mistaken = controller.run(
            playbook=RESTORE, **{**wish, "restore_from": "", "restore_src": found.folder, "restore_guests": "db"}
        )
        assert mistaken.rc == 2
        assert "is of the domain" in mistaken.lines()[0]
        assert list(folder.iterdir()) == []

        run = controller.start(playbook=RESTORE, restore_rate_limit="1", **wish)
        until("a copy under way", lambda: any(file.stat().st_blocks for file in folder.iterdir()), 60)
        kill_jobs(new)
        assert run.end().rc != 0
        until("the end of the copies", lambda: processes(new) == [], 15, every=0.2)
        assert guest.state() == ""
        assert [file.name for file in folder.iterdir() if ".restoring-" not in file.name] == []

        done = controller.run(playbook=RESTORE, **wish)
        assert done.rc == 0, done.output
        (line,) = done.lines()
        assert "restored from" in line
        assert "is running" in line
        assert sorted(file.name for file in folder.iterdir()) == ["vda.qcow2", "vdb.raw"]
        guest.wait()
        assert lost(guest.journals().values(), mark) == []

        again = controller.run(playbook=RESTORE, **wish)
        assert again.rc == 0, again.output
        assert again.changed() == []
        refused = controller.run(playbook=RESTORE, restore_overwrite="true", **wish)
        assert refused.rc == 2
        assert "never overwritten" in refused.lines()[0]
        assert found.files() == before
        assert locks(new) == held
    finally:
        member.guest.cleanup()
        guest.cleanup()
        new.exec(["rm", "-rf", f"{IMAGES}/{NAME}", f"{BACKUP}/{NAME}"])
        old.exec(["rm", "-rf", f"{BACKUP}/{NAME}"])


def test_more_than_one_host(controller: Controller) -> None:
    """A guest that is restored on two runs twice. And without a name nothing is restored."""
    for target, guests, words in (("e2e1:e2e2", "web", "Name one hypervisor"), ("e2e1", " ", "Name the guests")):
        play = controller.run(playbook=RESTORE, target=target, restore_guests=guests, restore_from=BACKUP)
        assert play.rc == 2
        assert words in play.output
