# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""The options of every module: how to reach libvirt."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  uri:
    description:
      - The libvirt connection, as for C(virsh -c).
      - The module opens it on the host that the task runs on. The module works on the images there too, so it must be a
        connection of that host itself.
    type: str
    default: qemu:///system
requirements:
  - python >= 3.9
  - libvirt-python (C(python3-libvirt) on Debian and RHEL, C(python3-libvirt-python) on SUSE)
  - lxml (C(python3-lxml))
"""
