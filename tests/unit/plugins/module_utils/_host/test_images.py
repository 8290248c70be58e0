# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import inspect
import json
import os
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Layer
from ansible_collections.virtops.libvirt.plugins.module_utils._host import images as images_module
from ansible_collections.virtops.libvirt.plugins.module_utils._host.images import Images

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")

MIB = 1024 * 1024
#: What a name may hold that a tool could take for something else.
ODD_NAMES = ["with space", "a,b=c,,d", "nbd:colon", "-dash", "grün-雪", "quote'\"", "%s {0}"]


@pytest.fixture
def images() -> Images:
    return Images()


def make(path: Path, image_format: str = "qcow2", size: int = MIB) -> Layer:
    subprocess.run(["qemu-img", "create", "-q", "-f", image_format, str(path), str(size)], check=True)
    return Layer(str(path), image_format)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_an_odd_name_is_only_a_name(tmp_path: Path, images: Images, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    base = make(folder / (name + ".raw"), "raw")
    overlay = str(folder / (name + ".qcow2"))
    images.create_overlay(overlay, base, MIB)
    assert images.chain(overlay, "qcow2") == (Layer(overlay, "qcow2"), base)
    info = images.info(overlay, "qcow2")
    assert (info.format, info.virtual_size, info.backing_path, info.backing_format) == ("qcow2", MIB, base.path, "raw")
    assert sorted(os.listdir(folder)) == sorted([name + ".raw", name + ".qcow2"])


@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize("how", ["absolute", "relative", "json", "no format"])
def test_what_a_header_names_is_not_opened(tmp_path: Path, images: Images, name: str, how: str) -> None:
    base, overlay = tmp_path / name, make(tmp_path / "overlay.qcow2")
    told = {"driver": "qcow2", "file": {"driver": "file", "filename": str(base)}}
    named = {"json": "json:" + json.dumps(told), "relative": "./" + name}.get(how, str(base))
    # qemu-img create would open it
    argv = ["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", named, overlay.path]
    subprocess.run(argv, check=True)
    if how == "no format":  # which qemu-img makes no longer
        image = Path(overlay.path)
        image.write_bytes(image.read_bytes().replace(b"\xe2\x79\x2a\xca", b"\x11\x11\x11\x11"))
    assert images.below(overlay) == Layer(str(base), "raw" if how == "no format" else "qcow2")


@pytest.mark.parametrize("version", ["0.10", "1.1"])
def test_a_header_of_either_version_names_the_format(tmp_path: Path, images: Images, version: str) -> None:
    base, overlay = make(tmp_path / "base.vmdk", "vmdk"), str(tmp_path / "overlay")
    backing = ["-F", "vmdk", "-b", base.path]
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=" + version, *backing, overlay], check=True
    )
    assert images.below(Layer(overlay, "qcow2")) == base
    assert images.below(base) is None


@pytest.mark.parametrize("size", [0, 3, 72, 104, MIB])
def test_a_header_that_is_none_names_nothing(tmp_path: Path, images: Images, size: int) -> None:
    path = tmp_path / "image"
    for start in (b"", b"QFI\xfb", b"QFI\xfb" + b"\xff" * 200):
        path.write_bytes((start + b"\0" * size)[:size])
        assert images.below(Layer(str(path), "qcow2")) is None
    assert images.below(Layer(str(path), "raw")) is None


def test_a_network_name_in_a_header_stays_as_it_is(tmp_path: Path, images: Images) -> None:
    overlay = make(tmp_path / "overlay.qcow2")
    argv = ["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", "nbd://10.0.0.1/x", overlay.path]
    subprocess.run(argv, check=True)
    assert images.below(overlay) == Layer("nbd://10.0.0.1/x", "raw")


def test_where_a_qcow2_ends_on_a_device_that_may_be_too_small(tmp_path: Path, images: Images) -> None:
    image = make(tmp_path / "device", size=32 * MIB)  # a file will do: only its length and what is in it count
    os.truncate(image.path, 4 * MIB)
    found = images.extent(image.path, 32 * MIB)
    assert found is not None
    assert 0 < found[0] < MIB
    assert found[1] == 4 * MIB
    os.truncate(image.path, 34 * MIB)
    assert images.extent(image.path, 32 * MIB) is None
    with pytest.raises(VirtopsError) as caught:
        images.extent(str(tmp_path / "gone"), 32 * MIB)
    assert str(tmp_path / "gone") in caught.value.cause


