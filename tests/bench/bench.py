# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""`./dev bench`: the playbook side by side with recipes done by hand (recipe.sh), on the same guests.

The bare recipe; that with sync and SHA-256 of its copies; and that with the cache dropped and `sha256sum -c` besides,
which is our work. And snapshot_info side by side with the least that reads the same records (records.py).

All in turns, so that what else the machine does meets them all; medians. Each run starts with nothing left to be
written and with the disks' data not in the page cache, as it is where guests use cache='none'. A recipe is one SSH call
to the hypervisor; the playbook counts from the start of ansible-playbook to its end. Times are printed, never asserted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "lab")]

from virtlab import BACKUP, Disk, Guest, Hypervisor, Lab, LabError, Mark  # noqa: E402

from tests.tools import playbook, tree  # noqa: E402

NAME = "bench"
BARE, DURABLE, CHECKED = "bare", "durable", "checked"
OURS, UNVERIFIED = "ours", "ours with verify: false"
BEGAN = time.monotonic()


def say(text: str) -> None:
    print(f"[bench {time.monotonic() - BEGAN:4.0f}s] {text}", flush=True)


@dataclass(frozen=True)
class Run:
    """One run of one way. `tasks` are the seconds that each of Ansible's results took, `window` those that the guests
    were on their overlays, `cpu` the processor's seconds: of the controller, of the guests, and of all else.
    """

    way: str
    seconds: float
    start: dict[str, Mark]
    end: dict[str, Mark]
    tasks: dict[str, float] = field(default_factory=dict)
    per_guest: int = 0
    allocated: int = 0
    window: float = 0
    cpu: tuple[float, float, float] = (0, 0, 0)


@dataclass(frozen=True)
class Row:
    """A line of the closing table; `unit` is for the two medians, the target is for their ratio."""

    scenario: str
    recipe: float
    ours: float
    target: float
    unit: str

    @property
    def ratio(self) -> float:
        return self.ours / self.recipe if self.recipe else float("inf")

    def __str__(self) -> str:
        medians = f"{self.recipe:8.1f} {self.unit:3} {self.ours:8.1f} {self.unit:3}"
        met = "yes" if self.ratio <= self.target else "NO"
        return f"{self.scenario:46} {medians} {self.ratio:7.2f} {self.target:8.2f}   {met}"


