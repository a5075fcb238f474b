#!/bin/bash
# Sets up the real clients that the farm is tested with: Bazel 7 in a Debian sid root, and on Debian 12 Bazel 4 of the host.
#
#   scripts/clients/setup.sh            the root is ${CROFT_TEST_CACHE:-/var/cache/croft-test}/sid
#
# Run again it finds everything there and takes no time; a run that was interrupted leaves nothing that the next one trips over.
# Needs root, 2.5 GiB and a Debian mirror (that of the host's apt). Exit code 3, with one line that says why, when Bazel 7 is
# not to be had here: tests are then skipped.
set -euo pipefail

cache=${CROFT_TEST_CACHE:-/var/cache/croft-test}
sid=$cache/sid
unfinished=$cache/sid.unfinished
log=$cache/setup.log
bootstrap_seconds=150 # a mirror that takes longer than these two is of no use
install_seconds=200
export DEBIAN_FRONTEND=noninteractive LC_ALL=C

main() {
  [ "$(id -u)" = 0 ] || skip "needs root, for a Debian root file system and its mounts"
  mkdir -p "$cache" 2> /dev/null || skip "cannot write to $cache (CROFT_TEST_CACHE chooses another folder)"
  exec 9> "$cache/lock"
  flock --timeout $((bootstrap_seconds + install_seconds)) 9 || skip "another setup holds $cache/lock"
  host_bazel
  if [ -f "$sid/.installed" ]; then
    echo "clients: Bazel 7 is set up in $sid"
  else
    sid_root
    echo "clients: Bazel 7 is newly set up in $sid"
  fi
  configure
}

skip() {
  echo "clients: skipped, $*"
  exit 3
}

# install PACKAGE…   The lists of packages are fetched only when a package is not found without.
install() {
  apt-get install --yes --quiet --no-install-recommends "$@" >> "$log" 2>&1 && return
  apt-get update --quiet >> "$log" 2>&1 || true
  apt-get install --yes --quiet --no-install-recommends "$@" >> "$log" 2>&1
}

# Bazel 4 is packaged in Debian 12 alone. Without it only its own test is skipped.
host_bazel() {
  grep --quiet '^VERSION_CODENAME=bookworm' /etc/os-release || return 0
  [ -x /usr/bin/bazel-4 ] && [ -d /usr/share/bazel/rules/java ] && command -v javac g++ > /dev/null && return
  install bazel-bootstrap bazel-rules-java default-jdk-headless g++ ||
    echo "clients: no Bazel 4, apt cannot install bazel-bootstrap: $(tail -n 1 "$log")"
}

# The root is built under another name and renamed when it is complete.
sid_root() {
  command -v debootstrap > /dev/null || install debootstrap || skip "apt cannot install debootstrap: $(tail -n 1 "$log")"
  discard "$unfinished"
  discard "$sid"
  local where
  mapfile -t where < <(mirror)
  confined "$bootstrap_seconds" debootstrap --variant=minbase --include=ca-certificates sid "$unfinished" "${where[@]}" ||
    skip "debootstrap cannot get Debian sid: $(tail -n 1 "$log")"
  touch "$unfinished/.bootstrapped"
  prepare_apt
  # shellcheck disable=SC2016 # expanded by the inner shell
  confined "$install_seconds" bash -ec '
    mount -t proc proc "$1/proc"
    mount --rbind /dev "$1/dev"
    chroot "$1" apt-get update --quiet
    chroot "$1" apt-get install --yes --quiet bazel-bootstrap default-jdk-headless gcc g++ python3 locales \
      zip unzip file procps
    chroot "$1" localedef -i en_US -f ISO-8859-1 en_US.ISO-8859-1
    chroot "$1" apt-get clean
  ' install "$unfinished" || skip "apt cannot install Bazel 7 in the sid root: $(tail -n 1 "$log")"
  touch "$unfinished/.installed"
  mv "$unfinished" "$sid"
}

# confined SECONDS COMMAND…   Mounts and processes of the command end with it, however it ends: it has namespaces of its own.
# In the foreground Ctrl-C reaches it; the KILL is for a first process of a pid namespace, which ignores TERM.
confined() {
  timeout --foreground --kill-after=5 "$1" \
    unshare --mount --pid --fork --kill-child --propagation private "${@:2}" >> "$log" 2>&1
}

# Only what a run of this script began is removed, and nothing that is mounted in it.
discard() {
  [ -e "$1" ] || return 0
  [ "$1" = "$unfinished" ] || [ -f "$1/.bootstrapped" ] || skip "$1 is there, but not made by this script"
  rm -rf --one-file-system "$1"
}

# The host's own mirror; without one, debootstrap takes its default.
mirror() {
  # shellcheck disable=SC2016 # expanded by apt
  apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2> /dev/null | grep --max-count=1 '/debian/$' || true
}

prepare_apt() {
  cp --dereference /etc/resolv.conf /etc/hosts "$unfinished/etc/"
  printf '#!/bin/sh\nexit 101\n' > "$unfinished/usr/sbin/policy-rc.d"
  chmod 755 "$unfinished/usr/sbin/policy-rc.d"
  cat > "$unfinished/etc/apt/apt.conf.d/99croft-test" << 'APT'
Acquire::Check-Valid-Until "false";
Acquire::Check-Date "false";
Acquire::Languages "none";
APT::Install-Recommends "false";
APT
}

# No rule set is downloaded: WORKSPACE mode, with Debian's own copies of them.
configure() {
  mkdir -p "$sid/var/tmp" "$sid/tmp"
  cat > "$sid/etc/bazel.bazelrc.new" << 'RC'
# Debian's Bazel does not find its own zstd library: --remote_cache_compression dies without this
startup --host_jvm_args=-Djava.library.path=/usr/share/bazel:/usr/lib/x86_64-linux-gnu
common --noenable_bzlmod
common --override_repository=rules_cc=/usr/share/bazel/rules/cc
common --override_repository=rules_java=/usr/share/bazel/rules/java
common --override_repository=rules_java_builtin=/usr/share/bazel/rules/java
common --override_repository=rules_python=/usr/share/bazel/rules/python
common --override_repository=rules_proto=/usr/share/bazel/rules/proto
common --override_repository=rules_license=/usr/share/bazel/rules/license
common --override_repository=bazel_features=/usr/share/bazel/tools/features
common --override_repository=bazel_skylib=/usr/share/bazel/tools/skylib
common --override_repository=platforms=/usr/share/bazel/tools/platforms
common --java_runtime_version=local_jdk --tool_java_runtime_version=local_jdk
common --color=no --curses=no --show_progress_rate_limit=10
RC
  # A Bazel that starts meanwhile reads the old file or the new one, never half of one.
  mv "$sid/etc/bazel.bazelrc.new" "$sid/etc/bazel.bazelrc"
}

main "$@"
