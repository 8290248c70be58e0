# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: the systemd unit that recovers guests at boot, and the code that it runs, as files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

#: A directory of our own, for the interpreter's path.
LIBRARY = "/usr/local/lib/virtops.libvirt"
UNIT = "/etc/systemd/system/virtops-libvirt-recover.service"
#: What `systemctl enable` makes, also where systemd does not run, as while an image of a host is made.
STARTED = "/etc/systemd/system/multi-user.target.wants"
ENABLED = STARTED + "/virtops-libvirt-recover.service"

# Whichever daemon the host starts comes first, but none is wanted: that would start libvirtd beside virtqemud, or the
# reverse. Images may lie anywhere, so no directory is hidden. What is left when the main process ends is what has to
# be, a process that thaws the guest; a qemu-img of ours ends with it.
_UNIT_TEXT = """\
# Written by Ansible, virtops.libvirt.boot_recovery
[Unit]
Description=Bring guests to rest on which an operation of virtops.libvirt was interrupted
Documentation=https://github.com/virtops/virtops.libvirt/blob/main/docs/docsite/rst/guide_recovery.rst
After=libvirtd.service libvirtd.socket virtqemud.service virtqemud.socket
After=local-fs.target remote-fs.target
# A guest cannot start while its overlay is merged offline
Before=libvirt-guests.service

[Service]
# It goes on after that where the memory of a guest is saved, and recovers it once it was started
Type=notify
Environment=PYTHONPATH=%(library)s PYTHONDONTWRITEBYTECODE=1
ExecStart=%(python)s -m %(entry)s --uri %(uri)s --timeout %(timeout)d
TimeoutStartSec=1h
KillMode=process
UMask=0077
ProtectSystem=full
NoNewPrivileges=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native

[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True)
class BootOptions:
    """`state` is present or absent; `timeout` in seconds for each guest; `python` an interpreter with the libraries."""

    state: str
    uri: str
    timeout: int
    python: str


@dataclass(frozen=True)
class Entry:
    """One thing in the file system: a directory (neither), a file (its `text`) or a symlink (its `target`)."""

    text: str | None = None
    target: str | None = None


#: What nobody but root may write to: mode 0755 of a directory, 0644 of a file.
DIRECTORY = Entry()


class FilesPort(Protocol):
    """Files of the hypervisor's own."""

    def find(self, path: str) -> dict[str, Entry | None]:
        """What is at the path and below it; None for what is not as `put` makes it, by kind, owner or mode."""

    def put(self, path: str, entry: Entry) -> None:
        """Make it so, in one step; its directory is there. What is in its place goes, but a directory that is full."""

    def remove(self, path: str) -> None:
        """unlink(2) or rmdir(2)."""


def wanted(options: BootOptions, sources: Mapping[str, str], entry: str) -> dict[str, Entry]:
    """All that has to be there, directories before what is in them. `sources` are modules' texts by dotted names."""
    if options.state == "absent":
        return {}
    found = {LIBRARY: DIRECTORY}
    for name, text in sorted(sources.items()):
        parts = name.split(".")
        for depth in range(1, len(parts)):
            folder = "/".join((LIBRARY, *parts[:depth]))
            found[folder] = DIRECTORY
            # Another package of this name on the interpreter's path would otherwise hide this one
            found[folder + "/__init__.py"] = Entry("")
        found["/".join((LIBRARY, *parts)) + ".py"] = Entry(text)
    found[UNIT] = Entry(unit_text(options, entry))
    found[STARTED] = DIRECTORY
    found[ENABLED] = Entry(target=UNIT)
    return found


def unit_text(options: BootOptions, entry: str) -> str:
    """The unit; `entry` is the module that is run."""
    return _UNIT_TEXT % {
        "library": LIBRARY,
        "python": _word(options.python),
        "entry": entry,
        "uri": _word(options.uri),
        "timeout": options.timeout,
    }


def _word(text: str) -> str:
    """One word of a command line, systemd.service(5)."""
    for sign, instead in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", "$$")):
        text = text.replace(sign, instead)
    return '"%s"' % text


def in_removal_order(paths: Iterable[str]) -> tuple[str, ...]:
    """The link first, then the unit; of the code, what lies in a directory before it."""
    return tuple(sorted(paths, key=lambda path: (path != ENABLED, path != UNIT, -len(path), path)))
