#!/bin/bash
# Ctrl-C in Bazel ends the actions that run for it; the farm stays up, idle and able to work.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "$0")/../lib.sh"

# The client is the last of a chain of programs, each started by the one before.
client_of() {
  local pid=$1 child
  while child=$(pgrep --parent "$pid" | head -n 1) && [ -n "$child" ]; do
    pid=$child
  done
  echo "$pid"
}

open_sleepers
farm_start_sid "$STORY/data"
# shellcheck disable=SC2046 # flags are words
bazel out build //slow:sleeper0 //slow:sleeper1 $(remote) &
build=$!
wait_until 90 some_sleep || fail "no action runs 90 s after the start of the build"
kill -INT "$(client_of "$build")"
expect_none_sleeps "Ctrl-C"
expect_code 8 wait "$build"
wait_until 10 farm_is_idle || fail "the farm is not idle 10 s after Ctrl-C"
# shellcheck disable=SC2046 # flags are words
bazel out build //gen:kibibyte $(remote) || fail "the build after Ctrl-C failed: see out.log"
farm_stop
