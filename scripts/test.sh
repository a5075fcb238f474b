#!/bin/bash
# Runs all tests of the farm and installs what they need.
#
#   scripts/test.sh [STEP…]      without arguments all steps, in this order:
#
#   packages   Debian packages that the other steps use, when they are missing (needs root)
#   format     cargo fmt
#   scripts    shellcheck, and that Python compiles
#   lint       cargo clippy, warnings are errors
#   licences   cargo deny, built when it is missing: licences, banned crates, sources (no advisories: they are in no registry)
#   monitoring Prometheus' own look at the rules for alerts and dashboards, and at their tests (promtool)
#   servers    the servers of the storage tests: Redis, and such as speak S3, GCS and Azure (scripts/servers/install.sh)
#   tests      unit, simulation and integration tests, with debug assertions
#   fuzz       bytes from outside that break what must hold for them, a minute for each kind (scripts/fuzz/run.sh)
#   release    the release build, which the rest runs
#   machine    control groups in a small virtual machine, which is downloaded when it is missing (tests/machine/run.sh)
#   nix        the flake, the NixOS modules and the hosts made of them, with a real Nix (scripts/nix/check.sh)
#   browser    the pages for people in Chromium, which is installed when it is missing; pictures in target/browser
#   stories    those of vm-tests/, in containers that stand for NixOS hosts (needs root; scripts/nix/stories.sh)
#   clients    real Bazels build a C++ project on the farm (needs root; tests/clients/bazel.sh)
#   bench      the benchmarks, as a short run that shows that they work
#
# A step that fails does not keep the others from running. Each client's story counts as a step of its own. The last line
# counts them; the exit code is 1 when one failed. What was set up is kept in ${CROFT_TEST_CACHE:-/var/cache/croft-test}.
# From a clean checkout on 2 cores: about 35 minutes, most of it compiling.
# Dependencies are compiled three times, and no flag may make a fourth: checked for clippy, built for tests, built for release.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
all=(packages format scripts lint licences monitoring servers tests fuzz machine release browser nix stories clients bench)
step_seconds=1800 # a step that hangs must not take the others' time
skipped=3         # exit code of what cannot run here; its last line says why
deny_seconds=420
deny_version=0.20.2
cache=${CROFT_TEST_CACHE:-/var/cache/croft-test}
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-auto}

main() {
  local steps=("$@") step
  [ "${#steps[@]}" -gt 0 ] || steps=("${all[@]}")
  output=$(mktemp)
  trap 'rm -f "$output"; [ -z "${running:-}" ] || kill -TERM "$running"' EXIT
  trap 'exit 130' INT TERM
  rows=()
  for step in "${steps[@]}"; do
    run "$step"
  done
  summary
}

# ---- the steps ----

step_packages() {
  local missing=()
  command -v shellcheck > /dev/null || missing+=(shellcheck)
  command -v python3 > /dev/null || missing+=(python3)
  command -v pgrep > /dev/null || missing+=(procps)
  command -v cc > /dev/null || missing+=(gcc libc6-dev)
  command -v c++ > /dev/null || missing+=(g++)
  command -v strip > /dev/null || missing+=(binutils)
  command -v promtool > /dev/null || missing+=(prometheus)
  if [ "${#missing[@]}" = 0 ]; then
    echo "all there"
    return
  fi
  echo "missing: ${missing[*]}"
  [ "$(id -u)" = 0 ] || { echo "only root can install ${missing[*]}"; return "$skipped"; }
  apt_install "${missing[@]}" || { apt-get update --quiet && apt_install "${missing[@]}"; } ||
    { echo "apt cannot install ${missing[*]}"; return "$skipped"; }
}

apt_install() {
  DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --no-install-recommends "$@"
}

step_format() {
  cargo fmt --all --check
}

step_scripts() {
  command -v shellcheck > /dev/null || { echo "shellcheck is not installed"; return "$skipped"; }
  local shell=(.ci/run) python
  mapfile -t -O 1 shell < <(find scripts tests vm-tests -name '*.sh')
  mapfile -t python < <(find scripts tests vm-tests -name '*.py')
  shellcheck --external-sources "${shell[@]}" || return 1
  python3 -c 'import ast, sys
for path in sys.argv[1:]: ast.parse(open(path, encoding="utf-8").read(), path)' "${python[@]}" || return 1
  echo "${#shell[@]} shell scripts, ${#python[@]} Python scripts"
}

step_lint() {
  cargo clippy --locked --all-targets -- -D warnings
}

step_licences() {
  PATH=$PATH:$cache/tools/bin
  cargo deny --version 2> /dev/null || install_cargo_deny ||
    { echo "cargo-deny cannot be installed in $cache/tools within $deny_seconds s"; return "$skipped"; }
  cargo deny --locked check bans licenses sources
}

