#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: live_backup
short_description: Back up a libvirt domain, running or off, and leave it exactly as it was
version_added: 0.1.0
author: virtops.libvirt contributors (@virtops)
description:
  - Takes an atomic external snapshot, copies the images below it while the guest writes to the overlays, and merges the
    overlays back. This is one task. It holds the domain's lock from its start to its end.
  - If the domain is off, it copies the images as they are, without a snapshot. Nothing is written to the images or to
    the domain's definition. RV(consistency) is then V(offline).
  - A domain that is off cannot be started while its images are copied, because the module holds QEMU's lock on them.
    The start fails with C(Failed to get "write" lock), and works again when the copy has ended. A block device, or a
    file on a file system without locks, cannot be locked. If the domain is active at any moment of such a copy, the
    module removes the copy and fails with the code C(guest_started).
  - If the memory of a domain that is off is saved (C(virsh managedsave)), the module fails with the code
    C(memory_saved). The images belong to that memory, which a set does not hold.
  - First it finishes or undoes what an interrupted run left. If that run's backup can still be completed, it is
    completed.
  - Then it checks what would make the backup fail (see O(preflight)). If there is anything, it fails before it changes
    anything.
  - If the copy or the merge fails, the module merges the overlays back and thaws the guest before it fails. The message
    says what happened first, then what is left.
  - The work is a job of its own on the hypervisor. It goes on to its end if the connection is cut or the controller
    dies. A task that comes meanwhile, and wishes the same, returns what comes of that job; any other waits for it as
    O(lock_timeout) says, and then does its own work.
  - In check mode, while a job works on the domain, the module only says which job that is, and whether it would be
    followed or waited for.
  - If the job, QEMU, libvirtd or the host dies, the next run reads in the domain's journal what to finish or undo.
  - With a keep option, the module removes this domain's older sets in O(dest) as M(virtops.libvirt.backup_prune) does,
    when the new set is complete and verified. It never does so after a backup that failed. It also does so if an
    interrupted run's set, or one that is young enough (see O(max_age)), counts as this run's backup.
  - If only that removal fails, the task fails too. The message says that the backup is complete.
  - The role P(virtops.libvirt.live_backup#role) and the playbook of the same name run this module. For single steps use
    M(virtops.libvirt.snapshot_external), M(virtops.libvirt.image_backup) and M(virtops.libvirt.block_commit).
extends_documentation_fragment:
  - virtops.libvirt.connection
  - virtops.libvirt.domain
  - virtops.libvirt.domain.job
  - virtops.libvirt.domain.lock
  - virtops.libvirt.deadline
  - virtops.libvirt.keep
  - virtops.libvirt.attributes
  - virtops.libvirt.attributes.changes
  - virtops.libvirt.attributes.actiongroup_all
attributes:
  idempotent:
    support: none
    details:
      - Each run makes a new set, unless it completes the set of an interrupted one (see O(resume_within)), or
        O(max_age) says that an existing one will do.
options:
  dest:
    description:
      - An existing directory on the hypervisor. The backup becomes C(DEST/DOMAIN NAME/UTC TIME).
      - See O(virtops.libvirt.image_backup#module:dest) for who may own it.
      - Required with O(state=present), unless O(copy=user).
    type: path
  state:
    description:
      - V(present) makes a backup.
      - V(stopped) tells the job that makes one of this domain at this moment to stop, and waits until it has. The job
        gives the copy up, merges the overlays, and fails with the code C(stopped). If it merges already, it ends as
        usual. Nothing is changed if no such job runs. The other options do not matter.
      - V(copied) tells the job O(job_id), which waits with O(copy=user), that your copy is complete, and follows it to
        its end. The result is that of the whole backup.
      - V(copy_failed) tells it that your copy failed. The job merges, and the task fails with the code C(copy_failed)
        and with O(copy_error).
    type: str
    choices: [present, stopped, copied, copy_failed]
    default: present
  copy:
    description:
      - Who copies the images. With V(own) this module copies them to O(dest), as a set.
      - With V(user) your own tasks copy them, with a tool of your choice. The module takes the snapshot, and returns
        RV(bases) and RV(job). Its job waits. Nothing may write to the bases meanwhile, and the guest writes to the
        overlays. After your copy, run this module again with O(state=copied) or O(state=copy_failed), and with RV(job)
        as O(job_id). The job then merges.
      - The job merges in any case. It gives the copy up, and fails, if O(copy_timeout) is over, if it is told to stop,
        or if the overlays have less space than O(keep_free). Your copy is then not one point in time, so drop it, even
        if your tool reported success.
      - No set is written, and nothing is verified. O(dest), O(format), O(compress), O(method), O(keep_backing),
        O(verify), O(rate_limit), O(parallel), O(resume_within) and O(max_age) do not matter.
      - The role P(virtops.libvirt.live_backup#role) does all this with C(live_backup_copy_tasks).
    type: str
    choices: [own, user]
    default: own
  copy_timeout:
    description:
      - With O(copy=user), how many seconds your tasks may take. When they are over, the job merges, and fails with the
        code C(copy_unreported). So a controller that dies leaves no overlay that grows for longer than this.
    type: int
    default: 14400
  copy_error:
    description: With O(state=copy_failed), what failed. It becomes part of the message.
    type: str
    default: ""
  name:
    description:
      - The snapshot's name. If unset, it is C(live-backup-) and the UTC time. A domain that is off gets no snapshot.
    type: str
    aliases: [snapshot]
  disks:
    description:
      - Exceptions for single disks. Each other disk that can have a snapshot takes part, unless its definition says
        C(snapshot='no'), C('internal') or C('manual').
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: The disk's target in the guest's definition, for example V(vda).
        type: str
        required: true
      snapshot:
        description: Whether this disk is backed up (V(external)) or left out (V(no)).
        type: str
        choices: [external, 'no']
        default: external
      file:
        description: The absolute path of the overlay. It must not exist.
        type: path
      format:
        description: The overlay's format.
        type: str
        choices: [qcow2]
        default: qcow2
  overlay_dir:
    description:
      - An existing directory for the overlays. If unset, each overlay is beside its disk's image.
      - Required for a disk on a block device, unless the domain is off.
    type: path
  quiesce:
    description:
      - Whether the guest's file systems are frozen for the moment of the snapshot. A guest that is off needs no freeze.
      - With V(required) the backup fails if this is not possible. With V(preferred) it then goes on with a warning, and
        RV(consistency) is V(crash). With V(never) there is no freeze.
    type: str
    choices: [required, preferred, never]
    default: preferred
  freeze_timeout:
    description: The number of seconds that the guest agent may take to freeze, including its hooks.
    type: int
    default: 60
  format:
    description: The format of the copies. V(same) keeps the format of each image.
    type: str
    choices: [same, qcow2, raw]
    default: same
  compress:
    description: Whether to compress the copies. This works only with qcow2 copies.
    type: bool
    default: false
  method:
    description: How to copy the images, as in O(virtops.libvirt.image_backup#module:method).
    type: str
    choices: [auto, reflink, copy, convert]
    default: auto
  keep_backing:
    description:
      - Whether the copy of an image with backing files keeps its reference to them. With V(false) the copy holds their
        content too, and stands alone.
    type: bool
    default: false
  verify:
    description:
      - Whether to read the copies back from the disk after the merge, and to compare them with what was written.
      - See O(virtops.libvirt.image_backup#module:verify).
    type: bool
    default: true
  rate_limit:
    description: The limit of each copy in MiB/s. V(0) sets no limit.
    type: int
    default: 0
  parallel:
    description: The number of copies that may run at once on this hypervisor, for all domains.
    type: int
    default: 4
  stall_timeout:
    description:
      - The number of seconds after which a copy without progress is given up, for example because the storage of
        O(dest) does not answer. Then the overlays are merged. The next run removes what is left at the target.
    type: int
    default: 300
  bandwidth:
    description:
      - The limit of each disk's merge in MiB/s. V(0) sets no limit. If the merge of an interrupted run still runs, it
        gets this limit, too.
      - After a failure the overlays are merged without a limit.
    type: int
    default: 0
  timeout:
    description: The number of seconds that the merge may take. O(on_timeout) says what happens then.
    type: int
    default: 3600
  resume_within:
    description:
      - The backup of an interrupted run counts as this run's backup if its snapshot is at most this many seconds old.
        If it is older, the module completes it too, and then makes a new one.
    type: int
    default: 3600
  max_age:
    description:
      - If O(dest) has a complete set of this domain that is at most this many seconds old, nothing is done, and
        RV(backup) is that set's manifest. V(0) always makes a new set.
      - The set counts only if it holds the disks and the format that are asked for, if its last verification did not
        fail, and if nothing else that is asked for is weaker in it. With O(verify=true) it must have been read back
        when it was made or later. With O(quiesce=required) it must not be V(crash)-consistent.
      - With this, a play that is started again after one guest failed backs up only that guest. O(resume_within) is
        about the backup of a run that was interrupted, and that this run completes.
      - What an interrupted run left open is finished or undone in any case.
    type: int
    default: 0
  keep_last:
    description:
      - How many of the newest backups of this domain stay in O(dest). V(0) means that this option is not given.
      - Without any keep option, no backup is removed. What the keep options mean is said at
        M(virtops.libvirt.backup_prune).
      - A keep option needs O(verify=true). A backup that nobody has read back is no reason to remove another one.
      - With O(copy=user) no set is made, and none is removed.
    type: int
    default: 0
  keep_unverified:
    description: Whether to keep sets that nobody has read back since they were written.
    type: bool
    default: false
  preflight:
    description:
      - Whether to check first what would make the backup fail, as M(virtops.libvirt.preflight_info) does. If there is
        anything, the module fails with the same message, and changes nothing.
      - Without this the module still refuses most of it, but it does not check for space that would be missing only
        later.
    type: bool
    default: true
  max_chain:
    description: The preflight refuses a disk whose chain would have more layers than this.
    type: int
    default: 25
  overlay_reserve:
    description:
      - The free space that the preflight requires for the overlay of each disk, in percent of the disk, for example
        V(5%), or in MiB.
    type: str
    default: 5%
seealso:
  - module: virtops.libvirt.backup_prune
  - module: virtops.libvirt.preflight_info
  - module: virtops.libvirt.recover
"""

EXAMPLES = r"""
- name: Back up a guest
  virtops.libvirt.live_backup:
    domain: web1
    dest: /srv/backup
    quiesce: required
  register: nightly

- name: Back it up only if there is no set of the last 20 hours, so that this may run again after a failure
  virtops.libvirt.live_backup:
    domain: web1
    dest: /srv/backup
    max_age: 72000

- name: Show where the backup is
  ansible.builtin.debug:
    msg: "{{ nightly.backup.path }} is {{ nightly.consistency }}-consistent"

- name: Back up a guest, and keep its backups of seven days and of four weeks before
  virtops.libvirt.live_backup:
    domain: web1
    dest: /srv/backup
    keep_daily: 7
    keep_weekly: 4

- name: Stop a backup that takes too long
  virtops.libvirt.live_backup:
    domain: web1
    state: stopped

- name: Copy with a tool of your own, between the snapshot and the merge
  block:
    - name: Take the snapshot
      virtops.libvirt.live_backup:
        domain: web1
        copy: user
        copy_timeout: 7200
      register: begun

    - name: Copy the bases
      ansible.builtin.command:
        argv: [rsync, --sparse, "{{ item.path }}", "backup@vault.example.org:web1/{{ item.disk }}.{{ item.format }}"]
      loop: "{{ begun.bases }}"
      changed_when: true

    - name: Merge
      virtops.libvirt.live_backup:
        domain: web1
        state: copied
        job_id: "{{ begun.job }}"
  rescue:
    - name: Merge without a copy
      virtops.libvirt.live_backup:
        domain: web1
        state: copy_failed
        job_id: "{{ begun.job }}"
        copy_error: "{{ ansible_failed_result.msg | default('no message') }}"
      when: begun.job is defined

- name: Make a compressed backup at 100 MiB/s, without the disk for temporary files
  virtops.libvirt.live_backup:
    domain: db1
    dest: /srv/backup
    format: qcow2
    compress: true
    rate_limit: 100
    disks:
      - name: vdc
        snapshot: 'no'
"""

RETURN = r"""
actions:
  description: The steps that were taken. In check mode, the steps that would be taken.
  returned: success
  type: list
  elements: str
  sample:
    - take the external snapshot live-backup-20261120T120000Z of vda
    - copy /var/lib/libvirt/images/web1.raw (vda, 2048 MiB) as vda.raw by reflink or copy
    - pivot vda to /var/lib/libvirt/images/web1.raw
domain:
  description: The domain.
  returned: success
  type: dict
  sample: {name: web1, uuid: 1b4e28ba-2fa1-11d2-883f-0016d3cca427, state: running}
backup:
  description:
    - The manifest of the set, with its path, as RV(virtops.libvirt.image_backup#module:backup).
    - In check mode, null unless the backup of an interrupted run can be completed.
  returned: success and O(state=present)
  type: dict
  sample: {path: /srv/backup/web1/20261120T120000Z}
bases:
  description:
    - The images that your tasks copy, or have copied. In check mode, those that they would copy.
  returned: success and O(copy=user), or O(state=copied)
  type: list
  elements: dict
  contains:
    disk:
      description: The disk's target in the guest.
      type: str
    path:
      description: The image, or the block device.
      type: str
    format:
      description: Its format, V(raw) or V(qcow2) for example.
      type: str
    size:
      description: The bytes of the file, holes included, or of the device.
      type: int
    virtual_size:
      description: The bytes of the disk as the guest sees it.
      type: int
    needs:
      description: Other files that a copy of RV(bases[].path) needs, which are its backing files and data files.
      type: list
      elements: str
  sample:
    - disk: vda
      path: /var/lib/libvirt/images/web1.raw
      format: raw
      size: 2147483648
      virtual_size: 2147483648
      needs: []
copied:
  description:
    - Whether your tasks said in time that the bases are copied, and nothing has written to the bases until then.
  returned: success and O(copy=user), or O(state=copied)
  type: bool
  sample: true
job:
  description: The ID of the job that waits for your copy, for O(job_id). Not returned by the task that ends the job.
  returned: success and O(copy=user), not in check mode
  type: str
  sample: 0b3fae5d6c1f4b0f8a7c9d2e1f3a4b5c
taken:
  description: The UTC time of the point in time that the bases hold.
  returned: success and O(copy=user), not in check mode
  type: str
  sample: 20261120T120000Z
domain_xml:
  description:
    - The domain's definition as it was before the snapshot, without passwords. A backup needs it.
  returned: success and O(copy=user), not in check mode
  type: str
  sample: <domain type='kvm'>...</domain>
extras:
  description: The small files that the guest needs besides its disks, of each its RV(ignore:kind) and RV(ignore:path).
  returned: success and O(copy=user), not in check mode
  type: list
  elements: dict
  sample:
    - kind: NVRAM
      path: /var/lib/libvirt/qemu/nvram/web1_VARS.fd
consistency:
  description:
    - What the backup really holds, V(filesystem) (frozen the whole time), V(crash) (as after a power loss) or
      V(offline) (the domain was off).
  returned: success and O(state=present)
  type: str
  sample: filesystem
freeze_ms:
  description:
    - How many milliseconds the guest was frozen. V(0) if it was not frozen. Null for the backup of an interrupted run.
  returned: success and O(state=present)
  type: int
  sample: 34
window_ms:
  description:
    - How many milliseconds the guest wrote to its overlays, from the snapshot to the end of the merge. Null for the
      backup of an interrupted run or of a domain that is off, and in check mode.
  returned: success and O(state=present)
  type: int
  sample: 5120
held_seconds:
  description: For how many seconds the guest's writes were held back so that the merge could end.
  returned: success, and O(state=present) and O(on_timeout) is not V(fail)
  type: float
  sample: 2.5
suspended_seconds:
  description: For how many of RV(held_seconds) the guest was paused.
  returned: success, and O(state=present) and O(on_timeout) is not V(fail)
  type: float
  sample: 0.0
phases:
  description: The seconds that each phase took. In check mode, the seconds that planning took.
  returned: success and O(state=present)
  type: dict
  sample: {recovery: 0.02, preflight: 0.11, snapshot: 0.31, copy: 4.2, merge: 0.61}
recovered:
  description: The operations of interrupted runs that were finished or undone, as
    RV(virtops.libvirt.recover#module:operations).
  returned: success and O(state=present)
  type: list
  elements: dict
  sample: []
up_to_date:
  description: Whether nothing was backed up because a set is there that O(max_age) allows.
  returned: success and O(state=present)
  type: bool
  sample: false
overlays:
  description:
    - The overlays that the guest wrote to during the backup, as in
      RV(virtops.libvirt.snapshot_external#module:overlays). None of them is left. Empty for a domain that is off.
  returned: success and O(state=present)
  type: list
  elements: dict
  sample:
    - disk: vda
      base: /var/lib/libvirt/images/web1.raw
      base_format: raw
      overlay: /var/lib/libvirt/images/web1.vda.live-backup-20261120T120000Z.qcow2
under_way:
  description:
    - The job that works on the domain already, as RV(virtops.libvirt.job_info#module:jobs). A task that wishes the same
      follows it. Any other task waits for its end, as O(lock_timeout) says. The other return values are then empty.
  returned: in check mode, if there is such a job
  type: dict
  sample: {id: 0b3fae5d6c1f4b0f8a7c9d2e1f3a4b5c, state: running, module: live_backup, phase: copy}
skipped_disks:
  description: The disks that are not in the backup, and why.
  returned: success and O(state=present)
  type: list
  elements: dict
  sample:
    - disk: sda
      reason: it is a cdrom drive
removed:
  description: The sets that were removed, and why, as RV(virtops.libvirt.backup_prune#module:removed).
  returned: success, and O(state=present) and a keep option is given
  type: list
  elements: dict
  sample: []
kept:
  description: The complete sets of this domain that stay, and why, as RV(virtops.libvirt.backup_prune#module:kept).
  returned: success, and O(state=present) and a keep option is given
  type: list
  elements: dict
  sample: []
left:
  description: What is not a whole set, as RV(virtops.libvirt.backup_prune#module:left).
  returned: success, and O(state=present) and a keep option is given
  type: list
  elements: dict
  sample: []
error_code:
  description: A short word for the cause of a failure. It stays the same across releases.
  returned: failure
  type: str
  sample: job_running
partial:
  description: What was done before the failure, per disk.
  returned: failure, if something was done
  type: list
  elements: dict
  sample: []
"""

import os
from collections.abc import Mapping
from typing import Any

from ansible_collections.virtops.libvirt.plugins.module_utils._core.backup import BackupOptions
from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.job_state import Word
from ansible_collections.virtops.libvirt.plugins.module_utils._core.keep import Keep
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Outcome
from ansible_collections.virtops.libvirt.plugins.module_utils._core.preflight_facts import Limits, parse_reserve
from ansible_collections.virtops.libvirt.plugins.module_utils._core.sets import COMPLETE, BackupSet, Notes, SetsPort
from ansible_collections.virtops.libvirt.plugins.module_utils._core.snapshot import DiskOptions, SnapshotOptions
from ansible_collections.virtops.libvirt.plugins.module_utils._host.apparmor import rules
from ansible_collections.virtops.libvirt.plugins.module_utils._host.helper import backup_sets, backup_target
from ansible_collections.virtops.libvirt.plugins.module_utils._host.job_store import JobStore
from ansible_collections.virtops.libvirt.plugins.module_utils._host.reaper import Reaper
from ansible_collections.virtops.libvirt.plugins.module_utils._module.entry import DomainContext, run_domain_module
from ansible_collections.virtops.libvirt.plugins.module_utils._module.job import Job, require_handed_over, stopping
from ansible_collections.virtops.libvirt.plugins.module_utils._module.specs import (
    BACKUP,
    COPIER,
    COPY,
    DEADLINE,
    KEEP,
    KEEP_UNVERIFIED,
    PREFLIGHT,
    SNAPSHOT,
    ArgumentSpec,
    deadline,
    keep,
    merged,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._service.backup_prune import (
    BackupPrune,
    BackupPruneOptions,
    prune_after,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._service.live_backup import (
    KIND,
    LiveBackup,
    LiveBackupOptions,
    Tools,
    foreseen,
)

#: What a task says of the copy that it has made.
COPIED = "copied"
COPY_FAILED = "copy_failed"

SPEC: ArgumentSpec = merged(
    {**BACKUP, "dest": {"type": "path"}},
    COPIER,
    COPY,
    DEADLINE,
    KEEP,
    KEEP_UNVERIFIED,
    PREFLIGHT,
    {**SNAPSHOT, "quiesce": {**SNAPSHOT["quiesce"], "default": "preferred"}},
    {
        "state": {"type": "str", "choices": ["present", "stopped", COPIED, COPY_FAILED], "default": "present"},
        "copy_timeout": {"type": "int", "default": 14400},
        "copy_error": {"type": "str", "default": ""},
        "name": {"type": "str", "aliases": ["snapshot"]},
        "bandwidth": {"type": "int", "default": 0},
        "timeout": {"type": "int", "default": 3600},
        "resume_within": {"type": "int", "default": 3600},
        "max_age": {"type": "int", "default": 0},
        "preflight": {"type": "bool", "default": True},
    },
)


def _flow(context: DomainContext) -> Outcome:
    if _word(context.params) is not None:  # in check mode: else it goes to the job
        _unused, state = require_handed_over(context.params, JobStore())
        return Outcome(("tell the job %s that the copy has ended" % state.id,))
    if _is_order(context.params):
        with context.guest.run(context.check) as run:
            run.apply(*stopping("live_backup", context.domain.uuid))
            return run.outcome({}, {}, {})
    policy, seconds = _policy(context.params), context.params["stall_timeout"]
    with backup_target(seconds) as (store, copier), backup_sets(seconds) as (sets, _checker):
        tools = Tools(context.host, store, copier, Reaper(context.clock), rules, sets)
        backup = LiveBackup(_options(context), context.guest, tools).run(context.check)
        return _pruned(context, backup, policy, sets) if policy.is_given else backup


def _policy(given: Mapping[str, Any]) -> Keep:
    """None with a copy of the user's own, which makes no set."""
    if _is_users(given):
        return Keep()
    policy = keep(given)
    if policy.is_given and not given["verify"]:
        raise VirtopsError(
            "bad_option",
            "A keep option is given, and verify is false.",
            "Set verify: true, as a backup that nobody has read back is no reason to remove another one; or leave out "
            "the keep options, and run virtops.libvirt.backup_prune by itself",
        )
    return policy


def _pruned(context: DomainContext, backup: Outcome, policy: Keep, sets: SetsPort) -> Outcome:
    given, domain, now = context.params, context.domain, context.clock.utcnow()
    context.progress.phase("prune")
    options = BackupPruneOptions(given["dest"], policy, domain.uuid)
    foreseen = BackupSet(
        os.path.join(given["dest"], domain.name, now),
        COMPLETE,
        domain=domain.name,
        uuid=domain.uuid,
        taken=now,
        notes=Notes(when_made=True),
    )
    prune = BackupPrune(options, sets, context.clock, context.progress)
    return prune_after(backup, prune, context.check, foreseen)


def _options(context: DomainContext) -> LiveBackupOptions:
    given = context.params
    snapshot = SnapshotOptions(
        name=given["name"] or "",
        description="Taken by virtops.libvirt.live_backup, which also merges it",
        disks=tuple(DiskOptions(disk["name"], disk["snapshot"], disk["file"]) for disk in given["disks"]),
        overlay_dir=given["overlay_dir"],
        quiesce=given["quiesce"],
        freeze_timeout=given["freeze_timeout"],
        kind=KIND,
    )
    backup = BackupOptions(**{name: given[name] for name in (*BACKUP, *COPY, "keep_free")})
    own = not _is_users(given)
    if own and not given["dest"]:
        raise VirtopsError("bad_option", "dest was not given", "Name the directory for the backups in it")
    limits = Limits(given["max_chain"], parse_reserve(given["overlay_reserve"]), given["quiesce"], KIND, own)
    return LiveBackupOptions(
        snapshot,
        backup,
        limits if given["preflight"] else None,
        given["bandwidth"],
        deadline(given),
        given["resume_within"],
        0 if own else given["copy_timeout"],
        given["max_age"],
    )


def _is_order(given: Mapping[str, Any]) -> bool:
    return bool(given["state"] == "stopped")


def _is_users(given: Mapping[str, Any]) -> bool:
    """Is the copy made by tasks of the user's own?"""
    return bool(given["copy"] == "user")


def _word(given: Mapping[str, Any]) -> Word | None:
    """What this call says of the user's copy."""
    if given["state"] == COPIED:
        return Word(True)
    return Word(False, given["copy_error"]) if given["state"] == COPY_FAILED else None


def _same(given: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Two tasks that have these in common want the same backup. A job that waits for the copy of one play serves no
    other."""
    if _is_users(given):
        return None
    return {name: given[name] for name in (*BACKUP, *KEEP, *KEEP_UNVERIFIED, "verify", "name", "disks", "quiesce")}


def main() -> None:
    job = Job(_same, _is_order, _is_users, _word, foreseen)
    needs_id = [("state", state, ["job_id"]) for state in (COPIED, COPY_FAILED)]
    run_domain_module(SPEC, _flow, changes=True, job=job, required_if=needs_id)


if __name__ == "__main__":
    main()
