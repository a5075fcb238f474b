# shellcheck shell=bash
# Functions to run commands in a root file system of their own: source this file.
#
# An open root is one mount namespace and one pid namespace, held by a process of ours. Two reasons: Bazel finds its server
# again only in the mount namespace that it left it in, and when the holder dies the kernel ends every process in the root
# and drops every mount. Nothing is mounted in the host's own namespace, so two open roots never see each other.
# /tmp and /var/tmp are the host's, under the same paths: what is to be seen on both sides lives there.

# root_open ROOT STATE [parent]   ROOT may be /. The folder STATE gets the holder's pid. With "parent", the root also closes
# when the calling shell ends, however it ends.
root_open() {
  local root=$1 state=$2 tie=(setsid)
  [ "${3:-}" = parent ] && tie=(setpriv --pdeathsig KILL)
  mkdir -p "$state"
  rm -f "$state/ready"
  "${tie[@]}" unshare --mount --pid --fork --kill-child --propagation private \
    bash -c "$ROOT_HOLDER" holder "$root" "$state" > "$state/log" 2>&1 < /dev/null &
  echo "$!" > "$state/pid"
  echo "$root" > "$state/root"
  local tries
  for tries in {1..100}; do
    [ -e "$state/ready" ] && return 0
    kill -0 "$(cat "$state/pid")" 2> /dev/null || break
    sleep 0.1
  done
  echo "cannot open the root $root after $tries tries: $(tail -n 1 "$state/log")" >&2
  root_close "$state"
  return 1
}

# The first process of the root's pid namespace: mounts, then reaps orphans until it is killed.
# shellcheck disable=SC2016 # expanded by the shell that runs it
ROOT_HOLDER='set -e
root=${1%/}
mount -t proc proc "$root/proc"
if [ -n "$root" ]; then
  mount --rbind /sys "$root/sys"
  mount --rbind /dev "$root/dev"
  mount --bind /tmp "$root/tmp"
  mount --bind /var/tmp "$root/var/tmp"
fi
touch "$2/ready"
while :; do sleep 3600 & wait "$!" || true; done'

# root_run STATE DIRECTORY COMMAND…   runs a command in an open root, with an environment of its own.
# The locale is ISO-8859-1 where the root has it: Bazel 7 does not find files with other than ASCII names under C.UTF-8.
root_run() {
  local state=$1 directory=$2 root locale=en_US.ISO-8859-1
  shift 2
  root=$(cat "$state/root")
  [ "$root" = / ] && locale=C
  # shellcheck disable=SC2016 # expanded by the shell in the root
  nsenter --target "$(root_holder "$state")" --mount --pid \
    chroot "$root" /usr/bin/env -i --default-signal=INT \
    HOME=/root TERM=dumb LANG="$locale" LC_ALL="$locale" PATH="$ROOT_PATH" \
    sh -c 'cd "$0" && exec "$@"' "$directory" "$@"
}

ROOT_PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

# root_holder STATE   prints the pid, as the host sees it, of the root's first process.
root_holder() {
  pgrep --parent "$(cat "$1/pid")"
}

# root_is_open STATE   A pid alone proves little after a restart of the machine, so what it runs is looked at.
root_is_open() {
  local pid
  pid=$(cat "$1/pid" 2> /dev/null) || return 1
  tr '\0' ' ' 2> /dev/null < "/proc/$pid/cmdline" | grep --quiet --fixed-strings " $1" && root_holder "$1" > /dev/null
}

# root_close STATE   ends every process in the root and with them its namespaces and mounts. Closing twice is no error.
root_close() {
  local state=$1 pid
  pid=$(cat "$state/pid" 2> /dev/null) || return 0
  if root_is_open "$state"; then
    kill -KILL "$pid"
    wait "$pid" 2> /dev/null || true
    while [ -d "/proc/$pid" ]; do sleep 0.05; done
  fi
  rm -f "$state/pid" "$state/ready" "$state/root" "$state/log"
}