# Without optimisation it is built in two minutes instead of ten, and checks as fast as one needs.
install_cargo_deny() {
  timeout "$deny_seconds" cargo install --quiet --locked --profile dev --root "$cache/tools" "cargo-deny@$deny_version"
}

step_monitoring() {
  command -v promtool > /dev/null || { echo "promtool (Debian's package prometheus) is not installed"; return "$skipped"; }
  promtool check rules monitoring/*.yml || return 1
  promtool test rules monitoring/tests/*.yml
}

step_servers() {
  scripts/servers/install.sh
}

step_tests() {
  if cargo nextest --version > /dev/null 2>&1; then
    cargo nextest run --locked --no-fail-fast
  else
    cargo test --locked --no-fail-fast
  fi
}

step_fuzz() {
  scripts/fuzz/run.sh 60
}

step_machine() {
  tests/machine/run.sh
}

step_release() {
  cargo build --locked --release
}

step_browser() {
  command -v chromedriver > /dev/null || install_browser ||
    { echo "chromium and chromium-driver are not there, and cannot be installed"; return "$skipped"; }
  CROFT_UNDER_TEST=$(realpath "${CARGO_TARGET_DIR:-target}")/release/croft \
    cargo test --locked --test browser -- --ignored --nocapture --test-threads=1
}

install_browser() {
  [ "$(id -u)" = 0 ] || return 1
  local packages=(chromium chromium-driver fonts-dejavu-core)
  apt_install "${packages[@]}" || { apt-get update --quiet && apt_install "${packages[@]}"; }
}

step_nix() {
  CROFT=$(realpath "${CARGO_TARGET_DIR:-target}")/release/croft scripts/nix/check.sh
}

step_stories() {
  CROFT=$(realpath "${CARGO_TARGET_DIR:-target}")/release/croft scripts/nix/stories.sh
}

step_clients() {
  CROFT=${CARGO_TARGET_DIR:-target}/release/croft tests/clients/bazel.sh
}

step_bench() {
  cargo bench --locked --bench farm --bench store --bench scheduler --bench journal -- --quick
}

# ---- running and counting ----

# run STEP   runs one step under its heading; adds its row to the summary.
run() {
  local step=$1 start=$SECONDS code=0
  declare -F "step_$step" > /dev/null || { echo "no such step: $step; steps: ${all[*]}" >&2; exit 64; }
  printf '\n== %s\n' "$step"
  start_step "$step"
  wait "$running" || code=$?
  running=
  wait "$printing" || true
  printf -- '-- %s: %d s\n' "$step" $((SECONDS - start))
  case $code in
    0) row passed "$step" $((SECONDS - start)) ;;
    "$skipped") row skipped "$step" $((SECONDS - start)) "$(tail -n 1 "$output")" ;;
    124 | 137) row failed "$step" $((SECONDS - start)) "not over after $step_seconds s" ;;
    *) row failed "$step" $((SECONDS - start)) "exit code $code, see above" ;;
  esac
  [ "$step" != clients ] || stories
}

# start_step STEP   Timeout makes a process group of its own, so that its signal reaches all that the step started.
start_step() {
  local pipe
  exec {pipe}> >(tee "$output")
  printing=$!
  timeout --kill-after=30 "$step_seconds" "$BASH" scripts/test.sh --only "$1" < /dev/null >&"$pipe" 2>&1 {pipe}>&- &
  running=$!
  exec {pipe}>&-
}

# row RESULT NAME SECONDS [WHY]
row() {
  rows+=("$(printf '%-8s %-24s %5s s  %s' "$1" "$2" "$3" "${4:-}")")
}

# stories   adds a row for every story that the clients' step told.
stories() {
  local line name why
  while IFS= read -r line; do
    name=${line#* }
    why=${name#*: }
    case $line in
      "ok "*) row passed "clients: ${name% *}" "${name##* }" ;;
      "skipped "*) row skipped "clients: ${name%%: *}" 0 "$why" ;;
      "FAILED "*) row failed "clients: ${name%%: *}" - "$why" ;;
    esac
  done < "$output"
}

summary() {
  printf '\n== summary\n'
  printf '%s\n' "${rows[@]}"
  printf '%d passed, %d failed, %d skipped\n' "$(count passed)" "$(count failed)" "$(count skipped)"
  [ "$(count failed)" = 0 ]
}

count() {
  printf '%s\n' "${rows[@]}" | grep --count "^$1 " || true
}

if [ "${1:-}" = --only ]; then
  "step_$2"
else
  main "$@"
fi
