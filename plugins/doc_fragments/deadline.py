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
      - What is done when a running guest writes faster than its merge copies, so that it is not ready to pivot at the
        end of O(timeout), or the file system of its overlays runs short of space (see O(keep_free)).
      - With V(fail) the guest is never held back. At the end of O(timeout) the merge is given up, and the guest goes
        on, on its overlays, unharmed.
      - With V(throttle) the guest's writes to the disks that are not ready are limited, more and more, for at most
        O(throttle_timeout) seconds. The guest is slow meanwhile. Then the merge is given up.
      - With V(suspend) this is followed by a pause of the whole guest for at most O(suspend_timeout) seconds, if the
        merge can end within them. Then the merge is given up.
      - In any case the guest's own limits are put back and it runs on at the end of the task. If the task is killed, a
        process on the hypervisor does so; if that is killed too, the next run does.
    type: str
    choices: [fail, throttle, suspend]
    default: fail
  throttle_timeout:
    description: For how many seconds the guest's writes may be limited.
    type: int
    default: 60
  suspend_timeout:
    description: For how many seconds the guest may be paused.
    type: int
    default: 10
  keep_free:
    description:
      - When less than this is free (in MiB) in the file system of an overlay, what O(on_timeout) says is done at once.
        At nothing free QEMU would pause the guest. Of a file system smaller than twenty times of this, a twentieth.
      - V(0) does without.
    type: int
    default: 256
"""
