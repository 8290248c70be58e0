#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# What an administrator would do by hand, guest after guest: recipe.sh DEST GUEST...
# No journal, no checksum, no fsync, nothing for the case that a step fails.

set -euo pipefail
export LIBVIRT_DEFAULT_URI=qemu:///system

dest=$1
shift
for guest in "$@"; do
  set_=$dest/$guest/$(date -u +%Y%m%dT%H%M%SZ)
  mkdir -p "$set_"
  declare -A bases=()
  while read -r _ device target source; do
    if [[ $device == disk ]]; then bases[$target]=$source; fi
  done < <(virsh -q domblklist "$guest" --details)

  virsh -q snapshot-create-as "$guest" recipe --disk-only --quiesce --atomic --no-metadata
  for target in "${!bases[@]}"; do
    cp --sparse=always "${bases[$target]}" "$set_/$target.${bases[$target]##*.}"
  done
  for target in "${!bases[@]}"; do
    virsh -q blockcommit "$guest" "$target" --active --wait --pivot
    rm "${bases[$target]%.*}.recipe"
  done
  unset bases
done
