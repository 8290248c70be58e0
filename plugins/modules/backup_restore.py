#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_restore
short_description: Restore a libvirt domain, or single disks, from a backup set
version_added: 0.1.0
author: virtops.libvirt contributors (@virtops)
description:
  - Restores a set that M(virtops.libvirt.live_backup) or M(virtops.libvirt.image_backup) made. It copies the images,
    the NVRAM and the state of an emulated TPM, and defines the domain on them. The domain need not exist on this host,
    and the host need not be the one that the backup was made on. To restore only images, use O(disks).
  - The kernel, the initrd and other files that the guest starts from are only put where this host has no file, as other
    guests may use them too. If the host has another file there, this is a warning.
  - Under its own name, the guest gets back its UUID, its MAC addresses, its NVRAM and its TPM's state. Under another
    name (O(domain)), the result is a copy. The copy has a new UUID, new MAC addresses, and its own NVRAM and TPM
    state, so that it can run beside the original. A copy of the same name on the same host always has the same UUID.
    The generation ID (C(genid)) is always new. It tells the guest that it was restored.
  - The module looks first, and refuses before it changes anything. It checks that the set is complete, that there is
    space, and that the host has what the domain needs. A guest that runs is never overwritten. See O(overwrite) for
    one that is off.
  - Each file is written beside its place as C(.NAME.restoring-MARK.EXTENSION), and brought to the disk. Its SHA-256 is
    computed from the bytes that are copied, and compared with the manifest. The set is only read.
  - When all files are complete, one write defines the domain on all of them. Before this write, a failure removes the
    new files, and the old guest is as it was. After this write, the module only renames the files, and writes the
    definition again with their final names. The old images are deleted by this.
  - If the module is killed, run the same task again. It removes what was not complete, or finishes what was.
    M(virtops.libvirt.recover) also finishes a restore that had already defined the domain.
  - If the domain was restored from this set to the same places before, nothing is changed, even if it was used since.
    With O(overwrite=true), it is restored again if it runs on, was written to, or was redefined since. With O(disks),
    an image that holds what the set holds is not written again.
  - The images keep the format that they have in the set, also if their names say something else.
notes:
  - libvirt gives the images to QEMU's user when the guest starts (C(dynamic_ownership)). New files belong to root. An
    image that replaces another gets its owner and its permissions.
  - A block device is not a possible target. Restore to a file, then write the file to the device with
    C(qemu-img convert -n).
  - To read single files of a backup, use C(guestfish --ro) or C(qemu-nbd --read-only). See the guide "Restore".
extends_documentation_fragment:
  - virtops.libvirt.connection
  - virtops.libvirt.domain.job
  - virtops.libvirt.domain.lock
  - virtops.libvirt.attributes
  - virtops.libvirt.attributes.changes
  - virtops.libvirt.attributes.actiongroup_all
options:
  src:
    description:
      - The set, C(DEST/DOMAIN/TIME). With C(DEST/DOMAIN), the newest complete set in this folder is restored.
      - The folder must belong to the user that the module runs as, and nobody else may write to it. No part of the path
        may be a symlink or C(..).
    type: path
    required: true
  guest:
    description:
      - The name of the domain whose backup this must be. The module refuses another domain's, so that the wrong guest
        is never overwritten.
      - If unset, it must be a backup of the domain with the name of the folder that it lies in, or of the one that
        O(domain) names.
    type: str
  domain:
    description:
      - The name that the domain gets. If unset, it is the name in the set.
      - Another name makes a copy, see O(uuid).
    type: str
  uuid:
    description:
      - V(keep) keeps the UUID, the MAC addresses and the paths of NVRAM and TPM state. With another name in O(domain),
        this renames the guest. A domain with this UUID must then not exist.
      - V(new) makes a copy.
      - V(auto) is V(keep) for the guest's own name, and V(new) for another one.
    type: str
    choices: [auto, keep, new]
    default: auto
  dest:
    description:
      - An existing folder for the images. Each is named C(NAME.TARGET.FORMAT), for example C(web1.vda.qcow2).
      - If unset, the images go where they were. Those of a copy go to the same folders, under the names above.
    type: path
  pool:
    description:
      - A storage pool for the images, instead of O(dest). It must be active, and of type C(dir), C(fs) or C(netfs). The
        pool is refreshed at the end.
    type: str
  disks:
    description:
      - Restores only these disks, and no definition, NVRAM or TPM state.
      - If the domain uses the image that is written, it must be off, and O(overwrite) must be set.
    type: list
    elements: dict
    suboptions:
      name:
        description: The disk's target in the set, for example V(vda).
        type: str
        required: true
      file:
        description: The image's path. If unset, see O(dest).
        type: path
  overwrite:
    description:
      - Replaces a domain that exists and is off, and its images. What it holds is lost. The host needs space for both
        until the end.
      - A file is replaced only if it is an image of this domain. A domain with another UUID is never replaced. A domain
        with snapshots, checkpoints, saved memory or an open operation is refused.
      - Images of the domain that the set does not have are kept, with a warning.
    type: bool
    default: false
  start:
    description:
      - Starts the domain at the end. Then it is also refused if the host lacks a network, bridge, storage pool, secret
        or file that the domain needs. With V(false), these are only warnings.
    type: bool
    default: false
  autostart:
    description:
      - Whether the domain starts with the host. If unset, this is as in the set, and off for a copy.
    type: bool
  rate_limit:
    description:
      - The limit for each image, in MiB/s. V(0) means no limit.
    type: int
    default: 0
  parallel:
    description:
      - At most this many images are copied at the same time on the hypervisor, for all tasks together, including
        backups. Further copies wait.
    type: int
    default: 4
  stall_timeout:
    description:
      - The number of seconds after which a copy without progress is given up, for example because the storage of O(src)
        does not answer. A slow copy is not given up.
    type: int
    default: 300
