# Add `nixos-generate-config`'s hardware-configuration.nix to the imports.
{
  system.stateVersion = "26.05";
  nixpkgs.hostPlatform = "x86_64-linux";

  services.croft.cas.disk.size = "500 GiB";
}
