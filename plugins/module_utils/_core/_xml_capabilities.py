# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: what libvirt says of its host and its QEMU."""

from __future__ import annotations

from ._xml_domain import owner_of
from ._xml_tree import parse


def has_disk_snapshots(capabilities: str) -> bool:
    """virConnectGetCapabilities: <disksnapshot/>, which libvirt gives to each architecture or to none."""
    return any(found.get("default") == "on" for found in parse(capabilities).iterfind("guest/features/disksnapshot"))


def has_external_revert(capabilities: str) -> bool:
    """virConnectGetCapabilities: <externalSnapshot/>, a libvirt that goes back to external snapshots itself."""
    return parse(capabilities).find("guest/features/externalSnapshot") is not None


def security_models(capabilities: str) -> frozenset[str]:
    """virConnectGetCapabilities: the security drivers of the host, as apparmor, selinux, dac."""
    return frozenset(found.text or "" for found in parse(capabilities).iterfind("host/secmodel/model"))


def qemu_ids(capabilities: str) -> tuple[int, int] | None:
    """virConnectGetCapabilities: the user and group that QEMU runs as, where a domain does not say otherwise."""
    for model in parse(capabilities).iterfind("host/secmodel"):
        if model.findtext("model") == "dac":
            return owner_of(model.findtext("baselabel", ""))
    return None


def has_backup(domain_capabilities: str) -> bool:
    """virConnectGetDomainCapabilities: <backup supported='yes'/>, incremental backups and their checkpoints."""
    found = parse(domain_capabilities).find("features/backup")
    return found is not None and found.get("supported") == "yes"


def emulation(domain_xml: str) -> tuple[str | None, str | None, str | None, str | None]:
    """What virConnectGetDomainCapabilities is asked for: emulator, architecture, machine and kind of domain."""
    domain = parse(domain_xml)
    kind = domain.find("os/type")
    arch, machine = (None, None) if kind is None else (kind.get("arch"), kind.get("machine"))
    return domain.findtext("devices/emulator"), arch, machine, domain.get("type")
