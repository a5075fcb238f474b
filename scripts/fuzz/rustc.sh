#!/bin/bash
# Compiles for libFuzzer: what it is called with is rustc and its arguments. As Cargo's wrapper for our own crates it leaves those
# that we use as the tests have compiled them.
set -euo pipefail
coverage=(--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
  -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1)
# A build script is a program without libFuzzer.
[[ " $* " != *" --crate-name build_script_build "* ]] || coverage=()
exec "$@" "${coverage[@]}"
