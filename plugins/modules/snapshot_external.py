#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: snapshot_external
short_description: Take an external snapshot of a libvirt domain
version_added: 0.1.0
author: virtops.libvirt contributors (@virtops)
description:
  - Puts a new qcow2 overlay on each disk of a domain, all of them at one moment. From then on the guest writes to the
    overlays, and the images below them stay as they were at that moment, so that they can be copied.
  - Every disk of the domain is named in the request to libvirt. Disks that have no state to keep (CD-ROM and floppy
    drives, empty, read-only, shareable and transient disks, LUNs, vhost-user) are left alone, and RV(skipped_disks)
    says why. So are disks whose definition says C(snapshot='no'), C('internal') or C('manual'), unless O(disks) names
    them.
  - The snapshot is atomic, over all disks or not at all. If it fails, no disk was switched, and no overlay and no
    memory file is left but those that were there before.
  - With O(memory) the guest's memory is saved too, so that M(virtops.libvirt.snapshot_revert) can let it run on from
    that very moment.
  - With O(quiesce) the guest's file systems are frozen for the moment of the switch (RV(freeze_ms) tells for how
    long). A watchdog process on the hypervisor thaws them if the module is killed meanwhile.
  - What the module is about to do is first written into the domain's own metadata (the journal). If the module, the
    controller or libvirtd dies, run the same task again, which finishes or undoes what was begun.
  - While the guest runs on an overlay, all that it writes grows the overlay. Merge it back with
    M(virtops.libvirt.block_commit). Never delete an overlay by hand, and never start the guest from an older XML
    whose disks are the bases.
extends_documentation_fragment:
  - virtops.libvirt.connection
  - virtops.libvirt.domain
  - virtops.libvirt.domain.job
  - virtops.libvirt.domain.lock
  - virtops.libvirt.attributes
  - virtops.libvirt.attributes.changes
  - virtops.libvirt.attributes.actiongroup_all
