# Small blobs are in Redis, too; without Redis the farm goes on, since it is a cache before a durable tier.
{ pkgs, lib }:
{
  nodes.farm = {
    imports = [ ../nixos/appliance.nix ];
    services.croft = {
      cas = {
        memory = null;
        redis.enable = true;
        disk.size = "256 MiB";
      };
      # What stands for a machine may have no controllers for its control groups.
      settings.worker.limits.required = false;
      monitoring.enable = false;
    };
  };

  testScript = ''
    import hashlib

    def path(text):
        return f"https://localhost:50051/cas/{hashlib.sha256(text.encode()).hexdigest()}"

    curl = "curl --fail --silent --show-error --cacert /var/lib/croft-tls/authority.crt"

    def put(text):
        farm.succeed(f"printf %s '{text}' > /tmp/blob && {curl} --upload-file /tmp/blob {path(text)}")

    start_all()
    farm.wait_for_unit("redis-croft.service")
    farm.wait_for_unit("croft.service")

    with subtest("what is stored is in Redis"):
        put("a blob")
        farm.wait_until_succeeds("test $(redis-cli dbsize | grep -o '[0-9]*') -gt 0", timeout=10)
        assert farm.succeed(f"{curl} {path('a blob')}") == "a blob"

    with subtest("nothing is lost without it"):
        farm.systemctl("stop redis-croft.service")
        assert farm.succeed(f"{curl} {path('a blob')}") == "a blob"
        put("another blob")
        assert farm.succeed(f"{curl} {path('another blob')}") == "another blob"

    with subtest("and it is used again when it is back"):
        farm.systemctl("start redis-croft.service")
        put("a third blob")
        assert farm.succeed(f"{curl} {path('a third blob')}") == "a third blob"
  '';
}
