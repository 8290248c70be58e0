# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: libvirt's XML to values and back. The files behind it are the only users of lxml."""

from __future__ import annotations

from ._xml_capabilities import (
    emulation,
    has_backup,
    has_disk_snapshots,
    has_external_revert,
    qemu_ids,
    security_models,
)
from ._xml_domain import (
    DomainXml,
    definition_digest,
    images,
    owned_journal,
    parse_domain,
    with_disk_layers,
    with_journal,
    without_data_files,
    without_empty_metadata,
)
from ._xml_drill import Trial, TrialDisk, isolated
from ._xml_journal import build_journal, parse_journal
from ._xml_restore import host_needs, moved_images, pool_folder, restored_definition, usable_models
from ._xml_snapshot import (
    build_record,
    build_snapshot,
    covers,
    edited_snapshot,
    parse_record,
    parse_snapshot,
    snapshot_definitions,
    snapshot_images,
    snapshot_journal,
    snapshot_paths,
    snapshot_uuid,
    with_moved_images,
    with_snapshot_files,
)
from ._xml_tree import LXML_IMPORT_ERROR, BadXml, bad_xml

__all__ = [
    "LXML_IMPORT_ERROR",
    "BadXml",
    "DomainXml",
    "Trial",
    "TrialDisk",
    "bad_xml",
    "build_journal",
    "build_record",
    "build_snapshot",
    "covers",
    "definition_digest",
    "edited_snapshot",
    "emulation",
    "has_backup",
    "has_disk_snapshots",
    "has_external_revert",
    "host_needs",
    "images",
    "isolated",
    "moved_images",
    "owned_journal",
    "parse_domain",
    "parse_journal",
    "parse_record",
    "parse_snapshot",
    "pool_folder",
    "qemu_ids",
    "restored_definition",
    "security_models",
    "snapshot_definitions",
    "snapshot_images",
    "snapshot_journal",
    "snapshot_paths",
    "snapshot_uuid",
    "usable_models",
    "with_disk_layers",
    "with_journal",
    "with_moved_images",
    "with_snapshot_files",
    "without_data_files",
    "without_empty_metadata",
]
