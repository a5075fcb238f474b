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
  data = "/var/lib/croft";
  wanted = "/run/croft-backup/wanted";

  # While nothing writes. Blobs are never written again once they have their names, which their mode says, so that links will do; the
  # index, which has small blobs and most results in it, and the journal are changed in place.
  takeLinks = pkgs.writeShellScript "croft-backup-links" ''
    [ -e ${wanted} ] || exit 0
    set -euo pipefail
    rm -rf ${wanted} ${cfg.at}.part
    trap 'rm -rf ${cfg.at}.part' EXIT
    mkdir --mode=0700 ${cfg.at}.part
    cd ${data}
    for each in *; do
      case $each in
        worker | fetch | scheduler) ;;
        *) cp --archive --link "$each" ${cfg.at}.part ;;
      esac
    done
    find ${cfg.at}.part -type f ! -perm 0444 | while read -r file; do
      cp --archive "$file" "$file.copy"
      mv "$file.copy" "$file"
    done
    # Last, since its presence says that all is there.
    mv ${cfg.at}.part ${cfg.at}
  '';
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

    pause = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether the service is started again for it, for file systems without snapshots. Between its end and its start the blobs are
        linked, since nobody writes a blob again once it has its name, and the index is copied, which has the small blobs and most results
        in it and is changed in place. Clients wait at the sockets meanwhile; what this host's own worker runs begins anew. A service that
        is stopped stays so, and has no backup.
      '';
    };

    snapshot = mkOption {
      type = types.lines;
      default =
        if cfg.pause then
          ''
            touch ${wanted}
            systemctl try-restart croft.service
            test -e "$SNAPSHOT"
          ''
        else
          ''
            btrfs subvolume snapshot -r ${data} "$SNAPSHOT"
          '';
      defaultText = lib.literalMD "with {option}`services.croft.backup.pause` links to the files, else a snapshot of btrfs";
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
      description = ''
        Copies {env}`SNAPSHOT` to another machine. What is below {file}`worker`, {file}`fetch` and {file}`scheduler` is not worth copying: a
        farm that is restored has nothing to do. To restore, stop {file}`croft.service` and its sockets on a host of the same roles, put
        all back in {file}`/var/lib/croft`, owned by `croft`, and start them.
      '';
    };

    remove = mkOption {
      type = types.lines;
      default = if cfg.pause then ''rm -rf "$SNAPSHOT"'' else ''btrfs subvolume delete "$SNAPSHOT"'';
      defaultText = lib.literalMD "what removes such links, or such a snapshot";
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
      default = if cfg.pause then "${data}/.backup" else "/var/lib/croft-snapshot";
      defaultText = lib.literalMD "{file}`.backup` in the data for links, else {file}`/var/lib/croft-snapshot`";
      description = "Where the snapshot is, on the file system of the data.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = !cfg.pause || croft.cas.disk.path or null == null;
        message = ''
          services.croft.backup.pause links what is below ${data}, and services.croft.cas.disk.path is elsewhere.
          Set services.croft.backup.snapshot, or mount the disk at ${data}.'';
      }
    ];
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
        RuntimeDirectory = "croft-backup";
      };
    };
    # In the start of the service, since its sockets would start it at the next connection if it were stopped; a farm whose backup fails
    # starts all the same.
    systemd.services.croft.serviceConfig = lib.mkIf cfg.pause {
      ExecStartPre = "-+${takeLinks}";
      TimeoutStartSec = "1h";
    };
    systemd.timers.croft-backup.timerConfig = {
      Persistent = true;
      RandomizedDelaySec = 600;
    };
  };
}
