#!/bin/bash
# Runs Bazel 7 of the Debian sid root on a workspace of the host.
#
#   scripts/clients/bazel7.sh WORKSPACE ARGUMENTS…     for example: bazel7.sh /var/tmp/ws build //... --remote_executor=grpc://…
#   scripts/clients/bazel7.sh --close                  ends its servers, processes and mounts
#
# WORKSPACE lies under /tmp or /var/tmp, which the root shares with the host. The root stays open between calls, and with it
# the Bazel server. Needs scripts/clients/setup.sh once, and root.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR source=root.sh
source "$here/root.sh"
cache=${CROFT_TEST_CACHE:-/var/cache/croft-test}
state=$cache/bazel7

[ $# -gt 0 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 64; }
if [ "$1" = --close ]; then
  root_close "$state"
  exit
fi
workspace=$(realpath "$1")
shift
case $workspace in
  /tmp/* | /var/tmp/*) ;;
  *) echo "bazel7.sh: $workspace is not under /tmp or /var/tmp, the root does not see it" >&2; exit 64 ;;
esac
[ -f "$cache/sid/.installed" ] || { echo "bazel7.sh: no Bazel in $cache/sid, run scripts/clients/setup.sh" >&2; exit 3; }
exec 9> "$cache/bazel7.lock"
flock 9
root_is_open "$state" || root_open "$cache/sid" "$state" 9>&-
exec 9>&-
root_run "$state" "$workspace" bazel --max_idle_secs=1800 --host_jvm_args=-Xmx3g "$@"
