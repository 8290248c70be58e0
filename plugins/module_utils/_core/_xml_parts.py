# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: what a domain's XML names besides disks, and a restored domain cannot do without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from .model import Part

with suppress(ImportError):  # _xml_tree.LXML_IMPORT_ERROR tells
    from lxml import etree

#: Where the path of each is the element's text.
_BOOT = {
    "kernel": "os/kernel",
    "initrd": "os/initrd",
    "dtb": "os/dtb",
    "shim": "os/shim",
    "loader": "os/loader",
    "ACPI table": "os/acpi/table",
}


def parts_of(domain: etree._Element) -> tuple[Part, ...]:
    """In the order in which results tell them, each once."""
    found = [*_boot_files(domain), *_nvram(domain), *_tpms(domain), *_devices(domain), *_secrets(domain)]
    return tuple(dict.fromkeys(found))


def _boot_files(domain: etree._Element) -> Iterator[Part]:
    for kind, path in _BOOT.items():
        for element in domain.iterfind(path):
            text = (element.text or "").strip()
            if text:
                yield Part(kind, text)


def _nvram(domain: etree._Element) -> Iterator[Part]:
    """A file of this host is DomainView's `nvram`."""
    for source in domain.iterfind("os/nvram/source"):
        if not source.get("file") and not source.get("dev"):
            yield Part("NVRAM", source.get("name") or source.get("volume") or "")


def _tpms(domain: etree._Element) -> Iterator[Part]:
    for backend in domain.iterfind("devices/tpm/backend"):
        source = backend.find("source")
        path = "" if source is None else source.get("path", "")
        if backend.get("type") != "emulator":
            device = backend.find("device")
            yield Part("TPM", path if device is None else device.get("path", ""))
            continue
        kind = "TPM state file" if source is not None and source.get("type") == "file" else "TPM state"
        yield Part(kind, path, backend.get("version", "2.0"))


def _devices(domain: etree._Element) -> Iterator[Part]:
    for source in domain.iterfind("devices/filesystem/source"):
        # A socket's server is elsewhere, and RAM holds nothing that lasts
        path = source.get("dir") or source.get("file") or source.get("dev")
        if path:
            yield Part("shared folder", path)
    for memory in domain.iterfind("devices/memory/source/path"):
        yield Part("persistent memory", (memory.text or "").strip())


def _secrets(domain: etree._Element) -> Iterator[Part]:
    """Of encrypted disks and TPMs, and of servers' passwords; libvirt alone has their values."""
    for element in domain.iter("secret"):
        yield Part("libvirt secret", element.get("uuid") or element.get("usage") or "")
    for encryption in domain.iterfind("devices/tpm/backend/encryption"):
        yield Part("libvirt secret", encryption.get("secret", ""))
