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
  - Puts a new qcow2 overlay on each disk of a domain, on all disks at the same moment. From then on the guest writes to
    the overlays. The images below them stay as they were at that moment, so that they can be copied.
  - The request to libvirt names every disk of the domain. Disks that have no state to keep (CD-ROM and floppy drives,
    empty, read-only, shareable and transient disks, LUNs, vhost-user) are left alone. So are disks whose definition
    says C(snapshot='no'), C('internal') or C('manual'), unless O(disks) names them. RV(skipped_disks) gives the
    reasons.
  - The snapshot is atomic, that is, of all disks or of none. If it fails, no disk is switched, and no new overlay or
    memory file is left.
  - With O(memory) the guest's memory is saved too. Then M(virtops.libvirt.snapshot_revert) can let the guest continue
    from exactly that moment.
  - With O(quiesce) the guest's file systems are frozen for the moment of the switch. RV(freeze_ms) says for how long.
    If the module is killed during the freeze, a watchdog process on the hypervisor thaws them.
  - Before each step, the module notes it in the domain's own metadata (the journal). If the module, the controller or
    libvirtd dies, run the same task again. It finishes or undoes what was begun.
  - While the guest uses an overlay, the overlay grows with each write. Merge it back with
    M(virtops.libvirt.block_commit). Never delete an overlay by hand, and never start the guest from an older XML that
    names the bases.
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
        fails and names the difference.
    type: str
    required: true
  state:
    description:
      - V(present) takes the snapshot if it does not exist.
      - V(absent) merges the layers that the snapshot added into the images below them. Then it deletes the images that
        nothing needs, the file with the snapshot's memory, and the snapshot's record. The guest keeps all its data.
        Only the point in time is lost. This works for any snapshot, also if others descend from it, and whether the
        guest runs or not.
      - If the guest left a snapshot by a revert, the snapshot is deleted without a change to the images that the guest
        uses. If several branches stand on the image of a snapshot, none of them can be merged into it. The module then
        fails before it changes anything.
      - On every release of libvirt the module does the merges itself, because it can finish them after an interruption.
        There is one exception. If the image of a disk is not on this host, libvirt deletes the snapshot, if it can.
    type: str
    choices: [present, absent]
    default: present
  description:
    description: A text that libvirt stores with the snapshot.
    type: str
  disks:
    description:
      - Exceptions for single disks. A disk that is not named here is treated as usual. That is, it gets a snapshot if
        that is possible, unless its definition says C(snapshot='no'), C('internal') or C('manual').
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
          - The absolute path of the overlay. It must not exist. With O(reuse_external) it must exist, and may be a
            block device.
          - If unset, it is C(<domain>.<disk>.<snapshot>.qcow2) in O(overlay_dir).
          - A disk on the network (NBD, RBD, iSCSI and the like) takes part only if this file is given, on this host,
            and while the domain runs. This collection then neither backs up its image nor merges into it, and says so.
            Merge it with C(virsh blockcommit --active --pivot).
        type: path
      format:
        description: The overlay's format. Only qcow2 is supported.
        type: str
        choices: [qcow2]
        default: qcow2
  overlay_dir:
    description:
      - An existing directory for the overlays.
      - If unset, each overlay is beside its disk's image. For a disk on a block device set this, or the disk's
        O(disks[].file).
      - An overlay gets the owner, the group, the permissions and the SELinux label of its base. If users other than
        root may write to the folder, it gets them only if the base belongs to QEMU's user.
    type: path
  reuse_external:
    description:
      - Whether the overlays exist already, as with C(virsh snapshot-create --reuse-external).
      - Each must be an empty qcow2 image, at least as large as the disk. Its backing file must be the disk's present
        image, with the format given. Nothing may use it. All of this is checked before anything is changed.
      - If the snapshot fails, such an overlay stays. After a merge it is deleted like any other overlay, unless it is a
        block device.
    type: bool
    default: false
  memory:
    description:
      - The absolute path of a file for the memory of the guest. It must not exist. Only its owner will be able to read
        it.
      - If unset, the snapshot is of the disks only. A domain that is off has no memory, and is refused.
      - libvirt pauses the guest while it writes the file, some seconds for each GiB. O(live) avoids this.
      - There must be space for all of the guest's memory, although less may be written.
      - Only root may have write access to its folder and to the folders above it, because libvirt writes the file as
        root by its name.
      - With memory, libvirt does not freeze the file systems, and this is not needed. So O(quiesce=required) is
        refused, and with O(quiesce=preferred) a warning says that there was no freeze.
    type: path
  live:
    description:
      - With O(memory), whether the guest keeps running while its memory is saved. This takes longer, and the file grows
        with what the guest writes to its memory meanwhile. The snapshot has the state at the end of the save.
    type: bool
    default: false
  halt:
    description:
      - Whether the guest is turned off at the moment of the snapshot, as by a power loss.
      - If the snapshot exists already, nothing is changed. A guest that was started since is not halted again.
      - A transient domain is refused, because its definition would be lost.
    type: bool
    default: false
  quiesce:
    description:
      - Whether the guest's file systems are frozen by its agent for the moment of the snapshot.
      - With V(required) the module fails and changes nothing if they cannot be frozen.
      - With V(preferred) it then goes on without a freeze, and RV(consistency) and a warning say so.
      - With V(never) the disks are as after a power loss.
    type: str
    choices: [required, preferred, never]
    default: never
  freeze_timeout:
    description:
      - How many seconds the guest agent may take to freeze the file systems, with all its hooks, from 1 to 3600. If it
        takes longer, the guest is thawed, which may take the same time again. Then O(quiesce=required) fails, and
        O(quiesce=preferred) goes on without a freeze.
      - The guest is thawed at the latest 5 seconds after this time, whatever happens.
    type: int
    default: 60
  metadata:
    description:
      - Whether libvirt keeps a record of the snapshot, which C(virsh snapshot-list) shows. With V(false) only the
        journal knows the snapshot. You can list, merge and delete it by its name, but
        M(virtops.libvirt.snapshot_revert) cannot revert to it.
    type: bool
    default: true
  operation:
    description:
      - The name of the workflow that this snapshot is a step of, for example V(live_backup).
      - Such a snapshot stays open in the journal until M(virtops.libvirt.block_commit) has merged it. Until then no
        other operation is allowed on this domain.
      - You cannot use V(commit), V(pull), V(revert), V(delete) and V(convert). The journal itself uses these words.
    type: str
    default: snapshot
  backup:
    description:
      - The options of the M(virtops.libvirt.image_backup) task that follows.
      - If that backup would fail, the module refuses before it takes the snapshot. Reasons are a target that is
        missing, unsafe, not writable or too small, and options that do not fit an image. This module copies nothing.
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
      - With O(state=absent), how many seconds the merge may take.
      - With O(state=present), how many seconds to wait if libvirt still works on a snapshot of this name that an
        interrupted run asked for.
    type: int
    default: 3600
  children:
    description:
      - With O(state=absent), what happens to the snapshots that descend from this one.
      - V(keep) keeps them. Its children become children of its parent.
      - V(delete) deletes them too.
      - V(only) deletes them and keeps this one.
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

