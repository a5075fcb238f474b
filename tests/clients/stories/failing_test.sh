#!/bin/bash
# A failing test is reported as failed, with what it printed.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "$0")/../lib.sh"
open_bazel7
farm_start_sid "$STORY/data"
# shellcheck disable=SC2046 # flags are words
expect_code 3 bazel out test //broken:failing_test $(remote) --execution_log_json_file="$STORY/spawns.json"
expect_text "$STORY/out.last" "the failing test says on stdout: expected 4, got 5"
expect_text "$STORY/out.last" "the failing test says on stderr: see above"
expect_text "$STORY/out.last" "FAILED in"
expect_spawns "$STORY/spawns.json" --only remote --at-least 3
farm_stop
