# Whom the farm does not know, or who may not do something, hears so in plain words, and operators see it.
{ ... }:
let
  tokens = {
    reader = "croft-token-of-the-reader-0123456789abcdef";
    stranger = "croft-token-of-somebody-else-0123456789abcdef";
  };
in
{
  nodes.farm =
    { lib, pkgs, ... }:
    {
      imports = [ ../nixos/appliance.nix ];
      environment.systemPackages = [ pkgs.openssl ];
      services.croft = {
        worker.enable = lib.mkForce false;
        monitoring.enable = false;
        cas.memory = null;
        cas.disk.size = "256 MiB";
        # Machines show certificates of the farm's own authority, people show tokens.
        tls.clients.authorities = "/var/lib/croft-tls/authority.crt";
        tls.clients.required = false;
        access = {
          tokens.reader = {
            sha256 = builtins.hashString "sha256" tokens.reader;
            groups = [ "readers" ];
          };
          rules = [
            {
              who = [ "group:readers" ];
              may = [ "read" ];
            }
            {
              who = [ "certificate:ci" ];
              may = [
                "read"
                "write"
              ];
            }
          ];
        };
      };
    };

  nodes.client =
    { pkgs, ... }:
    {
      imports = [ ./parts/client.nix ];
      environment.systemPackages = [ pkgs.openssl ];
      environment.etc = builtins.mapAttrs (_: text: { inherit text; }) tokens;
    };

  testScript = ''
    import json

    metrics = "curl --fail --silent http://127.0.0.1:50080/metrics"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    blob = "https://farm:50051/cas/2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    curl = "curl --silent --show-error --cacert /etc/authority.crt --max-time 10"

    def execute(token):
        arguments = f"https://farm:50051 https://farm:50051 {token} /etc/authority.crt true"
        return json.loads(client.succeed(f"python3 /etc/farm/execute.py {arguments}"))["error"]

    def refused(reason, who):
        """The access log and its metric say so."""
        farm.wait_until_succeeds(metrics + " | grep '^croft_access_refusals_total{reason=\"%s\"} [1-9]'" % reason, timeout=10)
        logged = "journalctl --unit=croft.service --output=cat | grep croft::access"
        farm.wait_until_succeeds(f"""{logged} | grep '"reason":"{reason}"' | grep '{who}'""", timeout=10)

    def no_handshake(reason):
        counted = 'croft_tls_handshake_failures_total{listener="public",reason="%s"}' % reason
        farm.wait_until_succeeds(f"{metrics} | grep '^{counted} [1-9]'", timeout=10)

    start_all()
    farm.wait_until_succeeds("curl --fail --silent http://127.0.0.1:50080/readyz", timeout=30)
    authority = farm.succeed("cat /var/lib/croft-tls/authority.crt")
    client.succeed(f"cat > /etc/authority.crt <<'EOF'\n{authority}EOF")

    with subtest("who shows nothing"):
        error = execute("/dev/null")
        assert "grpc-status: 16" in error, error
        refused("unauthenticated", '"identity":"anonymous"')

    with subtest("who shows a token that nobody has"):
        error = execute("/etc/stranger")
        assert "grpc-status: 16" in error, error
        refused("credential", '"peer":"192.168.1.1')
        farm.fail("journalctl --unit=croft.service | grep somebody-else")

    with subtest("who may read, and wants to write"):
        error = execute("/etc/reader")
        assert "grpc-status: 7" in error and "write" in error, error
        refused("right", '"identity":"token:reader"')

    with subtest("who has a certificate of another authority"):
        client.succeed(
            f"{make} -keyout /root/authority.key -out /root/authority.crt -subj /CN=authority",
            f"{make} -keyout /root/ci.key -out /root/ci.crt -subj /CN=ci -addext basicConstraints=critical,CA:FALSE"
            " -CA /root/authority.crt -CAkey /root/authority.key",
        )
        said = client.fail(f"{curl} --cert /root/ci.crt --key /root/ci.key {blob} 2>&1")
        no_handshake("certificate_wrong")
        assert "unknown ca" in said, said

    with subtest("who speaks plain text to a listener with TLS"):
        client.fail("curl --silent --max-time 10 http://farm:50051/")
        no_handshake("plain_http")
        farm.succeed("journalctl --unit=croft.service | grep 'clients must use grpcs:// or https:// here'")

    with subtest("nobody else is kept waiting by that"):
        token = '--header "authorization: Bearer $(cat /etc/reader)"'
        assert client.succeed(f"{curl} --output /dev/null --write-out '%{{http_code}}' {token} {blob}") == "404"
  '';
}
