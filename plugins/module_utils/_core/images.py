# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: what may be done with an image, decided from what libvirt's XML and qemu-img say of it.

Whoever could write to an image may have written its header: a guest that of its raw disk, a tenant that of an image
which he brought. So no format is guessed from it, and what it names (a backing file, a data file, extents) counts only
where libvirt names it, too. Where libvirt's XML leaves the rest of a chain to the headers, as that of a domain that is
off may, a backing file counts as it does when libvirt starts the domain: an image of this host, of a format that the
header above it tells.

A merge in a running guest is QEMU's own, with the images, keys and rights that libvirt gave it. It asks nothing here.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from .errors import VirtopsError
from .model import DomainView, ImageInfo, Layer, is_local
from .text import command


class Use(enum.Enum):
    """What is to be done with a disk's chain."""

    #: An overlay comes on top.
    SNAPSHOT = "snapshot"
    #: The domain goes back to it: an overlay comes on an image that another overlay was on.
    REVERT = "revert"
    #: qemu-img, or a plain copy, reads it.
    COPY = "copy"
    #: qemu-img writes a layer into the one below it.
    MERGE = "merge"
    #: qemu-img copies the layers below into the one that the guest reads and writes.
    PULL = "pull"


@dataclass(frozen=True)
class Named:
    """What libvirt's XML says of the images of one disk. `whole`: of all of them, as that of a running domain does.

    `begun` are those that an open operation of ours has in the journal: it drops from the definition what it merges.
    """

    layers: tuple[Layer, ...] = ()
    whole: bool = False
    begun: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Look:
    """One image of a chain. `info` is None of one that is not on this host.

    `below` is what the XML says of the image that the header names as the backing file, None where it does not name it.
    `held` are the files of `info.beside` that a process has open together with the image, as the guest's QEMU has.
    """

    layer: Layer
    info: ImageInfo | None = None
    below: Layer | None = None
    held: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Place:
    """Whose image it is, for the words."""

    target: str
    domain: str

    def of(self, path: str) -> str:
        return "%s of disk %s of domain %s" % (path, self.target, self.domain)


def named_by(view: DomainView, target: str) -> Named:
    """Of a domain that is off, the persistent XML tells: its `disks` have the chains that the headers say."""
    disk = view.disk(target) if view.active else view.config_disk(target)
    return Named() if disk is None else Named(disk.chain, disk.whole and view.active)


def flaw(look: Look, named: Named, use: Use, place: Place) -> VirtopsError | None:
    """Why this image stands in the way of that use; None where it does not."""
    layer, info = look.layer, look.info
    if layer.odd or (info is not None and info.encrypted):
        return _odd(layer.odd or "encrypted", layer, use, place)
    if info is None:
        return None if use in (Use.SNAPSHOT, Use.REVERT) else _remote(layer, use, place)
    for path in info.beside:
        if path != layer.data_file and not (path in look.held and use in (Use.SNAPSHOT, Use.COPY)):
            return _beside(path, layer, place)
    if info.backing_path is None:
        return _cut_short(layer, named, place)
    if not is_local(info.backing_path):
        return None if look.below is not None else _strange_name(info.backing_path, layer, place)
    unnamed = look.below is None and info.backing_path not in named.begun
    if unnamed and (named.whole or (use is Use.PULL and info.backing_format is not None)):
        return _unnamed(info.backing_path, layer, use, place)
    told = None if look.below is None else look.below.format
    if info.backing_format is None or (look.below is not None and not look.below.odd and told != info.backing_format):
        return _unclear(info, told, layer, place)
    return None


def looped(path: str, again: str) -> VirtopsError:
    """The error for headers that never come to an end."""
    return VirtopsError(
        "image_failed",
        "The backing files of the image %s form a loop: %s is below itself." % (path, again),
        "Correct the headers with 'qemu-img rebase -u'",
    )


def needs_rewrite(info: ImageInfo) -> str:
    """Why a copy of the image's file would not be a copy of the image; "" where it would."""
    return "its data are in %s" % ", ".join(info.beside) if info.beside else ""


def why_not_alone(info: ImageInfo, backing: Layer | None) -> str:
    """Why a finished copy cannot be opened with all but a `backing` that it keeps out of reach; "" where it can."""
    if info.encrypted:
        return "it is encrypted"
    if info.beside:
        return needs_rewrite(info)
    if info.backing_path is not None and (backing is None or info.backing_path != backing.path):
        return "it stands on %s" % info.backing_path
    return ""


