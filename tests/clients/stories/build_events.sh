#!/bin/bash
# Bazel tells the farm of its build while it runs: the page of the invocation has its targets, its tests and their logs, and Bazel prints where
# that page is.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "$0")/../lib.sh"

# invocation   prints the identifier of the last invocation, out of the address that Bazel prints.
invocation() {
  sed -n 's|.*Streaming build results to: http://farm.example/invocations/\([0-9a-f-]*\).*|\1|p' "$STORY/out.last" | head -n 1
}

# expect_page TEXT…   The page of the last invocation has these texts.
expect_page() {
  local text
  [ -n "$(invocation)" ] || fail "Bazel does not print where the page is"
  admin_get "/invocations/$(invocation)" > "$STORY/page"
  for text in "$@"; do
    expect_text "$STORY/page" "$text"
  done
}

open_bazel7
farm_start_sid "$STORY/data"
read -ra flags <<< "$(remote) --bes_backend=grpc://127.0.0.1:$PUBLIC --bes_results_url=http://farm.example/invocations/"
flags+=(--remote_header=x-token=hunter2 --build_metadata=BRANCH=main)

bazel out build //tree/... "${flags[@]}" || fail "the build failed: $(grep --max-count=1 ERROR "$STORY/out.last")"
expect_page "build //tree/..." SUCCESS "//tree" "of which 0 failed" "BRANCH=main" "x-token=…"
! grep --quiet hunter2 "$STORY/page" || fail "a secret is on the page"

expect_code 3 bazel out test //shell:all //broken:failing_test --keep_going "${flags[@]}"
expect_page TESTS_FAILED //shell:checks_environment_test //broken:failing_test "2, of which 1 failed" passed
log=$(grep --only-matching --max-count=1 'href="/blobs/[^"]*' "$STORY/page" | head -n 1)
[ -n "$log" ] || fail "no log of a test is linked"
admin_get "${log#href=\"}" > "$STORY/log"
expect_text "$STORY/log" "the failing test says on stdout: expected 4, got 5"

expect_code 1 bazel out build //shell:no_such_target "${flags[@]}"
expect_page BUILD_FAILURE "//shell:no_such_target: loading failed"

# The farm has the result of the test.
bazel out clean || fail "bazel clean failed: see out.log"
bazel out test //shell:all "${flags[@]}" || fail "the build failed: $(grep --max-count=1 ERROR "$STORY/out.last")"
expect_page SUCCESS "1, of which 0 failed" "by a farm"
[ "$(metric croft_build_events_total)" -gt 40 ] || fail "only $(metric croft_build_events_total) events were counted"
! admin_get /metrics | grep --quiet 'croft_build_events_total{outcome="\(malformed\|refused\)"}' || fail "an event of Bazel was not understood"
farm_stop
