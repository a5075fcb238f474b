{
  description = "A farm of NixOS hosts";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";
  # Replace with where you have Croft's sources from.
  inputs.croft.url = "git+https://git.example/croft";
  inputs.croft.inputs.nixpkgs.follows = "nixpkgs";

  outputs =
    { nixpkgs, croft, ... }:
    let
      farm = import ./farm.nix;
      host =
        name: _:
        nixpkgs.lib.nixosSystem {
          modules = [
            croft.nixosModules.default
            farm
            (./hosts + "/${name}.nix")
            { networking.hostName = name; }
          ];
        };
    in
    {
      nixosConfigurations = nixpkgs.lib.mapAttrs host farm.services.croft.farm.hosts;
    };
}
