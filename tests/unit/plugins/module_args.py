# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Gives a module its arguments as Ansible does; ansible-core has this itself from 2.19 on."""

from __future__ import annotations

try:
    from ansible.module_utils.testing import patch_module_args
except ImportError:
    import json
    from collections.abc import Iterator
    from contextlib import contextmanager
    from typing import Any
    from unittest import mock

    from ansible.module_utils import basic

    @contextmanager
    def patch_module_args(args: dict[str, Any]) -> Iterator[None]:
        given = json.dumps({"ANSIBLE_MODULE_ARGS": args}).encode()
        with mock.patch.object(basic, "_ANSIBLE_ARGS", given):
            yield


__all__ = ["patch_module_args"]
