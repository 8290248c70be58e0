# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A test guest on a lab hypervisor: its disks, its life, its agent, and what its writers witnessed."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from . import disks as images
from ._sys import LabError, wait_for
from .disks import Disk
from .hypervisor import IMAGES, Hypervisor
from .records import BlankImage, ImageReport, Journal, Mark, Record, read_image

KERNEL_ARGS = "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check random.trust_cpu=on"
DEFAULT_DISKS = (Disk("vda"),)


class Guest:
    """One domain. It boots from a kernel and an initramfs; its disks carry nothing but data."""

    def __init__(self, hypervisor: Hypervisor, name: str) -> None:
        self.hypervisor = hypervisor
        self.name = name

    # -- life ----------------------------------------------------------------------------------------------------

    def define(
        self,
        disks: Sequence[Disk] = DEFAULT_DISKS,
        *,
        memory_mib: int = 192,
        rate: int = 10,
        bulk_kib: int = 0,
        span_mib: int = 8,
        agent: bool = True,
        transient: bool = False,
    ) -> Guest:
        """Make the disks' images and define the domain (with `transient`: start it without defining).

        The writers append `rate` records a second to each disk (0: as fast as they can, negative: none) and dirty
        `bulk_kib` with each record, within `span_mib`.
        """
        for disk in disks:
            self._make_image(disk)
        xml = self.xml(disks, memory_mib=memory_mib, writer=f"{rate},{bulk_kib},{span_mib}", agent=agent)
        self.hypervisor.virsh("create" if transient else "define", "/dev/stdin", stdin=xml)
        return self

    def start(self, *, wait: bool = True, timeout: float = 180) -> float:
        """Start it; returns the seconds until it could be used (its agent answered, or its system was up)."""
        began = time.monotonic()
        self.hypervisor.virsh("start", self.name)
        if wait:
            self.wait(timeout)
        return time.monotonic() - began

    def wait(self, timeout: float = 180) -> None:
        """Until its system is up, and its agent answers where it has one."""
        xml = self.hypervisor.virsh("dumpxml", self.name)
        if self._control_path in xml:
            wait_for(f"boot of {self.name}", self._is_booted, timeout, every=0.2)
        if "org.qemu.guest_agent.0" not in xml:
            return
        try:
            wait_for(f"agent of {self.name}", self.agent_answers, timeout, every=0.2)
        except LabError as error:
            if self._control_path in xml:
                said = self.command(
                    "ps; cat /run/qga.log /proc/mounts; ls -l /dev/virtio-ports; dmesg | tail", check=False
                )
                error.add_note(f"in the guest:\n{said}")
            raise

    def shutdown(self, *, mode: str = "agent", timeout: float = 90) -> float:
        """Ask it to shut down (`agent` or `acpi`); returns the seconds it took."""
        # On a loaded machine the guest may be off before its agent's answer has arrived, which virsh calls an error
        self.hypervisor.virsh("shutdown", self.name, "--mode", mode, check=False)
        return wait_for(f"shutdown of {self.name}", lambda: self.state() in ("shut off", ""), timeout)

    def destroy(self) -> None:
        if self.state() not in ("shut off", ""):
            self.hypervisor.virsh("destroy", self.name)

    def undefine(self) -> None:
        """Forget the domain with its snapshot records; images stay."""
        if self.state():
            self.hypervisor.virsh("undefine", self.name, "--snapshots-metadata", "--checkpoints-metadata", check=True)

    def cleanup(self) -> None:
        """Destroy and undefine it, and remove its folder and the images that were made for it elsewhere."""
        self.destroy()
        self.undefine()
        made = self._made.read_text(encoding="utf-8").splitlines() if self._made.exists() else []
        self.hypervisor.exec(["rm", "-rf", f"{IMAGES}/{self.name}", *made])
        self._made.unlink(missing_ok=True)

    def state(self) -> str:
        """virsh's word (running, paused, shut off, …); empty if there is no such domain."""
        return self.hypervisor.virsh("domstate", self.name, check=False).strip()

    def kill_qemu(self) -> None:
        """SIGKILL to its QEMU."""
        pid = self.hypervisor.outside(f"/run/libvirt/qemu/{self.name}.pid").read_text(encoding="utf-8").strip()
        self.hypervisor.exec(["sh", "-c", f"kill -KILL {pid}"])

    def crash(self) -> None:
        """Make QEMU take it for crashed, as when its kernel panics: by a write to the port of its panic device."""
        self.hypervisor.virsh("qemu-monitor-command", self.name, "--hmp", "o /b 0x505 1")
        wait_for(f"crash of {self.name}", lambda: self.state() == "crashed", 20)

    # -- definition ----------------------------------------------------------------------------------------------

    @property
    def _made(self) -> Path:
        """A list of the images that `define` made, kept outside of the hypervisor."""
        return self.hypervisor.dir / "made" / self.name

    def path_of(self, disk: Disk) -> str:
        return disk.path or f"{IMAGES}/{self.name}/{disk.target}.{disk.format}"

    def _make_image(self, disk: Disk) -> None:
        if disk.device != "disk" or disk.existing:
            return
        hypervisor = self.hypervisor
        path = self.path_of(disk)
        hypervisor.exec(["mkdir", "-p", "-m", "711", str(Path(path).parent)])
        self._made.parent.mkdir(exist_ok=True)
        with self._made.open("a", encoding="utf-8") as made:
            made.write(f"{path}\n")
        if disk.golden is None:
            images.make(hypervisor.lab.cache, disk, hypervisor.outside(path))
            return
        golden = f"{IMAGES}/golden/{disk.golden}.qcow2"
        if not hypervisor.outside(golden).exists():
            hypervisor.exec(["mkdir", "-p", "-m", "711", f"{IMAGES}/golden"])
            base = Disk(size_mib=disk.size_mib, fill_mib=disk.fill_mib)
            images.make(hypervisor.lab.cache, base, hypervisor.outside(golden))
            hypervisor.exec(["chmod", "644", golden])
        hypervisor.exec(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", golden, path])

    def xml(self, disks: Sequence[Disk], *, memory_mib: int = 192, writer: str = "10,0,8", agent: bool = True) -> str:
        channel = """\
    <channel type='unix'>
      <target type='virtio' name='org.qemu.guest_agent.0'/>
    </channel>
"""
        return f"""\
<domain type='qemu'>
  <name>{escape(self.name)}</name>
  <memory unit='MiB'>{memory_mib}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>/var/lib/libvirt/boot/vmlinuz</kernel>
    <initrd>/var/lib/libvirt/boot/initrd.img</initrd>
    <cmdline>{KERNEL_ARGS} lab.writer={writer}</cmdline>
  </os>
  <features><acpi/></features>
  <clock offset='utc'/>
  <on_crash>preserve</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
{"".join(self._disk_xml(disk) for disk in disks)}\
    <controller type='usb' model='none'/>
    <serial type='file'>
      <source path={quoteattr(f"/var/log/libvirt/qemu/{self.name}.console")}/>
    </serial>
{channel if agent else ""}\
    <channel type='unix'>
      <source mode='bind' path={quoteattr(self._control_path)}/>
      <target type='virtio' name='lab.0'/>
    </channel>
    <memballoon model='none'/>
    <panic model='isa'/>
  </devices>
</domain>
"""

    def _disk_xml(self, disk: Disk) -> str:
        path = self.path_of(disk) if disk.device == "disk" else disk.path
        driver = disk.format if disk.device == "disk" else "raw"
        parts = [f"<driver name='qemu' type='{driver}'/>"]
        if path:
            parts.append(f"<source file={quoteattr(path)}/>")
        parts.append(f"<target dev='{disk.target}' bus='{disk.bus}'/>")
        parts += [f"<{flag}/>" for flag in ("readonly", "shareable", "transient") if getattr(disk, flag)]
        return f"    <disk type='file' device='{disk.device}'>{''.join(parts)}</disk>\n"

    # -- ways in -------------------------------------------------------------------------------------------------

    def agent(self, execute: str, arguments: dict[str, Any] | None = None, *, timeout: int = 10) -> Any:
        """Call qemu-guest-agent through libvirt and return what it returns."""
        request = json.dumps({"execute": execute, **({"arguments": arguments} if arguments else {})})
        command = ("qemu-agent-command", self.name, "--timeout", str(timeout), request)
        said = self.hypervisor.virsh(*command, timeout=timeout + 20)
        return json.loads(said)["return"]

    def agent_answers(self) -> bool:
        try:
            self.agent("guest-ping", timeout=2)
        except LabError:
            return False
        return True

    @property
    def _control_path(self) -> str:
        return f"/run/virtlab/{self.name}.control"

    def command(self, command: str, *, timeout: float = 60, check: bool = True) -> str:
        """Run a shell command in the guest, past the agent (guest/control.c); works on a frozen guest too."""
        return self._command(command, timeout, check).decode(errors="replace")

    def _command(self, command: str, timeout: float = 60, check: bool = True) -> bytes:
        identity = f"{time.monotonic_ns()}"
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout)
            try:
                connection.connect(str(self.hypervisor.outside(self._control_path)))
                connection.sendall(f"{identity} exec 2>&1; {command}\n".encode())
                with connection.makefile("rb") as stream:
                    words = stream.readline().split()
                    while words and words[0] != identity.encode():  # the answer to one that gave up waiting
                        stream.read(int(words[2]))
                        words = stream.readline().split()
                    if not words:
                        raise LabError(f"{self.name}: the guest went away")
                    output = stream.read(int(words[2]))
            except OSError as error:
                raise LabError(f"{self.name}: no answer from inside the guest: {error}") from error
        if check and words[1] != b"0":
            raise LabError(
                f"{self.name}: {command!r} ended with {words[1].decode()}: {output.decode(errors='replace').strip()}"
            )
        return output

    def _is_booted(self) -> bool:
        """QEMU holds the question until the guest opens its port, so asking once waits without polling."""
        try:
            self.command("true", timeout=10)
        except LabError:
            return False
        return True

    def agent_service(self, verb: str) -> None:
        """start, stop (disconnected), kill, hang (connected and deaf) or resume the agent in the guest."""
        self.command(f"agent {verb}")

    # -- witnesses -----------------------------------------------------------------------------------------------

    def write(self, *, rate: int = 10, bulk_kib: int = 0, span_mib: int = 8, disks: Sequence[str] = ()) -> None:
        """Set the writers' pace from now on (see `define`); all disks unless some are named."""
        chosen = " ".join(disks) or "$(ls /run/writer | sed -n 's/[.]ack$//p')"
        self.command(f'for disk in {chosen}; do echo "{rate} {bulk_kib} {span_mib}" >/run/writer/$disk.ctl; done')

    def mark(self) -> Mark:
        """Now: each disk's newest durable record and the clocks. Works on a frozen guest, without the agent too."""
        before = time.monotonic_ns()
        said = self.command("cat /proc/uptime; cd /run/writer; for f in *.ack; do [ ! -e $f ] || xxd -p -c 64 $f; done")
        host_ns = (before + time.monotonic_ns()) // 2
        uptime, *acks = said.splitlines()
        records = [Record.parse(bytes.fromhex(ack)) for ack in acks]
        return Mark(
            host_ns=host_ns,
            guest_ns=round(float(uptime.split()[0]) * 1e9),
            acked={record.disk: record for record in records if record is not None},
        )

    def journals(self) -> dict[str, Journal]:
        """The records of each disk as the running guest sees them: for stalls, while it runs on."""
        found = {}
        for disk in self.mark().acked:
            data, chunk = b"", 1 << 19
            while len(data) % chunk == 0:
                block = self._command(
                    f"dd if=/mnt/{disk}/records.bin bs={chunk} skip={len(data) // chunk} count=1 2>&-"
                )
                data += block
                if not block:
                    break
            found[disk] = Journal.parse(data)
        return found

    def read(self, path: str) -> ImageReport:
        """The records of an image of this hypervisor, with its backing chain (guest off, or an image it left)."""
        hypervisor = self.hypervisor
        return read_image(Path(path), hypervisor.lab.scratch(), hypervisor.read_raw)

    def disk_paths(self) -> dict[str, str]:
        """What libvirt now has as the source of each disk, by target."""
        said = self.hypervisor.virsh("domblklist", self.name, "--details")
        rows = (line.split(None, 3) for line in said.splitlines())
        return {row[2]: row[3].strip() for row in rows if len(row) == 4 and row[1] == "disk" and row[3].strip() != "-"}

    def read_all(self) -> dict[str, ImageReport]:
        """The records of each of its disks that has any, as they lie; the guest has to be off."""
        reports = {}
        for target, path in self.disk_paths().items():
            with suppress(BlankImage):
                reports[target] = self.read(path)
        return {target: report for target, report in reports.items() if report.journal.records}
