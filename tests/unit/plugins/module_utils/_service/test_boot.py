# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""The recovery at boot, as files."""

from __future__ import annotations

from ansible_collections.virtops.libvirt.plugins.module_utils._core.boot import (
    DIRECTORY,
    ENABLED,
    LIBRARY,
    STARTED,
    UNIT,
    BootOptions,
    Entry,
    unit_text,
)
from ansible_collections.virtops.libvirt.plugins.module_utils._core.model import Outcome
from ansible_collections.virtops.libvirt.plugins.module_utils._service.boot import BootUnit

SOURCES = {"a.b.one": "ONE = 1\n", "a.b.two": "TWO = 2\n"}
OTHER = STARTED + "/ssh.service"


class FakeFiles:
    """A file system that holds what `Entry` can say; None is what has another owner or mode."""

    def __init__(self) -> None:
        self.there: dict[str, Entry | None] = {STARTED: None, OTHER: Entry(target="/lib/ssh.service")}
        self.calls: list[str] = []

    def find(self, path: str) -> dict[str, Entry | None]:
        return {name: entry for name, entry in self.there.items() if name == path or name.startswith(path + "/")}

    def put(self, path: str, entry: Entry) -> None:
        self.calls.append("put " + path)
        folder = path.rpartition("/")[0]
        assert folder in self.there or folder in ("/usr/local/lib", "/etc/systemd/system")
        self.there[path] = entry

    def remove(self, path: str) -> None:
        self.calls.append("remove " + path)
        assert not [name for name in self.there if name.startswith(path + "/")]
        del self.there[path]


def run(files: FakeFiles, check: bool = False, state: str = "present", timeout: int = 600) -> Outcome:
    return BootUnit(BootOptions(state, "qemu:///system", timeout, "/usr/bin/python3"), SOURCES, "a.b.one", files).run(
        check
    )


def test_check_run_run_check() -> None:
    files = FakeFiles()
    foreseen = run(files, check=True)
    assert files.calls == []
    outcome = run(files)
    assert (foreseen.steps, foreseen.before, foreseen.after) == (outcome.steps, outcome.before, outcome.after)
    assert outcome.steps == (
        "write the code in " + LIBRARY,
        "write the unit " + UNIT,
        "write the link " + ENABLED,
    )
    assert files.calls[-1] == "put " + ENABLED
    assert files.there[LIBRARY + "/a/b/two.py"] == Entry("TWO = 2\n")
    assert files.there[LIBRARY + "/a/__init__.py"] == Entry("")
    assert not run(files).changed
    assert not run(files, check=True).changed


def test_absent_leaves_what_is_others() -> None:
    files = FakeFiles()
    before = dict(files.there)
    run(files)
    foreseen = run(files, check=True, state="absent")
    outcome = run(files, state="absent")
    assert foreseen.steps == outcome.steps
    assert len(outcome.steps) == 3
    assert files.there == before
    removals = [call for call in files.calls if call.startswith("remove")]
    assert removals[:2] == ["remove " + ENABLED, "remove " + UNIT]
    assert not run(files, state="absent").changed


def test_what_differs_is_put_right() -> None:
    files = FakeFiles()
    run(files)
    files.there[LIBRARY] = None  # somebody else may write to it
    files.there[LIBRARY + "/a/b/old.py"] = Entry("of an earlier release")
    assert run(files).steps == ("write the code in " + LIBRARY,)
    assert files.there[LIBRARY] == DIRECTORY
    assert LIBRARY + "/a/b/old.py" not in files.there
    assert run(files, timeout=60).steps == ("write the unit " + UNIT,)


def test_words_of_the_command_line() -> None:
    text = unit_text(
        BootOptions("present", 'qemu+unix:///system?socket=/a "b%20$c\\d', 5, "/opt/my venv/python"), "a.b.one"
    )
    (command,) = [line for line in text.splitlines() if line.startswith("ExecStart=")]
    assert command == (
        'ExecStart="/opt/my venv/python" -m a.b.one --uri "qemu+unix:///system?socket=/a \\"b%%20$$c\\\\d" --timeout 5'
    )
