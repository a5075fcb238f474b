#!/bin/bash
# A farm of three processes during one build of 300 actions: the network of a worker is cut for 30 s, another worker and then the
# scheduler are killed with -9 and started again. The build succeeds, and the action that ran during all of it ran once.
#
# The far worker has a network namespace of its own. As farms listen only on loopback, a relay at each end of a pair of virtual
# interfaces takes its connections there and back; the cut is that pair going down.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "$0")/../lib.sh"
ACTIONS=300
CUT_SECONDS=30
LONG_SECONDS=90
HOST_END=198.51.100.1 FAR_END=198.51.100.2 # of RFC 5737: nobody has these
CABLE=croft$((RANDOM % 10000))

downloaded() { find "$(bin_of "$STORY/out")" -name 'item*.txt' 2> /dev/null | wc -l; }
some_downloaded() { [ "$(downloaded)" -ge "$1" ]; }
in_far() { nsenter --target "$FAR" --net "$@"; }
has_own_network() { [ "$(readlink /proc/self/ns/net)" != "$(readlink "/proc/$FAR/ns/net")" ]; }

# Asks a worker in its own network whether it is ready.
READY='import sys, urllib.request as r; print(r.urlopen(f"http://127.0.0.1:{sys.argv[1]}/readyz").status)'

far_is_there() { [ "$(in_far python3 -c "$READY" "$NEAR_ADMIN" 2> /dev/null)" = 200 ]; }

# started PID   prints when a process was started, in the kernel's ticks.
started() { sed 's/.*) //' "/proc/$1/stat" | cut -d ' ' -f 20; }

# lay_cable   a network namespace, held by the process FAR, and relays both ways; all end with the story.
lay_cable() {
  read -r HOST_PUBLIC HOST_WORKERS NEAR_ADMIN WORKERS <<< "$(free_ports 4)"
  [ -n "${PUBLIC:-}" ] || read -r PUBLIC ADMIN <<< "$(free_ports 2)"
  [ -z "$(ip -4 address show to "$HOST_END/30")" ] || fail "this machine uses $HOST_END/30 itself"
  setpriv --pdeathsig KILL unshare --net sleep infinity &
  FAR=$!
  wait_until 10 has_own_network || fail "no network namespace"
  ip link add "$CABLE" type veth peer name cable netns "$FAR"
  ip address add "$HOST_END/30" dev "$CABLE"
  ip link set "$CABLE" up
  in_far ip link set lo up
  in_far ip address add "$FAR_END/30" dev cable
  in_far ip link set cable up
  setpriv --pdeathsig KILL python3 "$HERE/relay.py" "$HOST_END:$HOST_PUBLIC" "127.0.0.1:$PUBLIC" \
    "$HOST_END:$HOST_WORKERS" "127.0.0.1:$WORKERS" > "$STORY/relay-host.log" 2>&1 &
  # Not by the function: a shell between this one and the relay would outlive this one.
  nsenter --target "$FAR" --net setpriv --pdeathsig KILL python3 "$HERE/relay.py" "127.0.0.1:$PUBLIC" "$HOST_END:$HOST_PUBLIC" \
    "127.0.0.1:$WORKERS" "$HOST_END:$HOST_WORKERS" > "$STORY/relay-far.log" 2>&1 &
}

# start_scheduler   and the store, in one process. It finds a cut out after up to 18 s, by pings, and a worker needs up to 15 s to
# find the way back: with a little less patience than this it would run the long action again.
start_scheduler() {
  farm_start "$STORY/data" CROFT_SCHEDULER__RECONNECT_WITHIN=45s CROFT_ROLES='["cas", "scheduler"]' CROFT_WORKERS__LISTEN="127.0.0.1:$WORKERS"
}

