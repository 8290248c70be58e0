# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Private to virtops.libvirt: how the images of a backup are copied, decided without any effect."""

from __future__ import annotations

from .backup import AUTO, CONVERT, COPY, REFLINK, SAME, BackupOptions, CopyOrder, SourceFacts
from .errors import VirtopsError
from .images import needs_rewrite
from .model import Layer


def plan_copy(options: BackupOptions, facts: SourceFacts) -> CopyOrder:
    """The order for one disk; refuses options that do not fit its image."""
    source = facts.source
    image_format = source.base.format if options.format == SAME else options.format
    if options.compress and image_format != "qcow2":
        raise VirtopsError(
            "compress_needs_qcow2",
            "The copy of disk %s would be %s, which cannot be compressed" % (source.target, image_format),
            "Use format: qcow2, or no compress",
        )
    backing = _kept_backing(options, facts, image_format)
    methods = _methods(options, facts, image_format, backing)
    return CopyOrder(
        target=source.target,
        source=source.base,
        file="%s.%s" % (source.target, image_format),
        format=image_format,
        methods=methods,
        virtual_size=facts.info.virtual_size,
        needs=0 if methods == (REFLINK,) else (facts.info.allocation if backing else facts.allocation),
        backing=backing,
        compress=options.compress,
        verify=options.verify,
        rate_limit=options.rate_limit * 1024 * 1024,
        unsure=not facts.regular,
    )


def _kept_backing(options: BackupOptions, facts: SourceFacts, image_format: str) -> Layer | None:
    if not options.keep_backing or len(facts.layers) < 2:
        return None
    if image_format != "qcow2":
        raise VirtopsError(
            "backing_needs_qcow2",
            "The copy of disk %s would be %s, which cannot keep the reference to %s"
            % (facts.source.target, image_format, facts.layers[1].path),
            "Use format: qcow2, or keep_backing: false",
        )
    return facts.layers[1]


def _methods(options: BackupOptions, facts: SourceFacts, image_format: str, backing: Layer | None) -> tuple[str, ...]:
    """The methods to try, the fastest first."""
    reason = _needs_convert(options, facts, image_format, backing)
    if options.method == CONVERT or (options.method == AUTO and reason):
        return (CONVERT,)
    if reason:
        raise VirtopsError(
            "method_unsuitable",
            "Disk %s cannot be copied with method %s: %s" % (facts.source.target, options.method, reason),
            "Use method: auto or convert",
        )
    return (REFLINK, COPY) if options.method == AUTO else (options.method,)


def _needs_convert(options: BackupOptions, facts: SourceFacts, image_format: str, backing: Layer | None) -> str:
    """Why the bytes of the base are not the bytes of the copy; "" where they are."""
    if not facts.regular:
        return "%s is no regular file" % facts.source.base.path
    if image_format != facts.source.base.format:
        return "its format changes from %s to %s" % (facts.source.base.format, image_format)
    if options.compress:
        return "it is to be compressed"
    if facts.info.beside:
        return needs_rewrite(facts.info)
    if len(facts.layers) > 1 and backing is None:
        return "its base has the backing file %s, whose content must be in the copy" % facts.layers[1].path
    return ""
