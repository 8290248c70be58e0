# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The guide "Coming from virsh": its very tasks, in the order of the page, on a real guest; only names are put in.

Each task of ours is run as check, run, run again, check again. The check foresees the run (changed, keys, actions,
diff) and touches nothing, and the second run finds nothing to do.
"""

from __future__ import annotations

import json
import re
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from fleet import STAMP, Member, carry, images
from playbook import Controller, Play
from virtlab import IMAGES, Disk, Guest, Hypervisor

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "docsite" / "rst" / "guide_from_virsh.rst"
OURS = "virtops.libvirt."
GUEST = "shop"
#: The page's names, and those of this test.
NAMES = {"web1": GUEST, "hv1": "e2e1", "hv2": "e2e2"}
#: The blocks after which the same task does the same again.
REPEATED = {
    "revert",
    "revert-current",
    "revert-force",
    "revert-external",
    "revert-memory",
    "live-backup",
    "verify",
    "drill",
}
#: Tasks of the modules that the page does not have.
MORE = Path(__file__).with_name("more_tasks.yml")
FINGERPRINT = """\
virsh dumpxml {guest}; virsh dumpxml --inactive {guest}; virsh snapshot-list {guest} --name
virsh snapshot-current {guest} --name 2>/dev/null
find {images} /srv/backup /etc/systemd /usr/local -printf '%p %y %m %i\\n' | sort
"""


def blocks() -> dict[str, list[dict[str, Any]]]:
    """Return the page's tasks by the names of their blocks."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.findall(r"^\.\. code-block:: yaml\n   :name: (\S+)\n\n((?:   .*\n|\n)+)", text, flags=re.MULTILINE)
    named = {name: yaml.safe_load(_with_our_names(textwrap.dedent(block))) for name, block in found}
    assert len(named) == len(found), "two blocks of one name"
    return named


def _with_our_names(text: str) -> str:
    for theirs, ours in NAMES.items():
        text = text.replace(theirs, ours)
    return text


BLOCKS = blocks() | yaml.safe_load(_with_our_names(MORE.read_text(encoding="utf-8")))


@dataclass
class Scene:
    """The guest of the page."""

    member: Member
    controller: Controller

    @property
    def host(self) -> Hypervisor:
        """Return the hypervisor."""
        return self.member.hypervisor

    @property
    def guest(self) -> Guest:
        """Return the guest."""
        return self.member.guest

    def virsh(self, verb: str, *arguments: str) -> str:
        """Run a verb of virsh on the guest."""
        return self.host.virsh(verb, GUEST, *arguments)

    def names(self) -> list[str]:
        """Return what libvirt has on record, by virsh."""
        return [line for line in self.virsh("snapshot-list", "--name", "--topological").splitlines() if line]

    def fresh(self, *, running: bool = True) -> None:
        """Begin with a guest that has no snapshot."""
        self.guest.cleanup()
        self.member.define()
        if running:
            self.member.boot()

    def module(self, module: str, /, **options: object) -> None:
        """Run a module that is not what the block is about."""
        result = self.controller.module(self.host.name, module, domain=GUEST, **options)
        assert result.get("changed"), result

    def ask(self, module: str, check_mode: bool = False, /, **options: object) -> dict[str, Any]:
        """Run a module that may fail, and return its result."""
        task = {"name": module, f"{OURS}{module}": {"domain": GUEST, **options}, "check_mode": check_mode}
        play = {"name": module, "hosts": self.host.name, "gather_facts": False, "tasks": [task]}
        path = self.controller.folder / f"{module}.yml"
        path.write_text(yaml.safe_dump([play]), encoding="utf-8")
        return self.controller.start(pipelining=True, playbook=str(path)).end().results[-1].result

    def backing_of(self, name: str) -> str:
        """Return what an image of the guest says that it stands on, in its own words."""
        told = self.host.exec(["qemu-img", "info", "-U", "--output=json", f"{IMAGES}/{GUEST}/{name}.qcow2"]).stdout
        return str(json.loads(told)["backing-filename"])

    def stack(self, *names: str, **options: object) -> None:
        """Take external snapshots, one upon the other."""
        task = f"{OURS}snapshot_external"
        tasks = [{"name": name, task: {"domain": GUEST, "name": name, **options}} for name in names]
        play = {"name": "Take external snapshots", "hosts": self.host.name, "gather_facts": False, "tasks": tasks}
        assert len(run(self, "stack", [play]).changed()) == len(names)

    def internal(self, *names: str) -> None:
        """Take internal snapshots, each the child of the one before."""
        for name in names:
            self.virsh("snapshot-create-as", name)


