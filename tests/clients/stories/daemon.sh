#!/bin/bash
# An action that leaves processes behind, one of which holds its stdout, finishes at once, and its processes end with it.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "$0")/../lib.sh"
open_sleepers
farm_start_sid "$STORY/data"
# shellcheck disable=SC2046 # flags are words
bazel out build //daemon $(remote) --remote_timeout=60 --execution_log_json_file="$STORY/spawns.json" ||
  fail "the build failed: see out.log"
expect_none_sleeps "the build"
expect_spawns "$STORY/spawns.json" --only remote
farm_stop
