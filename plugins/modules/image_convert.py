#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: image_convert
short_description: Convert the raw images of a libvirt domain that is off to qcow2
version_added: 0.1.0
author: virtops.libvirt contributors (@virtops)
description:
  - Converts raw images of a domain to qcow2, which can hold internal snapshots. Use it if
    M(virtops.libvirt.snapshot_internal) refuses a raw disk.
  - The domain must be off. Each new image is written under a temporary name, synced to the disk, and compared with the
    raw image. Then it gets its final name, and the owner and the permissions of the raw image. Last, one write defines
    the domain on all the new images.
  - The raw images stay as they are, unless O(delete_source) is set. The guest no longer writes to them, so never start
    it from an older XML that names them.
  - If the module dies before that write, the domain still has its raw images. Run the task again. It uses the images
    that are complete.
  - Disks that are not raw are left alone. So are CD-ROM and floppy drives, and disks that are read-only, shareable,
    transient, encrypted or a slice of their image. If O(disks) names such a disk, the module fails.
extends_documentation_fragment:
  - virtops.libvirt.connection
  - virtops.libvirt.domain
  - virtops.libvirt.domain.job
  - virtops.libvirt.domain.lock
  - virtops.libvirt.attributes
  - virtops.libvirt.attributes.changes
  - virtops.libvirt.attributes.actiongroup_all
options:
  disks:
    description: The targets of the disks to convert, for example V(vda). If unset, all raw disks.
    type: list
    elements: str
  dest_dir:
    description:
      - An existing directory for the new images. If unset, each new image is beside the raw one. Its name has V(.qcow2)
        in place of V(.raw) or V(.img), or at the end.
      - Required for a disk on a block device.
    type: path
  delete_source:
    description:
      - Whether the raw images are removed at the end. A block device is not removed.
      - If the module dies before it has removed them, the next run of this module with any options removes them.
        M(virtops.libvirt.recover) does so too. Until then other operations are refused.
      - A raw image that is in use by then, or has changed, is kept, with a warning.
    type: bool
    default: false
seealso:
  - module: virtops.libvirt.snapshot_internal
  - module: virtops.libvirt.recover
"""

EXAMPLES = r"""
- name: Convert all raw disks of a guest to qcow2, and keep the raw images
  virtops.libvirt.image_convert:
    domain: web1

- name: Convert one disk, to other storage, and remove its raw image
  virtops.libvirt.image_convert:
    domain: db1
    disks: [vdb]
    dest_dir: /fast
    delete_source: true
"""

RETURN = r"""
actions:
  description: The steps that were taken. In check mode, the steps that would be taken.
  returned: success
  type: list
  elements: str
  sample:
    - convert /var/lib/libvirt/images/web1.raw into /var/lib/libvirt/images/web1.qcow2 (vda)
    - define web1 on the new images
domain:
  description: The domain.
  returned: success
  type: dict
  sample: {name: web1, uuid: 1b4e28ba-2fa1-11d2-883f-0016d3cca427, state: shut off}
disks:
  description: The disks that were converted.
  returned: success
  type: list
  elements: dict
  contains:
    disk:
      description: The disk's target.
      type: str
    source:
      description: Its raw image.
      type: str
    image:
      description: The image that it has now.
      type: str
  sample:
    - disk: vda
      source: /var/lib/libvirt/images/web1.raw
      image: /var/lib/libvirt/images/web1.qcow2
error_code:
  description: A short word for the cause of a failure. It stays the same across releases.
  returned: failure
  type: str
  sample: guest_running
"""

from ansible_collections.virtops.libvirt.plugins.module_utils._core.convert import ConvertOptions
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Outcome
from ansible_collections.virtops.libvirt.plugins.module_utils._module.entry import DomainContext, run_domain_module
from ansible_collections.virtops.libvirt.plugins.module_utils._module.job import Job
from ansible_collections.virtops.libvirt.plugins.module_utils._module.specs import ArgumentSpec
from ansible_collections.virtops.libvirt.plugins.module_utils._service.convert import Convert

SPEC: ArgumentSpec = {
    "disks": {"type": "list", "elements": "str"},
    "dest_dir": {"type": "path"},
    "delete_source": {"type": "bool", "default": False},
}


def _flow(context: DomainContext) -> Outcome:
    given = context.params
    disks = None if given["disks"] is None else tuple(given["disks"])
    options = ConvertOptions(disks, given["dest_dir"], given["delete_source"])
    context.progress.phase("convert")
    return Convert(options, context.guest, context.images).run(context.check)


def main() -> None:
    run_domain_module(SPEC, _flow, changes=True, job=Job())


if __name__ == "__main__":
    main()
