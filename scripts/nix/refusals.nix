# What must be refused, and the words of it. `attempt` is what must not evaluate or build.
{ nixpkgs, self }:
let
  inherit (nixpkgs) lib;
  appliance = module: self.nixosConfigurations.appliance.extendModules { modules = [ module ]; };
  system = module: (appliance module).config.system.build.toplevel;
  configFile = module: (appliance module).config.services.croft.configFile;
  toolchains = pkgs: import ../../local-remote-execution { inherit pkgs; };
  project =
    choose:
    let
      lre = toolchains nixpkgs.legacyPackages.${builtins.currentSystem};
    in
    lre.project (choose lre.toolchains);
in
{
  type = {
    message = "A definition for option `services.croft.worker.slots' is not of type";
    attempt = system { services.croft.worker.slots = "eight"; };
  };
  unknown-option = {
    message = "The option `services.croft.worker.slot' does not exist";
    attempt = system { services.croft.worker.slot = 8; };
  };
  secret-in-the-store = {
    message = "A definition for option `services.croft.access.passwords' is not of type";
    attempt = system { services.croft.access.passwords = "${./refusals.nix}"; };
  };
  no-durable-tier = {
    message = "services.croft.cas has no durable tier";
    attempt = system { services.croft.cas.disk.enable = false; };
  };
  exposed-without-tls = {
    message = "services.croft listens beyond loopback without TLS (public)";
    attempt = system { services.croft.tls.enable = lib.mkForce false; };
  };
  open-on-loopback = {
    message = "services.croft.firewall.admin opens a listener that is on loopback";
    attempt = system { services.croft.firewall.admin = "everybody"; };
  };
  proofs-without-rules = {
    message = "services.croft.access knows who somebody is, and has no rule";
    attempt = system {
      services.croft.access.rules = lib.mkForce [ ];
      services.croft.access.passwords = "/run/secrets/htpasswd";
    };
  };
  worker-for-nobody = {
    message = "services.croft.worker does not know whom to work for";
    attempt = system { services.croft.scheduler.enable = lib.mkForce false; };
  };
  two-schedulers = {
    message = "services.croft.farm.hosts has several schedulers (appliance, other)";
    attempt = system {
      services.croft.farm.hosts =
        lib.genAttrs
          [
            "appliance"
            "other"
          ]
          (_: {
            roles = [ "scheduler" ];
            address = "10.0.0.1";
          });
    };
  };
  farm-without-this-host = {
    message = "services.croft.farm.hosts does not name this host, appliance";
    attempt = system {
      services.croft.farm.hosts.other = {
        roles = [ "cas" ];
        address = "10.0.0.1";
      };
    };
  };
  grafana-without-key = {
    message = "services.croft.monitoring.grafana has no key to encrypt its secrets with";
    attempt = system { services.croft.monitoring.grafana.enable = true; };
  };
  client-without-farm = {
    message = "services.croft.client does not know the farm";
    attempt = system { services.croft.client.executor = lib.mkForce null; };
  };
  backup-of-another-place = {
    message = "services.croft.backup.pause links what is below /var/lib/croft, and services.croft.cas.disk.path is elsewhere";
    attempt = system {
      services.croft.cas.disk.path = "/srv/cas";
      services.croft.backup = {
        enable = true;
        pause = true;
        copy = "true";
      };
    };
  };

  torn-toolchains = {
    message = "they want different files at /bin/bash, /bin/sh";
    attempt = system (
      { pkgs, ... }:
      {
        services.croft.worker.toolchains = map (bash: (toolchains pkgs).make.shell { inherit bash; }) [
          pkgs.bash
          pkgs.coreutils
        ];
      }
    );
  };
  two-toolchains-of-a-kind = {
    message = "a project has one toolchain of a kind, here are several of: cc";
    attempt =
      (project (known: [
        known.cc
        known.clang
      ])).module;
  };
  committed-toolchains-of-others = {
    message = "The toolchains in the repository are not those of its Nix files";
    attempt = (project (known: [ known.shell ])).check ../../local-remote-execution/example/toolchains;
  };

  # Those that croft itself refuses, when the configuration is built.
  unknown-setting = {
    message = "sice";
    attempt = configFile { services.croft.settings.worker.limits.sice = "1 GiB"; };
  };
  wrong-value = {
    message = "attempts_max";
    attempt = configFile { services.croft.settings.scheduler.attempts_max = "many"; };
  };
  wrong-together = {
    message = "storage.path and storage.size belong to the disk tier when tiers are listed";
    attempt = configFile { services.croft.settings.storage.size = "10 GiB"; };
  };
  link-outside-the-toolchains = {
    message = "points to nothing in the closure";
    attempt = configFile { services.croft.worker.links."/usr/bin/perl" = "/opt/perl"; };
  };
}
