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
      - The name or the UUID of the domain. A UUID is looked for first, as C(virsh) does.
    type: str
    required: true
"""

    JOB = r"""
options:
  follow:
    description:
      - For how many seconds this call waits for the end of its work. The work is done by a job on the hypervisor, which
        goes on to its end when the connection is cut, the controller dies, or this time is over.
      - When the time is over before the job has ended, the module returns RV(ignore:running_job), and
        M(virtops.libvirt.job_info) with the job's ID follows it further. The action plugin of this collection does so
        by itself, and shows the progress. So leave this unset, unless you follow the job yourself.
      - Unset, it waits to the end of the job.
    type: int
  job_id:
    description:
      - The name of the job, of 32 hexadecimal digits. A second call with the same ID begins nothing, and returns what
        came of the first. The action plugin uses this after its connection was cut.
      - Never give the same ID twice for work that is to be done twice. Unset, each call is a job of its own.
    type: str
"""

    LOCK = r"""
options:
  lock_timeout:
    description:
      - For how many seconds to wait while another task works on the domain. It may be one of a run whose controller
        died, as such a task goes on to its end. When the time is over, the module fails with C(locked).
      - V(0) does not wait.
    type: int
    default: 0
"""
