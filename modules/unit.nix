# What every role shares: one process on a host, with the roles that are enabled there.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  cfg = config.services.croft;
  format = pkgs.formats.toml { };
  hardening = import ./hardening.nix;
  addresses = import ./addresses.nix { inherit lib; };
  hasRole = role: lib.elem role cfg.roles;
  sortedRoles = lib.sort lib.lessThan (lib.unique cfg.roles);
  exposed = lib.filterAttrs (_: address: !addresses.isLoopback address) cfg.listeners;
  # Not the one for operators: who scrapes it would start a service that an operator has stopped.
  activating = removeAttrs cfg.listeners [ "admin" ];
  sockets = map (name: "croft-${name}.socket") (lib.attrNames activating);
in
{
  options.services.croft = {
    package = lib.mkPackageOption pkgs "croft" { };

    roles = mkOption {
      type = types.listOf (
        types.enum [
          "cas"
          "scheduler"
          "worker"
        ]
      );
      default = [ ];
      internal = true;
      description = "What the process of this host does. The modules of the roles say so.";
    };

    listen = {
      public = mkOption {
        type = types.str;
        default = "127.0.0.1:50051";
        example = "0.0.0.0:50051";
        description = ''
          Address and port for clients, where the host is a CAS or a scheduler. Beyond loopback it needs
          {option}`services.croft.tls` and {option}`services.croft.access`.
        '';
      };
      admin = mkOption {
        type = types.str;
        default = "127.0.0.1:50080";
        description = "Address and port for operators: metrics, health, and the pages for people.";
      };
    };

    listeners = mkOption {
      type = types.attrsOf types.str;
      default = { };
      internal = true;
      description = "The addresses of the listeners that the process has, by the name that the configuration gives them.";
    };

    insecure = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether listeners may be beyond loopback without TLS: for networks that encrypt by themselves, such as WireGuard.

        ::: {.warning}
        Anyone on the way can read and change what is sent, and nobody can show who they are.
        :::
      '';
    };

    settings = mkOption {
      type = types.submodule { freeformType = format.type; };
      default = { };
      example = {
        scheduler.attempts_max = 5;
        audit.rate = 0.01;
      };
      description = ''
        What stands in croft's configuration file, beside what the other options put there. Every key of
        {command}`croft print-config` may be given; {command}`croft check` looks at all of it when the system is built.
      '';
    };

    credentials = mkOption {
      type = types.attrsOf types.externalPath;
      default = { };
      example = {
        redis-password = "/run/secrets/redis-password";
      };
      description = ''
        Files with secrets, by the name that {option}`services.croft.settings` gives them, as in
        `password_file = "credential:redis-password"`. systemd hands them over ({manpage}`systemd.exec(5)`, `LoadCredential=`), so they
        may be readable by root alone, and they are never in the Nix store. Such a file is read at the start of the service.
      '';
    };

    configFile = mkOption {
      type = types.path;
      readOnly = true;
      description = "The configuration file made of all this.";
    };
  };

  config = lib.mkMerge [
    {
      services.croft.configFile = import ./render.nix {
        inherit lib pkgs;
        inherit (cfg) package;
      } cfg.settings;
    }

    (lib.mkIf (cfg.roles != [ ]) {
      services.croft.listeners = {
        admin = cfg.listen.admin;
      }
      // lib.optionalAttrs (hasRole "cas" || hasRole "scheduler") { inherit (cfg.listen) public; };

      services.croft.settings = lib.mkMerge [
        {
          roles = sortedRoles;
          data = lib.mkDefault "/var/lib/croft";
          log.format = lib.mkDefault "json";
        }
        (lib.mapAttrs (_: listen: { inherit listen; }) cfg.listeners)
        (lib.mkIf cfg.insecure (lib.mapAttrs (_: _: { insecure = true; }) exposed))
      ];

      # A user of its own that stays: systemd would change the owner of a state directory file by file, which for a store of terabytes
      # is an outage.
      users.users.croft = {
        isSystemUser = true;
        group = "croft";
        description = "Croft build farm";
      };
      users.groups.croft = { };

      environment.systemPackages = [ cfg.package ];

      # systemd holds the sockets, so that clients wait while the service is started again, and are not refused. To stop a farm, stop its
      # sockets, too.
      systemd.sockets = lib.mapAttrs' (
        name: address:
        lib.nameValuePair "croft-${name}" {
          description = "Croft, listener `${name}`";
          wantedBy = [ "sockets.target" ];
          listenStreams = [ address ];
          socketConfig = {
            FileDescriptorName = name;
            Service = "croft.service";
            Backlog = 1024;
            # An address may come up after the socket.
            FreeBind = true;
          };
        }
      ) activating;

      systemd.services.croft = {
        description = "Croft build farm (${lib.concatStringsSep ", " sortedRoles})";
        documentation = [ "https://github.com/bazelbuild/remote-apis" ];
        wantedBy = [ "multi-user.target" ];
        wants = [ "network-online.target" ];
        after = [ "network-online.target" ];
        requires = sockets;
        # A new configuration is taken in one step, without a time in between in which the service is down and its old unit gone.
        stopIfChanged = false;
        # What it waits for, a certificate or a disk, may come hours later; so it never gives up, and asks less and less often.
        startLimitIntervalSec = 0;
        serviceConfig = lib.mapAttrs (_: lib.mkDefault) hardening.strict // {
          Type = "notify-reload";
          ExecStart = "${lib.getExe cfg.package} serve --config ${cfg.configFile}";
          User = "croft";
          Group = "croft";
          StateDirectory = "croft";
          StateDirectoryMode = "0700";
          LoadCredential = lib.mapAttrsToList (name: path: "${name}:${path}") cfg.credentials;
          Sockets = sockets;
          WatchdogSec = 30;
          Restart = "on-failure";
          RestartSec = 1;
          RestartSteps = 5;
          RestartMaxDelaySec = 30;
          # Requests have 10 s to end, and what is written back must be in the journal.
          TimeoutStopSec = lib.mkDefault 60;
          # Blobs, uploads and connections are files; half of these bound the connections.
          LimitNOFILE = 1048576;
        };
      };
    })
  ];
}
