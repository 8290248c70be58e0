# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""points.py DOMAIN FOLDER: what the snapshots of a domain hold, as JSON, read past the collection.

"points": the digest of what the guest would read at each external snapshot's moment, by disk; "now": the same of its
present images, where it is off; "unused": the files of the folder that no snapshot and no disk has to do with;
"missing": those that a record's definition names and that are not there.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree


def output(*argv: str) -> str:
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout


def sources(domain: ElementTree.Element) -> dict[str, tuple[str, str]]:
    """Path and format of each disk that a guest can write to."""
    found = {}
    for disk in domain.iterfind("devices/disk[@device='disk']"):
        source = disk.find("source")
        if source is not None and disk.find("readonly") is None:
            found[disk.find("target").get("dev")] = (source.get("file"), disk.find("driver").get("type"))
    return found


def chain(path: str) -> list[str]:
    told = json.loads(output("qemu-img", "info", "-U", "--output=json", "--backing-chain", path))
    return [entry["filename"] for entry in told]


def digest(path: str, image_format: str) -> str:
    with tempfile.NamedTemporaryFile() as copy:
        output("qemu-img", "convert", "-U", "-f", image_format, "-O", "raw", path, copy.name)
        return hashlib.sha256(Path(copy.name).read_bytes()).hexdigest()


def main() -> None:
    name, folder = sys.argv[1:]
    found: dict = {"points": {}, "parents": {}, "missing": [], "now": {}, "chains": {}}
    used = {str(path) for path in Path(folder).glob("golden.*")}
    active = sources(ElementTree.fromstring(output("virsh", "dumpxml", name)))
    for snapshot in output("virsh", "snapshot-list", name, "--name", "--topological").split("\n"):
        if not snapshot:
            continue
        record = ElementTree.fromstring(output("virsh", "snapshot-dumpxml", name, snapshot))
        found["parents"][snapshot] = record.findtext("parent/name")
        memory = record.find("memory")
        used.add("" if memory is None else memory.get("file", ""))
        for kind in ("domain", "inactiveDomain"):
            if record.find(kind) is None:
                continue
            for layer in record.find(kind).iterfind("devices/disk//source[@file]"):
                if not Path(layer.get("file")).exists():
                    found["missing"].append(layer.get("file"))
        then = sources(record.find("domain"))
        for disk in record.iterfind("disks/disk[@snapshot='external']"):
            target = disk.get("name")
            found["points"][f"{snapshot}/{target}"] = digest(*then[target])
            # Its overlay may be one that a revert has left, which stays as long as the snapshot does
            used.update([*chain(then[target][0]), disk.find("source").get("file")])
    for target, (path, image_format) in active.items():
        found["chains"][target] = chain(path)
        used.update(found["chains"][target])
        if output("virsh", "domstate", name).strip() == "shut off":
            found["now"][target] = digest(path, image_format)
    found["unused"] = sorted(str(path) for path in Path(folder).iterdir() if str(path) not in used)
    print(json.dumps(found))


main()
