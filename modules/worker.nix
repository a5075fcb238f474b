# The role `worker`: runs actions, each in a sandbox that sees the closure of the toolchains and nothing else of this host.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  cfg = config.services.croft.worker;
  hardening = import ./hardening.nix;
  # Of the list, those that are values of local-remote-execution; the others are packages.
  isToolchain = value: lib.isAttrs value && value._type or null == "croft-toolchain";
  toolchainType = types.addCheck types.raw isToolchain // {
    description = "toolchain";
  };
  known = import ../local-remote-execution/worker.nix { inherit lib; } (
    lib.filter isToolchain cfg.toolchains
  );
  packages = lib.filter (value: !isToolchain value) cfg.toolchains ++ known.packages;
  properties = known.properties // cfg.properties;
  isAlone = lib.unique config.services.croft.roles == [ "worker" ];
in
{
  imports = [ ./unit.nix ];

  options.services.croft.worker = {
    enable = lib.mkEnableOption "a worker of the farm";

    scheduler = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "grpcs://scheduler.example:50061";
      description = "Where the scheduler listens for workers; null where it is on this host, in the same process.";
    };

    slots = mkOption {
      type = types.nullOr types.ints.positive;
      default = null;
      description = "How many actions run at a time; by default one for each core.";
    };

    toolchains = mkOption {
      type = types.listOf (types.either toolchainType types.package);
      default = [
        pkgs.bash
        pkgs.coreutils
        pkgs.diffutils
        pkgs.findutils
        pkgs.gawk
        pkgs.gnugrep
        pkgs.gnused
        pkgs.gnutar
        pkgs.gzip
        pkgs.stdenv.cc
      ];
      defaultText = lib.literalMD "the shell, the usual small tools, and a C compiler";
      description = ''
        What actions can see of a system: these packages and all that they need, each at its own store path, read-only. Actions that name
        other paths of the host do not find them, so that what they do depends on their inputs and on this list alone.

        A toolchain of {file}`local-remote-execution` brings its links, too, and is offered by its hash: clients that build with the same
        find this worker, and those whose toolchain differs are told that no worker has theirs.
      '';
    };

    links = mkOption {
      type = types.attrsOf types.str;
      default = {
        "/bin/bash" = "${pkgs.bash}/bin/bash";
        "/bin/sh" = "${pkgs.bash}/bin/sh";
        "/usr/bin/env" = "${pkgs.coreutils}/bin/env";
      };
      defaultText = lib.literalMD "{file}`/bin/sh`, {file}`/bin/bash` and {file}`/usr/bin/env`";
      description = "What stands at other paths than its own, since scripts name it there. It must belong to the toolchains.";
    };

    properties = mkOption {
      type = types.attrsOf (types.listOf types.str);
      default = { };
      example = {
        Pool = [ "gpu" ];
      };
      description = "Platform properties that the worker offers, beside the system's.";
    };

    drainTimeout = mkOption {
      type = types.ints.unsigned;
      default = if isAlone then 600 else 0;
      defaultText = lib.literalMD "10 minutes for a host that is only a worker, else 0";
      description = "Seconds that running actions may go on when the service is stopped or started again. They take nothing new meanwhile.";
    };

    tokenFile = mkOption {
      type = types.nullOr types.externalPath;
      default = null;
      example = "/run/secrets/worker-token";
      description = "The file of the token that is shown to the scheduler, where it knows workers by tokens.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = config.services.croft.scheduler.enable or false || cfg.scheduler != null;
        message = ''
          services.croft.worker does not know whom to work for: there is no scheduler on this host.
          Set services.croft.worker.scheduler, as in "grpcs://scheduler.example:50061", or services.croft.scheduler.enable.'';
      }
    ];

    services.croft = {
      roles = [ "worker" ];
      credentials = lib.mkIf (cfg.tokenFile != null) { worker-token = cfg.tokenFile; };
      settings.worker = {
        name = lib.mkDefault config.networking.hostName;
        root = {
          closure = "${pkgs.closureInfo { rootPaths = packages; }}/store-paths";
          links = cfg.links // known.links;
        };
        properties = lib.mkIf (properties != { }) properties;
        drain_timeout = "${toString cfg.drainTimeout}s";
        # An action that could take the whole machine is worse than a worker that says why it does not start.
        limits.required = lib.mkDefault true;
        slots = lib.mkIf (cfg.slots != null) cfg.slots;
        scheduler = lib.mkIf (cfg.scheduler != null) cfg.scheduler;
        token = lib.mkIf (cfg.tokenFile != null) "credential:worker-token";
      };
    };

    systemd.services.croft.serviceConfig = hardening.worker // {
      # The control groups of actions are below the unit's.
      Delegate = true;
      # It is for the farm to stop what runs: on SIGTERM it takes nothing new and lets actions end.
      KillMode = "mixed";
      TimeoutStopSec = cfg.drainTimeout + 60;
      # An action that reaches the limit of its memory fails, and nothing else.
      OOMPolicy = "continue";
      # Processes of actions have limits of their own.
      TasksMax = "infinity";
    };
  };
}
