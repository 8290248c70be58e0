# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""The options of modules that may hold a guest back so that its merge can end."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  on_timeout:
    description:
      - What to do if a running guest writes faster than its merge copies. This applies when the merge is not ready to
        pivot at the end of O(timeout), or when the file system of the overlays runs out of space (see O(keep_free)).
      - V(fail) never slows the guest. At the end of O(timeout) the merge is given up. The guest goes on, on its
        overlays, unharmed.
      - V(throttle) limits the guest's writes to the disks that are not ready, more and more, for at most
        O(throttle_timeout) seconds. The guest is slow during this time. Then the merge is given up.
      - V(suspend) does the same, and then pauses the whole guest for at most O(suspend_timeout) seconds, if the merge
        can end in this time. Then the merge is given up.
      - At the end of the task the guest's own limits are restored, and the guest runs. If the task is killed, a process
        on the hypervisor does this. If that process is killed too, the next run does it.
    type: str
    choices: [fail, throttle, suspend]
    default: fail
  throttle_timeout:
    description: How many seconds the guest's writes may be limited.
    type: int
    default: 60
  suspend_timeout:
    description: How many seconds the guest may be paused.
    type: int
    default: 10
  keep_free:
    description:
      - How much space must stay free in the file system of an overlay, in MiB. With less, the module does at once what
        O(on_timeout) says. If the file system were full, QEMU would pause the guest. On a small file system, the limit
        is at most one twentieth of its size.
      - V(0) turns this off.
    type: int
    default: 256
"""
