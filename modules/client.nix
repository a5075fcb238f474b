# A machine that builds on the farm: Bazel's system-wide configuration, and croft's commands.
{ config, lib, ... }:
let
  inherit (lib) mkOption types;
  cfg = config.services.croft.client;
  flag = name: value: lib.optional (value != null) "build --${name}=${toString value}";
in
{
  imports = [ ./unit.nix ];

  options.services.croft.client = {
    enable = lib.mkEnableOption "the farm for all Bazel builds on this machine";

    executor = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "grpcs://scheduler.example:50051";
      description = "The farm's scheduler; null where only its cache is used.";
    };
    cache = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "grpcs://cas.example:50051";
      description = "The farm's CAS; null where the scheduler's process is the CAS, too.";
    };
    instance = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "main";
      description = "The instance name, if the farm serves some by name.";
    };
    jobs = mkOption {
      type = types.nullOr types.ints.positive;
      default = null;
      description = "Actions that a build has under way at the same time; as many as the farm has slots, and some more, keep it busy.";
    };
    upload = mkOption {
      type = types.bool;
      default = false;
      description = "Whether results of actions that ran on this machine go into the cache. It needs the right `cache-write`.";
    };
    authority = mkOption {
      type = types.nullOr types.path;
      default = null;
      description = "The certificate, in PEM, of the authority that the farm's certificate comes from; null for those of the system.";
    };
    certificate = mkOption {
      type = types.nullOr types.externalPath;
      default = null;
      description = "The certificate that this machine shows, in PEM. Who builds must be allowed to read it.";
    };
    key = mkOption {
      type = types.nullOr types.externalPath;
      default = null;
      description = "The private key of {option}`services.croft.client.certificate`, in PKCS#8.";
    };
    credentialHelper = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "farm.example=/run/current-system/sw/bin/farm-token";
      description = "A program that gives Bazel the token of whoever builds; tokens in flags are seen by everybody on the machine.";
    };
    extraConfig = mkOption {
      type = types.lines;
      default = "";
      example = "build --remote_download_minimal";
      description = "More lines for {file}`/etc/bazel.bazelrc`.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = cfg.executor != null || cfg.cache != null;
        message = ''
          services.croft.client does not know the farm.
          Set services.croft.client.executor, services.croft.client.cache, or both.'';
      }
      {
        assertion = (cfg.certificate == null) == (cfg.key == null);
        message = "services.croft.client.certificate and services.croft.client.key go together.";
      }
    ];
    environment.systemPackages = [ config.services.croft.package ];
    environment.etc."bazel.bazelrc".text = lib.concatLines (
      flag "remote_executor" cfg.executor
      ++ flag "remote_cache" cfg.cache
      ++ flag "remote_instance_name" cfg.instance
      ++ flag "jobs" cfg.jobs
      ++ [ "build --remote_upload_local_results=${lib.boolToString cfg.upload}" ]
      ++ flag "tls_certificate" cfg.authority
      ++ flag "tls_client_certificate" cfg.certificate
      ++ flag "tls_client_key" cfg.key
      ++ flag "credential_helper" cfg.credentialHelper
      ++ lib.optional (cfg.extraConfig != "") cfg.extraConfig
    );
  };
}
