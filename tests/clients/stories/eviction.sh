#!/bin/bash
# The disk holds half of what a build makes, a bucket below it holds all: nothing that Bazel was told of is ever missing.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "$0")/../lib.sh"

DISK_MIB=64
LAYER=32
PART_BYTES=$((2 * DISK_MIB * 1024 * 1024 / LAYER))

# write_workspace   a layer of outputs that do not compress, and a layer that reads them again in pairs
write_workspace() {
  WORKSPACE=$STORY/workspace
  mkdir -p "$WORKSPACE/big"
  cp "$WORK/workspace7/WORKSPACE" "$WORK/workspace7/.bazelrc" "$WORKSPACE/"
  cp "$WORK/workspace7/gen/noise.cc" "$WORKSPACE/big/"
  local number
  {
    echo 'cc_binary(name = "noise", srcs = ["noise.cc"])'
    for ((number = 0; number < LAYER; number++)); do
      echo "genrule(name = \"part$number\", outs = [\"part$number.bin\"], tools = [\":noise\"]," \
        "cmd = \"\$(location :noise) $PART_BYTES $number > \$@\")"
      echo "genrule(name = \"sum$number\", outs = [\"sum$number.txt\"]," \
        "srcs = [\"part$number.bin\", \"part$(((number + LAYER / 2) % LAYER)).bin\"], cmd = \"sha256sum \$(SRCS) > \$@\")"
    done
    echo "filegroup(name = \"parts\", srcs = [\"part%d.bin\" % number for number in range($LAYER)])"
    echo "filegroup(name = \"sums\", srcs = [\"sum%d.txt\" % number for number in range($LAYER)])"
  } > "$WORKSPACE/big/BUILD"
}

open_bazel7
write_workspace
s3_start
FARM_CONFIG=$STORY/farm.toml
cat > "$FARM_CONFIG" << TOML
[[storage.tier]]
kind = "disk"
size = "$DISK_MIB MiB"
[[storage.tier]]
kind = "s3"
bucket = "$S3_BUCKET"
endpoint = "http://127.0.0.1:$S3_PORT"
region = "us-east-1"
allow_http = true
TOML
farm_start_sid "$STORY/data"
# The first build leaves its outputs on the farm, the second reads them there as inputs, the third as results.
# shellcheck disable=SC2046 # flags are words
bazel one build //big:parts $(remote) --remote_download_minimal || fail "the build of the parts failed: see one.log"
# shellcheck disable=SC2046 # flags are words
bazel one build //big:sums $(remote) --remote_download_minimal || fail "the build of the sums failed: see one.log"
close_bazel one
# shellcheck disable=SC2046 # flags are words
bazel two build //big:parts //big:sums $(remote) --remote_download_all --execution_log_json_file="$STORY/two.json" ||
  fail "the build with all downloads failed: see two.log"
close_bazel two
expect_spawns "$STORY/two.json" --only "remote cache hit" --at-least $((2 * LAYER))
! grep --quiet --ignore-case -e "missing digest" -e "lost input" -e "evicted" "$STORY"/one.log "$STORY"/two.log || fail "Bazel missed a blob: see the logs"
evictions=$(metric croft_store_evictions_total)
[ "$evictions" -ge $((LAYER / 2)) ] || fail "only $evictions evictions: there was no pressure"
for ((number = 0; number < LAYER; number++)); do
  part=$(bin_of "$STORY/two")/big/part$number.bin
  grep --quiet "^$(sha256sum < "$part" | cut -d ' ' -f 1) " "$(bin_of "$STORY/two")/big/sum$number.txt" || fail "part $number is wrong"
done
echo "$evictions evictions, nothing missing"
farm_stop