# What has to be so before a block


def nothing(_scene: Scene) -> None:
    """What the block before left will do."""


def running_again(scene: Scene) -> None:
    """The guest was parked by the block before."""
    assert scene.guest.state() == "shut off"
    scene.member.boot()


def two_external(scene: Scene) -> None:
    """A tree of two records."""
    scene.fresh()
    scene.stack("before-update", "nightly")


def lost_record(scene: Scene) -> None:
    """The record is in a file only."""
    text = scene.virsh("snapshot-dumpxml", "nightly", "--security-info")
    (scene.controller.folder / "nightly.xml").write_text(text, encoding="utf-8")
    scene.virsh("snapshot-delete", "nightly", "--metadata")


def tree_to_move(scene: Scene) -> None:
    """A tree with two branches, whose guest was moved; its current snapshot is neither first nor last."""
    scene.fresh(running=False)
    scene.internal("a <1> & 'é'", "b", "c")
    scene.virsh("snapshot-current", "a <1> & 'é'")
    scene.internal("d")
    scene.virsh("snapshot-current", "b")
    there = scene.controller.lab.hypervisor(NAMES["hv2"])
    definition = scene.virsh("dumpxml", "--inactive", "--security-info")
    there.exec(["mkdir", "-p", f"{IMAGES}/{GUEST}"])
    for target in sorted(scene.member.targets):
        path = f"{IMAGES}/{GUEST}/{target}.qcow2"
        carry(scene.host.outside(path), there.outside(path))
    there.virsh("define", "/dev/stdin", stdin=definition)


def one_internal(scene: Scene) -> None:
    """The guest has a past, and goes on."""
    scene.fresh()
    scene.internal("before-update")
    scene.guest.command("touch /run/after")


def no_longer_paused(scene: Scene) -> None:
    """The block before left it paused."""
    assert scene.guest.state() == "paused"
    scene.virsh("resume")


def one_external(scene: Scene) -> None:
    """What was written before the snapshot, and after it."""
    scene.fresh()
    scene.guest.command("for disk in vda vdb; do echo x >/mnt/$disk/before; done; sync")
    scene.stack("nightly")
    scene.guest.command("for disk in vda vdb; do echo x >/mnt/$disk/after; done; sync")


def one_with_memory(scene: Scene) -> None:
    """The guest has a past in files, and goes on."""
    scene.fresh()
    scene.module("snapshot_external", name="with-memory", memory=f"{IMAGES}/{GUEST}/{GUEST}.ram")
    scene.guest.command("touch /run/after")


def three_internal(scene: Scene) -> None:
    """Each the child of the one before."""
    scene.fresh()
    scene.internal("installed", "before-update", "after-update")


def four_external(scene: Scene) -> None:
    """Each upon the one before."""
    scene.fresh()
    scene.stack("monday", "tuesday", "wednesday", "thursday")


def chain(scene: Scene) -> None:
    """Three layers on the first disk."""
    scene.fresh()
    scene.stack("monday", "tuesday", "wednesday", disks=[{"name": "vdb", "snapshot": "no"}])


def interrupted(scene: Scene) -> None:
    """A live backup died after its snapshot."""
    scene.module("snapshot_external", name="begun", operation="live_backup")


def raw_disk(scene: Scene) -> None:
    """A guest that is off, one of whose disks has no room for a snapshot."""
    scene.guest.cleanup()
    scene.guest.define((Disk("vda"), Disk("vdb", format="raw")))


BEFORE: dict[str, Callable[[Scene], None]] = {
    "take-internal": Scene.fresh,
    "take-disk-only": running_again,
    "convert": raw_disk,
    "look-all": two_external,
    "record-write": lost_record,
    "records-move": tree_to_move,
    "revert": one_internal,
    "revert-force": no_longer_paused,
    "revert-external": one_external,
    "revert-memory": one_with_memory,
    "delete-children": three_internal,
    "delete-children-only": lambda scene: scene.internal("one", "two"),
    "delete-external-children": four_external,
    "delete-current": lambda scene: scene.stack("last"),
    "commit": one_external,
    "commit-middle": chain,
    "commit-later": lambda scene: scene.stack("nightly"),
    "pull": chain,
    "copy": lambda scene: scene.stack("nightly"),
    "recover": interrupted,
    "prune": lambda scene: scene.stack("auto-1", "auto-2"),
}


# What has to be so after it


def is_off(scene: Scene) -> None:
    """The guest was turned off."""
    assert scene.guest.state() == "shut off"


def is_paused(scene: Scene) -> None:
    """The guest waits."""
    assert scene.guest.state() == "paused"


