# The role `cas`: blobs, action results and assets, in tiers from fast to slow.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  cfg = config.services.croft.cas;
  redis = config.services.redis.servers.croft;

  # The option of croft that names the file with the secret of a bucket of this kind.
  secretOf = {
    s3 = "secret_access_key_file";
    gcs = "credential_file";
    azure = "account_key_file";
  };

  tiers =
    lib.optional (cfg.memory != null) {
      kind = "memory";
      size = cfg.memory;
    }
    ++ lib.optional cfg.redis.enable {
      kind = "redis";
      url = cfg.redis.url;
    }
    ++ lib.optional cfg.disk.enable (
      {
        kind = "disk";
        inherit (cfg.disk) compression;
      }
      // lib.optionalAttrs (cfg.disk.path != null) { inherit (cfg.disk) path; }
      // lib.optionalAttrs (cfg.disk.size != null) { inherit (cfg.disk) size; }
    )
    ++ lib.optional (cfg.bucket != null) (
      removeAttrs cfg.bucket [ "credentialFile" ]
      // lib.optionalAttrs (cfg.bucket.credentialFile != null) {
        ${secretOf.${cfg.bucket.kind}} = "credential:bucket";
      }
    );
in
{
  imports = [ ./unit.nix ];

  options.services.croft.cas = {
    enable = lib.mkEnableOption "the content-addressed store and the action cache of the farm";

    memory = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "2 GiB";
      description = "Size of a tier in memory before all others. An eighth of the machine's memory is a good start.";
    };

    redis = {
      enable = lib.mkEnableOption "a tier in Redis or Valkey for small blobs, which several servers can share";
      url = mkOption {
        type = types.str;
        default = "redis://127.0.0.1:6379";
        example = "rediss://redis.example:6379";
        description = "Where it is. On loopback, a server of this host is set up at its port, which keeps nothing on the disk.";
      };
      memory = mkOption {
        type = types.str;
        default = "1gb";
        description = "What the server of this host may hold; what was not used for longest makes room.";
      };
    };

    disk = {
      enable = mkOption {
        type = types.bool;
        default = true;
        description = "Whether there is a tier on the disk.";
      };
      path = mkOption {
        type = types.nullOr types.externalPath;
        default = null;
        example = "/srv/cas";
        description = "Its directory; by default below the state directory, {file}`/var/lib/croft`.";
      };
      size = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "1.5 TiB";
        description = "What it may take; by default half of what the file system has free at the start.";
      };
      compression = mkOption {
        type = types.bool;
        default = false;
        description = "Whether blobs are compressed (zstd) where that saves space.";
      };
    };

    bucket = mkOption {
      type = types.nullOr (
        types.submodule {
          freeformType = (pkgs.formats.toml { }).type;
          options = {
            kind = mkOption {
              type = types.enum [
                "s3"
                "gcs"
                "azure"
              ];
              description = "Whose object storage it is, or whose protocol it speaks.";
            };
            credentialFile = mkOption {
              type = types.nullOr types.externalPath;
              default = null;
              example = "/run/secrets/bucket";
              description = ''
                The file with the secret: the secret access key (S3), the service account's key (GCS), the account's key (Azure).
                Without it, the machine's own identity is used.
              '';
            };
          };
        }
      );
      default = null;
      example = {
        kind = "s3";
        bucket = "farm-cas";
        region = "eu-central-1";
        access_key_id = "AKIAEXAMPLE";
        credentialFile = "/run/secrets/bucket";
      };
      description = "A tier in object storage, behind all others. Beside the options here, all keys of croft's tiers of that kind.";
    };

    writeBack = mkOption {
      type = types.bool;
      default = false;
      description = "Whether a write is acknowledged when the first durable tier has it, and a journal brings it to the others.";
    };
  };

  config = lib.mkIf cfg.enable (
    lib.mkMerge [
      {
        assertions = [
          {
            assertion = cfg.disk.enable || cfg.bucket != null;
            message = ''
              services.croft.cas has no durable tier: memory and Redis may lose what they have acknowledged.
              Set services.croft.cas.disk.enable or services.croft.cas.bucket.'';
          }
        ];
        services.croft.roles = [ "cas" ];
        # As a whole: tiers of two opinions, one after the other, are nobody's.
        services.croft.settings.storage.tier = lib.mkDefault tiers;
        services.croft.settings.storage.write = lib.mkIf cfg.writeBack "back";
      }

      (lib.mkIf (cfg.disk.enable && cfg.disk.path != null) {
        systemd.tmpfiles.settings."10-croft".${cfg.disk.path}.d = {
          user = "croft";
          group = "croft";
          mode = "0700";
        };
        systemd.services.croft = {
          serviceConfig.ReadWritePaths = [ cfg.disk.path ];
          unitConfig.RequiresMountsFor = [ cfg.disk.path ];
        };
      })

      (lib.mkIf (cfg.bucket != null && cfg.bucket.credentialFile != null) {
        services.croft.credentials.bucket = cfg.bucket.credentialFile;
      })

      (lib.mkIf (cfg.redis.enable && lib.hasPrefix "redis://127.0.0.1:" cfg.redis.url) {
        services.redis.servers.croft = {
          enable = true;
          port = lib.toInt (lib.removePrefix "redis://127.0.0.1:" cfg.redis.url);
          bind = "127.0.0.1";
          # It is a cache in front of a durable tier.
          save = [ ];
          settings = {
            maxmemory = cfg.redis.memory;
            maxmemory-policy = "allkeys-lru";
          };
        };
        systemd.services.croft = lib.mkIf redis.enable {
          wants = [ "redis-croft.service" ];
          after = [ "redis-croft.service" ];
        };
      })
    ]
  );
}
