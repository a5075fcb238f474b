{
  description = "A reproducible build farm: Remote Execution API v2 cache, scheduler and hermetic workers";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      eachSystem =
        f: lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] (system: f nixpkgs.legacyPackages.${system});
      packagesOf = pkgs: self.packages.${pkgs.stdenv.hostPlatform.system};
    in
    {
      packages = eachSystem (
        pkgs:
        import ./nix/packages.nix { inherit pkgs; }
        // import ./nixos/images.nix {
          inherit nixpkgs self;
          inherit (pkgs.stdenv.hostPlatform) system;
        }
        // {
          options-reference = import ./nix/options-reference.nix { inherit pkgs nixpkgs self; };
        }
      );
      apps = eachSystem (pkgs: import ./nix/apps.nix { croft = (packagesOf pkgs).croft; });
      devShells = eachSystem (pkgs: {
        default = import ./nix/shell.nix { inherit pkgs; };
      });
      formatter = eachSystem (pkgs: pkgs.nixfmt-tree);
      overlays.default = final: _: { inherit (packagesOf final) croft; };
      templates = import ./templates;

      # Toolchains that are the same on workers and on the machines that build: for flakes as they are, and for flake-parts.
      lib.localRemoteExecution = import ./local-remote-execution;
      flakeModules.default = ./local-remote-execution/flake-module.nix;
      legacyPackages = eachSystem (pkgs: {
        localRemoteExecution = import ./local-remote-execution { inherit pkgs; };
        localRemoteExecutionExample = import ./local-remote-execution/example { inherit pkgs; };
      });

      nixosModules = import ./modules/exports.nix { inherit lib packagesOf; };
      nixosConfigurations = import ./nixos { inherit nixpkgs self; };

      checks = eachSystem (
        pkgs:
        (packagesOf pkgs).croft.tests
        // import ./nix/checks.nix { inherit pkgs nixpkgs self; }
        // import ./vm-tests { inherit pkgs self; }
      );
    };
}
