# What one machine has built, another finds in the cache; and only whom all trust writes results without the farm's workers.
{ ... }:
let
  tokens = {
    ann = "croft-token-of-ann-0123456789abcdef0123";
    bob = "croft-token-of-bob-0123456789abcdef0123";
    ci = "croft-token-of-ci-0123456789abcdef01234";
  };
  who = name: group: {
    ${name} = {
      sha256 = builtins.hashString "sha256" tokens.${name};
      groups = [ group ];
    };
  };
  client = name: {
    imports = [ ./parts/client.nix ];
    environment.etc."token".text = tokens.${name};
  };
in
{
  nodes.ann = client "ann";
  nodes.bob = client "bob";
  nodes.ci = client "ci";
  nodes.farm = {
    imports = [
      ../nixos/appliance.nix
      ./parts/worker.nix
    ];
    services.croft = {
      cas.disk.size = "256 MiB";
      monitoring.enable = false;
      access.tokens = who "ann" "developers" // who "bob" "developers" // who "ci" "ci";
    };
  };

  testScript = ''
    import json

    def execute(client, command):
        arguments = f"https://farm:50051 https://farm:50051 /etc/token /etc/authority.crt /bin/sh -c '{command}'"
        return json.loads(client.succeed(f"python3 /etc/farm/execute.py {arguments}"))

    curl = """curl --silent --cacert /etc/authority.crt --header "authorization: Bearer $(cat /etc/token)" """
    result = "https://farm:50051/ac/" + "0123456789abcdef" * 4

    def put_result(client):
        # `stdout_raw` of an ActionResult.
        return client.succeed(f"printf '\\x2a\\x05hello' > /tmp/result && {curl} --upload-file /tmp/result --output /dev/null --write-out '%{{http_code}}' {result}")

    start_all()
    farm.wait_until_succeeds("curl --fail --silent http://127.0.0.1:50080/readyz", timeout=30)
    authority = farm.succeed("cat /var/lib/croft-tls/authority.crt")
    for client in [ann, bob, ci]:
        client.succeed(f"cat > /etc/authority.crt <<'EOF'\n{authority}EOF")

    with subtest("the second machine has what the first has built"):
        command = "echo built"
        first = execute(ann, command)
        assert first["stdout"] == "built\n" and not first["cached"], first
        second = execute(bob, command)
        assert second["stdout"] == "built\n" and second["cached"], second
        farm.succeed("curl --silent http://127.0.0.1:50080/metrics | grep -x 'croft_scheduler_starts_total 1'")

    with subtest("what a developer's own machine has made is no result for others"):
        assert put_result(ann) == "403"
        assert bob.succeed(f"{curl} --output /dev/null --write-out '%{{http_code}}' {result}") == "404"

    with subtest("what the continuous integration has made is"):
        assert put_result(ci) == "200"
        assert "hello" in bob.succeed(f"{curl} --fail {result}")
  '';
}