def test_who_may_enter_a_folder(tmp_path: Path, images: Images) -> None:
    if os.geteuid() != 0:
        assert images.may_enter(str(tmp_path), 65534, 65534)
        return
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:  # pytest's own is closed to others
        os.chmod(folder, 0o711)
        assert images.may_enter(folder, 65534, 65534)
        os.chmod(folder, 0o700)
        assert not images.may_enter(folder, 65534, 65534)
        assert images.may_enter(folder, 0, 0)


def test_whether_an_overlay_holds_data_while_a_guest_writes_into_its_base(tmp_path: Path, images: Images) -> None:
    """As after a death between the making of the overlay and the switch to it."""
    base, overlay = make(tmp_path / "base"), str(tmp_path / "overlay")
    images.create_overlay(overlay, base, MIB)
    with subprocess.Popen(
        ["qemu-io", "-f", "qcow2", base.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        writer.stdin.write("write 0 4k\n")
        writer.stdin.flush()
        while "wrote" not in writer.stdout.readline():
            pass
        assert not images.holds_data(overlay)
        writer.stdin.close()
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write 0 4k", overlay], check=True, stdout=subprocess.PIPE)
    assert images.holds_data(overlay)


def test_a_header_that_lies_of_its_table_fills_no_memory(tmp_path: Path) -> None:
    """As a user makes one: a table of 32 GiB, in a file that takes no space."""
    path = make(tmp_path / "o.qcow2").path
    with open(path, "r+b") as file:
        file.seek(36)
        file.write(struct.pack(">I", 0xFFFFFFFF))
    os.truncate(path, 40 << 30)
    code = (
        "import resource, sys; from %s import Images; "
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)); Images().holds_data(sys.argv[1])"
    ) % images_module.__name__
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code, path], env=env, stderr=subprocess.PIPE, text=True, check=False)
    assert "L1 table too large" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize(
    ("mode", "user", "ids", "permissions"),
    [
        (0o755, None, (1234, 2345), 0o640),
        (0o777, None, (0, 0), 0o600),
        (0o777, 4321, (0, 0), 0o600),
        (0o777, 1234, (1234, 2345), 0o640),
    ],
)
def test_an_overlay_belongs_to_whom_its_base_does(
    tmp_path: Path, images: Images, mode: int, user: int | None, ids: tuple[int, int], permissions: int
) -> None:
    """In a folder that others write to only if that is QEMU's user: one of them may have put a base of his there."""
    folder = Path(tempfile.mkdtemp(dir="/var/lib"))  # /tmp is open to others itself
    try:
        folder.chmod(mode)
        base = make(folder / "b.qcow2")
        os.chown(base.path, 1234, 2345)
        os.chmod(base.path, 0o640)
        images.create_overlay(str(folder / "o.qcow2"), base, MIB, user)
        found = os.stat(folder / "o.qcow2")
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (*ids, permissions)
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("kind", ["file", "dangling"])
def test_what_is_there_is_not_overwritten(tmp_path: Path, images: Images, kind: str) -> None:
    base = make(tmp_path / "b.qcow2")
    path = tmp_path / "o.qcow2"
    if kind == "file":
        path.write_bytes(b"precious")
    else:
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(VirtopsError) as caught:
        images.create_overlay(str(path), base, MIB)
    assert caught.value.code == "overlay_exists"
    if kind == "file":
        assert path.read_bytes() == b"precious"
    assert not (tmp_path / "elsewhere").exists()


def test_a_failed_overlay_leaves_no_file(tmp_path: Path, images: Images) -> None:
    with pytest.raises(VirtopsError) as caught:
        images.create_overlay(str(tmp_path / "o.qcow2"), Layer(str(tmp_path / "none.raw"), "raw"), MIB)
    assert caught.value.code == "no_image"
    assert os.listdir(tmp_path) == []


def test_a_relative_path_is_refused(images: Images) -> None:
    with pytest.raises(VirtopsError) as caught:
        images.info("nbd:localhost:10809", "raw")
    assert caught.value.code == "relative_path"


def test_a_relative_backing_file_is_told_as_an_absolute_path(tmp_path: Path, images: Images) -> None:
    base = make(tmp_path / "b.qcow2")
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "b.qcow2", "o.qcow2"], cwd=tmp_path, check=True
    )
    overlay = str(tmp_path / "o.qcow2")
    assert images.chain(overlay, "qcow2") == (Layer(overlay, "qcow2"), base)
    assert images.info(overlay, "qcow2").backing_path == base.path


