# shellcheck shell=bash
# What every story of a real client needs: a farm of its own, a Bazel in a root of its own, assertions. Source this file.
#
# From bazel.sh come: CROFT (the program), SID (the Debian root), WORK (the run's folder), STORY (this story's folder in it).
# A story ends with everything that it started, however it ends: the farm and the roots are tied to the story's process.

: "${CROFT:?}" "${SID:?}" "${WORK:?}" "${STORY:?}"
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=../../scripts/clients/root.sh
source "$HERE/../../scripts/clients/root.sh"

READY_SECONDS=30   # a farm on an empty folder starts in well under one
STOP_SECONDS=30
GONE_SECONDS=30    # from the end of an action to the end of its last process; the farm waits 10 s for a client that went away

mkdir -p "$STORY"
trap 'close_all' EXIT
trap 'exit 130' INT TERM

close_all() {
  local state
  [ -z "${FARM_PID:-}" ] || kill -KILL "$FARM_PID" 2> /dev/null || true
  [ -z "${S3_PID:-}" ] || kill -KILL "$S3_PID" 2> /dev/null || true
  for state in "$STORY"/root-*; do
    root_close "$state"
  done
}

# fail WHY…   ends the story; bazel.sh prints the reason.
fail() {
  echo "$*" > "$STORY/why"
  echo "FAILED: $*"
  exit 1
}

# wait_until SECONDS COMMAND…   polls; false when the time is over.
wait_until() {
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    [ "$SECONDS" -lt "$end" ] || return 1
    sleep 0.2
  done
}

# ---- the farm ----

# free_ports COUNT   prints ports of the loopback interface that were free a moment ago.
free_ports() {
  python3 -c 'import socket, sys
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(socket.getsockname()[1] for socket in sockets))' "$1"
}

# farm_start_sid DATA   starts a farm whose actions see the Debian root: the compiler that Bazel found there.
farm_start_sid() {
  farm_start "$1" CROFT_WORKER__ROOT="$SID"
}

# farm_start DATA [NAME=VALUE…]   starts a farm and waits until it is ready. A second call starts it on the same ports.
# FARM_CONFIG is its configuration file, if there is one.
farm_start() {
  local data=$1 arguments=()
  shift
  [ -z "${FARM_CONFIG:-}" ] || arguments=(serve --config "$FARM_CONFIG")
  [ -n "${PUBLIC:-}" ] || read -r PUBLIC ADMIN <<< "$(free_ports 2)"
  env CROFT_PUBLIC__LISTEN="127.0.0.1:$PUBLIC" CROFT_ADMIN__LISTEN="127.0.0.1:$ADMIN" CROFT_DATA="$data" "$@" \
    setpriv --pdeathsig KILL "$CROFT" "${arguments[@]}" >> "$STORY/farm.log" 2>&1 < /dev/null &
  FARM_PID=$!
  wait_until "$READY_SECONDS" farm_is_ready_or_dead || true
  ! farm_has_ended || fail "the farm ended at once: $(tail -n 1 "$STORY/farm.log")"
  farm_is_ready || fail "the farm is not ready after $READY_SECONDS s: $(tail -n 1 "$STORY/farm.log")"
}

farm_is_ready() {
  [ "$(admin_status /readyz)" = 200 ]
}

farm_is_ready_or_dead() {
  farm_is_ready || farm_has_ended
}

# admin_status PATH   prints the HTTP status, or nothing when no one answers.
admin_status() {
  admin_get "$1" | sed -n '1s/^HTTP[^ ]* \([0-9]*\).*/\1/p'
}

# admin_get PATH   prints the answer with its headers. Bash speaks HTTP well enough for this: no curl is needed.
admin_get() {
  (
    exec 3<> "/dev/tcp/127.0.0.1/$ADMIN"
    printf 'GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n' "$1" >&3
    timeout 5 cat <&3
  ) 2> /dev/null || true
}

# farm_stop   asks the farm to end, as systemd would, and expects exit code 0.
farm_stop() {
  local code=0
  kill -TERM "$FARM_PID"
  wait_until "$STOP_SECONDS" farm_has_ended || fail "the farm still runs $STOP_SECONDS s after SIGTERM"
  wait "$FARM_PID" || code=$?
  FARM_PID=
  [ "$code" = 0 ] || fail "the farm ended with exit code $code after SIGTERM"
}

farm_has_ended() {
  # A child that has ended stays as a zombie until it is waited for.
  ! [ -d "/proc/$FARM_PID" ] || grep --quiet '^State:.*Z' "/proc/$FARM_PID/status" 2> /dev/null
}

# farm_kill   ends the farm as a power cut would end it, as far as a process can see.
farm_kill() {
  kill -KILL "$FARM_PID"
  wait "$FARM_PID" 2> /dev/null || true
  FARM_PID=
}

# farm_is_idle   nothing waits in the queue of a farm that tells.
farm_is_idle() {
  farm_is_ready || return 1
  admin_get /metrics | awk '/^nativelink_scheduler_queue_length/ && $NF != 0 { busy = 1 } END { exit busy }'
}

