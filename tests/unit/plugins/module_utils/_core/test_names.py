# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest

from ansible_collections.virtops.libvirt.plugins.module_utils._core.errors import VirtopsError
from ansible_collections.virtops.libvirt.plugins.module_utils._core.names import check_job_name, check_record_name


@pytest.mark.parametrize("name", ["a", "x" * 200, "x" * 247, "é" * 123, " <a> & 'b' \\ ü ☃", "-rf", "a.b"])
def test_a_name_for_a_record(name: str) -> None:
    check_record_name(name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "empty"),
        (" ", "blank"),
        ("\t\u00a0", "blank"),
        ("a/b", "slash"),
        (".a", "dot"),
        ("x" * 248, "248 bytes"),
        ("é" * 200, "400 bytes"),
    ],
)
def test_no_name_for_a_record(name: str, words: str) -> None:
    with pytest.raises(VirtopsError) as caught:
        check_record_name(name)
    assert caught.value.code == "name_unsuitable"
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["a b", "é", "a&b", ""])
def test_a_job_of_qemu_has_a_plain_name_since_libvirt_10_9(name: str) -> None:
    check_job_name(name, 10_008_000)
    check_job_name("Release-4.1_x", 10_009_000)
    with pytest.raises(VirtopsError) as caught:
        check_job_name(name, 10_009_000)
    assert caught.value.code == "name_unsuitable"
