# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: what is asked of the host as a whole (guests_info)."""

from __future__ import annotations

from .._core.model import DomainView
from .connection import Connection
from .domain import read_view
from .errors import LIBVIRT_IMPORT_ERROR, is_number, mapped

if LIBVIRT_IMPORT_ERROR is None:
    import libvirt


class Host:
    """All domains of one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def domains(self) -> tuple[DomainView, ...]:
        """virConnectListAllDomains, by name; domains that go away meanwhile are left out."""
        views = []
        with mapped("Listing the domains"):
            for domain in self._connection.handle.listAllDomains():
                try:
                    views.append(read_view(self._connection, domain))
                except libvirt.libvirtError as problem:
                    if not is_number(problem, "VIR_ERR_NO_DOMAIN"):
                        raise
        return tuple(sorted(views, key=lambda view: view.name))
