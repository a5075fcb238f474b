#!/bin/bash
# With 500 jobs Bazel hands all of its actions in at once; the farm takes them, and every one is run.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "$0")/../lib.sh"
ACTIONS=500

queued() { admin_get /metrics | tr -d '\r' | awk '/^nativelink_scheduler_queue_length/ { sum += $NF } END { printf "%d\n", sum }'; }
many_queued() { [ "$(queued)" -ge $((ACTIONS / 2)) ]; }

open_bazel7
mkdir -p "$STORY/workspace"
WORKSPACE=$STORY/workspace
cp "$WORK/workspace7/.bazelrc" "$WORKSPACE/"
echo 'workspace(name = "croft_clients")' > "$WORKSPACE/WORKSPACE"
cat > "$WORKSPACE/BUILD" << TEXT
[genrule(name = "item%d" % number, outs = ["item%d.txt" % number], cmd = "sleep 0.1; echo %d > \$@" % number) for number in range($ACTIONS)]
filegroup(name = "all_items", srcs = [":item%d" % number for number in range($ACTIONS)])
TEXT
farm_start_sid "$STORY/data"
# shellcheck disable=SC2046 # flags are words
bazel out build //:all_items $(remote) --jobs=500 --remote_download_all --execution_log_json_file="$STORY/spawns.json" &
build=$!
wait_until 120 many_queued || fail "at most $(queued) actions were queued at once"
wait "$build" || fail "the build failed: see out.log"
expect_spawns "$STORY/spawns.json" --only remote --at-least "$ACTIONS"
for number in 0 $((ACTIONS - 1)); do
  [ "$(cat "$(bin_of "$STORY/out")/item$number.txt")" = "$number" ] || fail "item $number is wrong"
done
farm_is_idle || fail "the farm is not idle after the build"
farm_stop
