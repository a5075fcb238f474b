#!/bin/bash
# On an empty farm everything runs remotely, and the outputs are those of the local build.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "$0")/../lib.sh"
open_bazel7
farm_start_sid "$STORY/data"
expect_text "$STORY/farm.log" "--remote_executor=grpc://127.0.0.1:$PUBLIC"
# shellcheck disable=SC2046 # flags are words
bazel out test //... $(remote) --remote_download_all --execution_log_json_file="$STORY/spawns.json" ||
  fail "the remote build failed: see out.log"
expect_spawns "$STORY/spawns.json" --only remote --at-least 300
if [ -d "$WORK/local_build/out" ]; then
  expect_same_outputs "$(bin_of "$WORK/local_build/out")" "$(bin_of "$STORY/out")"
fi
farm_stop