seealso:
  - module: virtops.libvirt.live_backup
  - module: virtops.libvirt.recover
"""

EXAMPLES = r"""
- name: Restore a guest that this host lost, from its newest backup, and start it
  virtops.libvirt.backup_restore:
    src: /srv/backup/web1
    start: true

- name: Set a guest that is off back to a backup
  virtops.libvirt.backup_restore:
    src: /srv/backup/web1/20261120T120000Z
    overwrite: true

- name: Make a copy of a guest beside it, on other storage
  virtops.libvirt.backup_restore:
    src: /srv/backup/web1/20261120T120000Z
    domain: web1-copy
    dest: /fast

- name: Get one disk as it was, in a file of its own
  virtops.libvirt.backup_restore:
    src: /srv/backup/db1
    disks:
      - name: vdb
        file: /var/tmp/db1-vdb.qcow2
"""

RETURN = r"""
actions:
  description: The steps that were taken. In check mode, the steps that would be taken.
  returned: success
  type: list
  elements: str
  sample:
    - copy vda.qcow2 of /srv/backup/web1/20261120T120000Z to /var/lib/libvirt/images/web1.qcow2 (2048 MiB)
    - define web1 (1b4e28ba-2fa1-11d2-883f-0016d3cca427) on the copies
    - put /var/lib/libvirt/images/web1.qcow2 in its place
    - define web1 on its files
    - start web1
domain:
  description: The domain. Null if only O(disks) were restored, and there is no domain of this name.
  returned: success
  type: dict
  sample: {name: web1, uuid: 1b4e28ba-2fa1-11d2-883f-0016d3cca427, state: running}
backup:
  description: The set that was restored, and the time that it holds.
  returned: success
  type: dict
  sample: {path: /srv/backup/web1/20261120T120000Z, taken: "2026-11-20T12:00:00Z"}
disks:
  description: The disks that were restored, or are there already.
  returned: success
  type: list
  elements: dict
  contains:
    disk:
      description: The disk's target.
      type: str
    file:
      description: Its image on this host.
      type: str
    format:
      description: The format of the image.
      type: str
    source:
      description: The name of the file in the set.
      type: str
    sha256:
      description: The SHA-256 of this file.
      type: str
  sample:
    - disk: vda
      file: /var/lib/libvirt/images/web1.qcow2
      format: qcow2
      source: vda.qcow2
      sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
error_code:
  description: A short word for the cause of a failure. It stays the same across releases.
  returned: failure
  type: str
  sample: domain_exists
"""

import os
from collections.abc import Mapping
from typing import Any

from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Outcome
from ansible_collections.virtops.libvirt.plugins.module_utils._core.restore import DiskChoice, RestoreOptions
from ansible_collections.virtops.libvirt.plugins.module_utils._host.helper import backup_source
from ansible_collections.virtops.libvirt.plugins.module_utils._host.restore import Places
from ansible_collections.virtops.libvirt.plugins.module_utils._module.entry import RestoreContext, run_restore_module
from ansible_collections.virtops.libvirt.plugins.module_utils._module.specs import ArgumentSpec
from ansible_collections.virtops.libvirt.plugins.module_utils._service.restore import Restore

SPEC: ArgumentSpec = {
    "src": {"type": "path", "required": True},
    "guest": {"type": "str"},
    "domain": {"type": "str"},
    "uuid": {"type": "str", "choices": ["auto", "keep", "new"], "default": "auto"},
    "dest": {"type": "path"},
    "pool": {"type": "str"},
    "disks": {
        "type": "list",
        "elements": "dict",
        "options": {"name": {"type": "str", "required": True}, "file": {"type": "path"}},
    },
    "overwrite": {"type": "bool", "default": False},
    "start": {"type": "bool", "default": False},
    "autostart": {"type": "bool"},
    "rate_limit": {"type": "int", "default": 0},
    "parallel": {"type": "int", "default": 4},
    "stall_timeout": {"type": "int", "default": 300},
}


def _options(given: Mapping[str, Any]) -> RestoreOptions:
    disks = None if given["disks"] is None else tuple(DiskChoice(**disk) for disk in given["disks"])
    return RestoreOptions(**{**{name: given[name] for name in SPEC}, "disks": disks})


def _flow(context: RestoreContext) -> Outcome:
    options = _options(context.params)
    with backup_source(options.stall_timeout, context.clock) as sets:
        tools = context.host, sets, Places(), context.images, context.clock, context.progress, context.lock
        return Restore(options, *tools).run(context.check)


def _subject(given: Mapping[str, Any]) -> str:
    """A set's folder has the domain's name."""
    path = str(given["src"]).rstrip("/")
    folder, name = os.path.split(path)
    return str(given["domain"] or (os.path.basename(folder) if name[:1].isdigit() and name.endswith("Z") else name))


def main() -> None:
    run_restore_module(SPEC, _flow, subject=_subject)


if __name__ == "__main__":
    main()
