# The whole farm on one machine, for the network it is in: store, scheduler, worker, and the monitoring of it all.
#
# It makes its own certificate and authority at the first start. Who builds needs /var/lib/croft-tls/authority.crt, and a token:
# `croft token` prints one and the hash for `services.croft.access.tokens`.
{ config, lib, ... }:
{
  imports = [ ./base.nix ];

  services.croft = {
    cas = {
      enable = true;
      memory = lib.mkDefault "1 GiB";
    };
    scheduler.enable = true;
    worker.enable = true;

    listen.public = lib.mkDefault "0.0.0.0:50051";
    firewall.public = lib.mkDefault "everybody";
    tls = {
      enable = lib.mkDefault true;
      selfSigned = lib.mkDefault config.networking.hostName;
    };
    # On the machine everything, from elsewhere what the groups say; the tokens are for who installs it to name.
    access.rules = [
      {
        who = [ "loopback" ];
        may = [
          "read"
          "write"
          "cache-write"
          "execute"
          "admin"
        ];
      }
      {
        who = [ "group:ci" ];
        may = [
          "read"
          "write"
          "cache-write"
          "execute"
        ];
      }
      {
        who = [ "group:developers" ];
        may = [
          "read"
          "write"
          "execute"
        ];
      }
    ];

    monitoring = {
      enable = lib.mkDefault true;
      targets = [ config.services.croft.listen.admin ];
      # It is meant to have one worker.
      silenced = [ "CroftFewWorkers" ];
    };
    client = {
      enable = lib.mkDefault true;
      executor = lib.mkDefault "grpcs://localhost:50051";
      authority = lib.mkDefault "/var/lib/croft-tls/authority.crt";
    };
  };
}
