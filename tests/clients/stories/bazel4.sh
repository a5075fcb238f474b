#!/bin/bash
# Bazel 4.2.3, whose messages are those of REv2.0, builds and tests on a farm that shows actions the host's own /usr.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "$0")/../lib.sh"
open_bazel4
bazel local test //... || fail "the local build failed: see local.log"
close_bazel local
farm_start "$STORY/data"
# shellcheck disable=SC2046 # flags are words
bazel cold test //... $(remote) --execution_log_json_file="$STORY/cold.json" || fail "the remote build failed: see cold.log"
close_bazel cold
expect_spawns "$STORY/cold.json" --only remote --at-least 300
expect_same_outputs "$(bin_of "$STORY/local")" "$(bin_of "$STORY/cold")"
# shellcheck disable=SC2046 # flags are words
bazel cached test //... $(remote) --execution_log_json_file="$STORY/cached.json" || fail "the second build failed: see cached.log"
expect_spawns "$STORY/cached.json" --only "remote cache hit" --at-least 300
expect_same_outputs "$(bin_of "$STORY/local")" "$(bin_of "$STORY/cached")"
farm_stop
