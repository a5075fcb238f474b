# Two servers before one store, behind one address: one of them goes down, and whoever builds does not notice.
{ lib, ... }:
let
  host = import ./parts/trusted.nix {
    inherit lib;
    clients = [ "balancer" ];
    roles = lib.genAttrs [ "front1" "front2" "store" ] (_: [ "cas" ]);
  };
  front = {
    imports = [
      host
      ../nixos/cas.nix
    ];
    services.croft.settings.storage.tier = [
      {
        kind = "memory";
        size = "64 MiB";
      }
      {
        kind = "farm";
        endpoints = [ "http://store:50051" ];
      }
    ];
  };
in
{
  nodes.balancer = {
    imports = [
      ../nixos/base.nix
      ./parts/client.nix
    ];
    services.croft.load-balancer.frontends.cas = {
      listen = "127.0.0.1:50051";
      servers = [
        "front1:50051"
        "front2:50051"
      ];
      # The hosts trust their network.
      tls = false;
    };
  };
  nodes.front1 = front;
  nodes.front2 = front;
  nodes.store = {
    imports = [
      host
      ../nixos/cas.nix
    ];
    services.croft.cas.memory = null;
    services.croft.cas.disk.size = "256 MiB";
  };

  testScript = ''
    def put(text):
        return f"python3 /etc/farm/blob.py put http://127.0.0.1:50051 {text}"

    def read(text, times=20):
        for _ in range(times):
            balancer.succeed(f"python3 /etc/farm/blob.py read http://127.0.0.1:50051 {text}")

    def has_served(host, requests):
        metrics = "curl --silent http://127.0.0.1:50080/metrics"
        hits = "awk '/^croft_store_calls_total.operation=\"get\",outcome=\"hit\"/ { hits += $2 } END { print hits + 0 }'"
        assert int(host.succeed(f"{metrics} | {hits}")) >= requests

    start_all()
    for host in [front1, front2, store]:
        host.wait_for_unit("croft.service")
    balancer.wait_for_unit("haproxy.service")

    with subtest("both servers serve the same blobs"):
        balancer.wait_until_succeeds(put("first"), timeout=30)
        read("first")
        has_served(front1, 5)
        has_served(front2, 5)

    with subtest("one of them has a power cut"):
        front1.block()
        front1.crash()
        balancer.succeed(put("second"))
        read("second")

    with subtest("it is back, and serves what came meanwhile while the other one is away"):
        front1.unblock()
        front1.start()
        front1.wait_for_unit("croft.service")
        # Its checks are 2 s apart.
        balancer.wait_until_succeeds("echo show servers state | nc -U /run/haproxy/haproxy.sock | grep server1 | awk '$6 != 2 { exit 1 }'", timeout=20)
        front2.succeed("systemctl stop croft-public.socket croft.service")
        read("second")
        has_served(front1, 20)
  '';
}
