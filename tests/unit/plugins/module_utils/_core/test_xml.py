# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""The files beside were recorded from libvirt 9.0 and QEMU 7.2, but every_disk (by hand) and *.golden (our output)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core import xml
from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.journal import (
    CREATED,
    JOURNAL_URI,
    Journal,
    JournalDisk,
    Operation,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import (
    BlockJob,
    FileIdentity,
    Hold,
    Layer,
    Part,
    SnapshotDisk,
)

pytestmark = pytest.mark.skipif(xml.LXML_IMPORT_ERROR is not None, reason="needs lxml")

FILES = Path(__file__).parent / "xml"
IMAGES = "/var/lib/libvirt/images/web"
NASTY = "a\"b'<c>&d;,é ü\u2028\n\t]]> -- {%s}"


def recorded(name: str) -> str:
    return (FILES / f"{name}.xml").read_text(encoding="utf-8")


def overlay(target: str) -> Layer:
    return Layer(f"{IMAGES}/{target} é, 1.qcow2", "qcow2")


# Domains


def test_a_running_domain_shows_its_whole_chains() -> None:
    seen = xml.parse_domain(recorded("overlays.live"), recorded("overlays.config"))
    assert (seen.name, seen.uuid) == ("web", "5d300c17-f26b-4ae9-8281-dc9ecd06eb1c")
    assert (seen.agent, seen.machine, seen.nvram) == ("connected", "pc-i440fx-7.2", None)
    assert {disk.target: disk.chain for disk in seen.disks} == {
        "vda": (overlay("vda"), Layer(f"{IMAGES}/vda.raw", "raw")),
        "vdb": (
            overlay("vdb"),
            Layer(f"{IMAGES}/vdb.qcow2", "qcow2"),
            Layer("/var/lib/libvirt/images/golden/base.qcow2", "qcow2"),
        ),
        "vdc": (overlay("vdc"), Layer(f"{IMAGES}/vdc.qcow2", "qcow2")),
    }
    assert {disk.target: disk.active for disk in seen.config_disks} == {
        target: overlay(target) for target in ("vda", "vdb", "vdc")
    }


@pytest.mark.parametrize("told", ["pivot", "abort"])
def test_a_job_that_was_told_to_end(told: str) -> None:
    """libvirt shows so from the call until QEMU has done it."""
    seen = xml.parse_domain(recorded("commit_ready.live").replace("ready='yes'", f"ready='{told}'"), None)
    assert seen.disks[0].job == BlockJob("active-commit", ending=True, target=f"{IMAGES}/vda.raw")
    ended = recorded("commit_ready.live").replace("job='active-commit' ready='yes'", f"job='' ready='{told}'")
    assert xml.parse_domain(ended, None).disks[0].job == BlockJob("", ending=True, target=f"{IMAGES}/vda.raw")


@pytest.mark.parametrize(("name", "ready"), [("commit_copying", False), ("commit_ready", True)])
def test_only_the_mirror_tells_that_a_commit_is_ready(name: str, ready: bool) -> None:
    seen = xml.parse_domain(recorded(f"{name}.live"), None)
    assert seen.disks[0].job == BlockJob("active-commit", ready=ready, target=f"{IMAGES}/vda.raw")
    assert seen.disks[0].chain == (overlay("vda"), Layer(f"{IMAGES}/vda.raw", "raw"))
    assert [disk.job for disk in seen.disks[1:]] == [None, None]


def test_a_transient_domain_has_no_persistent_disks() -> None:
    assert xml.parse_domain(recorded("overlays.live"), None).config_disks == ()


def test_the_definition_is_shown_with_the_chain_that_libvirt_wrote_into_it() -> None:
    """It may be stale after a merge: whoever merges has to see so."""
    seen = xml.parse_domain(recorded("overlays.live"), recorded("commit_ready.live"))
    assert seen.config_disks[0].chain == (overlay("vda"), Layer(f"{IMAGES}/vda.raw", "raw"))
    assert seen.config_disks[0].job is None


def test_every_kind_of_disk_is_told_apart() -> None:
    seen = xml.parse_domain(
        recorded("every_disk.live"), None, lambda pool, volume: f"/{pool}/{volume}" if volume[0] == "k" else None
    )
    assert (seen.agent, seen.machine) == ("disconnected", "pc-q35-7.2")
    assert seen.nvram == "/var/lib/libvirt/qemu/nvram/every_VARS.fd"
    disks = {disk.target: disk for disk in seen.disks}
    assert {name: (disk.device, disk.source_type) for name, disk in disks.items()} == {
        "vda": ("disk", "block"),
        "vdb": ("disk", "file"),
        "vdc": ("disk", "network"),
        "vdd": ("disk", "volume"),
        "vde": ("disk", "volume"),
        "vdf": ("disk", "vhostuser"),
        "vdg": ("disk", "nvme"),
        "fda": ("floppy", "dir"),
        "sda": ("cdrom", "file"),
        "sdb": ("lun", "block"),
        "vdh": ("disk", "file"),
        "vdi": ("disk", "file"),
        "vdj": ("disk", "file"),
    }
    assert {name: disk.chain for name, disk in disks.items() if disk.chain} == {
        "vda": (Layer("/dev/vg0/top", "qcow2"), Layer("/dev/vg0/base", "raw")),
        "vdb": (Layer("/img/over-the-net.qcow2", "qcow2"), Layer("nbd://storage.example.com:10809/export", "raw")),
        "vdd": (Layer("/default/known.qcow2", "qcow2"),),
        "sdb": (Layer("/dev/sdx", "raw"),),
        "vdh": (Layer("/img/shared.raw", "raw"),),
        "vdi": (Layer("/img/forgets.qcow2", "qcow2"),),
        "vdj": (Layer("/img/copied.qcow2", "qcow2"),),
    }
    assert [name for name, disk in disks.items() if disk.readonly] == ["fda", "sda"]
    assert [name for name, disk in disks.items() if disk.shareable] == ["vdh"]
    assert [name for name, disk in disks.items() if disk.transient] == ["vdi"]
    assert disks["vdj"].job == BlockJob("copy", target="/img/copy.qcow2")
    assert (disks["fda"].bus, disks["sdb"].bus, disks["vda"].bus) == ("fdc", "scsi", "virtio")


ODD = """
<domain><name>a</name><uuid>u</uuid><devices>
<disk type='file'><driver name='qemu' type='qcow2'/><source file='/o'/>
  <backingStore type='file'><format type='raw'/>
    <source file='/luks'><encryption format='luks'/></source>%s</backingStore>
  <target dev='vda'/></disk>
<disk type='file'><driver name='qemu' type='qcow2'/>
  <source file='/head'><dataStore type='file'><format type='raw'/><source file='/data'/></dataStore></source>
  <target dev='vdb'/></disk>
<disk type='file'><driver name='qemu' type='raw'/><source file='/s'><slices/></source><target dev='vdc'/></disk>
</devices></domain>"""


@pytest.mark.parametrize("whole", [True, False])
def test_what_images_are_besides_images(whole: bool) -> None:
    vda, vdb, vdc = xml.parse_domain(ODD % ("<backingStore/>" if whole else ""), None).disks
    assert [layer.odd for layer in vda.chain] == ["", "encrypted"]
    assert (vdb.chain[0].data_file, vdc.chain[0].odd) == ("/data", "a slice of its file")
    assert (vda.whole, vdb.whole) == (whole, False)


def test_a_definition_for_images_that_stand_alone() -> None:
    written = xml.without_data_files(ODD % "")
    assert "dataStore" not in written
    assert xml.parse_domain(written, None).disks == xml.parse_domain(ODD % "", None).disks


def test_nvram_in_the_newer_notation() -> None:
    text = recorded("every_disk.live").replace(
        ">/var/lib/libvirt/qemu/nvram/every_VARS.fd</nvram>", " type='file'><source file='/vars.qcow2'/></nvram>"
    )
    assert xml.parse_domain(text, None).nvram == "/vars.qcow2"


def test_what_a_domain_needs_besides_disks() -> None:
    text = """<domain><name>web</name><uuid>u</uuid><os><loader type='pflash'>/usr/share/OVMF_CODE.fd</loader>
      <nvram type='network'><source protocol='nbd' name='vars'/></nvram><kernel>/boot/vmlinuz</kernel><initrd/>
      <acpi><table type='slic'>/etc/slic.bin</table></acpi></os><devices>
      <disk type='file'><source file='/a'><encryption format='luks'><secret type='passphrase' uuid='s1'/></encryption>
      </source><target dev='vda'/></disk>
      <filesystem type='mount'><source dir='/srv/share'/><target dir='share'/></filesystem>
      <filesystem type='ram'><source usage='1'/><target dir='ram'/></filesystem>
      <memory model='nvdimm'><source><path>/srv/pmem</path></source></memory>
      <tpm model='tpm-crb'><backend type='emulator' version='2.0'><encryption secret='s2'/></backend></tpm>
      <tpm><backend type='emulator' version='1.2'><source type='dir' path='/tpms/web'/></backend></tpm>
      <tpm><backend type='emulator' version='2.0'><source type='file' path='/tpms/state'/></backend></tpm>
      <tpm><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>
      <tpm><backend type='external'><source type='unix' path='/run/tpm'/></backend></tpm></devices></domain>"""
    assert xml.parse_domain(text, None).parts == (
        Part("kernel", "/boot/vmlinuz"),
        Part("loader", "/usr/share/OVMF_CODE.fd"),
        Part("ACPI table", "/etc/slic.bin"),
        Part("NVRAM", "vars"),
        Part("TPM state", "", "2.0"),
        Part("TPM state", "/tpms/web", "1.2"),
        Part("TPM state file", "/tpms/state", "2.0"),
        Part("TPM", "/dev/tpm0"),
        Part("TPM", "/run/tpm"),
        Part("shared folder", "/srv/share"),
        Part("persistent memory", "/srv/pmem"),
        Part("libvirt secret", "s1"),
        Part("libvirt secret", "s2"),
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<domain>",
        '<!DOCTYPE d [<!ENTITY e SYSTEM "file:///etc/passwd">]><domain><name>&e;</name></domain>',
        "<!DOCTYPE d [<!ENTITY e 'x'>]><domain><name>n</name></domain>",
        "<domain><devices><disk/></devices></domain>",
    ],
)
def test_what_is_no_domain_is_refused(text: str) -> None:
    with pytest.raises(VirtopsError) as caught:
        xml.parse_domain(text, None)
    assert caught.value.code == "invalid_xml"


