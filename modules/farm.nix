# A whole farm in one place: every host is given the same value and finds by its name what it does, for whom, and who reaches it.
{ config, lib, ... }:
let
  inherit (lib) mkOption types;
  croft = config.services.croft;
  cfg = croft.farm;
  me = config.networking.hostName;
  self = cfg.hosts.${me} or { roles = [ ]; };
  does = role: lib.elem role self.roles;

  having = role: lib.filterAttrs (_: host: lib.elem role host.roles) cfg.hosts;
  caches = having "cas";
  schedulers = having "scheduler";
  workers = having "worker";
  monitors = having "monitoring";
  serving = caches // schedulers // workers;

  nameOf = name: if cfg.domain == null then name else "${name}.${cfg.domain}";
  names = hosts: map nameOf (lib.attrNames hosts);
  # This host reaches itself without the network.
  addresses = hosts: lib.mapAttrsToList (_: host: host.address) (removeAttrs hosts [ me ]);
  open = hosts: if cfg.clients == "everybody" then "everybody" else addresses hosts ++ cfg.clients;
  isMonitored = removeAttrs monitors [ me ] != { } || cfg.operators != [ ];

  # Blobs that are elsewhere: each on one of the caches.
  remote = {
    kind = "farm";
    endpoints = map (name: "${if cfg.insecure then "http" else "https"}://${name}:50051") (
      names caches
    );
  }
  // lib.optionalAttrs (!cfg.insecure) { tls = croft.tls.client; };

  # A host is known by the name in its certificate. Without certificates it can only be known by the network that it is in.
  who =
    hosts: if cfg.insecure then [ "anonymous" ] else map (name: "certificate:${name}") (names hosts);
  grant =
    hosts: may:
    lib.optional (hosts != { }) {
      who = who hosts;
      inherit may;
    };

  host = types.submodule {
    options = {
      roles = mkOption {
        type = types.listOf (
          types.enum [
            "cas"
            "scheduler"
            "worker"
            "monitoring"
          ]
        );
        description = "What the host does.";
      };
      address = mkOption {
        type = types.str;
        example = "10.7.0.11";
        description = "The address by which the farm's other hosts reach it, and from which it reaches them.";
      };
    };
  };
