# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`./dev` as a user with sudo, in a clone of theirs: it ends well, and nothing in it becomes root's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from virtlab import Lab

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="it makes another user")
TREE = Path(__file__).resolve().parents[2]
NAME, UID = "virtops-dev", 64123
#: The files that say who there is. The user is in them for what is run here only, by mounts that nobody else has.
FILES = {
    "passwd": f"{NAME}:x:{UID}:{UID}::{{home}}:/bin/bash\n",
    "group": f"{NAME}:x:{UID}:\n",
    "shadow": f"{NAME}:*:20000:0:99999:7:::\n",
    "sudoers": f"{NAME} ALL=(ALL:ALL) NOPASSWD: ALL\n",
}
ENTER = """\
folder=$0 uid=$1 venv=$2
shift 2
for file in passwd group shadow sudoers; do mount --bind "$folder/etc/$file" "/etc/$file"; done
mount --bind "$venv" "$folder/clone/.dev/venv"
cd "$folder/clone"
exec setpriv --reuid "$uid" --regid "$uid" --init-groups -- \
    env -i "HOME=$folder/home" "PATH=$PATH" "VIRTOPS_LAB_DIR=$folder/lab" ./dev "$@"
"""


@dataclass(frozen=True)
class User:
    """Somebody with sudo, a home and a clone."""

    folder: Path

    def dev(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run ./dev as they do, with our Python environment: this is not about pip."""
        given = [str(self.folder), str(UID), os.path.realpath(sys.prefix)]
        return subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-euc", ENTER, *given, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=600,
        )

    def others_files(self) -> list[str]:
        """Return what in the clone and the home is not theirs."""
        found = [
            os.path.join(folder, name)
            for top in ("clone", "home")
            for folder, folders, files in os.walk(self.folder / top)
            for name in (*folders, *files)
        ]
        return [path for path in found if os.lstat(path).st_uid != UID]


@pytest.fixture(scope="module")
def user() -> Iterator[User]:
    folder = Path(tempfile.mkdtemp(prefix="virtops-dev-", dir="/var/tmp"))
    folder.chmod(0o755)
    try:
        (folder / "lab").mkdir()
        Lab().cache.mkdir(parents=True, exist_ok=True)
        (folder / "lab" / "cache").symlink_to(Lab().cache)
        (folder / "home").mkdir()
        clone = folder / "clone"
        subprocess.run(
            ["rsync", "-a", "--exclude=/.git", "--filter=:- .gitignore", f"{TREE}/", f"{clone}/"], check=True
        )
        (clone / ".dev" / "venv").mkdir(parents=True)
        for top in (clone, folder / "home"):
            subprocess.run(["chown", "-R", "-h", f"{UID}:{UID}", top], check=True)
        (folder / "etc").mkdir()
        for name, line in FILES.items():
            file, machine = folder / "etc" / name, Path("/etc", name)
            file.write_text(machine.read_text(encoding="utf-8") + line.format(home=folder / "home"), encoding="utf-8")
            file.chmod(machine.stat().st_mode & 0o777)
        yield User(folder)
    finally:
        Lab(folder / "lab").down()
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    "words",
    [
        ("lab", "up", "dev1"),
        ("test", "lab", "--", "tests/lab/test_lab.py", "-k", "killed_up"),
        pytest.param(("demo",), marks=pytest.mark.long),
    ],
    ids=lambda words: words[0],
)
def test_as_a_user_with_sudo(user: User, words: tuple[str, ...]) -> None:
    done = user.dev(*words)
    assert done.returncode == 0, done.stdout
    assert user.others_files() == []