# The images of others


def test_all_images_of_a_running_domain_are_known() -> None:
    found = xml.images(recorded("commit_ready.live"), recorded("overlays.config"))
    assert found.known == {
        *(overlay(target).path for target in ("vda", "vdb", "vdc")),
        *(f"{IMAGES}/{name}" for name in ("vda.raw", "vdb.qcow2", "vdc.qcow2")),
        "/var/lib/libvirt/images/golden/base.qcow2",
    }
    assert found.tips == ()


def test_a_domain_that_is_off_names_only_the_tips_of_its_chains() -> None:
    found = xml.images(recorded("plain.config"), recorded("plain.config"))
    assert found.tips == (
        Layer(f"{IMAGES}/vda.raw", "raw"),
        Layer(f"{IMAGES}/vdb.qcow2", "qcow2"),
        Layer(f"{IMAGES}/vdc.qcow2", "qcow2"),
    )
    assert found.known == {layer.path for layer in found.tips}


def test_a_running_domain_with_another_definition_has_tips_of_that_one() -> None:
    found = xml.images(recorded("overlays.live"), recorded("overlays.config").replace("vda é, 1", "other"))
    assert found.tips == (Layer(f"{IMAGES}/other.qcow2", "qcow2"),)


def test_the_target_of_a_mirror_is_in_use_too() -> None:
    assert "/img/copy.qcow2" in xml.images(recorded("every_disk.live"), None).known