_SO_THAT = {
    Use.COPY: "its file alone is not what the guest reads",
    Use.MERGE: "nothing but the guest's QEMU can write into it",
    Use.PULL: "nothing but the guest's QEMU can read it",
}
_START = "Start the domain, then run the task again: the merge is then made by its QEMU"


def _odd(odd: str, layer: Layer, use: Use, place: Place) -> VirtopsError:
    remedies = {
        Use.SNAPSHOT: "Leave the disk out with disks: [{name: %s, snapshot: no}], and back it up from inside the guest"
        % place.target,
        Use.REVERT: "Keep the present data, and delete the snapshot while the guest runs "
        "(virtops.libvirt.snapshot_external with state: absent)",
        Use.COPY: "Merge its overlay while the guest runs (virtops.libvirt.block_commit), and leave the disk out",
    }
    path, remedy = place.of(layer.path), remedies.get(use, _START)
    if odd == "encrypted":
        so = _SO_THAT.get(use, "an overlay on it would hold the guest's data unencrypted")
        return VirtopsError("image_encrypted", "The image %s is encrypted, so that %s." % (path, so), remedy)
    so = _SO_THAT.get(use, "an overlay on it would have another size than the disk")
    return VirtopsError("image_sliced", "The image %s is %s, so that %s." % (path, odd, so), remedy)


def _remote(layer: Layer, use: Use, place: Place) -> VirtopsError:
    return VirtopsError(
        "base_remote",
        "Disk %s of domain %s stands on %s, which is on the network and not an image of this host."
        % (place.target, place.domain, layer.path),
        "Copy it where it is stored, or leave the disk out" if use is Use.COPY else _START,
    )


def _beside(path: str, layer: Layer, place: Place) -> VirtopsError:
    return VirtopsError(
        "image_foreign",
        "The header of the image %s says that its data are in %s, which libvirt does not name as this domain's."
        % (place.of(layer.path), path),
        "If that file is this disk's, start the domain and run the task again. Or make one image of both (%s), and "
        "name that one in the definition (virsh edit)"
        % command("qemu-img", "convert", "-f", layer.format, "-O", "qcow2", layer.path, "NEW.qcow2"),
    )


def _cut_short(layer: Layer, named: Named, place: Place) -> VirtopsError | None:
    """QEMU has below this image what the XML says; qemu-img, which goes by the header, would miss it."""
    paths = [one.path for one in named.layers]
    if not named.whole or layer.path not in paths[:-1]:
        return None
    below = named.layers[paths.index(layer.path) + 1]
    return VirtopsError(
        "image_foreign",
        "The header of the image %s names no backing file, and libvirt says that it stands on %s."
        % (place.of(layer.path), below.path),
        "Write that into the header when the domain is off: %s" % _rebase(layer, below.path, below.format),
    )


def _strange_name(name: str, layer: Layer, place: Place) -> VirtopsError:
    return VirtopsError(
        "image_foreign",
        "The header of the image %s names the backing file %s, which is no path of an image of this host."
        % (place.of(layer.path), name),
        "If you know the image that it stands on, write it into the header when the domain is off: %s"
        % _rebase(layer, "BASE", "FORMAT"),
    )


def _unnamed(name: str, layer: Layer, use: Use, place: Place) -> VirtopsError:
    return VirtopsError(
        "image_foreign",
        "The header of the image %s names the backing file %s, which libvirt does not name as this domain's."
        % (place.of(layer.path), name),
        "If that image is this disk's, %s; or name it with <backingStore> in the definition (virsh edit)"
        % (
            "start the domain and run the task again"
            if use is Use.PULL
            else "shut the domain off, start it, and run the task again"
        ),
    )


def _unclear(info: ImageInfo, told: str | None, layer: Layer, place: Place) -> VirtopsError:
    said = (
        "does not tell the format of" if info.backing_format is None else "calls %s the format of" % info.backing_format
    )
    known = "" if told is None else ", which is %s for libvirt" % told
    hint = ""
    if told is None:
        hint = (
            ", where FORMAT is the one that this image was made with. Do not ask qemu-img for it: it believes what a "
        )
        hint += "guest wrote to a raw disk"
    return VirtopsError(
        "backing_format",
        "The header of the image %s %s its backing file %s%s." % (place.of(layer.path), said, info.backing_path, known),
        "When the domain is off, run: %s%s" % (_rebase(layer, info.backing_path or "", told or "FORMAT"), hint),
    )


def _rebase(layer: Layer, base: str, base_format: str) -> str:
    return command("qemu-img", "rebase", "-u", "-f", layer.format, "-F", base_format, "-b", base, layer.path)
