#!/bin/bash
# kill -9 of the farm in the middle of a build: started again on the same data it still has every result that a client saw,
# and the build completes with the right outputs.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "$0")/../lib.sh"

downloaded() { find "$(bin_of "$STORY/$1")/many" -name 'item*.txt' 2> /dev/null | wc -l; }
enough_downloaded() { [ "$(downloaded first)" -ge $((MANY / 4)) ]; }

expect_right_items() {
  local number file wanted
  for ((number = 0; number < MANY; number++)); do
    file=$(printf '%s/many/item%05d.txt' "$(bin_of "$STORY/$1")" "$number")
    wanted="echo item $number of seed 1"
    [ $((number % 2)) = 0 ] || wanted="seq $number $((number + 1500))"
    cmp --quiet "$file" <($wanted) || fail "item $number is wrong after the restart"
  done
}

open_bazel7
farm_start_sid "$STORY/data"
# Without retries Bazel gives up at once when the farm is gone, so that the second build alone shows what was kept.
# shellcheck disable=SC2046 # flags are words
bazel first build //many:all_items //gen:large $(remote) --remote_download_all --remote_retries=0 &
build=$!
wait_until 120 enough_downloaded || fail "only $(downloaded first) of $MANY outputs after 120 s"
seen=$(downloaded first)
farm_kill
code=0
wait "$build" || code=$?
[ "$code" != 0 ] || fail "the build was over before the farm was killed: nothing is shown"
close_bazel first

farm_start_sid "$STORY/data"
# shellcheck disable=SC2046 # flags are words
bazel second build //many:all_items //gen:large $(remote) --remote_download_all \
  --execution_log_json_file="$STORY/spawns.json" || fail "the build after the restart failed: see second.log"
expect_spawns "$STORY/spawns.json" --only remote "remote cache hit" --at-least "$MANY"
hits=$(grep --count '"runner": "remote cache hit"' "$STORY/spawns.json" || true)
[ "$hits" -ge "$seen" ] || fail "$seen results were seen before the kill, but only $hits are cached after it"
expect_right_items second
if [ -d "$WORK/local_build/out" ]; then
  expect_same_outputs "$(bin_of "$WORK/local_build/out")" "$(bin_of "$STORY/second")" --within gen/large.bin
fi
echo "$seen results seen before the kill, $hits cached after it"
farm_stop
