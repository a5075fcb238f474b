# The host that watches the farm sees all of it, and tells of a worker that is missing until it is back.
{ pkgs, lib }:
let
  host = import ./parts/trusted.nix {
    inherit lib;
    clients = [ ];
    roles = {
      control = [
        "cas"
        "scheduler"
      ];
      monitoring = [ "monitoring" ];
      worker1 = [ "worker" ];
      worker2 = [ "worker" ];
    };
  };
  worker.imports = [
    host
    ./parts/worker.nix
  ];
  # A story is not to wait for minutes; else the rules are what every farm has.
  ruleFiles = lib.filterAttrs (_: type: type == "regular") (builtins.readDir ../monitoring);
  hasty =
    name:
    builtins.toFile name (
      lib.replaceStrings [ "for: 2m" ] [ "for: 2s" ] (builtins.readFile (../monitoring + "/${name}"))
    );
in
{
  nodes.control = {
    imports = [ host ];
    services.croft.cas.disk.size = "256 MiB";
  };
  nodes.monitoring = {
    imports = [
      host
      ../nixos/monitoring.nix
    ];
    environment.systemPackages = [ pkgs.curl ];
    services.croft.monitoring = {
      interval = "1s";
      tokenFile = null;
    };
    services.prometheus.ruleFiles = lib.mkForce (map hasty (lib.attrNames ruleFiles));
  };
  nodes.worker1 = worker;
  nodes.worker2 = worker;

  testScript =
    { nodes, ... }:
    let
      sources = nodes.monitoring.services.grafana.provision.datasources.settings.datasources;
    in
    ''
      import json

      sources = json.loads(r"""${builtins.toJSON sources}""")

      def ask(url):
          return json.loads(monitoring.succeed(f"curl --fail --silent '{url}'"))

      def up():
          return {each["metric"]["instance"] for each in ask("http://127.0.0.1:9090/api/v1/query?query=up==1")["data"]["result"]}

      def firing():
          return {alert["labels"]["alertname"] for alert in ask("http://127.0.0.1:9093/api/v2/alerts?active=true")}

      start_all()
      monitoring.wait_for_unit("prometheus.service")
      monitoring.wait_for_unit("alertmanager.service")
      monitoring.wait_for_open_port(9090)
      monitoring.wait_for_open_port(9093)

      with subtest("it sees every host"):
          retry(lambda *_: up() == {f"{name}.farm.example:50080" for name in ["control", "worker1", "worker2"]}, 30)

      with subtest("croft's rules are all in use, and nobody is alarmed"):
          groups = ask("http://127.0.0.1:9090/api/v1/rules")["data"]["groups"]
          assert {group["name"] for group in groups} == {"contract", "processes", "scheduler", "storage", "certificates", "croft"}, groups
          assert all(rule["health"] != "err" for group in groups for rule in group["rules"]), groups
          retry(lambda *_: firing() == set(), 30)

      with subtest("a worker that is missing is told of"):
          worker2.systemctl("stop croft.service")
          retry(lambda *_: firing() == {"CroftFewWorkers", "CroftDown"}, 60)

      with subtest("until it is back"):
          worker2.systemctl("start croft.service")
          retry(lambda *_: firing() == set(), 60)

      with subtest("what Grafana asks answers"):
          assert sources
          for source in sources:
              ask(source["url"] + "/api/v1/query?query=instance_outcome:croft_actions:rate5m")
    '';
}