# Other layers


def test_a_domain_on_other_layers() -> None:
    written = xml.with_disk_layers(
        recorded("overlays.config"),
        {"vda": Layer(f"{IMAGES}/vda.raw", "raw"), "vdb": Layer(f"{IMAGES}/{NASTY}.qcow2", "qcow2")},
    )
    assert_golden("other_layers", written)
    seen = xml.parse_domain(written, written)
    assert [disk.active for disk in seen.disks] == [
        Layer(f"{IMAGES}/vda.raw", "raw"),
        Layer(f"{IMAGES}/{NASTY}.qcow2", "qcow2"),
        overlay("vdc"),
    ]
    assert [len(disk.chain) for disk in seen.disks] == [1, 1, 2], "libvirt wrote vdc's base into the definition"
    assert isinstance(seen.journal, Journal)
    assert seen.journal.operations


def test_what_belonged_to_the_old_chain_goes() -> None:
    written = xml.with_disk_layers(
        recorded("commit_ready.live"), {"vda": Layer(f"{IMAGES}/vda.raw", "raw")}, drop_journal=True
    )
    vda = written[: written.index('<target dev="vda"')]
    assert "backingStore" not in vda
    assert "mirror" not in vda
    assert "index=" not in vda
    seen = xml.parse_domain(written, None)
    assert seen.disks[0].chain == (Layer(f"{IMAGES}/vda.raw", "raw"),)
    assert len(seen.disks[1].chain) == 3
    assert seen.journal == Journal()
    assert "<metadata" not in written


