# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""The options of modules that merge layers."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  disks:
    description:
      - The disks to merge, by their targets.
      - If unset, all disks that have something to merge.
    type: list
    elements: str
    default: []
  bandwidth:
    description:
      - The limit for each disk's job in MiB/s. V(0) means no limit. An offline merge is never limited.
      - If the job of an earlier run still runs, the module waits for it (O(wait)) with this limit.
    type: int
    default: 0
  wait:
    description:
      - Whether to wait until the merge has ended. With V(false) the job is left running, and a later run of this module
        adopts it.
    type: bool
    default: true
  timeout:
    description:
      - How many seconds the merge may take. Then the jobs that have not ended are cancelled, and the module fails. The
        guest goes on, on the layers that it had.
    type: int
    default: 3600
  delete_merged:
    description:
      - Whether overlays are deleted after they are merged. An overlay is deleted only if the journal has it, no chain
        of a domain of this hypervisor has it, and no process has it open. Otherwise it is kept, and a warning says why.
        While a process has it open, the operation stays open, and the next run deletes it.
    type: bool
    default: false
"""
