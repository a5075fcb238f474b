# What every host of a farm has in common.
{ lib, ... }:
{
  # Who operates the farm comes by keys; nothing else of it is in the configuration.
  services.openssh = {
    enable = lib.mkDefault true;
    settings.PasswordAuthentication = lib.mkDefault false;
  };
  # Certificates and signed tokens are valid at times.
  services.timesyncd.enable = lib.mkDefault true;
  networking.nftables.enable = lib.mkDefault true;
  nix.settings.experimental-features = lib.mkDefault [
    "nix-command"
    "flakes"
  ];
  system.stateVersion = lib.mkDefault "26.05";
}