def test_metadata_of_others_stays_when_the_journal_goes() -> None:
    text = recorded("overlays.config").replace("<metadata>", "<metadata><o:o xmlns:o='urn:other'>mine</o:o>")
    assert ">mine</" in xml.with_disk_layers(text, {}, drop_journal=True)
    assert JOURNAL_URI not in xml.with_disk_layers(text, {}, drop_journal=True)


def test_a_layer_keeps_the_type_that_the_chain_gives_it() -> None:
    domain = recorded("every_disk.live")
    base = xml.with_disk_layers(domain, {"vda": Layer("/dev/vg0/base", "raw"), "vdd": Layer("/img/x.qcow2", "qcow2")})
    disks = {disk.target: disk for disk in xml.parse_domain(base, None).disks}
    assert (disks["vda"].source_type, disks["vda"].chain) == ("block", (Layer("/dev/vg0/base", "raw"),))
    assert (disks["vdd"].source_type, disks["vdd"].chain) == ("file", (Layer("/img/x.qcow2", "qcow2"),))
    assert "pool=" not in base[: base.index('<target dev="vdd"')]


def test_a_volume_stays_a_volume() -> None:
    """When the overlay above it is merged offline, and where it is the layer already."""
    on_overlay = recorded("every_disk.live").replace(
        "<source pool='default' volume='known.qcow2'/>",
        "<source file='/img/overlay'/><backingStore type='volume'><format type='qcow2'/>"
        "<source pool='default' volume='known.qcow2' index='3'/></backingStore>",
    )
    on_overlay = on_overlay.replace("<disk type='volume' device='disk'>", "<disk type='file' device='disk'>", 1)
    layer = Layer("/default/known.qcow2", "qcow2")
    for text in (on_overlay, recorded("every_disk.live")):
        written = xml.with_disk_layers(text, {"vdd": layer}, volume_path=lambda pool, name: f"/{pool}/{name}")
        disks = {disk.target: disk for disk in xml.parse_domain(written, None, lambda *of: "/".join(("", *of))).disks}
        assert (disks["vdd"].volume, disks["vdd"].chain) == ("default/known.qcow2", (layer,))
        assert "/img/overlay" not in written


def test_a_device_that_no_chain_describes_is_a_block_source() -> None:
    written = xml.with_disk_layers(recorded("plain.config"), {"vda": Layer("/dev/vg0/new", "raw")})
    assert '<disk type="block" device="disk">' in written
    assert '<source dev="/dev/vg0/new"/>' in written


def test_a_disk_that_is_not_there_cannot_get_a_layer() -> None:
    with pytest.raises(VirtopsError) as caught:
        xml.with_disk_layers(recorded("plain.config"), {"vdz": Layer("/x", "raw")})
    assert caught.value.code == "no_such_disk"
    assert "vda, vdb, vdc" in str(caught.value)


# Snapshots


