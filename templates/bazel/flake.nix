{
  description = "A Bazel project that builds on a farm";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";
  # Replace with where you have Croft's sources from.
  inputs.croft.url = "git+https://git.example/croft";
  inputs.croft.inputs.nixpkgs.follows = "nixpkgs";

  outputs =
    { nixpkgs, croft, ... }:
    let
      inherit (nixpkgs) lib;
      eachSystem =
        f: lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] (system: f nixpkgs.legacyPackages.${system});
      project =
        pkgs:
        let
          lre = croft.lib.localRemoteExecution { inherit pkgs; };
        in
        lre.project [
          lre.toolchains.cc
          lre.toolchains.shell
        ];
    in
    {
      devShells = eachSystem (pkgs: {
        default = pkgs.mkShell {
          packages = [ pkgs.bazel_8 ];
          # Writes croft.bazelrc: where the compiler is, and that workers must have the same.
          shellHook = (project pkgs).shellHook { };
        };
      });
      # A farm on this machine with these toolchains: croft serve --config "$(nix build --print-out-paths .#farm)"
      packages = eachSystem (pkgs: {
        farm = (project pkgs).configuration;
      });
    };
}