# metric NAME   prints the sum of a metric's series.
metric() {
  admin_get /metrics | tr -d '\r' | awk -v name="$1" '$1 ~ "^" name "({|$)" { sum += $NF } END { printf "%.0f\n", sum }'
}

# ---- an S3 server ----

# s3_start   starts one with the bucket S3_BUCKET on the port S3_PORT; it ends with the story.
s3_start() {
  local server=${CROFT_TEST_CACHE:-/var/cache/croft-test}/servers/moto/bin/moto_server
  S3_PORT=$(free_ports 1) S3_BUCKET=croft
  setpriv --pdeathsig KILL "$server" -H 127.0.0.1 -p "$S3_PORT" > "$STORY/s3.log" 2>&1 < /dev/null &
  S3_PID=$!
  export AWS_ACCESS_KEY_ID=croft AWS_SECRET_ACCESS_KEY=croft-secret
  wait_until "$READY_SECONDS" s3_make_bucket || fail "the S3 server does not answer: $(tail -n 1 "$STORY/s3.log")"
}

s3_make_bucket() {
  python3 -c 'import sys, urllib.request as r; r.urlopen(r.Request(sys.argv[1], method="PUT"))' \
    "http://127.0.0.1:$S3_PORT/$S3_BUCKET" 2> /dev/null
}

# ---- Bazel ----

# bazel BASE COMMAND ARGUMENTS…   runs the Bazel of the story's root in its workspace, with the output base STORY/BASE.
# What it prints goes to BASE.log, and what the last command printed alone to BASE.last.
bazel() {
  local base=$1 code=0
  shift
  bazel_quiet "$base" "$@" > "$STORY/$base.last" 2>&1 || code=$?
  { echo "\$ bazel $*"; cat "$STORY/$base.last"; } >> "$STORY/$base.log"
  return "$code"
}

bazel_quiet() {
  local base=$1
  shift
  root_run "$STORY/root-bazel" "$WORKSPACE" bazel --output_base="$STORY/$base" --max_idle_secs=300 --host_jvm_args=-Xmx2g "$@"
}

# open_bazel7, open_bazel4   open the root and choose the workspace.
# open_sleepers' workspace is the story's own: the story beside it may have something that sleeps, too.
open_bazel7() {
  WORKSPACE=$WORK/workspace7
  root_open "$SID" "$STORY/root-bazel" parent
}

open_sleepers() {
  open_bazel7
  WORKSPACE=$STORY/workspace
  MARKER=$((86400 + RANDOM)).$((1000 + $$ % 9000))0
  python3 "$HERE/workspace.py" --out "$WORKSPACE" --bazel 7 --marker "$MARKER"
}

open_bazel4() {
  WORKSPACE=$WORK/workspace4
  root_open / "$STORY/root-bazel" parent
}

# remote   prints the flags that make a build remote. Nothing may fall back to a local run.
remote() {
  echo "--remote_executor=grpc://127.0.0.1:$PUBLIC" --noremote_local_fallback --jobs=16
}

# close_bazel BASE   ends the server of an output base; the next command would start another.
close_bazel() {
  bazel_quiet "$1" shutdown > /dev/null 2>&1 || true
}

bin_of() {
  echo "$1/execroot/croft_clients/bazel-out/k8-fastbuild/bin"
}

# ---- assertions ----

# expect_spawns LOG ARGUMENTS…   checks an execution log with spawns.py and prints its counts.
expect_spawns() {
  expect python3 "$HERE/spawns.py" "$@"
}

# expect_same_outputs ONE OTHER ARGUMENTS…   compares two bazel-bin folders with compare.py.
expect_same_outputs() {
  expect python3 "$HERE/compare.py" "$@"
}

# expect COMMAND…   What it says on stderr is the reason of a failure.
expect() {
  "$@" 2> "$STORY/errors" || fail "$(basename "$2" .py) of ${3#"$WORK/"}: $(paste --serial --delimiters='|' "$STORY/errors")"
}

# expect_text FILE TEXT
expect_text() {
  grep --quiet --fixed-strings -- "$2" "$1" || fail "\"$2\" is not in $(basename "$1")"
}

# expect_code WANTED COMMAND…
expect_code() {
  local wanted=$1 code=0
  shift
  "$@" || code=$?
  [ "$code" = "$wanted" ] || fail "exit code $code instead of $wanted: $*"
}

# sleepers   prints the pids of the host's processes that sleep as long as the workspace's marker says.
sleepers() {
  local file
  for file in /proc/[0-9]*/cmdline; do
    if [ "$(tr '\0' ' ' 2> /dev/null < "$file")" = "sleep $MARKER " ]; then
      basename "$(dirname "$file")"
    fi
  done
}

some_sleep() { [ -n "$(sleepers)" ]; }
none_sleeps() { [ -z "$(sleepers)" ]; }

expect_none_sleeps() {
  wait_until "$GONE_SECONDS" none_sleeps || fail "$(sleepers | wc -l) processes of the action still run $GONE_SECONDS s after $1"
}
