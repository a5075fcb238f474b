# One address before several servers: HAProxy, which asks each with gRPC's health protocol whether it serves.
{ config, lib, ... }:
let
  inherit (lib) mkOption types;
  cfg = config.services.croft.load-balancer;

  # One call of grpc.health.v1.Health/Check as the bytes of HTTP/2, since HAProxy's own checks know no gRPC.
  health = isTls: {
    # The preface and empty SETTINGS.
    preface = "505249202a20485454502f322e300d0a0d0a534d0d0a0d0a000000040000000000";
    # HEADERS of stream 1: POST, the scheme, the path, an authority, the type of the content, `te: trailers`.
    headers =
      "00004701040000000183${if isTls then "87" else "86"}041c2f677270632e6865616c74682e76312e4865616c74682f436865636b"
      + "010563726f66740f10106170706c69636174696f6e2f677270630002746508747261696c657273";
    # DATA that ends the stream: the empty message, which asks for the server as a whole.
    message = "0000050001000000010000000000";
    # The message of the answer: SERVING.
    serving = "00000000020801";
  };

  checks = isTls: ''
    option tcp-check
    tcp-check send-binary ${(health isTls).preface}
    tcp-check send-binary ${(health isTls).headers}
    tcp-check send-binary ${(health isTls).message}
    tcp-check expect binary ${(health isTls).serving}'';

  server =
    frontend: number: address:
    let
      check = "check inter 2s fall 2 rise 1 on-marked-down shutdown-sessions";
      verify =
        if frontend.authorities == null then "ca-file @system-ca" else "ca-file ${frontend.authorities}";
      host = lib.head (lib.splitString ":" address);
      checked = "verify required ${verify} check-sni ${host} check-alpn h2";
    in
    "server server${toString number} ${address} ${check}"
    # What is passed through is already encrypted; only the checks bring TLS of their own.
    + lib.optionalString (frontend.tls && frontend.certificate == null) " check-ssl ${checked}"
    + lib.optionalString (
      frontend.tls && frontend.certificate != null
    ) " ssl alpn h2 sni str(${host}) ${checked}"
    + lib.optionalString (!frontend.tls && frontend.mode == "http") " proto h2";

  section = name: frontend: ''
    frontend ${name}
      mode ${frontend.mode}
      bind ${frontend.listen}${
        lib.optionalString (
          frontend.certificate != null
        ) " ssl crt ${frontend.certificate} alpn h2,http/1.1"
      }
      default_backend ${name}

    backend ${name}
      mode ${frontend.mode}
      balance leastconn
      ${lib.replaceStrings [ "\n" ] [ "\n  " ] (checks frontend.tls)}
      ${lib.concatStringsSep "\n  " (lib.imap1 (server frontend) frontend.servers)}
  '';

  frontend = types.submodule (
    { config, ... }:
    {
      options = {
        listen = mkOption {
          type = types.str;
          default = ":443";
          description = "Address and port, as HAProxy writes them.";
        };
        servers = mkOption {
          type = types.listOf types.str;
          example = [
            "cas1.example:50051"
            "cas2.example:50051"
          ];
          description = "The servers. They must serve the same blobs: a bucket that they share, or the same other servers behind them.";
        };
        tls = mkOption {
          type = types.bool;
          default = true;
          description = "Whether the servers have TLS.";
        };
        authorities = mkOption {
          type = types.nullOr types.externalPath;
          default = null;
          description = "The authorities, in PEM, that the servers' certificates come from; null for those of the system.";
        };
        certificate = mkOption {
          type = types.nullOr types.externalPath;
          default = null;
          example = "/var/lib/acme/farm.example/full.pem";
          description = ''
            The certificate and its key, in one file. With it, clients see the balancer's certificate and their requests are spread one by
            one, but the servers do not see the clients' certificates. Without it, connections are passed through as they are.
          '';
        };
        mode = mkOption {
          type = types.enum [
            "http"
            "tcp"
          ];
          default = if config.tls && config.certificate == null then "tcp" else "http";
          defaultText = lib.literalMD "`tcp` where TLS is passed through, else `http`";
          description = "Whether requests or connections are spread.";
        };
        openFirewall = mkOption {
          type = types.bool;
          default = false;
          description = "Whether everybody reaches it.";
        };
      };
    }
  );

  port = address: lib.toInt (lib.last (lib.splitString ":" address));
in
{
  imports = [ ./unit.nix ];

  options.services.croft.load-balancer.frontends = mkOption {
    type = types.attrsOf frontend;
    default = { };
    description = "What the balancer of this host listens for, by name.";
  };

  config = lib.mkIf (cfg.frontends != { }) {
    services.haproxy = {
      enable = true;
      config = ''
        defaults
          timeout connect 3s
          # A server that cannot be reached is passed over before a check has found out.
          option redispatch 1
          timeout http-request 30s
          # A client hears nothing while its action waits and runs, which may take hours.
          timeout client 12h
          timeout server 12h

        ${lib.concatStringsSep "\n" (lib.mapAttrsToList section cfg.frontends)}'';
    };
    networking.firewall.allowedTCPPorts = lib.concatMap (
      frontend: lib.optional frontend.openFirewall (port frontend.listen)
    ) (lib.attrValues cfg.frontends);
  };
}