options:
  name:
    description:
      - The snapshot's name.
      - If a snapshot of this name exists with the same kind and disks, nothing is changed. If it differs, the module
        fails and says how.
    type: str
    required: true
  state:
    description:
      - With V(present) the snapshot is taken unless it is there.
      - With V(absent) the layers that the snapshot added are merged into the images below them, and then the images
        that nothing needs any more are deleted, the file with the snapshot's memory, and the snapshot's record. The
        guest keeps all its data, only the point in time is given up. It does not matter whether the snapshot is the
        last one or whether others descend from it, and whether the guest runs.
      - A snapshot that the guest left by a revert is deleted without a change to the images that the guest uses. Where
        several branches stand on the image of a snapshot, none of them can go into it, and the module fails before it
        has changed anything.
      - The merges are this module's own, on every release of libvirt, as those can be finished after an interruption.
        The one exception is a disk whose image is not on this host. Its snapshot is deleted by libvirt, where that
        can.
    type: str
    choices: [present, absent]
    default: present
  description:
    description: A text that libvirt keeps with the snapshot.
    type: str
  disks:
    description:
      - What to do otherwise than usual with single disks. Disks that are not named here are treated as usual, that is,
        each disk that can be snapshotted is, unless its definition says C(snapshot='no'), C('internal') or C('manual').
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: The disk's target in the guest's definition, for example V(vda).
        type: str
        required: true
      snapshot:
        description: Whether this disk takes part (V(external)) or is left alone (V(no)).
        type: str
        choices: [external, 'no']
        default: external
      file:
        description:
          - The absolute path of the overlay, which must not exist. With O(reuse_external) it must exist, and may be a
            block device.
          - Unset, it is C(<domain>.<disk>.<snapshot>.qcow2) in O(overlay_dir).
          - A disk on the network (NBD, RBD, iSCSI and the like) takes part only if its file is given, on this host, and
            while the domain is on. Its image is then neither backed up nor merged into by this collection, which says
            so. Merge it with C(virsh blockcommit --active --pivot).
        type: path
      format:
        description: The overlay's format. Of those that libvirt takes, qcow2 alone is fit for disks of today.
        type: str
        choices: [qcow2]
        default: qcow2
  overlay_dir:
    description:
      - An existing directory for the overlays.
      - Unset, each overlay lies beside its disk's image. For a disk on a block device it must be set, or the disk's
        O(disks[].file).
      - An overlay gets the owner, the group, the permissions and the SELinux label of its base. In a folder that others
        than root may write to, it gets them only where the base belongs to the user that QEMU runs as.
    type: path
  reuse_external:
    description:
      - Whether the overlays are there already, as C(virsh snapshot-create --reuse-external) has it.
      - Each must be an empty qcow2 image, at least as large as the disk, whose backing file is the image that the disk
        is on now, with its format stated. Nothing may use it. All of that is checked before anything is changed.
      - Such an overlay is left where it is if the snapshot fails. Once it was merged, it is deleted as any other,
        unless it is a block device.
    type: bool
    default: false
  memory:
    description:
      - The absolute path of a file, which must not exist, for the memory of the guest. Only its owner can read it.
      - Unset, the snapshot is of the disks only. A domain that is off has no memory, and is refused.
      - libvirt pauses the guest while it writes the file, for seconds per GiB. O(live) avoids that.
      - There has to be space for all of the guest's memory, although less may be written.
      - Only root may be able to write to its folder and to those above it, because libvirt writes the file as root by
        its name.
      - libvirt does not freeze file systems for it, and they need not be. So O(quiesce=required) is refused, and with
        O(quiesce=preferred) a warning says that there was no freeze.
    type: path
  live:
    description:
      - With O(memory), whether the guest runs on while its memory is saved. It takes longer, and the file grows with
        what the guest writes to its memory meanwhile. The snapshot's moment is the end of that.
    type: bool
    default: false
  halt:
    description:
      - Whether the guest is off afterwards, at the very moment of the snapshot, as after a power loss.
      - If the snapshot is there already, nothing is changed. A guest that was started since is not halted again.
      - A transient domain is refused, whose definition would be lost.
    type: bool
    default: false
  quiesce:
    description:
      - Whether the guest's file systems are frozen by its agent for the moment of the snapshot.
      - With V(required) the module fails, and nothing is changed, if they cannot be frozen.
      - With V(preferred) it goes on without, and RV(consistency) and a warning say so.
      - With V(never) the snapshot is what a power loss would leave.
    type: str
    choices: [required, preferred, never]
    default: never
  freeze_timeout:
    description:
      - For how many seconds the guest agent may take to freeze the file systems, with all its hooks, from 1 to 3600.
        Where that is not enough, the guest is thawed, which may take as long again; then O(quiesce=required) fails,
        and O(quiesce=preferred) goes on without.
      - The guest is thawed when this plus 5 seconds have passed, whatever happens.
    type: int
    default: 60
  metadata:
    description:
      - Whether libvirt keeps a record of the snapshot (as C(virsh snapshot-list) shows it). Without one only the
        journal knows of it. It can be listed, merged and deleted by its name, but M(virtops.libvirt.snapshot_revert)
        cannot go back to it.
    type: bool
    default: true
  operation:
    description:
      - The name of the workflow that this snapshot is a step of, for example V(live_backup).
      - Such a snapshot stays open in the journal until M(virtops.libvirt.block_commit) has merged it, and until then
        no other operation is allowed on this domain.
      - V(commit), V(pull), V(revert), V(delete) and V(convert) are the journal's own words and cannot be given.
    type: str
    default: snapshot
  backup:
    description:
      - The backup by M(virtops.libvirt.image_backup) that is going to follow, by its options there.
      - What would make it fail (a target that is missing, unsafe, not writable or too small, or options that do not fit
        an image) is then refused before the snapshot is taken. Nothing is copied by this module.
    type: dict
    suboptions:
      dest:
        description: The directory for the backup.
        type: path
        required: true
      format:
        description: The format of the copies.
        type: str
        choices: [same, qcow2, raw]
        default: same
      compress:
        description: Whether the copies are compressed.
        type: bool
        default: false
      method:
        description: How the images are copied.
        type: str
        choices: [auto, reflink, copy, convert]
        default: auto
      keep_backing:
        description: Whether the copies keep the reference to backing files.
        type: bool
        default: false
  timeout:
    description:
      - With O(state=absent), for how many seconds the merge may take.
      - With O(state=present), for how many seconds to wait for a snapshot of this name that libvirt still works at,
        after the run that asked for it was interrupted.
    type: int
    default: 3600
  children:
    description:
      - With O(state=absent), what becomes of the snapshots that descend from this one.
      - With V(keep) they stay, and descend from its parent afterwards.
      - With V(delete) they are deleted as well.
      - With V(only) they are deleted, and this one stays.
    type: str
    choices: [keep, delete, only]
    default: keep
