# Backups of what the farm cannot make again. The configuration is in the flake; blobs and action results are below `data`.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  croft = config.services.croft;
  cfg = croft.backup;
in
{
  imports = [ ./unit.nix ];

  options.services.croft.backup = {
    enable = lib.mkEnableOption ''
      a regular backup of the farm's data.

      What a farm has can be built again: losing it costs time. A backup is worth it where the action cache is what makes
      releases reproducible, or where it holds assets whose origin may go away'';

    schedule = mkOption {
      type = types.str;
      default = "daily";
      example = "*-*-* 03:00:00";
      description = "When ({manpage}`systemd.time(7)`).";
    };

    snapshot = mkOption {
      type = types.lines;
      default = ''
        btrfs subvolume snapshot -r /var/lib/croft "$SNAPSHOT"
      '';
      description = ''
        Makes a snapshot of the data at {env}`SNAPSHOT`, all of it at one instant. The farm goes on: what it acknowledges survives a power
        cut, and a snapshot is what a power cut would leave. A copy, file after file, is none, since the index and the files would be of
        different times. With the default, {file}`/var/lib/croft` must be a subvolume; what is at {option}`services.croft.cas.disk.path` needs
        commands of its own.
      '';
    };

    copy = mkOption {
      type = types.lines;
      example = ''
        restic backup --repo /srv/backup "$SNAPSHOT"
      '';
      description = "Copies {env}`SNAPSHOT` to another machine. What is below {file}`worker` and {file}`fetch` is not worth copying.";
    };

    remove = mkOption {
      type = types.lines;
      default = ''
        btrfs subvolume delete "$SNAPSHOT"
      '';
      description = "Removes the snapshot. It runs after a copy that failed, too.";
    };

    path = mkOption {
      type = types.listOf types.package;
      default = [ pkgs.btrfs-progs ];
      defaultText = lib.literalExpression "[ pkgs.btrfs-progs ]";
      description = "The packages whose programs these commands use.";
    };

    at = mkOption {
      type = types.externalPath;
      default = "/var/lib/croft-snapshot";
      description = "Where the snapshot is, on the file system of the data.";
    };
  };

  config = lib.mkIf cfg.enable {
    systemd.services.croft-backup = {
      description = "Backup of the Croft farm";
      startAt = cfg.schedule;
      inherit (cfg) path;
      environment.SNAPSHOT = cfg.at;
      preStart = ''
        # One that a power cut has left.
        if [ -e "$SNAPSHOT" ]; then
          ${cfg.remove}
        fi
      '';
      script = ''
        ${cfg.snapshot}
        ${cfg.copy}
      '';
      postStop = ''
        if [ -e "$SNAPSHOT" ]; then
          ${cfg.remove}
        fi
      '';
      serviceConfig = {
        Type = "oneshot";
        IOSchedulingClass = "idle";
        Nice = 10;
      };
    };
    systemd.timers.croft-backup.timerConfig = {
      Persistent = true;
      RandomizedDelaySec = 600;
    };
  };
}
