# What the kernel's defaults are too small for, by role.
{ config, lib, ... }:
let
  inherit (lib) mkOption types;
  croft = config.services.croft;
  cfg = croft.tuning;
  hasRole = role: lib.elem role croft.roles;
  serves = hasRole "cas" || hasRole "scheduler";
  byDefault = lib.mapAttrs (_: lib.mkDefault);
in
{
  imports = [ ./unit.nix ];

  options.services.croft.tuning.enable = mkOption {
    type = types.bool;
    default = true;
    description = "Whether limits of the kernel and the order of the disks' requests are set for what this host does.";
  };

  config = lib.mkIf (cfg.enable && croft.roles != [ ]) (
    lib.mkMerge [
      (lib.mkIf serves {
        boot.kernel.sysctl = byDefault {
          # A whole farm connects at once when a scheduler is started again.
          "net.core.somaxconn" = 4096;
          # Sockets take 4 MiB: a fast upload fills what the kernel begins with.
          "net.core.rmem_max" = 16777216;
          "net.core.wmem_max" = 16777216;
          # Connections that stay open carry a burst for each build, and would begin slowly each time.
          "net.ipv4.tcp_slow_start_after_idle" = 0;
        };
      })
      (lib.mkIf (hasRole "cas") {
        # Blobs are synced before they are acknowledged; what piles up behind the kernel's defaults makes single syncs take seconds.
        boot.kernel.sysctl = byDefault {
          "vm.dirty_background_bytes" = 268435456;
          "vm.dirty_bytes" = 1073741824;
        };
        # Disks that order their requests themselves lose by doing it twice; those that turn gain by deadlines.
        services.udev.extraRules = ''
          ACTION=="add|change", KERNEL=="nvme[0-9]*n[0-9]*", ATTR{queue/scheduler}="none"
          ACTION=="add|change", KERNEL=="sd[a-z]", ATTR{queue/rotational}=="1", ATTR{queue/scheduler}="mq-deadline"
        '';
      })
      (lib.mkIf (hasRole "worker") {
        boot.kernel.sysctl = byDefault {
          # Each action has some mounts and namespaces of its own.
          "fs.mount-max" = 1000000;
          "user.max_mnt_namespaces" = 100000;
        };
      })
    ]
  );
}
