#!/bin/bash
# Bazel on a farm where nobody may do anything without a token: with the token in a header, with the token of a credential helper, by
# gRPC and by plain HTTP, and without one. Builds of a developer run on the farm, but results of his own machine are not taken.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "$0")/../lib.sh"

# issue NAME   makes a token, and a credential helper that shows it; prints the hash for the configuration.
issue() {
  "$CROFT" token > "$STORY/$1.fresh"
  sed -n 's/^token: *//p' "$STORY/$1.fresh" > "$STORY/$1.token"
  sed -n 's/^sha256: *//p' "$STORY/$1.fresh"
  cat > "$STORY/$1.helper" << END
#!/bin/sh
cat > /dev/null
echo '{"headers": {"Authorization": ["Bearer $(cat "$STORY/$1.token")"]}}'
END
  chmod 755 "$STORY/$1.helper"
}

# build STEP HOW TARGETS FLAGS…   builds from nothing; all actions must be run HOW: one runner, or several with | between.
build() {
  local step=$1 targets=$3 how
  IFS='|' read -ra how <<< "$2"
  shift 3
  bazel out clean || fail "bazel clean failed: see out.log"
  bazel out build "$targets" "$@" --remote_download_all --execution_log_json_file="$STORY/$step.json" ||
    fail "the build of $step failed: $(grep --max-count=1 ERROR "$STORY/out.last")"
  expect_spawns "$STORY/$step.json" --only "${how[@]}"
}

FARM_CONFIG=$STORY/farm.toml
cat > "$FARM_CONFIG" << END
[access]
rules = [
  { who = ["token:ci"], may = ["read", "write", "cache-write", "execute"] },
  { who = ["token:developer"], may = ["read", "write", "execute"] },
]
tokens = [
  { name = "ci", sha256 = "$(issue ci)" },
  { name = "developer", sha256 = "$(issue developer)" },
]
END
open_bazel7
farm_start_sid "$STORY/data"
read -ra remote <<< "$(remote)"
cache=--remote_cache=http://127.0.0.1:$PUBLIC
here="linux-sandbox|processwrapper-sandbox"

expect_code 34 bazel out build //tree/... "${remote[@]}"
expect_text "$STORY/out.last" "UNAUTHENTICATED: this needs any right here, and nobody has said who calls"
expect_code 34 bazel out build //tree/... "${remote[@]}" "--remote_header=authorization=Bearer croft_of_nobody"
expect_text "$STORY/out.last" "UNAUTHENTICATED: the token is not known here"

build ci remote //tree/... "${remote[@]}" "--remote_header=authorization=Bearer $(cat "$STORY/ci.token")"
build reader "remote cache hit" //tree/... "${remote[@]}" "--credential_helper=$STORY/developer.helper"
build executor remote //links/... "${remote[@]}" "--credential_helper=$STORY/developer.helper"

# What a developer's machine has built is nothing that others get; what CI's machine has built is.
build http_developer "$here" //tree/... "$cache" "--credential_helper=$STORY/developer.helper"
expect_text "$STORY/out.last" 403
build http_ci "$here" //tree/... "$cache" "--credential_helper=$STORY/ci.helper"
build http_reader "remote cache hit" //tree/... "$cache" "--credential_helper=$STORY/developer.helper"
for name in ci developer; do
  ! grep --quiet --fixed-strings -f "$STORY/$name.token" "$STORY/farm.log" || fail "the token of $name is in the farm's log"
done
farm_stop
