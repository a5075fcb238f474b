#!/bin/bash
# On fresh output bases everything is a cache hit, whether outputs are downloaded or not, and after a restart of the farm.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "$0")/../lib.sh"
open_bazel7
data=$WORK/cold_build/data
[ -d "$data" ] || data=$STORY/data
farm_start_sid "$data"
if [ "$data" = "$STORY/data" ]; then
  # shellcheck disable=SC2046 # flags are words
  bazel cold test //... $(remote) || fail "the build that fills the cache failed: see cold.log"
  close_bazel cold
fi
for download in minimal all; do
  # shellcheck disable=SC2046 # flags are words
  bazel "$download" test //... $(remote) "--remote_download_$download" \
    --execution_log_json_file="$STORY/$download.json" || fail "the build with $download downloads failed: see $download.log"
  close_bazel "$download"
  expect_spawns "$STORY/$download.json" --only "remote cache hit" --at-least 300
done
if [ -d "$WORK/local_build/out" ]; then
  expect_same_outputs "$(bin_of "$WORK/local_build/out")" "$(bin_of "$STORY/all")"
fi
[ ! -e "$(bin_of "$STORY/minimal")/gen/large.bin" ] || fail "a minimal download brought the large output"
farm_stop
