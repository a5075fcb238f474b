#!/bin/bash
# A test that never ends is stopped after its 12 s, reported as TIMEOUT with what it printed, and its children end with it.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "$0")/../lib.sh"
TIMEOUT_SECONDS=12
SLACK_SECONDS=20
open_sleepers
farm_start_sid "$STORY/data"
# shellcheck disable=SC2046 # flags are words
bazel out build //slow:sleeping_test $(remote) --test_timeout="$TIMEOUT_SECONDS" || fail "the build failed: see out.log"
start=$SECONDS
# shellcheck disable=SC2046 # flags are words
expect_code 3 bazel out test //slow:sleeping_test $(remote) --test_timeout="$TIMEOUT_SECONDS"
took=$((SECONDS - start))
expect_none_sleeps "the timeout"
expect_text "$STORY/out.last" "TIMEOUT in"
expect_text "$STORY/out.last" "the sleeping test says: about to sleep"
[ "$took" -ge "$((TIMEOUT_SECONDS - 1))" ] || fail "reported after $took s, before the timeout"
[ "$took" -le "$((TIMEOUT_SECONDS + SLACK_SECONDS))" ] || fail "reported only after $took s"
farm_is_ready || fail "the farm is not ready after the timeout"
farm_stop
