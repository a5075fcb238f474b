# What `scripts/test.sh` and the editor use.
{ pkgs }:
pkgs.mkShell {
  packages = [
    pkgs.cargo
    pkgs.cargo-deny
    pkgs.cargo-nextest
    pkgs.clippy
    pkgs.deadnix
    pkgs.nixfmt
    pkgs.prometheus
    pkgs.python3
    pkgs.rust-analyzer
    pkgs.rustc
    pkgs.rustfmt
    pkgs.shellcheck
  ];
}
