# A host with all that the modules can do, so that the checks go through all of them.
{ pkgs, ... }:
let
  inherit (import ../local-remote-execution { inherit pkgs; }) toolchains;
in
{
  networking.hostName = "everything";

  services.croft = {
    cas = {
      enable = true;
      memory = "1 GiB";
      redis.enable = true;
      disk = {
        path = "/srv/cas";
        size = "100 GiB";
        compression = true;
      };
      bucket = {
        kind = "s3";
        bucket = "farm-cas";
        region = "eu-central-1";
        access_key_id = "example";
        credentialFile = "/run/secrets/bucket";
        lifecycle.refresh_after = "30d";
      };
      writeBack = true;
    };
    scheduler = {
      enable = true;
      properties.gpu = "exact";
    };
    worker = {
      enable = true;
      slots = 4;
      toolchains = [
        pkgs.python3
        toolchains.cc
        toolchains.shell
      ];
      properties.gpu = [ "none" ];
      drainTimeout = 120;
    };

    listen = {
      public = "0.0.0.0:50051";
      workers = "[::]:50061";
      admin = "0.0.0.0:50080";
    };
    firewall = {
      public = "everybody";
      workers = [
        "10.7.0.0/24"
        "fd00:7::/64"
      ];
      admin = [ "10.7.0.13" ];
    };
    tls = {
      enable = true;
      acme = "everything.farm.example";
      clients.authorities = "/var/lib/secrets/croft/authority.crt";
      clients.revoked = "/var/lib/secrets/croft/revoked.crl";
    };
    access = {
      rules = [
        {
          who = [ "group:developers" ];
          may = [
            "read"
            "write"
            "execute"
          ];
          instances = [ "main/*" ];
        }
      ];
      tokens.ci = {
        sha256 = builtins.hashString "sha256" "an example";
        groups = [ "developers" ];
      };
      issuers = [
        {
          issuer = "https://id.example";
          audiences = [ "croft" ];
        }
      ];
      passwords = "/run/secrets/htpasswd";
      passwordGroups.ann = [ "developers" ];
    };

    client = {
      enable = true;
      executor = "grpcs://everything.farm.example:50051";
      instance = "main/a";
      jobs = 200;
      upload = true;
      certificate = "/var/lib/secrets/client.crt";
      key = "/var/lib/secrets/client.key";
      credentialHelper = "farm.example=/run/current-system/sw/bin/farm-token";
      extraConfig = "build --remote_download_minimal";
    };
    load-balancer.frontends = {
      passed-through = {
        listen = ":443";
        servers = [ "everything.farm.example:50051" ];
        openFirewall = true;
      };
      spread = {
        listen = ":8443";
        servers = [
          "cas1.farm.example:50051"
          "cas2.farm.example:50051"
        ];
        certificate = "/var/lib/acme/everything.farm.example/full.pem";
        authorities = "/var/lib/secrets/croft/authority.crt";
      };
    };
    monitoring = {
      enable = true;
      targets = [ "everything.farm.example:50080" ];
      tls = true;
      tokenFile = "/run/secrets/prometheus-token";
      receivers = [
        {
          name = "operators";
          email_configs = [ { to = "farm@example.org"; } ];
        }
      ];
      grafana = {
        enable = true;
        secretKeyFile = "/run/secrets/grafana";
      };
      traces = {
        enable = true;
        exporters.otlp.endpoint = "tempo.example:4317";
      };
    };
    autoscale = {
      metrics = "https://everything.farm.example:50080/metrics";
      tokenFile = "/run/secrets/autoscale-token";
      path = [ pkgs.coreutils ];
      kinds.gpu = {
        propertySet = "gpu=some";
        min = 1;
        max = 8;
        command = ''echo "$WANTED" > "$STATE_DIRECTORY/gpu"'';
      };
    };
    backup = {
      enable = true;
      copy = ''cp -a "$SNAPSHOT" /srv/backup'';
    };
    settings.audit.rate = 0.01;
  };

  security.acme = {
    acceptTerms = true;
    defaults.email = "farm@example.org";
    certs."everything.farm.example".listenHTTP = ":80";
  };
}
