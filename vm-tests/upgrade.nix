# A farm is given a new configuration in the middle of the day: one process ends, another begins, and clients only wait.
{ pkgs, lib }:
let
  appliance = {
    imports = [ ../nixos/appliance.nix ];
    services.croft = {
      worker.enable = lib.mkForce false;
      monitoring.enable = false;
      cas.memory = null;
      cas.disk.size = lib.mkDefault "256 MiB";
      access.rules = [
        {
          who = [ "anonymous" ];
          may = [
            "read"
            "write"
          ];
        }
      ];
    };
  };
in
{
  nodes.client = {
    environment.systemPackages = [ pkgs.curl ];
    # Puts a blob and reads it back, again and again, each time over a new connection; what fails is in /tmp/failed. As build tools do, it
    # tries once more when a connection ends before it has an answer.
    environment.etc."build.sh".text = ''
      while [ ! -e /tmp/enough ]; do
        blob=$(date +%N-$RANDOM)
        place=https://farm:50051/cas/$(printf %s "$blob" | sha256sum | cut -d ' ' -f 1)
        curl="curl --fail --silent --show-error --cacert /etc/authority.crt --max-time 30 --retry 1 --retry-all-errors --retry-delay 1"
        printf %s "$blob" > /tmp/blob-$$
        $curl --upload-file /tmp/blob-$$ "$place" || echo "a put failed" >> /tmp/failed
        read=$($curl "$place")
        [ "$read" = "$blob" ] || echo "a read failed" >> /tmp/failed
        echo >> /tmp/done
      done
    '';
  };
  nodes.farm = appliance;
  # What the farm is to become; such a machine is never started.
  nodes.next = {
    imports = [ appliance ];
    networking.hostName = "farm";
    services.croft.cas.disk.size = "512 MiB";
  };

  testScript =
    { nodes, ... }:
    ''
      limit = "curl --fail --silent http://127.0.0.1:50080/metrics | grep '^croft_store_max_bytes'"

      def builds(count):
          client.wait_until_succeeds(f"test $(wc -l < /tmp/done) -ge {count}", timeout=30)

      client.start()
      farm.start()
      farm.wait_until_succeeds("curl --fail --silent http://127.0.0.1:50080/readyz", timeout=30)
      authority = farm.succeed("cat /var/lib/croft-tls/authority.crt")
      client.succeed(f"cat > /etc/authority.crt <<'EOF'\n{authority}EOF")
      before = farm.succeed(limit)

      with subtest("two clients are busy"):
          client.succeed("for i in 1 2; do bash /etc/build.sh > /dev/null 2>&1 & done")
          builds(10)

      with subtest("the farm gets its new configuration"):
          farm.succeed(
              "mkdir -p /run/systemd/system/croft.service.d",
              "printf '[Service]\\nExecStart=\\nExecStart=%s serve --config %s\\n' ${lib.getExe nodes.farm.services.croft.package}"
              " ${nodes.next.services.croft.configFile} > /run/systemd/system/croft.service.d/next.conf",
              "systemctl daemon-reload",
          )
          for _ in range(3):
              farm.succeed("systemctl restart croft.service")
              builds(10 + int(client.succeed("wc -l < /tmp/done")))
          assert farm.succeed(limit) != before

      with subtest("no request has failed"):
          client.succeed("touch /tmp/enough")
          print("requests:", client.succeed("wc -l < /tmp/done"))
          client.fail("cat /tmp/failed")
    '';
}
