#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: image_backup
short_description: Back up the disk images of a libvirt domain below an external snapshot
version_added: 0.1.0
author: virtops.libvirt contributors (@virtops)
description:
  - Copies the images that hold the point in time of an external snapshot, while the guest keeps running on its
    overlays. Nobody may write to these images (the bases) meanwhile, and the module makes sure of it. While it reads,
    it holds QEMU's own lock on each base, so that no block commit into it can start. Afterwards it checks that inode,
    size and modification time of each base are those in the journal.
  - The module never copies a base after a merge into it has begun.
  - An image of several files (a qcow2 with an external data file, a flat or split VMDK) is converted to one image of
    the same format that stands alone. The module refuses an image that QEMU encrypts, and a slice of a file. It also
    refuses a chain whose headers do not give each format, or name a file that libvirt's definition of the domain does
    not name.
  - The module reads each byte of an image once, and hashes it on its way. When all images are copied, it reads the set
    back from the disk (see O(verify)). If it dies in between, the next run verifies the copied set without another
    copy.
  - The result is a set, the directory C(DEST/DOMAIN NAME/UTC TIME). The time is the snapshot's. The set holds one image
    for each disk, named C(TARGET.FORMAT), and the domain's definition as it was without the snapshot (C(domain.xml),
    with its secrets). It also holds the NVRAM and the state of an emulated TPM if the domain has them, the files that
    the host boots it from (kernel, initrd, loader) if no package brings them, C(manifest.json), which also lists what
    the set does not hold, and C(SHA256SUMS).
  - Until it is complete and on the disk, a set is named C(.TIME.partial). If the module fails, it removes the set. If
    the module dies before all is copied, the next run on the same host removes the set. A run on another host removes
    it only if nothing was written to it for an hour. Complete sets are never changed.
  - If a complete set of the same snapshot exists, nothing is changed. The module then checks only its manifest and the
    lengths of its files.
  - Directories get mode 0700 and files mode 0600.
  - A copy never allocates more space than its source, because holes stay holes. There are two exceptions. A source may
    have compressed clusters, and an image in a new format has a little metadata.
  - A disk-only snapshot holds neither the NVRAM nor a TPM's state. The module copies both as they are now, before it
    copies the disks. The manifest has the time. If the guest wrote to one of them after the snapshot was begun, there
    is a warning, and C(lacks) in the manifest says so.
notes:
  - To restore a disk, shut the domain down, and make sure that its definition no longer names an overlay. Then write
    the image with C(qemu-img convert -O FORMAT vda.FORMAT PATH), or copy it with C(cp --sparse=always). PATH and FORMAT
    are C(source) and C(source_format) in the manifest.
  - To restore the domain, first put its disks, its NVRAM and its TPM's state in place. Then run C(virsh define
    domain.xml) and C(virsh start). For a copy beside the original, first remove C(uuid) and the C(mac) elements from
    C(domain.xml), and change the name and the paths in it.
  - C(sha256sum -c SHA256SUMS), in the set's directory, checks all its files.
extends_documentation_fragment:
  - virtops.libvirt.connection
  - virtops.libvirt.domain
  - virtops.libvirt.domain.job
  - virtops.libvirt.domain.lock
  - virtops.libvirt.attributes
  - virtops.libvirt.attributes.changes
  - virtops.libvirt.attributes.actiongroup_all
