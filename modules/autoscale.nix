# As many workers as are wanted: commands that start and end them, driven by `croft_workers_wanted`.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  croft = config.services.croft;
  cfg = croft.autoscale;
  inherit (import ./addresses.nix { inherit lib; }) isLoopback;

  kind = types.submodule {
    options = {
      propertySet = mkOption {
        type = types.str;
        default = "none";
        example = "Pool=gpu";
        description = "The label `property_set` of the metric: what the actions demand that these workers run.";
      };
      min = mkOption {
        type = types.ints.unsigned;
        default = 0;
        description = "Workers that are kept although nothing waits.";
      };
      max = mkOption {
        type = types.ints.positive;
        description = "Workers that are never exceeded, whatever waits.";
      };
      command = mkOption {
        type = types.lines;
        example = ''
          hcloud-scale --group gpu --to "$WANTED"
        '';
        description = ''
          Brings the number of these workers to {env}`WANTED`. It is called at each look, so it must be content with what is there. Who
          ends a worker should send it SIGTERM and wait: it takes nothing new and lets its actions end.
        '';
      };
    };
  };

  scale = name: kind: ''
    wanted=$(awk -v series=${lib.escapeShellArg "croft_workers_wanted{property_set=\"${kind.propertySet}\"}"} \
      'index($0, series " ") == 1 { print int($NF) }' "$metrics")
    # Without a series nothing of the kind waits or runs.
    WANTED=''${wanted:-0}
    if [ "$WANTED" -lt ${toString kind.min} ]; then WANTED=${toString kind.min}; fi
    if [ "$WANTED" -gt ${toString kind.max} ]; then WANTED=${toString kind.max}; fi
    echo ${lib.escapeShellArg name}": $WANTED workers wanted"
    export WANTED
    (
      ${kind.command}
    )
  '';
in
{
  imports = [ ./unit.nix ];

  options.services.croft.autoscale = {
    kinds = mkOption {
      type = types.attrsOf kind;
      default = { };
      example = lib.literalExpression ''
        {
          gpu = {
            propertySet = "Pool=gpu";
            max = 8;
            command = "hcloud-scale --group gpu --to \"$WANTED\"";
          };
        }
      '';
      description = "The kinds of workers that come and go, by name.";
    };
    metrics = mkOption {
      type = types.nullOr types.str;
      default = if isLoopback croft.listen.admin then "http://${croft.listen.admin}/metrics" else null;
      defaultText = lib.literalMD "those of this host, where its listener for operators is on loopback";
      example = "https://scheduler.example:50080/metrics";
      description = "The metrics of the scheduler.";
    };
    tokenFile = mkOption {
      type = types.nullOr types.externalPath;
      default = null;
      description = "The file of a token of somebody who may read everywhere, where the farm has rules of access.";
    };
    interval = mkOption {
      type = types.ints.positive;
      default = 30;
      description = "Seconds between two looks.";
    };
    path = mkOption {
      type = types.listOf types.package;
      default = [ ];
      description = "The packages whose programs the commands use.";
    };
  };

  config = lib.mkIf (cfg.kinds != { }) {
    assertions = [
      {
        assertion = cfg.metrics != null;
        message = ''
          services.croft.autoscale cannot know how many workers are wanted.
          Set services.croft.autoscale.metrics to where the scheduler has its metrics.'';
      }
    ];
    systemd.services.croft-autoscale = {
      description = "Number of Croft workers";
      after = [ "network-online.target" ];
      wants = [ "network-online.target" ];
      path = [
        pkgs.curl
        pkgs.gawk
      ]
      ++ cfg.path;
      script = ''
        metrics=$RUNTIME_DIRECTORY/metrics
        # In a file, since everybody on the machine sees the arguments of programs.
        header=$RUNTIME_DIRECTORY/header
        ${
          if cfg.tokenFile == null then
            ": > \"$header\""
          else
            ''printf 'authorization: Bearer %s\n' "$(cat "$CREDENTIALS_DIRECTORY/token")" > "$header"''
        }
        # A scheduler that does not answer wants nothing changed: without its answer this fails and no command runs.
        curl --fail --silent --show-error --max-time 10 --header @"$header" --output "$metrics" ${lib.escapeShellArg (toString cfg.metrics)}
        ${lib.concatStringsSep "\n" (lib.mapAttrsToList scale cfg.kinds)}
      '';
      serviceConfig = {
        Type = "oneshot";
        DynamicUser = true;
        RuntimeDirectory = "croft-autoscale";
        RuntimeDirectoryMode = "0700";
        StateDirectory = "croft-autoscale";
        LoadCredential = lib.optional (cfg.tokenFile != null) "token:${cfg.tokenFile}";
        # A cloud's command that hangs must not end the scaling.
        TimeoutStartSec = 300;
        ProtectHome = true;
      };
    };
    systemd.timers.croft-autoscale = {
      wantedBy = [ "timers.target" ];
      timerConfig = {
        OnBootSec = 60;
        OnUnitInactiveSec = cfg.interval;
      };
    };
  };
}
