# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Imported (by pytest: `-p tests.tools.interruptible`), it makes a SIGTERM a KeyboardInterrupt.

So what was set up is taken down, also where a SIGINT is ignored, as in the background of a script.
"""

from __future__ import annotations

import signal

signal.signal(signal.SIGTERM, signal.default_int_handler)