def has_gone_back(scene: Scene) -> None:
    """The guest forgot what came after the snapshot: its memory went back."""
    assert scene.guest.command("[ -e /run/after ] || echo gone").strip() == "gone"


def disks_have_gone_back(scene: Scene) -> None:
    """On each disk there is what came before, and nothing of what came after."""
    scene.guest.wait()
    assert scene.guest.command("cd /mnt; ls -d v*/before v*/after 2>&-", check=False).split() == [
        "vda/before",
        "vdb/before",
    ]


def is_whole(scene: Scene) -> None:
    """On each disk there is what came before the snapshot and after it, on the guest's own images."""
    assert scene.guest.command("cd /mnt; ls -d v*/before v*/after").split() == [
        "vda/after",
        "vda/before",
        "vdb/after",
        "vdb/before",
    ]
    assert images(scene.host) >= {f"{GUEST}/vda.qcow2", f"{GUEST}/vdb.qcow2"}
    assert [name for name in images(scene.host) if name.startswith(GUEST) and "nightly" in name] == []


def moved(scene: Scene) -> None:
    """Both hosts have the same records."""
    there = scene.controller.lab.hypervisor(NAMES["hv2"])
    try:
        for question in (["snapshot-list", GUEST, "--tree"], ["snapshot-current", GUEST, "--name"]):
            assert there.virsh(*question) == scene.host.virsh(*question)
        for name in scene.names():
            dump = ["snapshot-dumpxml", GUEST, name, "--security-info"]
            assert there.virsh(*dump) == scene.host.virsh(*dump)
    finally:
        there.virsh("undefine", GUEST, "--snapshots-metadata")
        there.exec(["rm", "-rf", f"{IMAGES}/{GUEST}"])


def chain_of(target: str, *layers: str) -> Callable[[Scene], None]:
    """The disk stands on these layers, the guest's own first."""

    def see(scene: Scene) -> None:
        found = scene.member.facts().live[target]
        assert [path.rpartition("/")[2] for path in found] == list(layers)

    return see


def records(*names: str) -> Callable[[Scene], None]:
    """libvirt has these records."""

    def see(scene: Scene) -> None:
        assert sorted(scene.names()) == sorted(names)

    return see


def copied(scene: Scene) -> None:
    """There is a complete set."""
    (found,) = scene.member.sets()
    assert {disk["target"] for disk in found.manifest["disks"]} == {"vda", "vdb"}


TAKEN = ("before-update", "parked", "nightly", "data-only")
AFTER: dict[str, Callable[[Scene], None]] = {
    "take-internal": records("before-update"),
    "take-internal-halt": is_off,
    "take-disk-only": records("before-update", "parked", "nightly"),
    "take-diskspec": chain_of("vdb", "vdb, new data.qcow2", f"{GUEST}.vdb.nightly.qcow2", "vdb.qcow2"),
    "take-no-metadata": records(*TAKEN),
    "take-memory": records(*TAKEN, "with-memory"),
    "take-reuse": chain_of(
        "vda",
        "mine.qcow2",
        *(f"{GUEST}.vda.{name}.qcow2" for name in ("with-memory", "unrecorded", "nightly")),
        "vda.qcow2",
    ),
    "take-print-xml": records(*TAKEN, "with-memory", "mine"),
    "take-external-halt": is_off,
    "convert": chain_of("vdb", "vdb.qcow2"),
    "record-rename": records("release-4.1", "nightly", "nightly-copy"),
    "record-write": records("release-4.1", "nightly", "nightly-copy"),
    "record-forget": records(),
    "records-move": moved,
    "revert": has_gone_back,
    "revert-current": is_paused,
    "revert-force": has_gone_back,
    "revert-external": disks_have_gone_back,
    "revert-memory": has_gone_back,
    "delete-children": records("installed"),
    "delete-children-only": records("installed"),
    "delete-external-children": chain_of("vda", "vda.qcow2"),
    "delete-current": chain_of("vda", "vda.qcow2"),
    "commit": is_whole,
    "commit-middle": chain_of("vda", f"{GUEST}.vda.wednesday.qcow2", "vda.qcow2"),
    "job-cancel": chain_of("vdb", f"{GUEST}.vdb.nightly.qcow2", "vdb.qcow2"),
    "pull": chain_of("vda", f"{GUEST}.vda.wednesday.qcow2"),
    "copy": copied,
    "recover": records("monday", "tuesday", "wednesday", "nightly"),
}


#: The snapshots that a block of the page lists.
LISTED = {
    "look-all": ["before-update", "nightly"],
    "look-one": ["nightly"],
    "look-current": ["nightly"],
    "look-filtered": ["nightly"],
    "look-below": ["nightly"],
}


