#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# What an administrator would do by hand, guest after guest: recipe.sh bare|durable|checked DEST GUEST...
# durable: the copies are brought to the disk, and have checksums; checked: and are read back from there.
# No journal, nothing for the case that a step fails. Prints how long each guest was on its overlays, in ms.

set -euo pipefail
export LIBVIRT_DEFAULT_URI=qemu:///system

way=$1 dest=$2
shift 2
for guest in "$@"; do
  set_=$dest/$guest/$(date -u +%Y%m%dT%H%M%SZ)
  mkdir -p "$set_"
  declare -A bases=()
  while read -r _ device target source; do
    if [[ $device == disk ]]; then bases[$target]=$source; fi
  done < <(virsh -q domblklist "$guest" --details)

  virsh -q snapshot-create-as "$guest" recipe --disk-only --quiesce --atomic --no-metadata
  began=$(date +%s%3N)
  for target in "${!bases[@]}"; do
    cp --sparse=always "${bases[$target]}" "$set_/$target.${bases[$target]##*.}"
  done
  for target in "${!bases[@]}"; do
    virsh -q blockcommit "$guest" "$target" --active --wait --pivot
    rm "${bases[$target]%.*}.recipe"
  done
  echo "window_ms: $(($(date +%s%3N) - began))"

  if [[ $way != bare ]]; then
    sync "$set_"/*
    (cd "$set_" && sha256sum -- * >SHA256SUMS)
  fi
  if [[ $way == checked ]]; then
    for copy in "$set_"/*; do dd of="$copy" oflag=nocache conv=notrunc,fdatasync count=0 status=none; done
    (cd "$set_" && sha256sum --check --quiet SHA256SUMS)
  fi
  unset bases
done
