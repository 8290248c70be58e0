# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Stands in for the get-pip.py that ansible-test downloads to put pip into its empty virtual environments.

Its download comes from a server of Ansible's own, which a machine that reaches only the package registries cannot
open. ansible-test looks first for ~/.ansible/test/cache/get_pip_<version>.py; noxfile.py puts this file there if there
is none. It gets the arguments of get-pip.py: pip's own for "install", and --no-setuptools and --no-wheel.
Runs on each Python that ansible-test supports as a target.
"""

from __future__ import annotations

import subprocess
import sys

arguments = [argument for argument in sys.argv[1:] if argument not in ("--no-setuptools", "--no-wheel")]
subprocess.check_call([sys.executable, "-m", "ensurepip", "--default-pip"], stdout=subprocess.DEVNULL)
subprocess.check_call([sys.executable, "-m", "pip", "install", "--upgrade", *arguments])