def test_commit_and_rebase(tmp_path: Path, images: Images) -> None:
    base = make(tmp_path / "b.raw", "raw")
    other = make(tmp_path / "other.raw", "raw")
    overlay = str(tmp_path / "o.qcow2")
    images.create_overlay(overlay, base, MIB)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 4k", overlay], check=True, stdout=subprocess.DEVNULL)
    before = images.identity(base.path)
    images.commit(Layer(overlay, "qcow2"), base)
    assert Path(base.path).read_bytes()[:4096] == b"\x07" * 4096
    assert images.identity(base.path) != before
    assert images.identity(base.path).size == MIB
    images.rebase_unsafe(overlay, other)
    assert images.info(overlay, "qcow2").backing_path == other.path


def stack(folder: Path, *names: str) -> list[str]:
    """Images of which each names the one before it as given; the paths, the base first."""
    paths = []
    for name, below in zip(names, ("", *names)):
        backing = ["-F", "qcow2", "-b", os.path.relpath(below, os.path.dirname(name) or ".")] if below else []
        command = ["qemu-img", "create", "-q", "-f", "qcow2", *backing, os.path.basename(name), str(MIB)]
        subprocess.run(command, cwd=folder / os.path.dirname(name), check=True)
        paths.append(str(folder / name))
    return paths


def backing_name(path: str) -> str:
    """As the image says it."""
    told = subprocess.run(["qemu-img", "info", "--output=json", path], check=True, stdout=subprocess.PIPE).stdout
    return str(json.loads(told)["backing-filename"])


@pytest.mark.parametrize("unsafe", [False, True])
@pytest.mark.parametrize("base", ["b.qcow2", "up/b.qcow2", "up/b,c d.qcow2"])
@pytest.mark.parametrize("through", ["img", "link"])
def test_a_rebase_keeps_relative_names(tmp_path: Path, images: Images, unsafe: bool, base: str, through: str) -> None:
    """Also where the images are reached through a symlink, from which the way up is another one."""
    (tmp_path / "data" / "img" / "up").mkdir(parents=True)
    (tmp_path / "img").symlink_to(tmp_path / "data" / "img")
    (tmp_path / "link").symlink_to(tmp_path / "data" / "img" / "up")
    top = "up/o.qcow2" if through == "link" else "o.qcow2"
    stack(tmp_path / "data" / "img", base, "m.qcow2", top)
    path = str(tmp_path / "link" / "o.qcow2" if through == "link" else tmp_path / "img" / "o.qcow2")
    layer = images.chain(path, "qcow2")[-1]
    if unsafe:
        images.rebase_unsafe(path, layer)
    else:
        images.rebase(path, layer)
    said = backing_name(path)
    assert not said.startswith("/")
    assert os.path.join(os.path.dirname(path), said) == layer.path
    assert images.chain(path, "qcow2") == (Layer(path, "qcow2"), layer), "in the same words"


@pytest.mark.parametrize("how", ["absolute", "protocol", "through a folder"])
def test_where_a_relative_name_would_not_do_it_is_absolute(tmp_path: Path, images: Images, how: str) -> None:
    """A chain that may be moved, down to an image that stays; a name that QEMU takes for a protocol; a way through the
    folder of the layer that goes."""
    (tmp_path / "up").mkdir()
    layer = "up/m.qcow2" if how == "through a folder" else "m.qcow2"
    base, middle, top = stack(tmp_path, "b.qcow2", layer, "o.qcow2")
    if how != "through a folder":
        base = base if how == "absolute" else make(tmp_path / "nbd:b.qcow2").path
        name = base if how == "absolute" else "./nbd:b.qcow2"
        subprocess.run(["qemu-img", "rebase", "-u", "-F", "qcow2", "-b", name, middle], check=True)
    wanted = images.chain(top, "qcow2")[-1]
    images.rebase_unsafe(top, wanted)
    assert backing_name(top) == wanted.path
    assert images.chain(top, "qcow2")[1:] == (wanted,)


def test_a_commit_and_a_rebase_can_be_stopped(tmp_path: Path, images: Images) -> None:
    base, middle, top = stack(tmp_path, "b.qcow2", "m.qcow2", "o.qcow2")
    slow = tmp_path / "qemu-img"
    slow.write_text('#!/bin/sh\n[ "$1" != info ] || exec %s "$@"\nexec sleep 60\n' % shutil.which("qemu-img"))
    slow.chmod(0o755)

    def check() -> None:
        raise VirtopsError("timeout", "Too long.", "Wait.")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        patch.setattr(images, "_is_named_relative", lambda path, base: False)
        for call in (
            lambda: images.commit(Layer(top, "qcow2"), Layer(base, "qcow2"), check),
            lambda: images.rebase(top, Layer(base, "qcow2"), check),
        ):
            with pytest.raises(VirtopsError) as caught:
                call()
            assert caught.value.code == "timeout"
    assert images.chain(top, "qcow2")[1].path == middle


