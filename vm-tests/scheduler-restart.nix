# The scheduler is killed while something runs, and is started again while something waits: neither is lost, and nothing runs twice.
{ pkgs, lib }:
let
  busybox = pkgs.pkgsStatic.busybox;
in
{
  nodes = import ./parts/small-farm.nix { inherit lib; };

  testScript = ''
    import json

    execute = "python3 /etc/farm/execute.py http://control:50051 http://control:50051 /dev/null /dev/null /bin/sh -c"

    def begin(command, file):
        """As build tools do, it asks once more for the same action when a call has ended without a result."""
        client.succeed(f"({execute} '{command}' > {file} && grep '\"error\": \"\"' {file} || {execute} '{command}' > {file}) > /dev/null 2>&1 &")

    def has_ended(file, stdout):
        client.wait_until_succeeds(f"grep '{stdout}' {file}", timeout=60)
        result = json.loads(client.succeed(f"cat {file}"))
        assert result["stdout"] == stdout + "\n" and not result["error"], result

    def is_shown(line):
        control.wait_until_succeeds(f"curl --fail --silent http://127.0.0.1:50080/metrics | grep -x '{line}'", timeout=30)

    start_all()
    is_shown('croft_workers{state="open"} 1')

    with subtest("the scheduler is killed while an action runs"):
        begin("${busybox}/bin/sleep 5; echo survived", "/tmp/ran")
        is_shown("croft_scheduler_running 1")
        control.succeed("systemctl kill --signal=KILL croft.service")

    with subtest("its successor knows of it, and has it go on where it is"):
        is_shown('croft_scheduler_journal_restored{state="running"} 1')
        has_ended("/tmp/ran", "survived")
        # It has not had anything begin.
        control.fail("curl --silent http://127.0.0.1:50080/metrics | grep '^croft_scheduler_starts_total [1-9]'")

    with subtest("it is started again while an action waits for a worker"):
        worker.systemctl("stop croft.service")
        begin("echo waited", "/tmp/waited")
        is_shown("nativelink_scheduler_queue_length 1")
        control.succeed("systemctl restart croft.service")
        is_shown('croft_scheduler_journal_restored{state="queued"} 1')
        worker.systemctl("start croft.service")
        has_ended("/tmp/waited", "waited")
        is_shown("croft_scheduler_starts_total 1")
  '';
}
