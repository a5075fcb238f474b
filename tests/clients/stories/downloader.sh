#!/bin/bash
# Bazel fetches a file of the internet through the farm: the farm downloads it once, a second Bazel gets it from the cache.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "$0")/../lib.sh"

# origin_start FOLDER   serves a folder over HTTP on the port ORIGIN; what is asked for goes to origin.log.
origin_start() {
  ORIGIN=$(free_ports 1)
  setpriv --pdeathsig KILL python3 -m http.server --bind 127.0.0.1 --directory "$1" "$ORIGIN" > /dev/null 2> "$STORY/origin.log" < /dev/null &
  ORIGIN_PID=$!
  wait_until "$READY_SECONDS" origin_answers || fail "the origin does not answer"
}

origin_answers() { (exec 3<> "/dev/tcp/127.0.0.1/$ORIGIN") 2> /dev/null; }

requests() { grep --count 'GET /archive.txt' "$STORY/origin.log" || true; }

open_bazel7
mkdir -p "$STORY/origin" "$STORY/workspace"
seq 1 20000 > "$STORY/origin/archive.txt"
origin_start "$STORY/origin"
WORKSPACE=$STORY/workspace
cp "$WORK/workspace7/.bazelrc" "$WORKSPACE/"
cat > "$WORKSPACE/WORKSPACE" << TEXT
workspace(name = "croft_clients")
load("@bazel_tools//tools/build_defs/repo:http.bzl", "http_file")
http_file(
    name = "archive",
    sha256 = "$(sha256sum < "$STORY/origin/archive.txt" | cut -d ' ' -f 1)",
    urls = ["http://127.0.0.1:$ORIGIN/archive.txt"],
)
TEXT
echo 'genrule(name = "count", srcs = ["@archive//file"], outs = ["count.txt"], cmd = "wc -l < $< > $@")' > "$WORKSPACE/BUILD"
FARM_CONFIG=$STORY/farm.toml
printf '[asset]\nallow = ["http://127.0.0.1:%s/"]\nallow_private = true\n' "$ORIGIN" > "$FARM_CONFIG"
farm_start_sid "$STORY/data"
for base in first second; do
  # shellcheck disable=SC2046 # flags are words
  bazel "$base" build //:count $(remote) --remote_download_all --repository_cache= \
    --experimental_remote_downloader="grpc://127.0.0.1:$PUBLIC" || fail "the $base build failed: see $base.log"
  close_bazel "$base"
  [ "$(tr -d ' ' < "$(bin_of "$STORY/$base")/count.txt")" = 20000 ] || fail "the file is not what the origin has"
  [ "$(requests)" = 1 ] || fail "$(requests) requests came to the origin instead of one"
done
kill "$ORIGIN_PID"
farm_stop