in
{
  imports = [
    ./access.nix
    ./cas.nix
    ./firewall.nix
    ./monitoring.nix
    ./scheduler.nix
    ./tls.nix
    ./worker.nix
  ];

  options.services.croft.farm = {
    hosts = mkOption {
      type = types.attrsOf host;
      default = { };
      example = lib.literalExpression ''
        {
          cas1 = { roles = [ "cas" ]; address = "10.7.0.11"; };
          control = { roles = [ "scheduler" "monitoring" ]; address = "10.7.0.12"; };
          worker1 = { roles = [ "worker" ]; address = "10.7.0.21"; };
        }
      '';
      description = ''
        The hosts of the farm by their names ({option}`networking.hostName`). Give all hosts the same value: each does what stands at its
        own name. What a host needs beside that (the size of its disk, its toolchains) is set with the other options on that host.

        Its monitoring shows a token of the name `monitoring`: {option}`services.croft.access.tokens` has the hash, and
        {option}`services.croft.monitoring.tokenFile` the token. So {option}`services.croft.tls.clients.required` must be false there.
      '';
    };
    domain = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "farm.example";
      description = "What comes behind the hosts' names, in addresses and in certificates.";
    };
    clients = mkOption {
      type = (import ./addresses.nix { inherit lib; }).sources;
      default = [ ];
      example = [ "10.8.0.0/16" ];
      description = "The addresses or networks of the machines that build on the farm, or `everybody`.";
    };
    operators = mkOption {
      type = types.listOf types.str;
      default = [ ];
      description = "The addresses or networks from which the pages for operators are reached, beside the farm's own monitoring.";
    };
    insecure = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether the hosts talk without TLS, in a network that encrypts by itself and that nobody else is in.

        ::: {.warning}
        Whoever reaches the farm may then do everything but administer it: nobody can show who they are.
        :::
      '';
    };
  };

  config = lib.mkIf (cfg.hosts != { }) (
    lib.mkMerge [
      {
        assertions = [
          {
            assertion = lib.length (lib.attrNames schedulers) <= 1;
            message = ''
              services.croft.farm.hosts has several schedulers (${lib.concatStringsSep ", " (lib.attrNames schedulers)}).
              A farm has one, which knows all workers; make two farms of it, or drop the others.'';
          }
          {
            assertion = schedulers == { } || caches != { };
            message = "services.croft.farm.hosts has a scheduler and nothing with the role cas, where inputs and outputs would be.";
          }
          {
            assertion = workers == { } || schedulers != { };
            message = "services.croft.farm.hosts has workers and no scheduler, so they would have nothing to do.";
          }
          {
            assertion = cfg.hosts ? ${me};
            message = ''
              services.croft.farm.hosts does not name this host, ${me}.
              Add it with its roles, or do not give it the farm.'';
          }
        ];
        networking.extraHosts = lib.concatLines (
          lib.mapAttrsToList (
            name: host:
            "${host.address} ${
              lib.concatStringsSep " " (
                lib.unique [
                  (nameOf name)
                  name
                ]
              )
            }"
          ) (removeAttrs cfg.hosts [ me ])
        );
        services.croft = {
          cas.enable = does "cas";
          scheduler.enable = does "scheduler";
          worker.enable = does "worker";
          monitoring.enable = does "monitoring";
        };
      }

      # One host that is the whole farm needs nothing of what follows but its clients.
      (lib.mkIf (does "cas" || does "scheduler" || does "worker") {
        services.croft = {
          inherit (cfg) insecure;
          tls.enable = !cfg.insecure;
          listen.admin = lib.mkIf isMonitored "0.0.0.0:50080";
          firewall.admin = lib.mkIf isMonitored (addresses monitors ++ cfg.operators);
          access.rules =
            grant workers [
              "work"
              "read"
              "write"
            ]
            ++ grant schedulers [
              "read"
              "write"
              "cache-write"
            ]
            # Prometheus has no certificate to show.
            ++ lib.optional (monitors != { }) {
              who = [ "token:monitoring" ];
              may = [ "read" ];
            }
            ++ lib.optional cfg.insecure {
              who = [ "anonymous" ];
              may = [
                "read"
                "write"
                "cache-write"
                "execute"
              ];
            };
        };
      })

      (lib.mkIf (does "cas" || does "scheduler") {
        services.croft.listen.public = "0.0.0.0:50051";
        services.croft.firewall.public = open (lib.optionalAttrs (does "cas") serving);
      })

      (lib.mkIf (does "scheduler") {
        services.croft.listen.workers = lib.mkIf (removeAttrs workers [ me ] != { }) "0.0.0.0:50061";
        services.croft.firewall.workers = addresses workers;
      })

      (lib.mkIf (does "worker" && !does "scheduler") {
        services.croft.worker.scheduler = "${
          if cfg.insecure then "grpc" else "grpcs"
        }://${lib.head (names schedulers)}:50061";
        services.croft.settings.worker.insecure = lib.mkIf cfg.insecure true;
      })

      (lib.mkIf (!does "cas" && (does "scheduler" || does "worker")) {
        # A worker keeps what it has fetched: the next action has mostly the same inputs.
        services.croft.settings.storage.tier = lib.mkDefault (
          lib.optional (does "worker") { kind = "disk"; } ++ [ remote ]
        );
      })

      (lib.mkIf (does "monitoring") {
        services.croft.monitoring = {
          targets = map (name: "${name}:50080") (names serving);
          tls = !cfg.insecure;
          authorities = lib.mkIf (!cfg.insecure) (lib.mkDefault croft.tls.authorities);
        };
      })
    ]
  );
}
