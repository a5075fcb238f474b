# Certificates change while the farm runs: no connection breaks, nothing is started again, and a wrong pair is not taken.
{ pkgs, lib }:
{
  nodes.farm = {
    imports = [ ../nixos/appliance.nix ];
    environment.systemPackages = [ pkgs.openssl ];
    services.croft = {
      worker.enable = lib.mkForce false;
      monitoring.enable = false;
      settings.storage.tier = [
        {
          kind = "disk";
          size = "256 MiB";
        }
      ];
    };
  };

  nodes.client.environment.systemPackages = [ pkgs.openssl ];

  testScript = ''
    shown = "openssl s_client -connect farm:50051 </dev/null 2>/dev/null | openssl x509 -noout -serial"
    failures = "curl --fail --silent http://127.0.0.1:50080/metrics | grep '^croft_reload_failures_total'"

    start_all()
    farm.wait_for_unit("croft.service")
    before = client.wait_until_succeeds(shown, timeout=30)
    process = farm.get_unit_property("croft.service", "MainPID")

    with subtest("a new pair is in use at once"):
        farm.succeed(
            "cd /var/lib/croft-tls && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30"
            " -subj /CN=farm -addext subjectAltName=DNS:farm -addext basicConstraints=critical,CA:FALSE"
            " -CA authority.crt -CAkey authority.key -keyout new.key -out new.crt"
            " && chgrp croft new.* && chmod 640 new.* && mv new.key tls.key && mv new.crt tls.crt"
        )
        client.wait_until_succeeds(f"test \"$({shown})\" != '{before.strip()}'", timeout=10)
        after = client.succeed(shown)

    with subtest("one that cannot be right is refused, counted, and the former stays"):
        farm.succeed("cp /var/lib/croft-tls/authority.crt /var/lib/croft-tls/tls.crt")
        farm.wait_until_succeeds(failures + " | grep -v ' 0$'", timeout=10)
        assert client.succeed(shown) == after

    with subtest("all that in one process"):
        assert farm.get_unit_property("croft.service", "MainPID") == process
        farm.succeed("systemctl reload croft.service")
        assert farm.get_unit_property("croft.service", "MainPID") == process
  '';
}
