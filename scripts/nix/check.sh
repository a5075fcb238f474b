#!/bin/bash
# Evaluates the flake, its modules and its hosts with a real Nix, and has croft check the configurations that they give.
#
#   scripts/nix/check.sh            check everything
#   scripts/nix/check.sh --write    write docs/options.md and local-remote-execution/example anew
#
# What it needs, and where from: scripts/nix/setup.sh. nixfmt and deadnix are set up with cargo when they are missing.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source scripts/nix/setup.sh
linter_seconds=420
nixfmt=nixfmt_rs@0.5.3 # gives what the official one gives, which is in no registry
deadnix=deadnix@1.3.1

main() {
  set_up
  cases="import $work/source/scripts/nix/refusals.nix (import $work/source/scripts/nix/outputs.nix \"$nixpkgs\")"
  list="builtins.concatStringsSep \"\" (builtins.attrValues (builtins.mapAttrs (name: case: \"\${name}\\t\${case.message}\\n\") ($cases)))"
  if [ "${1:-}" = --write ]; then
    quietly nix build --out-link "$work/options.md" "${flags[@]}" "path:$work/source#options-reference"
    install -m 644 "$work/options.md" docs/options.md
    write_example
    return
  fi
  mapfile -t files < <(find . -name target -prune -o -name '*.nix' -print)
  parse
  lint
  evaluate
  refuse
  build_checks
}

write_example() {
  local example=local-remote-execution/example
  quietly nix build --out-link "$work/example" "${flags[@]}" \
    "path:$work/source#legacyPackages.$(uname -m)-linux.localRemoteExecutionExample"
  rm -rf $example/toolchains
  cp -r --no-preserve=mode,timestamps "$work/example/." $example/
  chmod 755 $example/toolchains/*/*.sh
}

# ---- the checks ----

parse() {
  local file
  for file in "${files[@]}"; do
    nix-instantiate --parse "$file" > /dev/null
  done
  echo "${#files[@]} files parse"
}

lint() {
  if linter nixfmt "$nixfmt"; then
    nixfmt --check "${files[@]}"
    echo "nixfmt has nothing to change"
  fi
  if linter deadnix "$deadnix"; then
    deadnix --fail --no-lambda-pattern-names "${files[@]}"
    echo "deadnix finds nothing that is unused"
  fi
  if command -v statix > /dev/null; then
    statix check .
  else
    echo "not linted: there is no statix, and no registry has it"
  fi
}

# linter NAME CRATE   whether there is this program, or can be. Without optimisation it is built in two minutes.
linter() {
  command -v "$1" > /dev/null ||
    timeout "$linter_seconds" cargo install --quiet --locked --profile dev --root "$cache/tools" "$2" ||
    { echo "not looked at by $1: it cannot be installed in $cache/tools within $linter_seconds s"; return 1; }
}

# Every output, module and host, for both architectures.
evaluate() {
  quietly nix flake check --no-build --all-systems "${flags[@]}" "path:$work/source"
  echo "the flake evaluates"
  quietly nix eval --raw --impure --expr "import $work/source/scripts/nix/projects.nix (import $work/source/scripts/nix/outputs.nix \"$nixpkgs\")"
  echo "projects with toolchains evaluate"
}

# Each of refusals.nix must fail, and say why in its own words.
refuse() {
  local name message said refused=0 all
  all=$(nix eval --raw --impure --expr "$list")
  while IFS=$'\t' read -r name message; do
    if said=$(nix build --no-link --impure --expr "($cases).$name.attempt" 2>&1); then
      echo "not refused: $name"
      return 1
    fi
    if ! grep --quiet --fixed-strings -- "$message" <<< "$said"; then
      printf '%s is refused without the words "%s":\n%s\n' "$name" "$message" "$said"
      return 1
    fi
    refused=$((refused + 1))
  done <<< "$all"
  echo "$refused mistakes are refused, each with its own words"
}

build_checks() {
  quietly nix run "${flags[@]}" "path:$work/source" -- --version
  echo "nix run starts $(tail -n 1 "$said")"
  build modules "every module evaluates alone, and all together"
  build hosts "croft accepts the configuration of every host"
  build options-reference "docs/options.md is that of the modules"
  build local-remote-execution "local-remote-execution/example is what is generated"
}

# build CHECK SENTENCE
build() {
  quietly nix build --no-link --print-build-logs "${flags[@]}" "path:$work/source#checks.$(uname -m)-linux.$1"
  echo "$2"
}

main "$@"
