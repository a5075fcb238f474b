# Options of NixOS that this repository sets and the stand-in does not declare: names and types, and nothing behind them.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  option = type: default: mkOption { inherit type default; };
  scalar = types.nullOr (
    types.oneOf [
      types.bool
      types.int
      types.str
    ]
  );
in
{
  imports = [ ./base-services.nix ];

  options = {
    boot.kernel.sysctl = option (types.attrsOf scalar) { };
    boot.loader.systemd-boot.enable = option types.bool false;
    boot.loader.efi.canTouchEfiVariables = option types.bool false;
    boot.loader.grub.enable = option types.bool true;
    fileSystems = option (types.attrsOf (
      types.submodule {
        options = {
          device = option (types.nullOr types.str) null;
          fsType = option types.str "auto";
          options = option (types.listOf types.str) [ "defaults" ];
        };
      }
    )) { };
    security.sudo.enable = option types.bool true;
    services.openssh = {
      enable = option types.bool false;
      openFirewall = option types.bool true;
      settings = option (types.attrsOf scalar) { };
    };
    services.timesyncd.enable = option types.bool true;
    services.udev.extraRules = option types.lines "";
    nixpkgs.hostPlatform = mkOption { type = types.str; };
    nix.settings = option (types.attrsOf types.unspecified) { };
    nix.gc = option (types.attrsOf types.unspecified) { };
  };

  # The variants that nixpkgs makes of every host.
  config.system.build.images = lib.genAttrs [
    "amazon"
    "iso"
    "qemu"
    "qemu-efi"
  ] (variant: pkgs.writeText "${config.networking.hostName}-${variant}" "");
}
