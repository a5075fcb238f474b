# For tests/clients/stories/lre.sh: what local-remote-execution/ gives for two projects whose C compilers differ, and the configurations of
# a farm for the first of them, and of one for both.
{ nixpkgs }:
let
  flake = builtins.getFlake nixpkgs;
  found = flake.legacyPackages.${builtins.currentSystem};
  # With the real nixpkgs, the packages are real.
  isStandIn = found ? fromHost;
  pkgs = if isStandIn then import ./relocated.nix found else found;
  lre = import ../../local-remote-execution { inherit pkgs; };
  other = lre.make.cc { compiler = if isStandIn then pkgs.compiler "two" else pkgs.gcc14; };
  project =
    cc:
    lre.project [
      cc
      lre.toolchains.shell
    ];
  # Debian's Bazel has no registry of modules.
  bazelrc = cc: pkgs.writeText "croft.bazelrc" ((project cc).bazelrc { modules = false; });
in
pkgs.linkFarm "lre" {
  "farm.toml" = (project lre.toolchains.cc).configuration;
  "both.toml" = lre.configuration [
    lre.toolchains.cc
    lre.toolchains.shell
    other
  ];
  "same.bazelrc" = bazelrc lre.toolchains.cc;
  "other.bazelrc" = bazelrc other;
}
