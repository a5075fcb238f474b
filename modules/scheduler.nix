# The role `scheduler`: takes actions from clients and hands them to workers.
{ config, lib, ... }:
let
  inherit (lib) mkOption types;
  cfg = config.services.croft;
in
{
  imports = [ ./unit.nix ];

  options.services.croft = {
    scheduler = {
      enable = lib.mkEnableOption "the scheduler of the farm";

      properties = mkOption {
        type = types.attrsOf (
          types.enum [
            "exact"
            "minimum"
            "any"
          ]
        );
        default = { };
        example = {
          gpu = "exact";
          toolchain = "exact";
        };
        description = ''
          Platform properties that actions may demand, beside those that croft knows by itself and those of {file}`local-remote-execution`
          (`toolchain-cc` and so on), and how a worker meets them: with the same value, with at least as much, or always.
        '';
      };
    };

    listen.workers = mkOption {
      type = types.nullOr types.str;
      default = if cfg.worker.enable or false then null else "127.0.0.1:50061";
      defaultText = lib.literalMD "`127.0.0.1:50061` for a scheduler without a worker of its own";
      example = "0.0.0.0:50061";
      description = "Address and port for workers on other hosts. Whoever may work there can hand in results.";
    };
  };

  config = lib.mkIf cfg.scheduler.enable {
    services.croft = {
      roles = [ "scheduler" ];
      listeners = lib.mkIf (cfg.listen.workers != null) { inherit (cfg.listen) workers; };
      # Actions that demand a toolchain that nobody has are refused by name, on farms that have none, too.
      settings.scheduler.properties =
        lib.mapAttrs' (kind: _: lib.nameValuePair "toolchain-${kind}" "exact") (
          import ../local-remote-execution/kinds.nix
        )
        // cfg.scheduler.properties;
    };
  };
}
