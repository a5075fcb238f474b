# A worker is updated: what it runs comes to its end, and what comes meanwhile waits for it. The hosts trust their network.
{ pkgs, lib }:
let
  busybox = pkgs.pkgsStatic.busybox;
in
{
  nodes = import ./parts/small-farm.nix { inherit lib; };

  testScript = ''
    import json

    execute = "python3 /etc/farm/execute.py http://control:50051 http://control:50051 /dev/null /dev/null /bin/sh -c"
    workers = "curl --fail --silent http://127.0.0.1:50080/metrics | grep -F 'croft_workers{state=\"open\"} 1'"
    running = "curl --fail --silent http://127.0.0.1:50080/metrics | grep -x 'croft_scheduler_running 1'"

    start_all()
    control.wait_for_unit("croft.service")
    worker.wait_for_unit("croft.service")
    control.wait_until_succeeds(workers, timeout=30)

    with subtest("an action that runs when its worker is stopped comes to its end"):
        client.succeed(f"({execute} '${busybox}/bin/sleep 6; echo done' > /tmp/long) > /dev/null 2>&1 &")
        control.wait_until_succeeds(running, timeout=20)
        worker.succeed("systemctl stop croft.service")
        client.wait_until_succeeds("grep exit /tmp/long", timeout=20)
        result = json.loads(client.succeed("cat /tmp/long"))
        assert result["exit"] == 0 and result["stdout"] == "done\n", result
        assert worker.get_unit_property("croft.service", "Result") == "success"

    with subtest("what comes meanwhile waits for a worker"):
        client.succeed(f"({execute} 'echo waited' > /tmp/next) > /dev/null 2>&1 &")
        worker.systemctl("start croft.service")
        client.wait_until_succeeds("grep waited /tmp/next", timeout=40)
  '';
}
