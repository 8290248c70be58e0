# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: all images of a domain and its snapshots, and the records that name them."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from .._core import xml
from .._core.deletion import Forest, Point, is_out_of_sight
from .._core.errors import VirtopsError
from .._core.journal import KEPT, Journal, Operation
from .._core.model import DomainView, Layer, SnapshotRecord, is_local
from .._core.ports import ImagePort, RecordPort


@dataclass(frozen=True)
class RecordWrite:
    """A record as it is to be, whether it is to be the current one, and why."""

    text: str
    current: bool
    words: str


def points_of(texts: Mapping[str, str], journal: Journal) -> tuple[Point, ...]:
    """The moments of all snapshots; the journal knows those without a record."""
    found = []
    for name, text in texts.items():
        saved = xml.snapshot_images(text)
        for disk in xml.parse_record(text).disks:
            if disk.mode == "external":
                found.append(Point(name, disk.target, saved.get(disk.target), disk.file))
            elif disk.mode == "internal" and disk.target in saved:
                found.append(Point(name, disk.target, saved[disk.target]))
    for operation in kept_operations(journal):
        if operation.name not in texts:
            found += [Point(operation.name, d.target, Layer(d.base, d.base_format), d.overlay) for d in operation.disks]
    return tuple(found)


def with_bases(points: Iterable[Point], below: Mapping[str, Layer | None]) -> tuple[Point, ...]:
    """Records name a volume by its pool: then the overlay itself tells what it stands on."""
    found = []
    for point in points:
        base = below.get(point.overlay) if point.base is None and point.overlay is not None else None
        found.append(replace(point, base=base) if base is not None and is_local(base.path) else point)
    return tuple(found)


def kept_operations(journal: Journal) -> tuple[Operation, ...]:
    return tuple(op for op in journal.operations if op.kind == KEPT and not op.open)


def forest_of(points: Sequence[Point], view: DomainView, images: ImagePort, others: Container[str]) -> Forest:
    """Chains that libvirt or an image told already are not read again."""
    below: dict[str, Layer | None] = {}
    for disk in view.disks:
        if disk.active is not None and images.exists(disk.active.path):
            _add(disk.chain, below)
    tips = {disk.active.path: disk.active.format for disk in view.config_disks if disk.active is not None}
    tips.update({point.base.path: point.base.format for point in points if point.base is not None})
    for path, image_format in tips.items():
        if path not in below and images.exists(path):
            _add(images.chain(path, image_format), below)
    for path in (point.overlay for point in points if point.overlay is not None):
        if path not in below and images.exists(path):
            _add(_chain_of_overlay(path, images), below)
    active = {disk.active.path for disk in view.disks + view.config_disks if disk.active is not None}
    own = {layer.path for disk in view.disks for layer in disk.chain}
    overlays = [point.overlay for point in points if point.overlay is not None and point.overlay not in own]
    unseen = {point.overlay for point in points if is_out_of_sight(point, below)}
    forkable = [path for path in overlays if path in below and (path in unseen or active & _above(path, below))]
    written = {path for path in forkable if images.holds_data(path)}
    return Forest(below, frozenset(active), others, frozenset(), frozenset(written))


def _add(chain: Sequence[Layer], below: dict[str, Layer | None]) -> None:
    for depth, layer in enumerate(chain):
        below[layer.path] = chain[depth + 1] if depth + 1 < len(chain) else None


def _chain_of_overlay(path: str, images: ImagePort) -> tuple[Layer, ...]:
    """Of a branch that was left; somebody may have taken away what it stands on."""
    try:
        return images.chain(path, "qcow2")
    except VirtopsError:
        return (Layer(path, "qcow2"),)


def _above(path: str, below: Mapping[str, Layer | None]) -> frozenset[str]:
    """What an image stands on."""
    return frozenset(Forest(below, frozenset()).chain(path)[1:])


def record_writes(
    texts: Mapping[str, str], moved: Mapping[str, Layer], gone: frozenset[str], current: str | None
) -> tuple[RecordWrite, ...]:
    """The records that stay, and name an image whose data are elsewhere now."""
    found = []
    for name, text in texts.items():
        wanted = text if name in gone else xml.with_moved_images(text, moved)
        if wanted != text:
            words = "write into the record of snapshot %s where its data are now" % name
            found.append(RecordWrite(wanted, name == current, words))
    return tuple(found)


def rewrite_records(domain: RecordPort, moved: Mapping[str, Layer], gone: frozenset[str]) -> None:
    """Read anew, with the passwords and the like that a redefinition has to say again."""
    texts = texts_of(domain, secure=True)
    for write in record_writes(texts, moved, gone, current_of(domain, texts)):
        domain.redefine_snapshot(write.text, write.current, False)


def texts_of(domain: RecordPort, secure: bool = False) -> dict[str, str]:
    """The records' XML by name, parents first; a read-only connection tells no secrets."""
    return {xml.parse_record(text).name: text for text in domain.snapshot_xmls(secure)}


def current_of(domain: RecordPort, texts: Mapping[str, str]) -> str | None:
    return domain.current_snapshot() if texts else None


def records_in(texts: Mapping[str, str]) -> tuple[SnapshotRecord, ...]:
    return tuple(xml.parse_record(text) for text in texts.values())


def keep_times(moved: Iterable[tuple[str, Layer]], view: DomainView, images: ImagePort) -> None:
    """An image that a layer went into holds the state of that layer's time now, and nothing writes to it: its own time
    says so, by which going back to the snapshot above knows it for untouched. Not of one that the guest writes to."""
    active = {disk.active.path for disk in view.disks + view.config_disks if disk.active is not None}
    for path, into in moved:
        if into.path not in active and images.exists(path) and images.exists(into.path):
            found = images.identity(path)
            if not found.device:  # whose node's time tells nothing
                images.keep_time(into.path, found.mtime_ns)
