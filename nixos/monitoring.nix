# The host that watches the others: Prometheus, Alertmanager and Grafana, on loopback; put a proxy with a login before Grafana.
{ lib, ... }:
{
  imports = [
    ./base.nix
    ./farm.nix
  ];
  services.croft.monitoring = {
    tokenFile = lib.mkDefault "/var/lib/secrets/croft/monitoring-token";
    grafana = {
      enable = lib.mkDefault true;
      secretKeyFile = lib.mkDefault "/var/lib/secrets/grafana/secret-key";
    };
  };
}
