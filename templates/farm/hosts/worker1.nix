# Add `nixos-generate-config`'s hardware-configuration.nix to the imports.
{ pkgs, ... }:
{
  system.stateVersion = "26.05";
  nixpkgs.hostPlatform = "x86_64-linux";

  # What actions can see of a system.
  services.croft.worker.toolchains = [
    pkgs.bash
    pkgs.coreutils
    pkgs.stdenv.cc
    pkgs.python3
  ];
}
