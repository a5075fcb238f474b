# The power of a worker's machine goes while it runs something: the action runs again elsewhere, and its client only waits.
{ pkgs, lib }:
let
  busybox = pkgs.pkgsStatic.busybox;
  farm = import ./parts/small-farm.nix {
    inherit lib;
    workers = [
      "worker1"
      "worker2"
    ];
  };
in
{
  nodes = farm // {
    control.imports = [
      farm.control
      {
        # A story is not to wait for half a minute.
        services.croft.settings.scheduler = {
          heartbeat_interval = "1s";
          heartbeat_timeout = "3s";
          reconnect_within = "2s";
        };
      }
    ];
  };

  testScript = ''
    import json

    execute = "python3 /etc/farm/execute.py http://control:50051 http://control:50051 /dev/null /dev/null /bin/sh -c"
    metrics = "curl --fail --silent http://127.0.0.1:50080/metrics"

    def wait_for_workers(count):
        control.wait_until_succeeds(metrics + " | grep -F 'croft_workers{state=\"open\"} %s'" % count, timeout=30)

    for host in [client, control, worker1]:
        host.start()
    wait_for_workers(1)

    with subtest("a client has an action run on the only worker"):
        client.succeed(f"({execute} '${busybox}/bin/sleep 5; echo done' > /tmp/result) > /dev/null 2>&1 &")
        worker1.wait_until_succeeds("pgrep --full 'sleep 5'", timeout=20)
        worker2.start()
        wait_for_workers(2)

    with subtest("nobody is told when its power goes"):
        worker1.block()
        worker1.crash()
        client.fail("test -s /tmp/result")

    with subtest("the other worker runs it, and the client has its result"):
        worker2.wait_until_succeeds("pgrep --full 'sleep 5'", timeout=30)
        client.wait_until_succeeds("test -s /tmp/result", timeout=30)
        result = json.loads(client.succeed("cat /tmp/result"))
        assert result["exit"] == 0 and result["stdout"] == "done\n" and not result["error"], result
        control.succeed(metrics + " | grep -x 'croft_scheduler_starts_total 2'")

    with subtest("the machine is back and works again"):
        worker1.unblock()
        worker1.start()
        wait_for_workers(2)
  '';
}
