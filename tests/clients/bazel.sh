#!/bin/bash
# Tells the stories of real Bazels on a farm, two at a time, one line each: "ok NAME seconds", "skipped NAME: why" or
# "FAILED NAME: why".
#
#   CROFT=target/release/croft tests/clients/bazel.sh [STORY…]      stories: the files of tests/clients/stories
#
# Every story has a farm of its own on free loopback ports. The logs of failed stories are kept in a folder that is named at
# the end. Needs root and what scripts/clients/setup.sh sets up; exit code 3 when that is not to be had, 1 when a story failed.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
export CROFT=${CROFT:-target/release/croft}
export SID=${CROFT_TEST_CACHE:-/var/cache/croft-test}/sid
export MANY=200
story_seconds=450 # with a debug build and another story beside it, the longest takes half of this
at_once=$(($(nproc) < 2 ? 1 : 2)) # each story has a Bazel of up to 2 GiB, and some look at how long something takes
all=(local_build cut cold_build cached_build failing_test interrupt kill_farm restart jobs500 missing_property daemon timeout compressed http_cache eviction downloader audit tls access lre build_events bazel4)

waiting=()
declare -A running=() # stories by the process that tells them

# One number a run, so that the sleepers of two runs on one machine are told apart. It ends in a zero, which must stay: a
# story that looks for another spelling than the one that sleeps finds nobody.
MARKER=$((86400 + RANDOM)).$((1000 + $$ % 9000))0
export MARKER

main() {
  waiting=("$@")
  [ "${#waiting[@]}" -gt 0 ] || waiting=("${all[@]}")
  CROFT=$(realpath "$CROFT")
  [ -x "$CROFT" ] || { echo "no program at $CROFT: build it with cargo build --release" >&2; exit 2; }
  "$here/../../scripts/clients/setup.sh" || exit $?
  WORK=$(mktemp --directory /var/tmp/croft-clients.XXXXXX)
  export WORK
  trap clean_up EXIT
  trap 'exit 130' INT TERM
  # Actions run as another user, and the way to the workspace may be part of a message.
  chmod 755 "$WORK"
  generate 7 --many "$MANY" --sleep 0.1
  generate 4
  while [ "${#waiting[@]}" -gt 0 ] || [ "${#running[@]}" -gt 0 ]; do
    begin
    end_one
  done
  [ -z "${failed:-}" ]
}

generate() {
  python3 "$here/workspace.py" --out "$WORK/workspace$1" --bazel "$1" --marker "$MARKER" "${@:2}"
}

# begin   starts as many stories as there may be at once.
begin() {
  local story rest=()
  for story in "${waiting[@]}"; do
    if [ "${#running[@]}" -lt "$at_once" ] && may_begin "$story"; then
      tell "$story" &
      running[$!]=$story
    else
      rest+=("$story")
    fi
  done
  waiting=("${rest[@]}")
}

# may_begin STORY   Nothing that it goes on with is still to be told.
may_begin() {
  local earlier
  earlier=$(goes_on_with "$1")
  [ -z "$earlier" ] || [[ " ${waiting[*]} ${running[*]} " != *" $earlier "* ]]
}

# goes_on_with STORY   prints the story whose outputs or cache this one looks at if they are there.
goes_on_with() {
  case $1 in
    cold_build | compressed | kill_farm) echo local_build ;;
    cached_build) echo cold_build ;;
  esac
}

# end_one   waits for the end of one story.
end_one() {
  local teller
  wait -n -p teller "${!running[@]}" || failed=yes
  unset "running[$teller]"
}

# tell STORY   A story is a process of its own, so that nothing of it is left when it ends. What it prints goes to a file.
tell() {
  local story=$1 start=$SECONDS code=0 why process
  [ -f "$here/stories/$story.sh" ] || { echo "FAILED $story: there is no such story"; return 1; }
  why=$(missing_for "$story")
  if [ -n "$why" ]; then
    echo "skipped $story: $why"
    return
  fi
  STORY=$WORK/$story timeout --kill-after=20 "$story_seconds" bash "$here/stories/$story.sh" > "$WORK/$story.txt" 2>&1 &
  process=$!
  trap 'kill -TERM "$process" 2> /dev/null; wait "$process"; exit 143' TERM
  wait "$process" || code=$?
  if [ "$code" = 0 ]; then
    echo "ok $story $((SECONDS - start))"
    return
  fi
  why=$(cat "$WORK/$story/why" 2> /dev/null || tail -n 1 "$WORK/$story.txt")
  [ "$code" != 124 ] || why="not over after $story_seconds s"
  echo "FAILED $story: ${why:-exit code $code}"
  return 1
}

missing_for() {
  if [ "$1" = bazel4 ] && ! compgen -G '/usr/bin/bazel-4*' > /dev/null; then
    echo "Bazel 4 is packaged only in Debian 12"
  fi
  if [ "$1" = eviction ] && ! [ -x "${CROFT_TEST_CACHE:-/var/cache/croft-test}/servers/moto/bin/moto_server" ]; then
    echo "there is no S3 server: scripts/servers/install.sh could not install moto"
  fi
  if [ "$1" = tls ] && ! command -v openssl > /dev/null; then
    echo "there is no openssl to issue certificates with"
  fi
  if [ "$1" = lre ] && ! "$here/../../scripts/nix/lre.sh" "$WORK/toolchains" > "$WORK/toolchains.txt" 2>&1; then
    echo "no toolchains: $(tail -n 1 "$WORK/toolchains.txt")"
  fi
}

clean_up() {
  local teller
  for teller in "${!running[@]}"; do
    kill -TERM "$teller" 2> /dev/null || true
    wait "$teller" || true
  done
  if [ -z "${failed:-}" ]; then
    rm -rf --one-file-system "$WORK"
    return
  fi
  # Logs are kept, what Bazel and the farm stored is not.
  local folder
  for folder in "$WORK"/workspace* "$WORK"/*/*/; do
    rm -rf --one-file-system "$folder"
  done
  echo "logs of the failed stories: $WORK"
}

main "$@"
