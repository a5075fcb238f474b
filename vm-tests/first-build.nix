# A machine is installed as an appliance; somebody else's machine has it run an action, and finds the result in the cache.
{ pkgs, ... }:
let
  # `croft token` makes such; here it must be the same each time.
  token = "croft-token-of-the-test-0123456789abcdef";
  busybox = pkgs.pkgsStatic.busybox;
in
{
  nodes.farm = {
    imports = [
      ../nixos/appliance.nix
      ./parts/worker.nix
    ];
    services.croft = {
      access.tokens.builder = {
        sha256 = builtins.hashString "sha256" token;
        groups = [ "developers" ];
      };
      settings.storage.tier = [
        {
          kind = "disk";
          size = "256 MiB";
        }
      ];
    };
  };

  nodes.client = {
    imports = [ ./parts/client.nix ];
    environment.etc."token".text = token;
    environment.etc."wrong-token".text = "croft-token-of-somebody-else-0123456789";
  };

  testScript = ''
    import json

    def execute(command, token="token"):
        arguments = f"https://farm:50051 https://farm:50051 /etc/{token} /etc/authority.crt /bin/sh -c '{command}'"
        return json.loads(client.succeed(f"python3 /etc/farm/execute.py {arguments}"))

    start_all()
    farm.wait_for_unit("croft.service")
    farm.wait_for_open_port(50051)
    farm.wait_until_succeeds("curl --fail --silent http://127.0.0.1:50080/readyz", timeout=30)

    with subtest("the appliance has made its own certificate"):
        authority = farm.succeed("cat /var/lib/croft-tls/authority.crt")
        client.succeed(f"cat > /etc/authority.crt <<'EOF'\n{authority}EOF")
        farm.succeed("test $(stat -c %a /var/lib/croft-tls/authority.key) = 600")

    with subtest("an action runs, sees its toolchain and nothing else, and is in the cache the second time"):
        command = "export PATH=${busybox}/bin; echo on $(hostname): $(ls /nix/store | wc -l) path, $(ls / | grep -c usr) usr"
        first = execute(command)
        assert first["stdout"] == "on croft: 1 path, 0 usr\n" and not first["cached"], first
        assert execute(command)["cached"] is True

    with subtest("who has no token, or another's, is refused"):
        assert "grpc-status: 16" in execute("echo no", token="wrong-token")["error"]

    with subtest("operators' pages are not for the network"):
        client.fail("curl --silent --max-time 2 http://farm:50080/metrics")

    with subtest("a request that comes while the farm is started again waits"):
        farm.succeed("systemctl restart --no-block croft.service")
        assert execute("echo after a restart")["stdout"] == "after a restart\n"

    with subtest("the unit is confined"):
        print(farm.succeed("systemd-analyze security --no-pager --threshold=40 croft.service | tail -n 1"))
  '';
}
