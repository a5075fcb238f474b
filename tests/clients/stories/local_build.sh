#!/bin/bash
# Bazel builds and tests the workspace without a farm: the yardstick that the other stories compare with.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "$0")/../lib.sh"
open_bazel7
bazel out test //... --execution_log_json_file="$STORY/spawns.json" || fail "the local build failed: see out.log"
expect_spawns "$STORY/spawns.json" --at-least 300
