#!/bin/bash
# With compression on the wire and at rest a build is the same, and on a fresh output base everything is a cache hit.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "$0")/../lib.sh"
open_bazel7
FARM_CONFIG=$STORY/farm.toml
printf '[[storage.tier]]\nkind = "disk"\ncompression = true\n' > "$FARM_CONFIG"
farm_start_sid "$STORY/data"
for base in cold warm; do
  # shellcheck disable=SC2046 # flags are words
  bazel "$base" build //gen/... //tree/... $(remote) --remote_download_all --remote_cache_compression \
    --execution_log_json_file="$STORY/$base.json" || fail "the $base build failed: see $base.log"
  close_bazel "$base"
done
expect_spawns "$STORY/warm.json" --only "remote cache hit" --at-least 15
if [ -d "$WORK/local_build/out" ]; then
  expect_same_outputs "$(bin_of "$WORK/local_build/out")" "$(bin_of "$STORY/warm")" --within gen
fi
farm_stop
