# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`tests/lab/lab`: the lab's operations as commands. It only parses and prints; the work is in the other modules."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from ._sys import LabError
from .disks import Disk
from .hypervisor import ENVIRONMENT, Hypervisor, Volume
from .lab import Lab
from .records import read_image

DISK_HELP = """\
a disk as key=value words, e.g. 'target=vda size_mib=64 format=raw fill_mib=10', 'target=vdb golden=base',
'target=vdc path="/srv/a b.qcow2"', 'target=hda device=cdrom', 'target=vdd format=raw shareable blank'; repeatable
"""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        return int(args.run(Lab(args.dir), args) or 0)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lab", description="Lab hypervisors and test guests on one machine.")
    parser.add_argument("--dir", help="the lab's folder (default: $VIRTOPS_LAB_DIR or /var/tmp/virtops-lab)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    up = commands.add_parser("up", help="bring hypervisors up (again)")
    up.add_argument("names", nargs="*", default=["hv1", "hv2"], metavar="NAME", help="default: hv1 hv2")
    up.add_argument("--generation", help="whose libvirt and QEMU: host (default), debian11, debian13 or forky")
    up.add_argument("--port", type=int, help="sshd's port on 127.0.0.1 (one NAME only; default: a free one)")
    up.add_argument("--images", type=_volume, metavar="MIB[:TYPE]", help="put the images on a file system of that size")
    up.add_argument("--backup", type=_volume, metavar="MIB[:TYPE]", help="the same for /srv/backup; ext4 or xfs")
    up.set_defaults(run=_up)

    down = commands.add_parser("down", help="remove hypervisors and all they had")
    down.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    down.add_argument("--purge", action="store_true", help="the cache too")
    down.set_defaults(run=_down)

    status = commands.add_parser("status", help="what there is")
    status.add_argument("--json", action="store_true")
    status.set_defaults(run=_status)

    execute = commands.add_parser("exec", help="run a command inside a hypervisor, as root")
    execute.add_argument("name")
    execute.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    execute.set_defaults(run=_exec)

    power = commands.add_parser("powerloss", help="everything of a hypervisor dies at once; `up` switches it on again")
    power.add_argument("names", nargs="+", metavar="NAME")
    power.set_defaults(run=_powerloss)

    inventory = commands.add_parser("inventory", help="print an Ansible inventory of the hypervisors")
    inventory.set_defaults(run=_inventory)

    records = commands.add_parser("records", help="what the writers left on images: lost, torn and late records")
    records.add_argument("--on", metavar="NAME", help="the images lie in this hypervisor")
    records.add_argument("--json", action="store_true")
    records.add_argument("images", nargs="+", metavar="IMAGE")
    records.set_defaults(run=_records)

    guest = commands.add_parser("guest", help="test guests of a hypervisor")
    guest.add_argument("hypervisor")
    verbs = guest.add_subparsers(required=True, metavar="VERB")
    define = verbs.add_parser("define", help="make the disks and define a guest")
    define.add_argument("guest")
    define.add_argument("--disk", type=_disk, action="append", help=DISK_HELP)
    define.add_argument("--rate", type=int, default=10, help="records a second and disk; 0: as fast as it can")
    define.add_argument("--bulk-kib", type=int, default=0, help="fresh data with each record")
    define.add_argument("--memory-mib", type=int, default=192)
    define.add_argument("--no-agent", action="store_true")
    define.add_argument("--transient", action="store_true")
    define.set_defaults(run=_define)
    for verb in ("start", "shutdown", "destroy", "undefine", "cleanup", "mark"):
        parser_of_verb = verbs.add_parser(verb)
        parser_of_verb.add_argument("guests", nargs="+", metavar="guest")
        parser_of_verb.set_defaults(run=_guest_verb, verb=verb)
    listing = verbs.add_parser("list")
    listing.set_defaults(run=_list)
    command = verbs.add_parser("command", help="run a shell command inside the guest, past its agent")
    command.add_argument("guest")
    command.add_argument("command")
    command.set_defaults(run=_command)
    return parser


def _volume(text: str) -> Volume:
    size, _unused, kind = text.partition(":")
    return Volume(int(size), kind or "ext4")


def _disk(text: str) -> Disk:
    kinds = {field.name: field.type for field in fields(Disk)}
    values: dict[str, str | int | bool] = {}
    for word in shlex.split(text):
        key, equals, value = word.partition("=")
        if key not in kinds or (kinds[key] == "bool") == bool(equals):
            raise argparse.ArgumentTypeError(f"{word!r}: words are {', '.join(kinds)}")
        values[key] = int(value) if kinds[key] == "int" else value if equals else True
    return Disk(**values)  # type: ignore[arg-type]


def _up(lab: Lab, args: argparse.Namespace) -> None:
    lab.check_root()
    for name in args.names:
        hypervisor = lab.hypervisor(name)
        hypervisor.up(generation=args.generation, port=args.port, images=args.images, backup=args.backup)
        print(f"{name}: up, ssh on 127.0.0.1:{hypervisor.port}")


def _down(lab: Lab, args: argparse.Namespace) -> None:
    names = None if args.names in ([], ["all"]) else args.names
    lab.down(names, purge=args.purge)


def _status(lab: Lab, args: argparse.Namespace) -> None:
    states = [hypervisor.status() for hypervisor in lab.hypervisors()]
    if args.json:
        print(json.dumps({"dir": str(lab.dir), "hypervisors": states}, indent=2))
        return
    for state in states:
        daemon = "libvirtd up" if state["libvirtd"] else "libvirtd down"
        power = f"on, {daemon}" if state["on"] else "off"
        print(f"{state['name']}: {state['generation']}, {power}, ssh on 127.0.0.1:{state['port']}, {state['dir']}")
        for guest, word in state["guests"].items():
            print(f"  {guest}: {word}")


def _exec(lab: Lab, args: argparse.Namespace) -> None:
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    argv = lab.hypervisor(args.name).enter(command or ["bash", "-l"])
    os.execvpe(argv[0], argv, {**ENVIRONMENT, "TERM": os.environ.get("TERM", "dumb")})


def _powerloss(lab: Lab, args: argparse.Namespace) -> None:
    for name in args.names:
        lab.hypervisor(name).powerloss()


def _inventory(lab: Lab, _unused: argparse.Namespace) -> None:
    print(lab.inventory(), end="")


def _records(lab: Lab, args: argparse.Namespace) -> int:
    convert = lab.hypervisor(args.on).read_raw if args.on else None
    reports = {image: read_image(Path(image), lab.scratch(), convert) for image in args.images}
    found = {
        image: {**report.journal.summary(), "needs_recovery": report.needs_recovery, "clean": report.is_clean}
        for image, report in reports.items()
    }
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        for image, summary in found.items():
            print(f"{image}: " + ", ".join(f"{key} {value}" for key, value in summary.items()))
    return int(any(not entry["clean"] or entry["missing"] or entry["torn"] for entry in found.values()))


def _hypervisor(lab: Lab, args: argparse.Namespace) -> Hypervisor:
    return lab.hypervisor(args.hypervisor)


def _define(lab: Lab, args: argparse.Namespace) -> None:
    _hypervisor(lab, args).guest(args.guest).define(
        args.disk or [Disk()],
        memory_mib=args.memory_mib,
        rate=args.rate,
        bulk_kib=args.bulk_kib,
        agent=not args.no_agent,
        transient=args.transient,
    )


def _guest_verb(lab: Lab, args: argparse.Namespace) -> None:
    for name in args.guests:
        guest = _hypervisor(lab, args).guest(name)
        if args.verb == "mark":
            for disk, record in guest.mark().acked.items():
                print(f"{name}: {disk}: {record.seq} records are durable")
        else:
            took = getattr(guest, args.verb)()
            print(f"{name}: {args.verb}" + (f" ({took:.1f} s)" if isinstance(took, float) else ""))


def _list(lab: Lab, args: argparse.Namespace) -> None:
    for guest in _hypervisor(lab, args).guests():
        print(f"{guest.name}: {guest.state()}")


def _command(lab: Lab, args: argparse.Namespace) -> None:
    print(_hypervisor(lab, args).guest(args.guest).command(args.command), end="")