class Bench:
    """The ways to back up some guests of the lab hypervisor."""

    def __init__(self, hypervisor: Hypervisor, guests: Sequence[Guest]) -> None:
        self.hypervisor = hypervisor
        self.guests = guests
        self.sources = [hypervisor.outside(path) for guest in guests for path in guest.disk_paths().values()]

    def run(self, way: str) -> Run:
        self._start_equal()
        start = {guest.name: guest.mark() for guest in self.guests}
        cpu = self._cpu()
        began = time.monotonic()
        output = timed_lines(self._ours(way == OURS) if way in (OURS, UNVERIFIED) else self._recipe(way))
        seconds = time.monotonic() - began
        spent = [after - before for before, after in zip(cpu, self._cpu(), strict=True)]
        end = {guest.name: guest.mark() for guest in self.guests}
        return Run(
            way,
            seconds,
            start,
            end,
            task_times(output),
            tasks_per_guest(output),
            self._allocated(),
            longest_window(output),
            (spent[0], spent[1], spent[2] - spent[0] - spent[1]),
        )

    def _cpu(self) -> tuple[float, float, float]:
        """The processor's seconds until now: of what we started, of the guests, of the whole machine."""
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        tick = os.sysconf("SC_CLK_TCK")
        words = Path("/proc/stat").read_text(encoding="ascii").split()[1:8]
        busy = sum(int(words[index]) for index in (0, 1, 2, 5, 6)) / tick
        guests = 0.0
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (folder / "cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
                if any(f"guest={guest.name}," in word for guest in self.guests for word in words):
                    fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
                    guests += (int(fields[11]) + int(fields[12])) / tick
        return children.ru_utime + children.ru_stime, guests, busy

    def _recipe(self, way: str) -> list[str]:
        lab = self.hypervisor.lab
        script = self.hypervisor.outside("/root/recipe.sh")
        script.write_bytes((Path(__file__).parent / "recipe.sh").read_bytes())
        ssh = ["ssh", *lab.ssh_args(), "-i", str(lab.key), "-p", str(self.hypervisor.port), "root@127.0.0.1"]
        return [*ssh, "bash", "/root/recipe.sh", way, BACKUP, *(guest.name for guest in self.guests)]

    def _ours(self, verify: bool) -> list[str]:
        lab = self.hypervisor.lab
        inventory = lab.dir / "bench.inventory.yml"
        inventory.write_text(lab.inventory(), encoding="utf-8")
        names = [guest.name for guest in self.guests]
        variables = {"live_backup_dest": BACKUP, "live_backup_verify": verify}
        return [*playbook.command("live_backup", inventory, target=NAME, guests=names, **variables), "-v"]

    def _start_equal(self) -> None:
        self.hypervisor.exec(["sh", "-c", f"rm -rf {BACKUP}/*"])
        os.sync()
        for path in self.sources:
            with path.open("rb") as handle:
                os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        time.sleep(1)  # the guests' writes that waited for the sync are not this run's

    def _copies(self) -> list[Path]:
        """The images, without the small files beside them."""
        files = self.hypervisor.outside(BACKUP).glob("*/*/*")
        return [path for path in files if path.suffix in (".raw", ".qcow2")]

    def _allocated(self) -> int:
        return sum(path.stat().st_blocks * 512 for path in self._copies())

    def source_allocated(self) -> int:
        return sum(path.stat().st_blocks * 512 for path in self.sources)


def timed_lines(command: list[str]) -> list[tuple[str, float]]:
    """Run it; its output's lines, each with the second it came at. Raises LabError with the output where it fails."""
    began = time.monotonic()
    lines = []
    with subprocess.Popen(
        command,
        env=playbook.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append((line.rstrip(), time.monotonic() - began))
    lines.append(("", time.monotonic() - began))
    if process.returncode:
        raise LabError(f"{command[0]} ended with {process.returncode}:\n" + "\n".join(line for line, _unused in lines))
    return lines


def task_times(output: list[tuple[str, float]]) -> dict[str, float]:
    """The seconds before each of Ansible's results: host_pinned prints a task's headline only with it."""
    times: dict[str, float] = {}
    task, before = "", 0.0
    for line, at in output:
        if found := re.match(r"TASK \[(?:virtops\.libvirt\.live_backup : )?([^\]]+)", line):
            task = found[1]
        elif re.match(r"(ok|changed|skipping|included|fatal): ", line):
            name = re.sub(r" - .*", "", task)
            times[name] = times.get(name, 0) + at - before
            before = at
    return {**times, "the end": output[-1][1] - before}


def longest_window(output: list[tuple[str, float]]) -> float:
    """The seconds that a guest was on its overlays, as the recipe and our results tell it."""
    return (
        max((int(ms) for ms in re.findall(r"window_ms\W+(\d+)", "\n".join(line for line, _at in output))), default=0)
        / 1000
    )


def tasks_per_guest(output: list[tuple[str, float]]) -> int:
    """How many tasks ran for each guest in the guests' play."""
    text = "\n".join(line for line, _unused in output)
    play = re.search(r"^PLAY \[Back the guests up\].*?(?=^PLAY )", text, re.MULTILINE | re.DOTALL)
    hosts = re.findall(r"^(?:ok|changed): \[([^\] ]+)", play[0], re.MULTILINE) if play else []
    return max((hosts.count(host) for host in hosts), default=0)


def alternate(bench: Bench, label: str, runs: int, ways: Sequence[str]) -> list[Run]:
    results = []
    for number in range(1, runs + 1):
        for way in ways:
            run = bench.run(way)
            results.append(run)
            say(f"{label}, run {number} of {runs}: {way} {run.seconds:.1f} s")
    return results


Value = Callable[[Run], float]


def seconds_of(run: Run) -> float:
    return run.seconds


def median(runs: list[Run], way: str, value: Value = seconds_of) -> float:
    return statistics.median(value(run) for run in runs if run.way == way)


def longest_gaps(guest: Guest, runs: list[Run]) -> Value:
    """The longest stall of any disk in a run, in ms; shuts the guest down, as only its images tell."""
    guest.shutdown()
    journals = [report.journal for report in guest.read_all().values()]
    found = {
        id(run): max(journal.longest_stall_ms(run.start[guest.name], run.end[guest.name]) for journal in journals)
        for run in runs
    }
    return lambda run: found[id(run)]


def one_guest(hypervisor: Hypervisor, runs: int) -> list[Row]:
    """a, b, d: three disks, 2 GiB of data that is no zeros."""
    say("one guest: three disks with 2 GiB of data in all")
    disks = [Disk(f"vd{letter}", 1024, form, 683) for letter, form in (("a", "raw"), ("b", "qcow2"), ("c", "qcow2"))]
    guest = hypervisor.guest("one").define(disks, rate=20)
    guest.start()
    time.sleep(2)
    bench = Bench(hypervisor, [guest])
    results = alternate(bench, "one guest", runs, (BARE, DURABLE, CHECKED, OURS, UNVERIFIED))
    gap = longest_gaps(guest, results)
    source = bench.source_allocated()
    show_tasks([run for run in results if run.way == OURS])
    allocated = max(run.allocated for run in results if run.way == OURS)
    tasks = max(run.per_guest for run in results)
    print(f"\nTasks per guest in the guests' play: {tasks} (target: at most 2)")
    print(f"Longest gaps, ms: {gaps(results, BARE, gap)}; {gaps(results, OURS, gap)}")
    guest.cleanup()

    def row(words: str, other: str, way: str, target: float, unit: str = "s", value: Value = seconds_of) -> Row:
        return Row(words, median(results, other, value), median(results, way, value), target, unit)

    return [
        row("one guest, 3 disks, 2 GiB; checked recipe", CHECKED, OURS, 1),
        row("... with verify: false; durable recipe", DURABLE, UNVERIFIED, 1),
        row("... with verify: false; bare recipe", BARE, UNVERIFIED, 1.3),
        row("... on its overlays; bare recipe", BARE, OURS, 1.1, "s", lambda run: run.window),
        row("... longest gap between fsynced writes; bare", BARE, OURS, 0.75, "ms", gap),
        Row("... bytes allocated; source", source / 2**20, allocated / 2**20, 1, "MiB"),
    ]


def gaps(runs: list[Run], way: str, gap: Value) -> str:
    return f"{way} " + " ".join(f"{gap(run):.0f}" for run in runs if run.way == way)


def ten_guests(hypervisor: Hypervisor, runs: int) -> list[Row]:
    """c: two small disks each, as a system and its data."""
    say("ten guests: two disks with 64 MiB of data on each")
    disks = [Disk("vda", 128, fill_mib=64), Disk("vdb", 128, "raw", fill_mib=64)]
    guests = [hypervisor.guest(f"small{n}").define(disks, rate=5) for n in range(10)]
    for guest in guests:
        guest.start(wait=False)
    for guest in guests:
        guest.wait(300)
    results = alternate(Bench(hypervisor, guests), "ten guests", runs, (BARE, CHECKED, OURS))
    for guest in guests:
        guest.cleanup()
    for way in (BARE, CHECKED, OURS):
        controller, qemu, rest = (median(results, way, lambda run, at=at: run.cpu[at]) for at in range(3))  # type: ignore[misc]
        told = f"controller {controller / 10:.2f}, hypervisor {rest / 10:.2f}, QEMU {qemu / 10:.2f}"
        print(f"Processor seconds per guest, {way}: {told}")
    show_tasks([run for run in results if run.way == OURS])
    return [Row("ten guests, 2 disks of 64 MiB; bare recipe", median(results, BARE), median(results, OURS), 0.8, "s")]


def many_records(hypervisor: Hypervisor, runs: int) -> list[Row]:
    """e: a guest that is off, with up to a thousand snapshot records; more of them take as much longer as there are."""
    say("a guest with many snapshot records")
    guest = hypervisor.guest("records").define([Disk("vda")])
    folder = "/root/bench/ansible_collections/virtops/libvirt"
    inside = hypervisor.outside(folder)
    inside.mkdir(parents=True)
    shutil.copytree(ROOT / "plugins", inside / "plugins")
    shutil.copy(Path(__file__).parent / "records.py", inside)
    found = {}
    for count in (250, 500, 1000):
        python = ["env", "PYTHONPATH=/root/bench", "PYTHONDONTWRITEBYTECODE=1", "/usr/bin/python3"]
        command = [*python, f"{folder}/records.py", guest.name, str(count), str(4 * runs)]
        seconds = json.loads(hypervisor.exec(command, timeout=900).stdout)
        # The fastest of each: so short a run is slower only by what else the machine does
        least, ours = (min(seconds[way]) * 1000 for way in ("least", "ours"))
        found[count] = (least, ours)
        say(f"{count} records: the least loop {least:.0f} ms, ours {ours:.0f} ms")
    guest.cleanup()
    return [
        Row("snapshot_info of 1000 records; the least loop", *found[1000], 1.5, "ms"),
        Row("... of 1000 records; twice that of 500", 2 * found[500][1], found[1000][1], 1.25, "ms"),
    ]


def show_tasks(runs: list[Run]) -> None:
    print("\nWhere our time goes (medians, s):")
    for name in runs[0].tasks:
        print(f"  {statistics.median(run.tasks.get(name, 0) for run in runs):6.2f}  {name}")


@contextmanager
def hypervisor_up(keep: bool) -> Iterator[Hypervisor]:
    lab = Lab()
    lab.down([NAME])
    try:
        say(f"bringing up the lab hypervisor {NAME} in {lab.dir}")
        yield lab.up([NAME])[0]
    finally:
        if not keep:
            lab.down([NAME])


SCENARIOS = {"one": one_guest, "ten": ten_guests, "records": many_records}


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=SCENARIOS, help="one scenario")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="runs of each way (default: 5)")
    parser.add_argument("--keep", action="store_true", help="leave the hypervisor up")
    args = parser.parse_args()
    tree.sync()
    rows: list[Row] = []
    with hypervisor_up(args.keep) as hypervisor:
        for name, scenario in SCENARIOS.items():
            if args.only in (None, name):
                rows += scenario(hypervisor, args.runs)
    print(f"\nMedians of {args.runs}, in turns, on {os.cpu_count()} processors; load {os.getloadavg()[1]:.1f}")
    print(f"{'ours; beside what':46} {'other':>12} {'ours':>12} {'ratio':>7} {'target':>8}   met")
    print("\n".join(map(str, rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
