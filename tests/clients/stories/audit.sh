#!/bin/bash
# A genrule that gives another output each time is found among those that do not, and its file and line are named.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "$0")/../lib.sh"

# write_workspace   two genrules that give the same each time, and one that has the time in its second line
write_workspace() {
  WORKSPACE=$STORY/workspace
  mkdir -p "$WORKSPACE/made"
  cp "$WORK/workspace7/WORKSPACE" "$WORK/workspace7/.bazelrc" "$WORKSPACE/"
  cat > "$WORKSPACE/made/BUILD" << 'BUILD'
genrule(name = "steady", outs = ["steady.txt"], cmd = "echo steady > $@")
genrule(name = "stamped", outs = ["stamped.txt"], cmd = "echo version 1 > $@; date +%s.%N >> $@")
genrule(name = "sum", srcs = ["steady.txt"], outs = ["sum.txt"], cmd = "sha256sum < $< > $@")
BUILD
}

open_bazel7
write_workspace
farm_start_sid "$STORY/data"
# shellcheck disable=SC2046 # flags are words
bazel out build //made:all $(remote) || fail "the build failed: see out.log"
close_bazel out
code=0
"$CROFT" audit --sample 100 --wait --admin "http://127.0.0.1:$ADMIN" > "$STORY/audit.txt" 2>&1 || code=$?
[ "$code" = 1 ] || fail "the audit ended with exit code $code: see audit.txt"
expect_text "$STORY/audit.txt" "made/stamped.txt: other content, line 2: "
expect_text "$STORY/audit.txt" "2 same, 1 differ, 0 failed"
tail -n 1 "$STORY/audit.txt"
farm_stop
