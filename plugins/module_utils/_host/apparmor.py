# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: what AppArmor forbids a guest, as libvirt's virt-aa-helper wrote it down."""

from __future__ import annotations

import uuid as uuid_module

_RULES = "/etc/apparmor.d/libvirt/libvirt-%s.files"


def rules(uuid: str) -> str:
    """The rules for the files of a running domain; "" where there are none, or nobody may read them."""
    try:
        with open(_RULES % uuid_module.UUID(uuid), encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""
