#!/bin/bash
# Tells the stories of vm-tests/ on machines that stand for NixOS hosts: containers with a systemd of their own, which runs the units
# that the modules give.
#
#   scripts/nix/stories.sh [STORY…]    without arguments all of them
#
# What it needs beside setup.sh: root, and ../shared/nix/tools, which makes the containers' Debian and drives them. On a machine with
# virtual machines and nixpkgs, `nix flake check` tells the same stories on NixOS itself.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source scripts/nix/setup.sh
story_seconds=360 # more than a story takes by itself, so that it can tidy up
stories_at_once=2 # they mostly wait, and a machine has two cores at least
root_seconds=600
running=0
failed=0
suite=trixie
# What the stand-in's packages are in the containers.
packages=busybox-static,haproxy,prometheus,prometheus-alertmanager,prometheus-node-exporter,redis-server

main() {
  local stories=("$@") story
  [ "$(id -u)" = 0 ] || skip "only root can make containers"
  [ -f $shared/tools/vmtest.py ] || skip "there is nothing to drive containers with at $shared/tools"
  [ "${#stories[@]}" -gt 0 ] || mapfile -t stories < <(find vm-tests -maxdepth 1 -name '*.nix' ! -name default.nix -printf '%f\n' | sed 's/[.]nix$//' | sort)
  install_packages
  set_up
  make_root
  for story in "${stories[@]}"; do
    [ "$running" -lt "$stories_at_once" ] || finish_one
    tell "$story" &
    running=$((running + 1))
  done
  while [ "$running" -gt 0 ]; do
    finish_one
  done
  echo "${#stories[@]} stories, $failed failed"
  [ "$failed" = 0 ]
}

install_packages() {
  local missing=()
  command -v systemd-nspawn > /dev/null || missing+=(systemd-container)
  command -v mmdebstrap > /dev/null || missing+=(mmdebstrap)
  command -v ip > /dev/null || missing+=(iproute2)
  command -v setpriv > /dev/null || missing+=(util-linux)
  command -v busybox > /dev/null || missing+=(busybox-static)
  [ "${#missing[@]}" = 0 ] && return
  apt_install "${missing[@]}" || { apt-get update --quiet && apt_install "${missing[@]}"; } ||
    skip "apt cannot install ${missing[*]}"
}

apt_install() {
  DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --no-install-recommends "$@" > /dev/null
}

# Another list of packages is another root.
make_root() {
  root=$cache/hosts/$suite-$(md5sum <<< "$packages" | cut -c 1-8)
  mkdir -p "$cache/hosts"
  [ -d "$root" ] || timeout "$root_seconds" $shared/tools/mkroot.sh "$root" "$suite" "$packages" ||
    skip "the containers' Debian cannot be made"
}

finish_one() {
  wait -n || failed=$((failed + 1))
  running=$((running - 1))
}

# tell STORY
tell() {
  local said=$work/$1.said
  quietly nix build --out-link "$work/$1" "${flags[@]}" "path:$work/source#checks.$(uname -m)-linux.$1" || return 1
  # The driver may look for a container's init a moment too early.
  drive "$1" > "$said" 2>&1 || { grep --quiet 'died while booting' "$said" && drive "$1" > "$said" 2>&1; } || { cat "$said"; return 1; }
  tail -n 1 "$said" | cut -d ';' -f 1
}

# The variable keeps the containers from filtering system calls: theirs is not the filter of a machine, and the sandbox leaves the
# keyring of its session.
drive() {
  SYSTEMD_SECCOMP=0 timeout "$story_seconds" python3 $shared/tools/vmtest.py "$work/$1" --root "$root" --out "$work/out"
}

main "$@"