seealso:
  - module: virtops.libvirt.block_commit
  - module: virtops.libvirt.image_backup
  - name: virsh manual, snapshot-create
    description: The command and the flags that this module replaces.
    link: https://www.libvirt.org/manpages/virsh.html#snapshot-create
"""

EXAMPLES = r"""
- name: Take a snapshot of all disks while the guest's file systems are frozen
  virtops.libvirt.snapshot_external:
    domain: web1
    name: before-update
    quiesce: required

- name: Leave one disk out, and put the overlay of another on faster storage
  virtops.libvirt.snapshot_external:
    domain: db1
    name: nightly
    quiesce: preferred
    disks:
      - name: vdb
        file: /fast/db1-vdb.nightly.qcow2
      - name: vdc
        snapshot: 'no'

- name: Keep the disks and the memory of this moment, while the guest runs on
  virtops.libvirt.snapshot_external:
    domain: web1
    name: with-memory
    memory: /var/lib/libvirt/images/web1.with-memory.ram
    live: true

- name: Turn the guest off at the moment of the snapshot
  virtops.libvirt.snapshot_external:
    domain: web1
    name: before-move
    quiesce: preferred
    halt: true

- name: Let the guest write to a logical volume from now on
  # qemu-img create -f qcow2 -F raw -b /dev/vg0/db1 /dev/vg0/db1-overlay
  virtops.libvirt.snapshot_external:
    domain: db1
    name: on-lvm
    reuse_external: true
    disks:
      - name: vda
        file: /dev/vg0/db1-overlay

- name: See the request that libvirt would be given, without a snapshot
  virtops.libvirt.snapshot_external:
    domain: web1
    name: before-update
  check_mode: true
  diff: true

- name: Give the snapshot up, keep the guest's data
  virtops.libvirt.snapshot_external:
    domain: web1
    name: before-update
    state: absent

- name: Give up all that was taken after it as well
  virtops.libvirt.snapshot_external:
    domain: web1
    name: before-update
    state: absent
    children: delete
"""

RETURN = r"""
actions:
  description:
    - The steps that were taken. In check mode, the steps that would be taken. After a failure, the steps that were
      taken and not undone.
  returned: success, and failure after a first look at the domain
  type: list
  elements: str
  sample:
    - create the overlay /var/lib/libvirt/images/web1.vda.s1.qcow2 on /var/lib/libvirt/images/web1.qcow2 (vda)
    - take the external snapshot s1 of vda
domain:
  description: The domain.
  returned: success
  type: dict
  sample: {name: web1, uuid: 1b4e28ba-2fa1-11d2-883f-0016d3cca427, state: running}
snapshot:
  description: The snapshot.
  returned: success
  type: dict
  contains:
    name:
      description: Its name.
      type: str
    kind:
      description: Always V(external).
      type: str
    metadata:
      description: Whether libvirt has a record of it.
      type: bool
    memory:
      description: The file with the guest's memory. Unset for a snapshot of the disks only, and with O(state=absent).
      type: str
    operation:
      description: The id of its entry in the journal, if there is one.
      type: str
    xml:
      description: The request that libvirt was given, or would be.
      type: str
  sample:
    name: s1
    kind: external
    metadata: true
    memory: null
    operation: 2f1c0d6e-8a53-4d8e-9a55-0c9f2b8f7d11
    xml: <domainsnapshot/>
overlays:
  description: The disks that were switched.
  returned: success and O(state=present)
  type: list
  elements: dict
  contains:
    disk:
      description: The disk's target.
      type: str
    base:
      description: The image that now stays as it is. Of a disk on the network, words like a URI.
      type: str
    base_format:
      description: Its format.
      type: str
    overlay:
      description: The image that the guest now writes to.
      type: str
  sample:
    - disk: vda
      base: /var/lib/libvirt/images/web1.qcow2
      base_format: qcow2
      overlay: /var/lib/libvirt/images/web1.vda.s1.qcow2
skipped_disks:
  description: The disks that were left alone, and why.
  returned: success and O(state=present)
  type: list
  elements: dict
  contains:
    disk:
      description: The disk's target.
      type: str
    reason:
      description: Why it was left alone.
      type: str
  sample:
    - disk: sda
      reason: it is a cdrom drive
consistency:
  description:
    - What was really obtained, V(filesystem) (frozen throughout), V(crash) (as after a power loss) or V(offline).
    - With O(memory) it is about the disks without that memory, so V(crash).
  returned: success and O(state=present)
  type: str
  sample: filesystem
