#!/bin/bash
# Unpacks what the machine of tests/machine is made of into ${CROFT_TEST_CACHE:-/var/cache/croft-test}/machine: qemu, a static
# busybox and Debian's cloud kernel. Nothing is installed on the host; the packages are only unpacked.
#
# The exit code is 3, and the last line says why, when they cannot be had.
set -euo pipefail

machine=${CROFT_TEST_CACHE:-/var/cache/croft-test}/machine
packages=(qemu-system-x86 seabios ipxe-qemu busybox-static)
format=1             # of the folder; another number unpacks it anew
download_seconds=300 # a mirror that hangs must not take the tests' time
skipped=3

main() {
  mkdir -p "$machine" 2> /dev/null || true
  [ -w "$machine" ] || skip "$machine cannot be written"
  exec {lock}> "$machine/lock"
  flock "$lock"
  [ "$(cat "$machine/version" 2> /dev/null)" = "$format" ] && return
  [ "$(dpkg --print-architecture 2> /dev/null)" = amd64 ] || skip "the machine is a Debian for amd64, and this is none"
  rm -rf --one-file-system "$machine/root" "$machine/debs"
  mkdir -p "$machine/root" "$machine/debs"
  download || skip "Debian's packages of qemu and of the cloud kernel cannot be downloaded"
  unpack || skip "Debian's packages cannot be unpacked"
  rm -rf --one-file-system "$machine/debs"
  echo "$format" > "$machine/version"
}

# What is installed already is left out; programs find it where it is.
download() {
  local all kernel
  all=$(apt-get install --simulate --no-install-recommends "${packages[@]}" | awk '/^Inst/ { print $2 }') || return 1
  kernel=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/ { print $2; exit }') || return 1
  [ -n "$kernel" ] || return 1
  # shellcheck disable=SC2086 # a list of names
  (cd "$machine/debs" && timeout "$download_seconds" apt-get download --quiet $all "$kernel")
}

unpack() {
  local deb
  for deb in "$machine"/debs/*.deb; do
    dpkg-deb --extract "$deb" "$machine/root" || return 1
  done
}

skip() {
  echo "$1"
  exit "$skipped"
}

main "$@"
