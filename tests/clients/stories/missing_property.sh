#!/bin/bash
# A build that waits for a property that no worker offers ends with a sentence that names it, and a name that is not declared is
# refused at once. Bazel ends with 34, its code for a remote failure.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "$0")/../lib.sh"
open_bazel7
mkdir -p "$STORY/workspace"
WORKSPACE=$STORY/workspace
cp "$WORK/workspace7/.bazelrc" "$WORKSPACE/"
echo 'workspace(name = "croft_clients")' > "$WORKSPACE/WORKSPACE"
for property in gpu tpu; do
  echo "genrule(name = \"on_$property\", outs = [\"$property.txt\"], exec_properties = {\"$property\": \"1\"}, cmd = \"echo > \$@\")"
done > "$WORKSPACE/BUILD"
FARM_CONFIG=$STORY/farm.toml
printf '[scheduler]\nunsatisfiable_after = "3 s"\n[scheduler.properties]\ngpu = "minimum"\n' > "$FARM_CONFIG"
farm_start_sid "$STORY/data"
# shellcheck disable=SC2046 # flags are words
expect_code 34 bazel out build //:on_gpu $(remote)
expect_text "$STORY/out.last" "no connected worker offers platform property \`gpu\` = \`1\`"
# shellcheck disable=SC2046 # flags are words
expect_code 34 bazel out build //:on_tpu $(remote)
expect_text "$STORY/out.last" "\`tpu\`"
farm_is_idle || fail "the farm is not idle after the builds"
farm_stop
