#!/bin/bash
# kill -9 of the farm in the middle of a build, and a start on the same ports and data: the build goes on by itself, and what had
# finished does not run again.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "$0")/../lib.sh"

downloaded() { find "$(bin_of "$STORY/out")/many" -name 'item*.txt' 2> /dev/null | wc -l; }
enough_downloaded() { [ "$(downloaded)" -ge $((MANY / 4)) ]; }

open_bazel7
farm_start_sid "$STORY/data"
# Bazel retries what is UNAVAILABLE with pauses that double; with more retries than the usual five it outlasts the restart on any machine.
# shellcheck disable=SC2046 # flags are words
bazel out build //many:all_items $(remote) --remote_download_all --remote_retries=10 \
  --execution_log_json_file="$STORY/spawns.json" &
build=$!
wait_until 120 enough_downloaded || fail "only $(downloaded) of $MANY outputs after 120 s"
seen=$(downloaded)
farm_kill
[ "$(downloaded)" -lt "$MANY" ] || fail "the build was over before the farm was killed: nothing is shown"
farm_start_sid "$STORY/data"
wait "$build" || fail "the build did not go on after the restart: see out.log"
expect_spawns "$STORY/spawns.json" --only remote "remote cache hit" --at-least "$MANY"
for ((number = 0; number < MANY; number += 2)); do
  cmp --quiet "$(printf '%s/many/item%05d.txt' "$(bin_of "$STORY/out")" "$number")" <(echo "item $number of seed 1") ||
    fail "item $number is wrong after the restart"
done
runs=$(metric croft_scheduler_starts_total)
if [ "$runs" -eq 0 ] || [ "$runs" -gt $((MANY - seen)) ]; then
  fail "$seen of $MANY were done before the kill, but $runs ran after it"
fi
echo "$seen of $MANY done before the kill, $runs run after it"
farm_stop