- name: Keep the disks and the memory of this moment, while the guest keeps running
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

- name: Show the request that libvirt would get, without a snapshot
  virtops.libvirt.snapshot_external:
    domain: web1
    name: before-update
  check_mode: true
  diff: true

- name: Delete the snapshot, and keep the guest's data
  virtops.libvirt.snapshot_external:
    domain: web1
    name: before-update
    state: absent

- name: Delete also all snapshots that were taken after it
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
      description: The file with the guest's memory. Null for a snapshot of the disks only, and with O(state=absent).
      type: str
    operation:
      description: The id of its entry in the journal, if there is one.
      type: str
    xml:
      description: The request that libvirt got. In check mode, the request that it would get.
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
      description: The image that now stays as it is. For a disk on the network, a text like a URI.
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
    - What the snapshot really holds, V(filesystem) (frozen the whole time), V(crash) (as after a power loss) or
      V(offline).
    - With O(memory) this is about the disks without the memory, so V(crash).
  returned: success and O(state=present)
  type: str
  sample: filesystem
freeze_ms:
  description: How many milliseconds the guest was frozen. V(0) if it was not frozen.
  returned: success and O(state=present)
  type: int
  sample: 34
disks:
  description: What was merged per disk, as in RV(virtops.libvirt.block_commit#module:disks).
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

from ansible_collections.virtops.libvirt.plugins.module_utils._core.backup import BackupOptions, Source
from ansible_collections.virtops.libvirt.plugins.module_utils._core.convergence import Deadline
from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.journal import KEPT, RESERVED
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import DomainView, Outcome
from ansible_collections.virtops.libvirt.plugins.module_utils._core.snapshot import (
    DiskOptions,
    SnapshotOptions,
    SnapshotPlan,
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
    options = SnapshotOptions(
        name=given["name"],
        description=given["description"],
        disks=tuple(DiskOptions(disk["name"], disk["snapshot"], disk["file"]) for disk in given["disks"]),
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
    context.progress.phase("snapshot")
    return ExternalSnapshot(options, context.guest, partial(_refuse_backup, context)).run(context.check)


def _refuse_backup(context: DomainContext, view: DomainView, plan: SnapshotPlan) -> None:
    """With the option backup: what image_backup would refuse after the snapshot is refused before it."""
    given = context.params["backup"]
    if given is not None:
        bases = tuple(Source(disk.target, disk.base, disk.overlay) for disk in plan.disks)
        refuse_early(BackupOptions(**given), view, bases, context.images, BackupStore())


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
