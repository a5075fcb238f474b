#!/bin/bash
# Sets up Nix, and something for nixpkgs, for the scripts of this folder, which source it in the root of the repository.
#
# CROFT           the binary that is checked; by default that of the release build
# CROFT_NIXPKGS   a flake that is used for nixpkgs, as github:NixOS/nixpkgs/nixos-unstable. By default a stand-in beside the
#                 repository, ../shared/nix/offline, which declares those options of NixOS that a farm sets and has the host's tools
#                 for packages: for machines that reach no cache of binaries. With the real one, `nix flake check` says more.
#
# Nix is taken from the PATH, or set up by ../shared/nix/tools/install-nix.sh in ${CROFT_TEST_CACHE:-/var/cache/croft-test}. Exits with 3
# when there is no Nix, or no nixpkgs and no stand-in.

shared=../shared/nix
cache=${CROFT_TEST_CACHE:-/var/cache/croft-test}
nix_seconds=300
skipped=3
export CROFT=${CROFT:-$PWD/${CARGO_TARGET_DIR:-target}/release/croft}
export NO_COLOR=1

# set_up   gives `work`, a directory that goes away with the script; `said`, a file there for what commands say; `nixpkgs`, a flake;
# `flags` for commands on flakes; and the sources.
set_up() {
  work=$(mktemp -d)
  said=$work/said
  trap 'rm -rf "$work"' EXIT
  find_nix
  find_nixpkgs
  copy_sources
  # shellcheck disable=SC2034 # for who sources this
  flags=(--impure --no-write-lock-file --override-input nixpkgs "$nixpkgs")
}

find_nix() {
  export PATH=$PATH:$cache/nix/bin:$cache/tools/bin
  if ! command -v nix > /dev/null; then
    [ -x $shared/tools/install-nix.sh ] || skip "there is no Nix on this machine"
    [ "$(id -u)" = 0 ] || skip "only root can set up Nix"
    timeout "$nix_seconds" $shared/tools/install-nix.sh "$cache/nix" || skip "Nix cannot be set up here"
  fi
  case $(command -v nix) in "$cache"/*) export NIX_CONF_DIR=$cache/nix/etc/nix ;; esac
  export NIX_CONFIG="experimental-features = nix-command flakes"
  nix --version
}

find_nixpkgs() {
  if [ -n "${CROFT_NIXPKGS:-}" ]; then
    nixpkgs=$CROFT_NIXPKGS
    return
  fi
  [ -d $shared/offline ] || skip "there is no stand-in for nixpkgs at $shared/offline, and CROFT_NIXPKGS is not set"
  [ -x "$CROFT" ] || skip "there is no croft at $CROFT"
  echo "nixpkgs is a stand-in: options have their names and types, packages the host's programs"
  extend_stand_in
  bring_croft
  # Its packages are made with the host's programs.
  NIX_CONFIG+=$'\nsandbox = false'
  nixpkgs=path:$work/nixpkgs
}

# What the stand-in lacks is ours; it keeps its place under another name.
extend_stand_in() {
  local file
  cp -r $shared/offline "$work/nixpkgs"
  for file in pkgs services; do
    mv "$work/nixpkgs/$file.nix" "$work/nixpkgs/base-$file.nix"
    cp "scripts/nix/stand-in/$file.nix" "$work/nixpkgs/"
  done
}

# Without what is for debuggers, since the store keeps every binary that was ever checked.
bring_croft() {
  strip -o "$work/croft" "$CROFT" 2> /dev/null || cp "$CROFT" "$work/croft"
  CROFT_IN_STORE=$(nix store add --name croft "$work/croft")
  export CROFT_IN_STORE
}

# Of a directory that is a flake, Nix copies all of it, and there may be gigabytes of builds here.
copy_sources() {
  mkdir "$work/source"
  tar --create --exclude=./.git --exclude=target . | tar --extract --directory "$work/source"
}

skip() {
  echo "$1"
  exit "$skipped"
}

# Nix says much when all is well. It is in `said`.
quietly() {
  "$@" > "$said" 2>&1 || { cat "$said"; return 1; }
}
