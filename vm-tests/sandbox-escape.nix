# An action that wants out of its sandbox: it sees nothing of the machine, reaches nobody, changes nothing, and leaves nothing behind.
{ pkgs, ... }:
let
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
      cas.disk.size = "256 MiB";
      monitoring.enable = false;
      access.tokens.builder = {
        sha256 = builtins.hashString "sha256" token;
        groups = [ "developers" ];
      };
    };
  };
  nodes.client = {
    imports = [ ./parts/client.nix ];
    environment.etc."token".text = token;
  };

  testScript = ''
    import json

    def execute(command):
        arguments = "https://farm:50051 https://farm:50051 /etc/token /etc/authority.crt /bin/sh -c"
        line = f"python3 /etc/farm/execute.py {arguments} 'export PATH=${busybox}/bin; {command}'"
        return json.loads(client.succeed(line))

    def fails(command):
        result = execute(f"{command} && echo out")
        assert result["exit"] != 0 and "out" not in result["stdout"] and not result["error"], result

    start_all()
    farm.wait_until_succeeds("curl --fail --silent http://127.0.0.1:50080/readyz", timeout=30)
    authority = farm.succeed("cat /var/lib/croft-tls/authority.crt")
    client.succeed(f"cat > /etc/authority.crt <<'EOF'\n{authority}EOF")

    with subtest("an action that has nothing in mind works"):
        result = execute("which wget mount mknod chroot setsid > /dev/null && echo fine")
        assert result["stdout"] == "fine\n", result

    with subtest("it sees nothing of the machine"):
        for path in ["/etc/shadow", "/var/lib/croft", "/var/lib/croft-tls", "/run/systemd"]:
            farm.succeed(f"ls {path}")
            fails(f"ls {path}")
        processes = execute("ls /proc | grep -c [0-9]")["stdout"]
        assert int(processes) < 10, processes

    with subtest("it reaches nobody"):
        farm.succeed("curl --fail --silent http://127.0.0.1:50080/livez")
        fails("wget -q -O - http://127.0.0.1:50080/livez")
        fails("wget -q -T 2 -O - http://192.168.1.1:50051/")

    with subtest("it changes nothing"):
        fails("touch ${busybox}/bin/own")
        fails("mount -t tmpfs none /tmp")
        fails("echo 1 > /proc/sys/kernel/panic")
        fails("mknod /tmp/disk b 8 0")
        fails("chroot / /bin/sh -c true")

    with subtest("what it leaves running ends with it"):
        result = execute("(setsid sleep 4321 > /dev/null 2>&1 &); echo left")
        assert result["stdout"] == "left\n", result
        farm.wait_until_fails("pgrep --full 'sleep 4321'", timeout=10)

    with subtest("and the next one has a fresh place"):
        execute("echo secret > /tmp/secret; echo secret > secret")
        fails("cat /tmp/secret secret")
  '';
}