# start_worker NAME ADMIN [COMMAND…]   in the background, by the command if there is one.
start_worker() {
  local name=$1 admin=$2
  shift 2
  "$@" env CROFT_ROLES='["worker"]' CROFT_DATA="$STORY/data-$name" CROFT_ADMIN__LISTEN="127.0.0.1:$admin" \
    CROFT_WORKER__NAME="$name" CROFT_WORKER__SLOTS=2 CROFT_WORKER__ROOT="$SID" \
    CROFT_WORKER__SCHEDULER="grpc://127.0.0.1:$WORKERS" \
    CROFT_STORAGE__TIER="[{kind=\"farm\",endpoints=[\"http://127.0.0.1:$PUBLIC\"]}]" \
    setpriv --pdeathsig KILL "$CROFT" >> "$STORY/$name.log" 2>&1 < /dev/null &
  WORKER_PID=$!
}

write_workspace() {
  WORKSPACE=$STORY/workspace
  mkdir -p "$WORKSPACE"
  cp "$WORK/workspace7/.bazelrc" "$WORKSPACE/"
  echo 'workspace(name = "croft_clients")' > "$WORKSPACE/WORKSPACE"
  # The long action tells when its sleeper was started, which tells it from that of another attempt.
  cat > "$WORKSPACE/BUILD" << TEXT
genrule(name = "long", outs = ["long.txt"],
    cmd = "sleep $LONG & sed 's/.*) //' /proc/\$\$!/stat | cut -d ' ' -f 20 > \$@; wait")
[genrule(name = "item%d" % number, outs = ["item%d.txt" % number], cmd = "sleep 0.5; echo %d > \$@" % number) for number in range($ACTIONS)]
filegroup(name = "all_items", srcs = [":long"] + [":item%d" % number for number in range($ACTIONS)])
TEXT
}

# long_sleepers   as the sleepers of other stories, with a time of their own.
long_sleepers() { MARKER=$LONG sleepers; }
long_runs() { [ -n "$(long_sleepers)" ]; }
same_sleeper() { [ "$(long_sleepers)" = "$SLEEPER" ] || fail "the long action does not go on $1"; }

LONG=$LONG_SECONDS.${MARKER#*.}
open_bazel7
write_workspace
lay_cable
start_scheduler
start_worker far "$NEAR_ADMIN" nsenter --target "$FAR" --net
# An action that no worker can run fails after a while.
wait_until "$READY_SECONDS" far_is_there || fail "the far worker is not ready: $(tail -n 1 "$STORY/far.log")"
# The far worker is the only one, so the long action comes to it.
# shellcheck disable=SC2046 # flags are words
bazel out build //:long //:all_items $(remote) --jobs=400 --remote_download_all --execution_log_json_file="$STORY/spawns.json" &
build=$!
wait_until 120 long_runs || fail "the long action did not begin: see out.log and far.log"
SLEEPER=$(long_sleepers)
BEGUN=$(started "$SLEEPER")
start_worker near "$NEAR_ADMIN"
wait_until 60 some_downloaded 10 || fail "only $(downloaded) of $ACTIONS outputs"

ip link set "$CABLE" down
cut_at=$SECONDS before=$(downloaded)
wait_until 60 some_downloaded $((before + 5)) || fail "the near worker does not go on alone"
kill -KILL "$WORKER_PID"
wait "$WORKER_PID" 2> /dev/null || true
start_worker near "$NEAR_ADMIN"
while [ $((SECONDS - cut_at)) -lt "$CUT_SECONDS" ]; do sleep 0.2; done
same_sleeper "during the cut"
ip link set "$CABLE" up
[ "$(downloaded)" -lt "$ACTIONS" ] || fail "the build was over before the cut was: nothing is shown"
wait_until 60 some_downloaded $(($(downloaded) + 5)) || fail "the build does not go on after the cut"
same_sleeper "after the cut"

farm_kill
[ "$(downloaded)" -lt "$ACTIONS" ] || fail "the build was over before the scheduler was killed: nothing is shown"
start_scheduler
same_sleeper "after the scheduler's restart"
wait "$build" || fail "the build failed: see out.log"
expect_spawns "$STORY/spawns.json" --only remote "remote cache hit" --at-least $((ACTIONS + 1))
for ((number = 0; number < ACTIONS; number++)); do
  [ "$(cat "$(bin_of "$STORY/out")/item$number.txt")" = "$number" ] || fail "item $number is wrong"
done
[ "$(cat "$(bin_of "$STORY/out")/long.txt")" = "$BEGUN" ] || fail "the long action ran more than once"
farm_stop
