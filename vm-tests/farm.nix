# The hosts of nixos/ make one farm: each finds the others by the one value that all are given, over TLS, through their firewalls.
{ pkgs, lib }:
let
  token = "croft-token-of-the-test-0123456789abcdef";
  monitoringToken = "croft-token-of-prometheus-0123456789abcdef";
  busybox = pkgs.pkgsStatic.busybox;
  # The test driver numbers the hosts in the order of their names.
  addresses = {
    cas = "192.168.1.1";
    client = "192.168.1.2";
    monitoring = "192.168.1.3";
    scheduler = "192.168.1.4";
    worker = "192.168.1.5";
  };

  host =
    name:
    { ... }:
    {
      imports = [ (../nixos + "/${name}.nix") ];
      environment.systemPackages = [ pkgs.openssl ];
      services.croft = {
        farm.clients = lib.mkForce [ addresses.client ];
        farm.hosts = lib.mapAttrs (_: address: { address = lib.mkForce address; }) (
          removeAttrs addresses [ "client" ]
        );
        access.tokens = {
          builder = {
            sha256 = builtins.hashString "sha256" token;
            groups = [ "developers" ];
          };
          monitoring.sha256 = builtins.hashString "sha256" monitoringToken;
        };
      };
    };
in
{
  nodes = {
    cas = {
      imports = [ (host "cas") ];
      services.croft.cas.memory = null;
      services.croft.cas.disk.size = "256 MiB";
    };
    scheduler = host "scheduler";
    worker.imports = [
      (host "worker")
      ./parts/worker.nix
    ];
    monitoring = {
      imports = [ (host "monitoring") ];
      services.croft.monitoring.grafana.enable = false;
      services.croft.monitoring.interval = "1s";
    };
    client = {
      imports = [ ./parts/client.nix ];
      environment.etc."token".text = token;
      networking.extraHosts = ''
        ${addresses.cas} cas.farm.example
        ${addresses.scheduler} scheduler.farm.example
      '';
    };
  };

  testScript = ''
    import base64
    import json

    farm = [cas, scheduler, worker]
    directory = "/var/lib/secrets/croft"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"

    def copy(path, host, owner="root:root"):
        content = base64.b64encode(cas.succeed(f"cat {path}").encode()).decode()
        name = path.rsplit("/", 1)[1].replace(host.name + ".", "tls.")
        host.succeed(
            f"mkdir -p {directory} && echo {content} | base64 -d > {directory}/{name}",
            f"chown {owner} {directory}/{name} && chmod 640 {directory}/{name}",
        )

    def execute(command):
        arguments = "https://scheduler.farm.example:50051 https://cas.farm.example:50051 /etc/token /var/lib/secrets/croft/authority.crt"
        return json.loads(client.succeed(f"python3 /etc/farm/execute.py {arguments} /bin/sh -c '{command}'"))

    start_all()
    for host in farm:
        host.wait_for_unit("sockets.target")

    with subtest("clients that come before the farm can serve do no harm"):
        client.execute("for i in $(seq 40); do curl --silent --insecure --max-time 8 https://cas.farm.example:50051/ & done; wait")

    with subtest("a certificate for each host, from the farm's authority"):
        cas.succeed("mkdir -p /root/made")
        cas.succeed(f"cd /root/made && {make} -keyout authority.key -out authority.crt -subj /CN=authority")
        for host in farm:
            names = f"-subj /CN={host.name} -addext subjectAltName=DNS:{host.name}.farm.example"
            ours = "-CA authority.crt -CAkey authority.key -addext basicConstraints=critical,CA:FALSE"
            cas.succeed(f"cd /root/made && {make} -keyout {host.name}.key -out {host.name}.crt {names} {ours}")
            for name in ["authority.crt", host.name + ".key", host.name + ".crt"]:
                copy("/root/made/" + name, host, "root:croft")
        copy("/root/made/authority.crt", client)
        copy("/root/made/authority.crt", monitoring, "root:root")
        monitoring.succeed(f"chmod 644 {directory}/authority.crt")

    with subtest("hosts that waited for their certificates serve"):
        for host in farm:
            host.wait_until_succeeds("systemctl is-active croft.service", timeout=60)
        worker.wait_until_succeeds(
            f"curl --fail --silent --cacert {directory}/authority.crt --resolve worker.farm.example:50080:127.0.0.1 https://worker.farm.example:50080/readyz",
            timeout=60,
        )

    with subtest("an action goes from the client over the scheduler to the worker, and its result to the cache"):
        command = "export PATH=${busybox}/bin; echo on $(hostname)"
        first = execute(command)
        assert first["stdout"] == "on croft\n" and not first["cached"], first
        assert execute(command)["cached"] is True

    with subtest("Prometheus sees all three"):
        monitoring.succeed(
            f"printf %s ${monitoringToken} > {directory}/monitoring-token && chmod 600 {directory}/monitoring-token",
            "systemctl reset-failed prometheus.service; systemctl restart prometheus.service",
        )
        monitoring.wait_for_open_port(9090)
        up = "curl --silent 'http://127.0.0.1:9090/api/v1/query?query=sum(up%7Bjob=%22croft%22%7D)'"
        monitoring.wait_until_succeeds(up + """ | grep '"3"'""", timeout=30)

    with subtest("nobody reaches what is not for them"):
        client.fail("curl --silent --insecure --max-time 2 https://scheduler.farm.example:50061/")
        client.fail("curl --silent --insecure --max-time 2 https://cas.farm.example:50080/metrics")

    with subtest("units are confined, the servers' as far as can be"):
        for host, ceiling in [(cas, 15), (scheduler, 15), (worker, 40)]:
            print(host.succeed(f"systemd-analyze security --no-pager --threshold={ceiling} croft.service | tail -n 1"))
  '';
}
