# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Each fault that a run has to survive, made for real; and the proof that each of these tests can fail."""