options:
  dest:
    description:
      - The directory for the sets. It must exist and be writable. No part of the path may be a symlink or C(..),
        because somebody who can change a symlink could redirect the images.
      - Hypervisors may share it. A set belongs to the domain's UUID, wherever the domain runs. Two domains of the same
        name need separate directories. The second one is refused.
      - It may belong to any user. The domain's directory in it must belong to the user that the module runs as, and
        nobody else may write to it. On a file system whose server maps users (NFS, CIFS, Ceph, 9p), it may also belong
        to the owner of O(dest) or to the user 65534.
    type: path
    required: true
  snapshot:
    description:
      - The snapshot whose point in time is copied. M(virtops.libvirt.snapshot_external) noted it in the domain's
        journal.
      - Set either O(snapshot) or O(overlays).
    type: str
  overlays:
    description:
      - The overlays whose bases are copied, as absolute paths. Use this for snapshots that another tool took.
      - If the journal knows none of them, the set's time is the time of the last write to the bases, and its
        C(consistency) is V(unknown).
    type: list
    elements: path
  format:
    description: The format of the copies. V(same) is the format of each base.
    type: str
    choices: [same, qcow2, raw]
    default: same
  compress:
    description: Whether the copies' clusters are compressed. All copies must be qcow2.
    type: bool
    default: false
  method:
    description:
      - V(reflink) shares the blocks with the source. This takes neither time nor space. Both must be on the same XFS or
        btrfs with reflinks.
      - V(copy) copies the allocated bytes as they are.
      - V(convert) writes a new image with C(qemu-img convert).
      - V(auto) takes the first of these that works. Another format, compression, a base with backing files, and a block
        device need V(convert).
    type: str
    choices: [auto, reflink, copy, convert]
    default: auto
  verify:
    description:
      - Whether the copies are read back from the disk, past the page cache, and compared with what was read from the
        source. A qcow2 copy is also checked with C(qemu-img check), and a converted image is compared with its source
        (C(qemu-img compare)). Blocks that a copy shares with the source (V(reflink)) are only read.
      - If there is a difference, the module fails and removes the set. The message has the file and the range of bytes.
      - With V(false) the copies are still read for their SHA-256, from the page cache if they are in it.
    type: bool
    default: true
  rate_limit:
    description:
      - The limit for writing each copy, in MiB/s. V(0) means no limit. Verification is not limited.
      - With O(method=convert) this needs QEMU 5.2 or later.
    type: int
    default: 0
  keep_backing:
    description:
      - What happens to a base that has backing files, for example a golden image. V(false) copies their content too, so
        that the backup stands alone.
      - V(true) copies only the base. The copy and the manifest then name the backing file by its absolute path. If that
        file is lost, the backup is lost.
    type: bool
    default: false
  parallel:
    description:
      - At most this many copies run at the same time on the hypervisor, for all tasks and domains together. Further
        copies wait.
    type: int
    default: 4
  stall_timeout:
    description:
      - The number of seconds after which a copy without progress is given up, for example because the storage of
        O(dest) does not answer. A slow copy is not given up.
      - The unfinished set is left to the next run. Merge the overlays with M(virtops.libvirt.block_commit), which does
        not need O(dest).
    type: int
    default: 300
  keep_free:
    description:
      - How much space must stay free in the file system of an overlay, in MiB. The guest writes to the overlay during
        the copy. With less free space the copy is given up, because QEMU would pause the guest if there were none. On a
        small file system, the limit is at most one twentieth of its size. V(0) turns this off.
    type: int
    default: 256
seealso:
  - module: virtops.libvirt.snapshot_external
  - module: virtops.libvirt.block_commit
  - name: qemu-img manual
    description: The tool that converts and checks the images.
    link: https://www.qemu.org/docs/master/tools/qemu-img.html
"""

EXAMPLES = r"""
- name: Take a snapshot
  virtops.libvirt.snapshot_external:
    domain: web1
    name: nightly
    quiesce: preferred

- name: Back up what it holds
  virtops.libvirt.image_backup:
    domain: web1
    snapshot: nightly
    dest: /srv/backup
  register: nightly

- name: Merge the overlays, even if the backup failed
  virtops.libvirt.block_commit:
    domain: web1
    snapshot: nightly
    delete_merged: true

- name: Show where the backup is
  ansible.builtin.debug:
    var: nightly.backup.path

- name: Make a compressed backup of a snapshot that another tool took, at 50 MiB/s, one disk after the other
  virtops.libvirt.image_backup:
    domain: db1
    overlays:
      - /var/lib/libvirt/images/db1.vda.before-update
      - /var/lib/libvirt/images/db1.vdb.before-update
    dest: /srv/backup
    format: qcow2
    compress: true
    rate_limit: 50
    parallel: 1
"""

RETURN = r"""
actions:
  description: The steps that were taken. In check mode, the steps that would be taken.
  returned: success
  type: list
  elements: str
  sample:
    - copy /var/lib/libvirt/images/web1.raw (vda, 2048 MiB) as vda.raw by reflink or copy
    - write the manifest and the domain's XML
    - compare the copies on the disk with what was written
    - write SHA256SUMS, and name the set /srv/backup/web1/20261120T120000Z
domain:
  description: The domain.
  returned: success
  type: dict
  sample: {name: web1, uuid: 1b4e28ba-2fa1-11d2-883f-0016d3cca427, state: running}
