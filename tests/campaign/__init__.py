# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Live backups of a writing guest, each killed at a random moment and run again: nothing is lost, nothing is left."""
