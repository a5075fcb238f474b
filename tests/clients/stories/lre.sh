#!/bin/bash
# A C++ project whose toolchain is store paths, and a worker that sees these paths and nothing else: what a machine built by itself is a
# hit for builds on the farm, and the other way round, action by action. With another compiler nothing is shared, and the farm says why,
# until a worker has it, too.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "$0")/../lib.sh"
targets=(//lib/... //bin/... //test/... //gen:header //gen:scripted)
least=40
FARM_CONFIG=$WORK/toolchains/farm.toml

# toolchain NAME   has the project built with it.
toolchain() {
  cat "$STORY/bazelrc" "$WORK/toolchains/$1.bazelrc" > "$WORKSPACE/.bazelrc"
}

# build NAME RUNNER FLAGS…   builds and tests all from nothing, and expects that every action ran in this way.
build() {
  local name=$1 runner=$2
  shift 2
  bazel out clean
  bazel out test "${targets[@]}" --remote_download_all --execution_log_json_file="$STORY/$name.json" "$@" ||
    fail "the build $name failed: see out.log"
  expect_spawns "$STORY/$name.json" --only "$runner" --at-least "$least"
}

# cache   prints the flags of a machine that builds by itself and shares what it builds.
cache() {
  echo "--remote_cache=grpc://127.0.0.1:$PUBLIC" --remote_upload_local_results --spawn_strategy=processwrapper-sandbox --jobs=4
}

open_bazel7
WORKSPACE=$STORY/workspace
python3 "$HERE/workspace.py" --out "$WORKSPACE" --bazel 7 --files 30
mv "$WORKSPACE/.bazelrc" "$STORY/bazelrc"
mkdir -p "$SID/nix/store"
nsenter --target "$(root_holder "$STORY/root-bazel")" --mount mount --bind /nix/store "$SID/nix/store"

toolchain same
farm_start "$STORY/from-local"
# shellcheck disable=SC2046 # flags are words
build local processwrapper-sandbox $(cache)
cp --recursive --no-dereference "$(bin_of "$STORY/out")" "$STORY/local"
# shellcheck disable=SC2046 # flags are words
build remote-after "remote cache hit" $(remote)
farm_stop

farm_start "$STORY/from-remote" CROFT_SCHEDULER__UNSATISFIABLE_AFTER="3 s"
# shellcheck disable=SC2046 # flags are words
build remote remote $(remote)
expect_same_outputs "$STORY/local" "$(bin_of "$STORY/out")"
expect python3 "$HERE/spawns.py" "$STORY/local.json" --same-keys "$STORY/remote.json"
# shellcheck disable=SC2046 # flags are words
build local-after "remote cache hit" $(cache)

toolchain other
# shellcheck disable=SC2046 # flags are words
expect_code 34 bazel out build "${targets[@]}" $(remote)
expect_text "$STORY/out.last" "no connected worker offers platform property \`toolchain-cc\` = \`"
# shellcheck disable=SC2046 # flags are words
build other processwrapper-sandbox $(cache)
farm_stop

FARM_CONFIG=$WORK/toolchains/both.toml
farm_start "$STORY/with-both"
# shellcheck disable=SC2046 # flags are words
build both remote $(remote)
farm_stop
