#!/bin/bash
# Looks for bytes that break what must hold for them (src/fuzz.rs), with libFuzzer and a stable compiler.
#
#   scripts/fuzz/run.sh [SECONDS [TARGET…]]      60 seconds for each of all targets, two at a time, if nothing is said
#
# Bytes that were found are put into fuzz/seeds/TARGET, where the tests try them from then on; the exit code is 1 then, and 3 where
# there is no C++ compiler for libFuzzer. What else it learns is kept in target/fuzz. `cargo fuzz run TARGET` works, too, and with a
# nightly compiler finds wrong use of memory.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

at_once=$(($(nproc) < 2 ? 1 : 2))
memory_mib=1024  # a target that takes more holds on to what its bytes declare
input_seconds=10 # one input; all of them take well under a millisecond
input_bytes=65536
seconds=${1:-60}
targets=("${@:2}")

main() {
  command -v c++ > /dev/null || { echo "there is no C++ compiler for libFuzzer"; exit 3; }
  if [ "${#targets[@]}" = 0 ]; then
    mapfile -t targets < <(find fuzz/targets -name '*.rs' -printf '%f\n' | sed 's/[.]rs$//' | sort)
  fi
  RUSTC_WORKSPACE_WRAPPER=$PWD/scripts/fuzz/rustc.sh cargo build --locked --quiet --package croft-fuzz "${targets[@]/#/--bin=}"
  export programs=${CARGO_TARGET_DIR:-target}/debug seconds memory_mib input_seconds input_bytes
  export -f look
  # shellcheck disable=SC2016 # it is for the inner shell
  printf '%s\n' "${targets[@]}" | xargs --max-procs "$at_once" --max-args 1 bash -c 'look "$0"' || exit 1
}

# look TARGET   prints a line; 1 when bytes were found.
look() {
  local target=$1 learnt=target/fuzz/$1 seeds=fuzz/seeds/$1 log
  mkdir -p "$learnt"
  log=$learnt.log
  if "$programs/$target" -max_total_time="$seconds" -timeout="$input_seconds" -rss_limit_mb="$memory_mib" \
    -max_len="$input_bytes" -artifact_prefix="$seeds/" "$learnt" "$seeds" > "$log" 2>&1; then
    echo "ok $target: $(sed -n 's/^Done \([0-9]*\) runs.*/\1/p' "$log") inputs, $(sed -n 's/.*cov: \([0-9]*\).*/\1/p' "$log" | tail -n 1) edges"
    return
  fi
  echo "FAILED $target: $(grep --max-count=1 --after-context=1 --extended-regexp 'panicked|ERROR: libFuzzer' "$log" | paste --serial --delimiters=' ')"
  echo "  found: $(sed -n 's/.*Test unit written to //p' "$log" | tail -n 1)"
  return 1
}

main
