# Something else fills the farm's disk: it takes nothing more and says so, serves what it has, and goes on by itself when there is room.
{ lib, ... }:
{
  nodes.farm = {
    imports = [ ../nixos/appliance.nix ];
    services.croft = {
      worker.enable = lib.mkForce false;
      monitoring.enable = false;
      cas = {
        memory = null;
        disk.path = "/srv/cas";
        disk.size = "1 GiB";
      };
    };
  };

  testScript = ''
    curl = "curl --silent --cacert /var/lib/croft-tls/authority.crt --max-time 30"

    def make(name, size):
        farm.succeed(f"head --bytes={size} /dev/urandom > /tmp/{name}")

    def path(name):
        return "https://localhost:50051/cas/" + farm.succeed(f"sha256sum < /tmp/{name}").split()[0]

    def put(name):
        return farm.succeed(f"{curl} --upload-file /tmp/{name} --write-out '%{{http_code}}' {path(name)}")

    def is_served(name):
        farm.succeed(f"{curl} --fail {path(name)} | cmp - /tmp/{name}")

    start_all()
    farm.wait_for_unit("croft.service")

    with subtest("a farm on a small disk of its own"):
        farm.succeed(
            "systemctl stop croft-public.socket croft.service",
            "mount -t tmpfs -o size=64m,mode=0700,uid=$(id -u croft),gid=$(id -g croft) none /srv/cas",
            "systemctl start croft-public.socket croft.service",
        )
        make("small", 1000)
        make("large", 2000000)
        assert put("small") == "200" and put("large") == "200"

    with subtest("the disk is full"):
        farm.execute("cat /dev/zero > /srv/cas/logs 2> /dev/null")
        make("more", 2000001)
        refused = put("more")
        assert "507" in refused, refused

    with subtest("what is there is served"):
        is_served("small")
        is_served("large")

    with subtest("operators see it"):
        metrics = "curl --fail --silent http://127.0.0.1:50080/metrics"
        free = farm.succeed(f"{metrics} | grep '^croft_disk_free_bytes{{place=\"disk\"}}'")
        assert float(free.split()[1]) < 0.05 * 64 * 1024 * 1024, free

    with subtest("and when there is room, all is well"):
        farm.succeed("rm /srv/cas/logs")
        assert put("more") == "200"
        is_served("more")
  '';
}
