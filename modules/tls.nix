# Certificates: of the listeners beyond loopback, and of this host where it is a client of the farm's others.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  croft = config.services.croft;
  cfg = croft.tls;
  addresses = import ./addresses.nix { inherit lib; };
  exposed = lib.filterAttrs (_: address: !addresses.isLoopback address) croft.listeners;
  isWorkerElsewhere = croft.worker.enable or false && croft.worker.scheduler != null;
  made = "/var/lib/croft-tls";

  # As a listener, and as a client.
  server = {
    inherit (cfg) certificate key;
  }
  // lib.optionalAttrs (cfg.clients.authorities != null) {
    clients = {
      inherit (cfg.clients) authorities required;
    }
    // lib.optionalAttrs (cfg.clients.revoked != null) { inherit (cfg.clients) revoked; };
  };
  client = {
    inherit (cfg) certificate key;
  }
  // lib.optionalAttrs (cfg.authorities != null) { inherit (cfg) authorities; };
in
{
  imports = [ ./unit.nix ];

  options.services.croft.tls = {
    enable = lib.mkEnableOption "TLS on all listeners of the farm that are beyond loopback";

    certificate = mkOption {
      type = types.externalPath;
      example = "/var/lib/secrets/croft/tls.crt";
      description = ''
        The host's certificate in PEM, with those between it and its authority behind it. It and the key must be readable by the group
        `croft`: they are read where they are, not handed over as credentials, since they change while the farm runs. A new pair is in
        use a second after both files are there.
      '';
    };
    key = mkOption {
      type = types.externalPath;
      example = "/var/lib/secrets/croft/tls.key";
      description = "The private key of the certificate, in PEM.";
    };
    authorities = mkOption {
      type = types.nullOr types.externalPath;
      default = null;
      description = "The authorities, in PEM, that the certificates of the farm's other hosts come from; null for those of the system.";
    };

    clients = {
      authorities = mkOption {
        type = types.nullOr types.externalPath;
        default = null;
        description = "The authorities, in PEM, that certificates of clients and workers come from; null if they show none.";
      };
      required = mkOption {
        type = types.bool;
        default = true;
        description = "Whether who shows no certificate is turned away. Where some have tokens instead, set it to false.";
      };
      revoked = mkOption {
        type = types.nullOr types.externalPath;
        default = null;
        description = "The revocation lists, in PEM, one of each of these authorities.";
      };
    };

    client = mkOption {
      type = types.attrsOf types.str;
      default = client;
      internal = true;
      description = "The settings of a connection from this host to another of the farm.";
    };

    acme = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "cas.farm.example";
      description = ''
        The name of a certificate of {option}`security.acme.certs` that is used, and renewed while the farm runs. An authority of one's
        own that speaks ACME, such as step-ca, does as well as a public one: {option}`security.acme.defaults.server`.
      '';
    };

    selfSigned = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "farm.example";
      description = ''
        Makes an authority on this host, at its first start, and with it a certificate for this name. Clients need the authority's
        certificate, {file}`/var/lib/croft-tls/authority.crt`. Good for one machine; a farm of several has an authority elsewhere.
      '';
    };
  };

  config = lib.mkMerge [
    {
      assertions = [
        {
          assertion = croft.roles == [ ] || exposed == { } || cfg.enable || croft.insecure;
          message = ''
            services.croft listens beyond loopback without TLS (${lib.concatStringsSep ", " (lib.attrNames exposed)}).
            Set services.croft.tls.enable, or services.croft.insecure where something else protects the way.'';
        }
        {
          assertion = !(cfg.enable && croft.insecure);
          message = "services.croft.insecure and services.croft.tls.enable contradict each other. Drop one of them.";
        }
        {
          assertion = cfg.acme == null || cfg.selfSigned == null;
          message = "services.croft.tls.acme and services.croft.tls.selfSigned are two sources of one certificate. Drop one of them.";
        }
      ];
    }

    (lib.mkIf cfg.enable {
      services.croft.settings = lib.mkMerge [
        (lib.mapAttrs (_: _: { tls = server; }) exposed)
        (lib.mkIf isWorkerElsewhere { worker.tls = cfg.client; })
      ];
    })

    (lib.mkIf (cfg.enable && cfg.acme != null) {
      services.croft.tls = {
        certificate = "${config.security.acme.certs.${cfg.acme}.directory}/fullchain.pem";
        key = "${config.security.acme.certs.${cfg.acme}.directory}/key.pem";
      };
      security.acme.certs.${cfg.acme} = {
        group = lib.mkDefault "croft";
        reloadServices = [ "croft.service" ];
      };
      systemd.services.croft = {
        wants = [ "acme-${cfg.acme}.service" ];
        after = [ "acme-${cfg.acme}.service" ];
      };
    })

    (lib.mkIf (cfg.enable && cfg.selfSigned != null) {
      services.croft.tls = {
        certificate = "${made}/tls.crt";
        key = "${made}/tls.key";
        authorities = lib.mkDefault "${made}/authority.crt";
      };
      systemd.services.croft = {
        requires = [ "croft-certificate.service" ];
        after = [ "croft-certificate.service" ];
      };
      systemd.services.croft-certificate = {
        description = "Authority and certificate of this Croft farm";
        path = [ pkgs.openssl ];
        unitConfig.ConditionPathExists = "!${made}/tls.crt";
        script = ''
          cd "$STATE_DIRECTORY"
          name=${lib.escapeShellArg cfg.selfSigned}
          make() { openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes "$@"; }
          make -keyout authority.key -out authority.crt -days 3650 -subj "/CN=authority of $name" \
            -addext keyUsage=critical,keyCertSign,cRLSign
          make -keyout tls.key -out tls.new -days 3650 -subj "/CN=$name" -CA authority.crt -CAkey authority.key \
            -addext "subjectAltName=DNS:$name,DNS:localhost,IP:127.0.0.1" -addext basicConstraints=critical,CA:FALSE
          chmod 600 authority.key
          chmod 640 tls.key
          chmod 644 authority.crt
          # Last, since its presence says that all is there.
          mv tls.new tls.crt
        '';
        serviceConfig = {
          Type = "oneshot";
          User = "root";
          Group = "croft";
          StateDirectory = "croft-tls";
          StateDirectoryMode = "0755";
          UMask = "0027";
          PrivateNetwork = true;
          PrivateTmp = true;
          ProtectHome = true;
          ProtectSystem = "strict";
        };
      };
    })
  ];
}
