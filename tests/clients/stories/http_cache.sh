#!/bin/bash
# Bazel builds by itself with the farm as a cache over plain HTTP: what one output base built is a hit for the next.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "$0")/../lib.sh"
open_bazel7
farm_start_sid "$STORY/data"
for base in cold warm; do
  bazel "$base" build //gen/... //tree/... --remote_cache="http://127.0.0.1:$PUBLIC" --remote_download_all \
    --execution_log_json_file="$STORY/$base.json" || fail "the $base build failed: see $base.log"
  close_bazel "$base"
done
expect_spawns "$STORY/warm.json" --only "remote cache hit" --at-least 15
farm_stop
