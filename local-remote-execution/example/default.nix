# What is generated for all kinds of toolchains: `croft.bazelrc` and `toolchains/` beside this file are what this builds, and a check
# compares them (without the .bzl files, which are copies). Its packages are made up, so nothing can be built with it.
{ pkgs }:
let
  lre = import ../. {
    pkgs = import ./packages.nix { inherit (pkgs) lib; } // {
      inherit (pkgs) runCommand writeText;
    };
  };
  project = lre.project (
    with lre.toolchains;
    [
      cc
      java
      python
      rust
      shell
    ]
  );
  bazelrc = pkgs.writeText "croft.bazelrc" (project.bazelrc { location = "%workspace%/toolchains"; });
in
pkgs.runCommand "croft-example" { } ''
  mkdir "$out"
  cp ${bazelrc} "$out/croft.bazelrc"
  cp -r ${project.module} "$out/toolchains"
  chmod -R u+w "$out"
  rm "$out"/toolchains/*/*.bzl
''