@pytest.fixture(scope="module")
def scene(hypervisors: list[Hypervisor], controller: Controller) -> Iterator[Scene]:
    """The page's guest, for all of the page."""
    host = hypervisors[0]
    member = Member(host.guest(GUEST), (Disk("vda"), Disk("vdb")))
    try:
        yield Scene(member, controller)
    finally:
        member.guest.cleanup()
        host.exec(["rm", "-rf", f"/srv/backup/{GUEST}"])


def cycle(task: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """Return check, run, run again and check again of a task, with a look at the guest before and after the first."""
    command = FINGERPRINT.format(guest=GUEST, images=f"{IMAGES}/{GUEST}")
    look = {"ansible.builtin.shell": {"cmd": command}, "changed_when": False, "check_mode": False}
    # What the page registers, its next tasks use: that is the run's
    bare = {key: value for key, value in task.items() if key not in ("register", "no_log")} | {"diff": True}
    run = {**task, "diff": True, "no_log": False}
    if task.get("check_mode"):
        return [
            {**look, "name": f"{number} before"},
            {**run, "name": f"{number} check"},
            {**look, "name": f"{number} after"},
        ]
    return [
        {**look, "name": f"{number} before"},
        {**bare, "name": f"{number} check", "check_mode": True},
        {**look, "name": f"{number} after"},
        {**run, "name": f"{number} run"},
        {**bare, "name": f"{number} again"},
        {**bare, "name": f"{number} recheck", "check_mode": True},
    ]


def is_ours(task: dict[str, Any]) -> bool:
    """Is it a task of this collection's?"""
    return any(key.startswith(OURS) for key in task)


def run(scene: Scene, name: str, plays: list[dict[str, Any]]) -> Play:
    """Run it as a playbook."""
    path = scene.controller.folder / f"{name}.yml"
    path.write_text(yaml.safe_dump(plays, allow_unicode=True, width=1000), encoding="utf-8")
    done = scene.controller.start(pipelining=True, playbook=str(path)).end()
    assert done.rc == 0, done.output
    return done


@pytest.mark.parametrize("name", BLOCKS)
def test_task(scene: Scene, name: str) -> None:
    """It does what the page says, and nothing a second time."""
    BEFORE.get(name, nothing)(scene)
    block = BLOCKS[name]
    if "hosts" in block[0]:
        assert run(scene, name, block).changed() != []
        assert run(scene, name, block).changed() == []
    else:
        tasks = [
            part for number, task in enumerate(block) for part in (cycle(task, number) if is_ours(task) else [task])
        ]
        play = run(scene, name, [{"name": name, "hosts": scene.host.name, "gather_facts": False, "tasks": tasks}])
        results = {item.task: item.result for item in play.results}
        for number, task in enumerate(block):
            if is_ours(task):
                see_cycle({step: results.get(f"{number} {step}", {}) for step in STEPS}, task, name)
        if name in LISTED:
            assert [snapshot["name"] for snapshot in results["0 run"]["snapshots"]] == LISTED[name]
    AFTER.get(name, nothing)(scene)


def at_rest(told: Any) -> Any:
    """Return it without how far a job is, as the guest writes meanwhile, and without times."""
    if isinstance(told, dict):
        return {key: at_rest(value) for key, value in told.items() if key not in ("cur", "end", "progress")}
    if isinstance(told, list):
        return [at_rest(part) for part in told]
    return STAMP.sub("T", told) if isinstance(told, str) else told


STEPS = ("before", "check", "after", "run", "again", "recheck")


def see_cycle(seen: dict[str, dict[str, Any]], task: dict[str, Any], name: str) -> None:
    """What the check said came true, once."""
    (module,) = [key for key in task if key.startswith(OURS)]
    changes = not module.endswith("_info") and name != "stop"  # there no backup is under way
    checked, ran = seen["check"], seen["run"]
    assert seen["before"]["stdout"] == seen["after"]["stdout"]
    assert checked["changed"] == changes
    if task.get("check_mode"):
        return
    assert ran["changed"] == changes
    assert sorted(checked) == sorted(ran)
    assert at_rest(checked.get("actions")) == at_rest(ran.get("actions"))
    assert at_rest(checked.get("diff")) == at_rest(ran.get("diff"))
    assert seen["again"]["changed"] == (name in REPEATED)
    assert seen["recheck"]["changed"] == (name in REPEATED)


# Rows of the page that no task of it shows


def test_transient_domain(scene: Scene) -> None:
    """It is not left off, where it would be gone, unless that is what was asked for; with its memory it goes back."""
    scene.fresh()
    scene.virsh("undefine")
    scene.internal("ran")
    scene.guest.command("touch /run/after")
    assert scene.ask("snapshot_revert", name="ran")["state_after"] == "running"
    has_gone_back(scene)
    scene.virsh("snapshot-create-as", "disks", "--disk-only")
    before = scene.virsh("dumpxml")
    for check_mode in (False, True):
        refused = scene.ask("snapshot_revert", check_mode, name="disks")
        assert refused["error_code"] == "run_state_needed"
        assert "run_state" in refused["msg"]
    assert scene.virsh("dumpxml") == before
    scene.guest.destroy()
    assert scene.guest.state() == ""


def test_snapshot_in_the_middle(scene: Scene) -> None:
    """Of three snapshots the second is merged: its neighbours can still be gone back to, and the data are whole."""
    scene.fresh()
    for name in ("monday", "tuesday", "wednesday"):
        scene.guest.command(f"for disk in vda vdb; do echo x >/mnt/$disk/before-{name}; done; sync")
        scene.stack(name)
    scene.guest.command("for disk in vda vdb; do echo x >/mnt/$disk/newest; done; sync")
    scene.module("block_commit", snapshot="tuesday", delete_merged=True)
    layers = {target: [f"{GUEST}.{target}.{day}.qcow2" for day in ("wednesday", "monday")] for target in ("vda", "vdb")}
    for target, names in layers.items():
        chain_of(target, *names, f"{target}.qcow2")(scene)
    assert scene.names() == ["monday", "wednesday"]
    assert scene.virsh("snapshot-parent", "wednesday").strip() == "monday"
    assert not any("tuesday" in name for name in images(scene.host))

    assert scene.ask("snapshot_revert", name="wednesday", run_state="running")["changed"]
    scene.guest.wait()
    found = scene.guest.command("cd /mnt/vdb; ls -d before-* newest 2>&-", check=False).split()
    assert found == ["before-monday", "before-tuesday", "before-wednesday"]
    assert scene.ask("snapshot_revert", name="monday", run_state="running")["changed"]
    scene.guest.wait()
    assert scene.guest.command("cd /mnt/vdb; ls -d before-* newest 2>&-", check=False).split() == ["before-monday"]


def test_relative_backing_paths(scene: Scene) -> None:
    """Images that name each other by relative paths still do after a merge, and after a pull."""
    scene.fresh()
    scene.guest.destroy()
    folder = f"{IMAGES}/{GUEST}"
    for name, base in (("one", "vda"), ("two", "one"), ("three", "two")):
        create = f"cd {folder} && qemu-img create -q -f qcow2 -F qcow2 -b {base}.qcow2 {name}.qcow2"
        scene.host.exec(["sh", "-c", create])
    definition = scene.virsh("dumpxml", "--inactive").replace("vda.qcow2", "three.qcow2")
    scene.host.virsh("define", "/dev/stdin", stdin=definition)
    scene.member.boot()
    scene.module("block_commit", disks=["vda"], base=f"{folder}/vda.qcow2", top=f"{folder}/one.qcow2")
    assert scene.backing_of("two") == "vda.qcow2"
    scene.module("block_pull", disks=["vda"], base=f"{folder}/vda.qcow2")
    assert scene.backing_of("three") == "vda.qcow2"


def test_every_flag_of_virsh_is_on_the_page() -> None:
    """What `virsh help` lists for each verb of the page; options that name the domain or the disk are no flags."""
    rows = re.findall(r"^   \* - (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    verbs = {
        words[0] for row in rows if (words := row.replace("`", "").split()) and re.match(r"snap|block|dom", row[2:])
    }
    assert len(verbs) > 10
    missing = []
    for verb in sorted(verbs):
        told = subprocess.run(["virsh", "help", verb], check=True, stdout=subprocess.PIPE, text=True).stdout
        flags = re.findall(r"^ +\[?(--[a-z-]+)", told.partition("OPTIONS")[2], flags=re.MULTILINE)
        assert flags, verb
        missing += [f"{verb} {flag}" for flag in flags if flag not in NAMING and not has_row(rows, verb, flag)]
    assert missing == []


#: They say what the verb works on, as the first columns do.
NAMING = {"--domain", "--path", "--snapshotname"}


def has_row(rows: list[str], verb: str, flag: str) -> bool:
    """Is there a row of the verb that has the flag?"""
    return any(re.match(rf"``{verb}(?= |``)", row) and re.search(rf"{flag}(?= |``)", row) for row in rows)
