# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""The options of every module that works on one domain, and of those that change it."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  domain:
    description:
      - The name or the UUID of the domain. The module looks for a UUID first, like C(virsh).
    type: str
    required: true
"""

    JOB = r"""
options:
  follow:
    description:
      - How many seconds this call waits for the end of its work. A job on the hypervisor does the work. The job goes on
        to its end if the connection is cut, if the controller dies, or when this time is over.
      - If the time is over before the job has ended, the module returns RV(ignore:running_job). Then follow the job
        with M(virtops.libvirt.job_info) and the job's ID. The action plugin of this collection does this by itself, and
        shows the progress. So set this only if you follow the job yourself.
      - If unset, the call waits until the job has ended.
    type: int
  job_id:
    description:
      - The ID of the job, 32 hexadecimal digits. A second call with the same ID begins nothing, and returns the result
        of the first. The action plugin uses this after its connection was cut.
      - Use a new ID for each new work. If unset, each call is a job of its own.
    type: str
"""

    LOCK = r"""
options:
  lock_timeout:
    description:
      - How many seconds to wait while another task works on the domain. This may be a task of a run whose controller
        died, because such a task goes on to its end. When the time is over, the module fails with C(locked).
      - V(0) does not wait.
    type: int
    default: 0
"""