def test_a_snapshot_names_each_disk() -> None:
    written = xml.build_snapshot(
        'before <update> & "more" é',
        "why, 'so'",
        [
            SnapshotDisk("vda", "external", '/img/a, b\'s "é" <1>.qcow2', "qcow2"),
            SnapshotDisk("vdb", "no"),
            SnapshotDisk("sda", "no"),
        ],
    )
    assert_golden("snapshot_request", written)


def test_what_is_written_is_read_back() -> None:
    disks = (SnapshotDisk("vda", "external", f"/img/{NASTY}", "qcow2"), SnapshotDisk("vdb", "no"))
    record = xml.parse_snapshot(xml.build_snapshot(NASTY, NASTY, disks))
    assert (record.name, record.description, record.disks) == (NASTY, NASTY, disks)


def test_a_request_with_memory_and_an_overlay_on_a_device() -> None:
    disks = (SnapshotDisk("vda", "external", f"/dev/{NASTY}", "qcow2", block=True),)
    written = xml.build_snapshot("s", None, disks, "external", f"/ram/{NASTY}")
    assert '<disk name="vda" snapshot="external" type="block">' in written
    record = xml.parse_snapshot(written)
    assert (record.memory, record.memory_file, record.disks) == ("external", f"/ram/{NASTY}", disks)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("protocol='rbd' name='pool/web'", "rbd:///pool/web"),
        ("protocol='nbd'", "nbd:///"),
    ],
)
@pytest.mark.parametrize(
    ("host", "where"),
    [
        ("", None),
        ("<host name='mon1' port='6789'/><host name='mon2'/>", "mon1:6789"),
        ("<host transport='unix' socket='/run/a, é.sock'/>", "+unix"),
    ],
)
def test_a_disk_on_the_network_is_told_by_words(source: str, words: str, host: str, where: str | None) -> None:
    (disk,) = xml.parse_domain(
        "<domain><name>far</name><memory unit='KiB'>1024</memory><devices><disk type='network' device='disk'>"
        f"<driver type='raw'/><source {source}>{host}</source><target dev='vda'/></disk></devices></domain>",
        None,
    ).disks
    wanted = words
    if where == "+unix":
        wanted = words.replace("://", "+unix://") + "?socket=/run/a, é.sock"
    elif where is not None:
        wanted = words.replace("://", f"://{where}")
    assert (disk.chain, disk.remote) == ((), Layer(wanted, "raw"))


@pytest.mark.parametrize("name", ["bell\x07", "null\x00", "bytes\udcff"])
def test_what_xml_cannot_hold_is_refused(name: str) -> None:
    for disks in ((), (SnapshotDisk("vda", "external", name, "qcow2"),)):
        with pytest.raises(VirtopsError) as caught:
            xml.build_snapshot("good" if disks else name, None, disks)
        assert caught.value.code == "not_representable"
    with pytest.raises(VirtopsError) as caught:
        xml.build_journal(Journal((replace(OPERATION, name=name),)))
    assert caught.value.code == "not_representable"


def test_a_recorded_snapshot() -> None:
    record = xml.parse_snapshot(recorded("snapshot.recorded"))
    assert (record.name, record.description, record.parent) == ("s é<1>", 'a <b> & "c"', None)
    assert (record.state, record.creation_time, record.memory) == ("disk-snapshot", 1795179477, "no")
    assert record.disks == tuple(
        SnapshotDisk(target, "external", overlay(target).path, "qcow2") for target in ("vda", "vdb", "vdc")
    )
    assert record.external


def test_what_libvirt_wrote_is_read_without_the_definition_in_it() -> None:
    text = recorded("snapshot.recorded")
    assert "<domain " in text
    assert xml.parse_record(text) == xml.parse_snapshot(text)
    named = xml.edited_snapshot(text, name="<domain type='x'>", description="</domainsnapshot><domain ")
    assert xml.parse_record(named) == xml.parse_snapshot(named)
    broken = text.replace("</domain>", "<domain>")
    assert xml.parse_record(broken) == xml.parse_snapshot(text)
    with pytest.raises(VirtopsError):
        xml.parse_snapshot(broken)


