# A farm burns down the night after its backup; on a new machine, what was built is in the cache.
{ pkgs, ... }:
let
  token = "croft-token-of-the-test-0123456789abcdef";
  appliance = {
    imports = [
      ../nixos/appliance.nix
      ./parts/worker.nix
    ];
    services.croft = {
      cas.memory = null;
      cas.disk.size = "256 MiB";
      monitoring.enable = false;
      access.tokens.builder = {
        sha256 = builtins.hashString "sha256" token;
        groups = [ "developers" ];
      };
    };
  };
in
{
  nodes.client = {
    imports = [ ./parts/client.nix ];
    environment.etc."token".text = token;
  };
  nodes.fresh = appliance;
  nodes.old = {
    imports = [ appliance ];
    services.croft.backup = {
      enable = true;
      pause = true;
      path = [
        pkgs.gnutar
        pkgs.gzip
      ];
      copy = ''tar --create --gzip --file=/var/backup.tar.gz --directory="$SNAPSHOT" .'';
    };
  };

  testScript = ''
    import json

    def trust(host):
        host.wait_until_succeeds("curl --fail --silent http://127.0.0.1:50080/readyz", timeout=30)
        authority = host.succeed("cat /var/lib/croft-tls/authority.crt")
        client.succeed(f"cat > /etc/{host.name}.crt <<'EOF'\n{authority}EOF")

    def execute(host, command):
        farm = f"https://{host.name}:50051"
        return json.loads(client.succeed(f"python3 /etc/farm/execute.py {farm} {farm} /etc/token /etc/{host.name}.crt /bin/sh -c '{command}'"))

    # The first is one result, of a few bytes; the second has a blob of its own.
    commands = ["echo built", "i=0; while test $i -lt 2000; do echo line $i; i=$((i+1)); done"]

    client.start()
    old.start()
    trust(old)

    with subtest("a farm has built something"):
        built = [execute(old, command)["stdout"] for command in commands]
        assert built[0] == "built\n" and len(built[1]) > 4096, built

    with subtest("its backup is made at its time, and nobody notices"):
        old.succeed("systemctl is-active croft-backup.timer")
        old.succeed("systemctl start --no-block croft-backup.service")
        assert execute(old, "echo meanwhile")["stdout"] == "meanwhile\n"
        # Until it is there.
        old.succeed("systemctl start croft-backup.service || { journalctl --unit=croft-backup.service --unit=croft.service | tail -n 30; false; }")
        old.fail("ls -d /var/lib/croft/.backup*")

    with subtest("the machine is lost"):
        backup = old.succeed("base64 --wrap=100000 /var/backup.tar.gz").split()
        old.crash()

    with subtest("what it had is on a new one"):
        fresh.start()
        fresh.wait_for_unit("croft.service")
        fresh.succeed("systemctl stop 'croft-*.socket' croft.service", "rm -r /var/lib/croft/*")
        for part in backup:
            fresh.succeed(f"echo {part} | base64 --decode >> /tmp/backup.tar.gz")
        fresh.succeed(
            "tar --extract --file=/tmp/backup.tar.gz --directory=/var/lib/croft",
            "chown -R croft:croft /var/lib/croft",
            "systemctl start sockets.target croft.service",
        )
        trust(fresh)
        for command, stdout in zip(commands, built):
            result = execute(fresh, command)
            assert result["cached"] and result["stdout"] == stdout, result
        assert not execute(fresh, "echo meanwhile")["error"]
  '';
}
