# Hosts that can be installed as they are, each made of the modules, and the start of one's own.
{ nixpkgs, self }:
let
  inherit (nixpkgs) lib;
  host =
    system: name:
    nixpkgs.lib.nixosSystem {
      modules = [
        self.nixosModules.default
        (./. + "/${name}.nix")
        ./disk.nix
        {
          nixpkgs.hostPlatform = system;
          networking.hostName = lib.mkDefault name;
        }
      ];
    };
  names = [
    "appliance"
    "cas"
    "monitoring"
    "scheduler"
    "worker"
  ];
in
lib.genAttrs names (host "x86_64-linux")
// lib.mapAttrs' (name: lib.nameValuePair "${name}-aarch64") (
  lib.genAttrs names (host "aarch64-linux")
)
