# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`python3 -m virtlab`"""

from __future__ import annotations

import sys

from .cli import main

sys.exit(main())
