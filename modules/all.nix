# Every module by its name. Each imports what it needs, so each can be used alone.
{
  access = ./access.nix;
  autoscale = ./autoscale.nix;
  backup = ./backup.nix;
  cas = ./cas.nix;
  client = ./client.nix;
  farm = ./farm.nix;
  firewall = ./firewall.nix;
  load-balancer = ./load-balancer.nix;
  monitoring = ./monitoring.nix;
  scheduler = ./scheduler.nix;
  tls = ./tls.nix;
  tuning = ./tuning.nix;
  unit = ./unit.nix;
  worker = ./worker.nix;
}