backup:
  description:
    - The manifest of the set, with its path. In check mode, values that are known only after the copy are null.
  returned: success
  type: dict
  contains:
    path:
      description: The set's directory. It is not in C(manifest.json), because sets may be moved.
      type: str
      sample: /srv/backup/web1/20261120T120000Z
    schema_version:
      description: The version of the manifest's schema.
      type: int
      sample: 1
    operation:
      description: The ID of this point in time of the domain.
      type: str
      sample: 5d2c1b9e-6d5f-4c0a-9d5e-0b4d1f1c7a11
    snapshot:
      description: The snapshot's name. Null for overlays that the journal does not know.
      type: str
      sample: nightly
    domain:
      description: The domain's name and UUID.
      type: dict
      sample: {name: web1, uuid: 1b4e28ba-2fa1-11d2-883f-0016d3cca427}
    hypervisor:
      description: The host's name.
      type: str
      sample: hv1
    machine:
      description: The ID of the host, a hash of its machine ID and its name.
      type: str
      sample: 3f0b2d6f6a4f4f0d9c0a51d3c1a4a8b7
    times:
      description: The UTC times of the snapshot, and of the backup's start and end.
      type: dict
      sample:
        snapshot: '2026-11-20T12:00:00Z'
        started: '2026-11-20T12:00:01Z'
        finished: '2026-11-20T12:00:04Z'
    consistency:
      description:
        - V(filesystem) if the guest's file systems were frozen, V(crash) if they were not, V(offline) if the guest was
          off, V(unknown) for overlays that the journal does not know.
      type: str
      sample: filesystem
    domain_xml:
      description: The file with the domain's definition.
      type: str
      sample: domain.xml
    autostart:
      description: Whether the domain starts with the host.
      type: bool
      sample: true
    verified:
      description: Whether the copies were read back and compared with what was written to them, see O(verify).
      type: bool
      sample: true
    nvram:
      description: The copied NVRAM with source, file, bytes and sha256, as in C(extras). Null if there is none.
      type: dict
      sample:
    extras:
      description:
        - The NVRAM, the state of an emulated TPM, and the files that the guest is booted from.
      type: list
      elements: dict
      contains:
        kind:
          description: V(NVRAM), V(TPM state), V(kernel), V(initrd), V(dtb), V(shim), V(loader) or V(ACPI table).
          type: str
        source:
          description: The file's path on the hypervisor.
          type: str
        file:
          description: The copy's name in the set.
          type: str
        bytes:
          description: The copy's length.
          type: int
        sha256:
          description: The SHA-256 of the copy.
          type: str
        taken:
          description: The UTC time at which it was copied.
          type: str
      sample: []
    lacks:
      description: What the domain needs but the set does not hold.
      type: list
      elements: dict
      contains:
        kind:
          description:
            - V(disk), V(kernel), V(initrd), V(dtb), V(shim), V(loader), V(ACPI table), V(NVRAM), V(TPM), V(TPM state),
              V(shared folder), V(persistent memory) or V(libvirt secret).
          type: str
        name:
          description: The disk's target, or the secret's UUID.
          type: str
        source:
          description: Its path on the hypervisor.
          type: str
        reason:
          description: Why the set does not hold it.
          type: str
      sample:
        - {kind: disk, name: sda, source: /srv/iso/seed.iso, reason: it is a cdrom drive}
    disks:
      description: The images.
      type: list
      elements: dict
      contains:
        target:
          description: The disk's target in the domain.
          type: str
        source:
          description: The path of the base.
          type: str
        source_format:
          description: The format of the base.
          type: str
        format:
          description: The format of the copy.
          type: str
        virtual_size:
          description: The disk's size as the guest sees it, in bytes.
          type: int
        file:
          description: The copy's name in the set.
          type: str
        bytes:
          description: The copy's length.
          type: int
        allocated:
          description: The space that the copy uses on its file system, in bytes.
          type: int
        sha256:
          description: The SHA-256 of the copy, as it was read back.
          type: str
        method:
          description: The method that was used.
          type: str
        backing:
          description: The path and the format of the backing file that the copy needs. Null if it stands alone.
          type: dict
      sample:
        - target: vda
          source: /var/lib/libvirt/images/web1.raw
          source_format: raw
          format: raw
          virtual_size: 4294967296
          file: vda.raw
          bytes: 4294967296
          allocated: 2147483648
          sha256: 5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03
          method: copy
          backing:
error_code:
  description: A short word for the cause of a failure. It stays the same across releases.
  returned: failure
  type: str
  sample: base_modified
"""

from ansible_collections.virtops.libvirt.plugins.module_utils._core.backup import BackupOptions
from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Outcome
from ansible_collections.virtops.libvirt.plugins.module_utils._module.entry import DomainContext, run_domain_module
from ansible_collections.virtops.libvirt.plugins.module_utils._module.flows import back_up
from ansible_collections.virtops.libvirt.plugins.module_utils._module.job import Job
from ansible_collections.virtops.libvirt.plugins.module_utils._module.specs import (
    BACKUP,
    COPY,
    KEEP_FREE,
    ArgumentSpec,
    merged,
)

SPEC: ArgumentSpec = merged(
    BACKUP,
    COPY,
    KEEP_FREE,
    {"snapshot": {"type": "str"}, "overlays": {"type": "list", "elements": "path"}},
)


def _flow(context: DomainContext) -> Outcome:
    options = BackupOptions(**{**{name: context.params[name] for name in SPEC}, "overlays": _overlays(context)})
    return back_up(context, options)


def _overlays(context: DomainContext) -> tuple[str, ...]:
    """An empty list would be a backup of nothing that succeeds."""
    overlays = tuple(context.params["overlays"] or ())
    if not overlays and not context.params["snapshot"]:
        raise VirtopsError("bad_option", "Neither snapshot nor overlays names anything", "Give one of them")
    return overlays


def main() -> None:
    run_domain_module(
        SPEC,
        _flow,
        changes=True,
        job=Job(),
        required_one_of=[("snapshot", "overlays")],
        mutually_exclusive=[("snapshot", "overlays")],
    )


if __name__ == "__main__":
    main()
