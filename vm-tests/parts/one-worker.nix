# A client, a control host with cache and scheduler, and one worker, which trust their network.
{ lib }:
let
  host = import ./trusted.nix {
    inherit lib;
    clients = [ "client" ];
    roles = {
      control = [
        "cas"
        "scheduler"
      ];
      worker = [ "worker" ];
    };
  };
in
{
  client.imports = [ ./client.nix ];
  control = {
    imports = [ host ];
    services.croft.cas.disk.size = "256 MiB";
  };
  worker.imports = [
    host
    ./worker.nix
  ];
}
