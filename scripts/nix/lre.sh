#!/bin/bash
# Builds what tests/clients/stories/lre.sh needs: toolchains in the Nix store, Bazel's configuration and that of a farm.
#
#   scripts/nix/lre.sh OUT    OUT becomes a link to the directory; see lre.nix for what is in it
#
# What it needs, and where from: scripts/nix/setup.sh. Without nixpkgs, the host's gcc and shell are copied into the store.
set -euo pipefail

[ $# = 1 ] || { sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 64; }
out=$(realpath --no-symlinks "$1")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source scripts/nix/setup.sh
set_up
if [ -z "${CROFT_NIXPKGS:-}" ]; then
  command -v patchelf > /dev/null || skip "there is no patchelf to bring the host's compiler into the store with"
fi
quietly nix build --out-link "$out" --impure --file scripts/nix/lre.nix --argstr nixpkgs "$nixpkgs"