def test_a_corrupt_image_and_its_snapshots_are_told(tmp_path: Path, images: Images) -> None:
    path = make(tmp_path / "b.qcow2").path
    subprocess.run(["qemu-img", "snapshot", "-c", "one", path], check=True)
    info = images.info(path, "qcow2")
    assert info.internal_snapshots == ("one",)
    assert info.corrupt is False
    assert 0 < info.allocation < MIB


def test_a_missing_program_is_named(tmp_path: Path, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(VirtopsError) as caught:
        images.info(str(tmp_path / "x"), "raw")
    assert caught.value.code == "missing_program"
    assert "qemu-utils" in str(caught.value)


@pytest.mark.parametrize("path", ["loop/x", "file/x", "n" * 300, "folder", "pipe", "none"])
@pytest.mark.parametrize("name", [name for name in vars(Images) if not name.startswith("_")])
def test_what_the_system_refuses_is_told_with_its_path(tmp_path: Path, images: Images, name: str, path: str) -> None:
    """No call lets an OSError through, and none waits."""
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    whole = str(tmp_path / path)
    values = {"str": whole, "Layer": Layer(whole, "qcow2"), "int": 1 << 20, "Layer | None": None}
    call = getattr(images, name)
    given = [one for one in inspect.signature(call).parameters.values() if one.default is one.empty]
    error = None
    try:
        call(*(values[str(one.annotation)] for one in given))
    except VirtopsError as caught:
        error = caught
    assert error is None or whole in str(error)


def test_files(tmp_path: Path, images: Images) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x")
    (tmp_path / "dangling").symlink_to("nowhere")
    assert images.exists(str(tmp_path / "dangling"))
    assert images.is_directory(str(tmp_path))
    assert not images.is_directory(str(path))
    assert images.is_writable(str(tmp_path))
    assert images.free_bytes(str(tmp_path)) > 0
    with path.open():
        assert images.holders(str(path)) == (os.getpid(),)
    assert images.holders(str(path)) == ()
    images.remove(str(path))
    images.remove(str(path))
    assert not images.exists(str(path))
    with pytest.raises(VirtopsError) as caught:
        images.identity(str(path))
    assert caught.value.code == "no_image"


def test_whether_a_guest_would_read_the_same(tmp_path: Path, images: Images) -> None:
    base, overlay = make(tmp_path / "a, base.raw", "raw"), Layer(str(tmp_path / "overlay"), "qcow2")
    images.create_overlay(overlay.path, base, MIB)
    assert images.same_content(overlay, base)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 4k", overlay.path], check=True, capture_output=True)
    assert not images.same_content(overlay, base)
    images.commit(overlay, base)
    assert images.same_content(overlay, base)
    with pytest.raises(VirtopsError):
        images.same_content(overlay, Layer(str(tmp_path / "none"), "raw"))


@pytest.mark.parametrize("content", [b"", bytes(4096)])
def test_an_overlay_that_was_never_finished_holds_nothing(tmp_path: Path, images: Images, content: bytes) -> None:
    """The host lost its power between the name and the header."""
    (tmp_path / "overlay").write_bytes(content)
    assert not images.holds_data(str(tmp_path / "overlay"))
    (tmp_path / "overlay").write_text("somebody else's")
    with pytest.raises(VirtopsError):
        images.holds_data(str(tmp_path / "overlay"))


def test_what_a_path_leads_to(tmp_path: Path, images: Images) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nowhere")
    kinds = [images.kind(str(tmp_path / name)) for name in ("file", "link", ".", "dangling", "none")]
    assert kinds == ["file", "file", "other", "missing", "missing"]
    images.remove(str(tmp_path / "dangling"))
    assert not images.exists(str(tmp_path / "dangling"))


def test_the_node_of_a_block_device_is_never_removed(
    tmp_path: Path, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merge deletes the overlays that it emptied, and the user's may be a logical volume."""
    (tmp_path / "node").write_bytes(b"")
    monkeypatch.setattr(stat, "S_ISBLK", lambda _mode: True)
    images.remove(str(tmp_path / "node"))
    assert (tmp_path / "node").exists()


@pytest.mark.parametrize("command", ["write -P 7 0 4k", "write -z 64k 64k"])
def test_data_above_a_base_on_the_network(tmp_path: Path, images: Images, command: str) -> None:
    """Without its server, which may be down or take no second client."""
    base, path = make(tmp_path / "base.raw", "raw"), str(tmp_path / "overlay")
    far = 'json:{"driver":"raw","file":{"driver":"nbd","server":{"type":"inet","host":"192.0.2.1","port":"1"}}}'
    images.create_overlay(path, base, MIB)
    for change, holds in (("rebase", False), (command, True)):
        if change != "rebase":
            subprocess.run(["qemu-img", "rebase", "-u", "-F", "raw", "-b", base.path, path], check=True)
            subprocess.run(["qemu-io", "-f", "qcow2", "-c", change, path], check=True, capture_output=True)
        subprocess.run(["qemu-img", "rebase", "-u", "-F", "raw", "-b", far, path], check=True)
        assert images.holds_data(path) == holds


@pytest.mark.parametrize("write", [False, True])
def test_an_overlay_larger_than_its_base_with_an_older_qemu(
    tmp_path: Path, images: Images, monkeypatch: pytest.MonkeyPatch, write: bool
) -> None:
    """QEMU 5.2 does not say "present", and shows zeros of the overlay's own beyond the end of the base."""
    path = str(tmp_path / "overlay")
    images.create_overlay(path, make(tmp_path / "base.raw", "raw"), 2 * MIB)
    if write:
        subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -z 0 64k", path], check=True, capture_output=True)
    lines = ['[{ "depth": 1},', '{ "depth": 0, "zero": true, "data": false}]']
    monkeypatch.setattr(images_module, "run", lambda *_, until, limits: any(until(line) for line in lines))
    assert images.holds_data(path) == write


@pytest.mark.parametrize(
    "name", ["nbd://127.0.0.1:1/x", "nbd:127.0.0.1:1", 'json:{"driver": "nbd", "host": "127.0.0.1", "port": "1"}']
)
def test_a_chain_ends_at_what_is_not_of_this_host(tmp_path: Path, images: Images, name: str) -> None:
    """Nothing connects to it."""
    overlay = str(tmp_path / "o.qcow2")
    subprocess.run(
        ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", name, overlay, "1M"], check=True
    )
    assert images.chain(overlay, "qcow2") == (Layer(overlay, "qcow2"), Layer(name, "raw"))
    assert not images.holds_data(overlay)


def test_no_format_is_guessed(tmp_path: Path, images: Images) -> None:
    """What is below may be a guest's raw disk, with whatever header the guest wrote there."""
    base, overlay = make(tmp_path / "base"), str(tmp_path / "o.qcow2")
    images.create_overlay(overlay, base, MIB)
    with open(overlay, "r+b") as file:
        at = file.read(4096).index(b"\xe2\x79\x2a\xca")
        file.seek(at)
        file.write(b"\x12\x34\x56\x78")
    assert images.chain(overlay, "qcow2") == (Layer(overlay, "qcow2"), Layer(base.path, ""))
    with pytest.raises(VirtopsError) as caught:
        images.info(base.path, "")
    assert caught.value.code == "backing_format"


def test_headers_that_form_a_loop(tmp_path: Path, images: Images) -> None:
    one, other = make(tmp_path / "a"), make(tmp_path / "b")
    for top, below in ((one, other), (other, one)):
        subprocess.run(["qemu-img", "rebase", "-u", "-F", "qcow2", "-b", below.path, top.path], check=True)
    with pytest.raises(VirtopsError) as caught:
        images.chain(one.path, "qcow2")
    assert "loop" in caught.value.cause


@pytest.mark.parametrize(
    ("options", "beside"),
    [
        (["-f", "qcow2", "-o", "data_file={}/data"], "data"),
        (["-f", "vmdk", "-o", "subformat=monolithicFlat"], "a-flat.vmdk"),
        (["-f", "vmdk"], None),
        (["-f", "vdi"], None),
    ],
)
def test_the_files_beside_an_image(tmp_path: Path, images: Images, options: list[str], beside: str | None) -> None:
    path = str(tmp_path / "a.vmdk")
    words = [word.format(tmp_path) for word in options]
    subprocess.run(["qemu-img", "create", "-q", *words, path, "1M"], check=True)
    assert images.info(path, options[1]).beside == (() if beside is None else (str(tmp_path / beside),))