def test_an_internal_snapshot_with_memory_and_a_parent() -> None:
    record = xml.parse_snapshot(
        "<domainsnapshot><name>child</name><state>running</state><parent><name>root</name></parent>"
        "<creationTime>12</creationTime><memory snapshot='internal'/>"
        "<disks><disk name='vda' snapshot='internal'/></disks></domainsnapshot>"
    )
    assert (record.parent, record.memory, record.external) == ("root", "internal", False)
    full = xml.parse_snapshot(
        "<domainsnapshot><name>full</name><memory snapshot='external' file='/img/ram'/></domainsnapshot>"
    )
    assert (full.memory, full.memory_file, full.external) == ("external", "/img/ram", True)


# The journal

OPERATION = Operation(
    id="5d0b7a52",
    kind="live_backup",
    name=NASTY,
    phase=CREATED,
    started="20261120T120000Z",
    disks=(
        JournalDisk("vda", f"/img/{NASTY}", "raw", f"/img/{NASTY}.qcow2", FileIdentity("", 2, 3, 4)),
        JournalDisk("vdb", "/img/b.qcow2", "qcow2", "/img/b.o.qcow2"),
    ),
    consistency="filesystem",
)


def test_the_journal_is_read_back_as_it_was_written() -> None:
    reused = (replace(OPERATION.disks[0], reused=True),)
    journal = Journal(
        (
            OPERATION,
            replace(OPERATION, id="2", kind="snapshot", consistency="", memory=f"/ram/{NASTY}", disks=reused),
        )
    )
    assert xml.parse_journal(xml.build_journal(journal)) == journal


def test_the_journal_says_what_a_guest_is_held_back_by() -> None:
    hold = Hold(suspended=True, tunes={"vda": {"write_bytes_sec": 7, "read_bytes_sec": 0}, "vdb": {}})
    for held in (hold, Hold(frozen=True)):
        journal = Journal((OPERATION.held(held),))
        assert xml.parse_journal(xml.build_journal(journal)) == journal
    # As an older release wrote it
    assert "frozen" not in (xml.build_journal(Journal((OPERATION.held(hold),))) or "")
    assert "hold" not in (xml.build_journal(Journal((OPERATION.held(hold).held(None),))) or "")


def test_an_empty_journal_is_no_element() -> None:
    assert xml.build_journal(Journal()) is None
    assert xml.parse_journal(None) == Journal()


def test_the_journal_is_handed_over_without_a_namespace() -> None:
    """virDomainSetMetadata adds it, and fails where its prefix is declared."""
    written = xml.build_journal(Journal((OPERATION,)))
    assert written is not None
    assert written.startswith('<journal schema="1">')
    assert "xmlns" not in written


def test_the_journal_of_a_recorded_domain() -> None:
    seen = xml.parse_domain(recorded("overlays.live"), recorded("overlays.config"))
    (operation,) = seen.journal.operations
    assert (operation.name, operation.kind, operation.phase) == ("s é<1>", "live_backup", "created")
    assert operation.disks[0] == JournalDisk(
        "vda",
        f"{IMAGES}/vda.raw",
        "raw",
        overlay("vda").path,
        FileIdentity("", 15344531, 67108864, 1795179477784637474),
    )


@pytest.mark.parametrize(
    ("kind", "older", "name", "children"),
    [
        ("delete", "s (children: keep) (children: only)", "s (children: keep)", "only"),
        ("delete", "a\nb (children: delete)", "a\nb", "delete"),
        ("revert", "revert to revert to s", "revert to s", ""),
        ("commit", "revert to s (children: keep)", "revert to s (children: keep)", ""),
    ],
)
def test_an_operation_that_an_older_release_wrote(kind: str, older: str, name: str, children: str) -> None:
    """It had what belongs to a deletion, or a revert, in the name."""
    operation = replace(OPERATION, kind=kind, name=name, children=children)
    new = xml.build_journal(Journal((operation,))) or ""
    assert xml.parse_journal(new) == Journal((operation,))
    (element,) = (root := ElementTree.fromstring(new))
    element.set("name", older)
    element.attrib.pop("children", None)
    assert xml.parse_journal(ElementTree.tostring(root, encoding="unicode")) == Journal((operation,))


