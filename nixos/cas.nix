# A server of the farm's blobs and action results. More of them, each with a part, are more lines in farm.nix.
{ lib, ... }:
{
  imports = [
    ./base.nix
    ./farm.nix
  ];
  services.croft.cas = {
    memory = lib.mkDefault "4 GiB";
    disk.compression = lib.mkDefault true;
  };
}
