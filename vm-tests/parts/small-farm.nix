# A client, a control host with cache and scheduler, and workers, which trust their network.
{
  lib,
  workers ? [ "worker" ],
}:
let
  ofWorkers = lib.genAttrs workers;
  host = import ./trusted.nix {
    inherit lib;
    clients = [ "client" ];
    roles = {
      control = [
        "cas"
        "scheduler"
      ];
    }
    // ofWorkers (_: [ "worker" ]);
  };
in
{
  client.imports = [ ./client.nix ];
  control = {
    imports = [ host ];
    services.croft.cas.disk.size = "256 MiB";
  };
}
// ofWorkers (_: {
  imports = [
    host
    ./worker.nix
  ];
})
