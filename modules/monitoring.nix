# The host that watches the farm: Prometheus with croft's rules, Alertmanager, Grafana with its dashboards, and a collector of traces.
{ config, lib, ... }:
let
  inherit (lib) mkOption types;
  cfg = config.services.croft.monitoring;
  prometheus = config.services.prometheus;
  dashboards = ../monitoring/dashboards;
  ruleFiles = lib.filter (lib.hasSuffix ".yml") (lib.attrNames (builtins.readDir ../monitoring));
in
{
  imports = [ ./unit.nix ];

  options.services.croft.monitoring = {
    enable = lib.mkEnableOption "the monitoring of the farm on this host";

    targets = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [
        "cas.example:50080"
        "scheduler.example:50080"
      ];
      description = "The listeners for operators of all hosts of the farm.";
    };
    interval = mkOption {
      type = types.str;
      default = "15s";
      description = "How often they are asked. The alerts look at windows of 5 minutes and more, and need several points in each.";
    };
    tls = mkOption {
      type = types.bool;
      default = false;
      description = "Whether these listeners have TLS.";
    };
    authorities = mkOption {
      type = types.nullOr types.externalPath;
      default = null;
      description = "The authorities, in PEM, that their certificates come from; null for those of the system.";
    };
    tokenFile = mkOption {
      type = types.nullOr types.externalPath;
      default = null;
      example = "/run/secrets/prometheus-token";
      description = "The file of a token of somebody who may read everywhere, where the farm has rules of access.";
    };

    receivers = mkOption {
      type = types.listOf types.attrs;
      default = [ { name = "nobody"; } ];
      example = [
        {
          name = "operators";
          email_configs = [ { to = "farm@example.org"; } ];
        }
      ];
      description = "Whom Alertmanager tells, as its `receivers`; the first gets all alerts. By default they only stand on its page.";
    };

    silenced = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "CroftFewWorkers" ];
      description = "Alerts of croft's rules that nobody is told of.";
    };

    grafana = {
      enable = lib.mkEnableOption "Grafana with croft's dashboards";
      secretKeyFile = mkOption {
        type = types.nullOr types.externalPath;
        default = null;
        example = "/run/secrets/grafana-secret-key";
        description = "The file of the key that Grafana encrypts its secrets with.";
      };
    };

    traces = {
      enable = lib.mkEnableOption "an OpenTelemetry collector that takes the farm's traces";
      listen = mkOption {
        type = types.str;
        default = "127.0.0.1:4317";
        description = "Where it takes them (OTLP over gRPC).";
      };
      exporters = mkOption {
        type = types.attrsOf types.attrs;
        default = { };
        example = {
          otlp.endpoint = "tempo.example:4317";
        };
        description = "Where they go: the collector's `exporters`.";
      };
    };
  };

  config = lib.mkIf cfg.enable (
    lib.mkMerge [
      {
        services.prometheus = {
          enable = true;
          listenAddress = lib.mkDefault "127.0.0.1";
          globalConfig = {
            scrape_interval = cfg.interval;
            evaluation_interval = cfg.interval;
          };
          # Secrets are not where the system is built.
          checkConfig = lib.mkIf (cfg.tokenFile != null || cfg.authorities != null) "syntax-only";
          ruleFiles = map (name: ../monitoring + "/${name}") ruleFiles;
          scrapeConfigs = [
            (
              {
                job_name = "croft";
                scheme = if cfg.tls then "https" else "http";
                static_configs = [ { inherit (cfg) targets; } ];
              }
              // lib.optionalAttrs (cfg.authorities != null) { tls_config.ca_file = cfg.authorities; }
              // lib.optionalAttrs (cfg.tokenFile != null) {
                authorization.credentials_file = "/run/credentials/prometheus.service/croft-token";
              }
            )
          ];
          alertmanagers = [
            { static_configs = [ { targets = [ "127.0.0.1:${toString prometheus.alertmanager.port}" ]; } ]; }
          ];
          alertmanager = {
            enable = true;
            listenAddress = lib.mkDefault "127.0.0.1";
            configuration = {
              route = {
                receiver = (lib.head cfg.receivers).name;
                group_by = [ "alertname" ];
                routes = map (alert: {
                  matchers = [ "alertname = ${alert}" ];
                  receiver = "silenced";
                }) cfg.silenced;
              };
              receivers = cfg.receivers ++ [ { name = "silenced"; } ];
            };
          };
        };
        systemd.services.prometheus.serviceConfig.LoadCredential = lib.optional (
          cfg.tokenFile != null
        ) "croft-token:${cfg.tokenFile}";
      }

      (lib.mkIf cfg.grafana.enable {
        assertions = [
          {
            assertion = cfg.grafana.secretKeyFile != null;
            message = ''
              services.croft.monitoring.grafana has no key to encrypt its secrets with, and a key that everybody knows is none.
              Set services.croft.monitoring.grafana.secretKeyFile to a file with some random text.'';
          }
        ];
        services.grafana = {
          enable = true;
          settings = {
            server.http_addr = lib.mkDefault "127.0.0.1";
            security.secret_key = "$__file{/run/credentials/grafana.service/secret-key}";
            analytics.reporting_enabled = lib.mkDefault false;
          };
          provision = {
            enable = true;
            datasources.settings.datasources = [
              {
                name = "Prometheus";
                uid = "prometheus";
                type = "prometheus";
                url = "http://127.0.0.1:${toString prometheus.port}";
                isDefault = true;
              }
            ];
            dashboards.settings.providers = lib.mkIf (builtins.pathExists dashboards) [
              {
                name = "Croft";
                options.path = dashboards;
              }
            ];
          };
        };
        systemd.services.grafana.serviceConfig.LoadCredential = [
          "secret-key:${toString cfg.grafana.secretKeyFile}"
        ];
      })

      (lib.mkIf cfg.traces.enable {
        services.opentelemetry-collector = {
          enable = true;
          settings = {
            receivers.otlp.protocols.grpc.endpoint = cfg.traces.listen;
            processors.batch = { };
            inherit (cfg.traces) exporters;
            service.pipelines.traces = {
              receivers = [ "otlp" ];
              processors = [ "batch" ];
              exporters = lib.attrNames cfg.traces.exporters;
            };
          };
        };
        assertions = [
          {
            assertion = cfg.traces.exporters != { };
            message = ''
              services.croft.monitoring.traces takes traces and has nowhere to bring them.
              Set services.croft.monitoring.traces.exporters.'';
          }
        ];
      })
    ]
  );
}