freeze_ms:
  description: For how many milliseconds the guest was frozen. 0 if it was not.
  returned: success and O(state=present)
  type: int
  sample: 34
disks:
  description: What was merged per disk, as RV(virtops.libvirt.block_commit#module:disks).
  returned: success and O(state=absent)
  type: list
  elements: dict
  sample: []
error_code:
  description: A short word for the cause of a failure. It stays the same across releases.
  returned: failure
  type: str
  sample: overlay_exists
partial:
  description: What was done before the failure, per disk.
  returned: failure, if something was done
  type: list
  elements: dict
  sample: []
"""

from functools import partial

from ansible_collections.virtops.libvirt.plugins.module_utils._core.backup import BackupWish, Source
from ansible_collections.virtops.libvirt.plugins.module_utils._core.convergence import Deadline
from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.journal import KEPT, RESERVED
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import DomainView, Outcome
from ansible_collections.virtops.libvirt.plugins.module_utils._core.snapshot import (
    DiskWish,
    SnapshotPlan,
    SnapshotWish,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._core.snapshot_tree import CHILDREN
from ansible_collections.virtops.libvirt.plugins.module_utils._host.store import BackupStore
from ansible_collections.virtops.libvirt.plugins.module_utils._module.entry import DomainContext, run_domain_module
from ansible_collections.virtops.libvirt.plugins.module_utils._module.job import Job
from ansible_collections.virtops.libvirt.plugins.module_utils._module.specs import BACKUP, SNAPSHOT, ArgumentSpec
from ansible_collections.virtops.libvirt.plugins.module_utils._service.backup import refuse_early
from ansible_collections.virtops.libvirt.plugins.module_utils._service.snapshot import ExternalSnapshot
from ansible_collections.virtops.libvirt.plugins.module_utils._service.snapshot_delete import SnapshotDeletion

SPEC: ArgumentSpec = {
    "name": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "description": {"type": "str"},
    **SNAPSHOT,
    "reuse_external": {"type": "bool", "default": False},
    "memory": {"type": "path"},
    "live": {"type": "bool", "default": False},
    "halt": {"type": "bool", "default": False},
    "metadata": {"type": "bool", "default": True},
    "operation": {"type": "str", "default": KEPT},
    "backup": {
        "type": "dict",
        "options": {name: BACKUP[name] for name in ("dest", "format", "compress", "method", "keep_backing")},
    },
    "timeout": {"type": "int", "default": 3600},
    "children": {"type": "str", "choices": list(CHILDREN), "default": "keep"},
}


def _flow(context: DomainContext) -> Outcome:
    return _absent(context) if context.params["state"] == "absent" else _present(context)


def _present(context: DomainContext) -> Outcome:
    given = context.params
    if given["operation"] in RESERVED:
        raise VirtopsError(
            "bad_option",
            "The operation's name %r is the journal's own word." % given["operation"],
            "Give the workflow another name",
        )
    wish = SnapshotWish(
        name=given["name"],
        description=given["description"],
        disks=tuple(DiskWish(disk["name"], disk["snapshot"], disk["file"]) for disk in given["disks"]),
        overlay_dir=given["overlay_dir"],
        quiesce=given["quiesce"],
        freeze_timeout=given["freeze_timeout"],
        metadata=given["metadata"],
        kind=given["operation"],
        memory=given["memory"],
        live=given["live"],
        halt=given["halt"],
        reuse=given["reuse_external"],
        timeout=given["timeout"],
    )
    return ExternalSnapshot(wish, context.guest, partial(_refuse_backup, context)).run(context.check)


def _refuse_backup(context: DomainContext, view: DomainView, plan: SnapshotPlan) -> None:
    """With the option backup: what image_backup would refuse after the snapshot is refused before it."""
    given = context.params["backup"]
    if given is not None:
        bases = tuple(Source(disk.target, disk.base, disk.overlay) for disk in plan.disks)
        refuse_early(BackupWish(**given), view, bases, context.images, BackupStore())


def _absent(context: DomainContext) -> Outcome:
    """A snapshot is given up by merging what it added: the guest keeps all its data."""
    given = context.params
    context.progress.phase("merge")
    limit = Deadline(timeout=given["timeout"])
    return SnapshotDeletion(given["name"], given["children"], limit, context.guest).run(context.check)


def main() -> None:
    run_domain_module(SPEC, _flow, changes=True, job=Job())


if __name__ == "__main__":
    main()
