# Toolchains whose programs stand at the same store paths on workers and on the machines that build, so that an action has the same
# digest on both, and the Bazel configuration that names them. All of it is made by evaluation: no container, no run of Bazel.
{ pkgs }:
let
  toolchain = import ./toolchain.nix { inherit pkgs; };
  declaration = import ./declaration.nix;
  make = builtins.mapAttrs (_: file: import file { inherit pkgs toolchain declaration; }) (
    import ./kinds.nix
  );
in
{
  # For versions of one's own, as in `make.cc { compiler = pkgs.gcc14; }`; `toolchain` and `declaration` are for kinds that are not here.
  inherit make toolchain declaration;

  # Those of nixpkgs' defaults. `cc` and `clang` are of one kind: a project has one of them, a worker may have both.
  toolchains = {
    cc = make.cc { compiler = pkgs.stdenv.cc; };
    clang = make.cc { compiler = pkgs.clangStdenv.cc; };
    java = make.java { inherit (pkgs) jdk; };
    python = make.python { inherit (pkgs) python3; };
    rust = make.rust { inherit (pkgs) rustc cargo rustfmt; };
    shell = make.shell { };
  };

  # What a project needs to build with a list of toolchains.
  project = import ./project.nix { inherit pkgs; };

  # The configuration of a farm whose worker has a list of them, perhaps for several projects.
  configuration = import ./configuration.nix { inherit pkgs; };
}