def test_a_journal_in_one_of_the_definitions_is_found() -> None:
    seen = xml.parse_domain(recorded("plain.config"), recorded("overlays.config"))
    assert isinstance(seen.journal, Journal)
    assert seen.journal.operations
    assert xml.parse_domain(recorded("overlays.live"), recorded("plain.config")).journal == seen.journal


@pytest.mark.parametrize(
    "text",
    [
        '<journal schema="2"/>',
        "<journal/>",
        '<journal schema="1"><operation id="1"/></journal>',
        '<journal schema="1"><operation id="1" kind="k" name="n" phase="p" started="s">'
        '<disk target="t" base="b" base_format="raw" overlay="o"><identity device="x"/></disk></operation></journal>',
    ],
)
def test_a_journal_that_is_not_ours_to_read_is_refused(text: str) -> None:
    with pytest.raises(VirtopsError) as caught:
        xml.parse_journal(text)
    assert caught.value.code == "journal_unreadable"
    assert f"virsh metadata DOMAIN --uri {JOURNAL_URI}" in caught.value.remedy


def assert_golden(name: str, written: str) -> None:
    """To accept a change, delete the file and run the test twice."""
    golden = FILES / f"{name}.golden.xml"
    if not golden.exists():
        golden.write_text(written + "\n", encoding="utf-8")
        pytest.fail(f"{golden} was missing and has been written: read it")
    assert written + "\n" == golden.read_text(encoding="utf-8")


# Capabilities


@pytest.mark.parametrize(
    ("features", "able"),
    [
        ("<disksnapshot default='on' toggle='no'/>", True),
        ("<disksnapshot default='off' toggle='no'/>", False),
        ("<externalSnapshot/>", False),
    ],
)
def test_snapshots_of_single_disks(features: str, able: bool) -> None:
    told = f"<capabilities><guest><arch name='x'/><features>{features}</features></guest></capabilities>"
    assert xml.has_disk_snapshots(told) is able


def test_security_drivers() -> None:
    told = "<secmodel><model>apparmor</model></secmodel><secmodel><model>dac</model></secmodel>"
    assert xml.security_models(f"<capabilities><host>{told}</host></capabilities>") == {"apparmor", "dac"}


@pytest.mark.parametrize(
    ("features", "able"), [("<backup supported='yes'/>", True), ("<backup supported='no'/>", False), ("", False)]
)
def test_incremental_backups(features: str, able: bool) -> None:
    assert xml.has_backup(f"<domainCapabilities><features>{features}</features></domainCapabilities>") is able


def test_what_domain_capabilities_are_asked_for() -> None:
    domain = (
        "<domain type='kvm'><os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os><devices>{}</devices></domain>"
    )
    assert xml.emulation(domain.format("<emulator>/usr/bin/qemu</emulator>")) == (
        *("/usr/bin/qemu", "x86_64"),
        *("pc-q35-7.2", "kvm"),
    )
    assert xml.emulation(domain.format(""))[0] is None


def test_a_journal_with_device_numbers_stays_readable() -> None:
    """As releases before wrote it: the number tells nothing, and what they noted of a block device fits none."""
    text = (
        "<journal schema='1'><operation id='1' kind='live_backup' name='s' phase='created' started='20261120T120000Z'>"
        "<disk target='vda' base='/a' base_format='raw' overlay='/o'>"
        "<identity device='{}' inode='7' size='{}' mtime_ns='9'/></disk></operation></journal>"
    )
    (file,) = xml.parse_journal(text.format(65024, 8)).operations[0].disks
    assert file.identity == FileIdentity("", 7, 8, 9)
    assert file.identity != FileIdentity("", 7, 8, 10)
    (device,) = xml.parse_journal(text.format(5, 0)).operations[0].disks
    assert device.identity != FileIdentity("dm LVM-x", 0, 8, 9)


def test_a_device_is_known_by_its_name_and_size() -> None:
    identity = FileIdentity("dm LVM-x", 0, 8, 9)
    assert identity == FileIdentity("dm LVM-x", 1, 8, 10)
    assert identity not in {FileIdentity("dm LVM-x", 0, 9, 9), FileIdentity("dm LVM-y", 0, 8, 9)}
