# A host that runs actions, and nothing else: all its memory and cores are for them.
{ lib, ... }:
{
  imports = [
    ./base.nix
    ./farm.nix
  ];
  # The store of toolchains grows with every version of them.
  nix.gc.automatic = lib.mkDefault true;
}
