# Who may do what: rules, and the proofs that the farm takes.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  cfg = config.services.croft.access;
  rule = types.submodule {
    options = {
      who = mkOption {
        type = types.listOf types.str;
        example = [ "group:ci" ];
        description = "`group:`, `user:`, `certificate:`, `token:`, `jwt:` or `basic:` and a name, a SPIFFE id, `authenticated`, `loopback` or `anonymous`.";
      };
      may = mkOption {
        type = types.listOf (
          types.enum [
            "read"
            "write"
            "cache-write"
            "execute"
            "work"
            "admin"
          ]
        );
        description = "What each of them may do.";
      };
      instances = mkOption {
        type = types.listOf types.str;
        default = [ "**" ];
        example = [ "main/*" ];
        description = "In which instances; `*` is any text without `/`, `**` any text.";
      };
    };
  };
  token = types.submodule {
    options = {
      sha256 = mkOption {
        type = types.strMatching "[0-9a-f]{64}";
        description = "The hash of the token, as {command}`croft token` prints it. The token itself is nowhere in the configuration.";
      };
      groups = mkOption {
        type = types.listOf types.str;
        default = [ ];
        description = "The groups of who has it.";
      };
    };
  };
in
{
  imports = [ ./unit.nix ];

  options.services.croft.access = {
    rules = mkOption {
      type = types.listOf rule;
      default = [ ];
      example = [
        {
          who = [ "group:ci" ];
          may = [
            "read"
            "write"
            "cache-write"
            "execute"
          ];
        }
      ];
      description = ''
        What no rule grants, nobody may. Without any rule whoever is on this host may do everything, and listeners can only be on
        loopback.
      '';
    };
    tokens = mkOption {
      type = types.attrsOf token;
      default = { };
      description = "Static tokens, by the name of who has each.";
    };
    issuers = mkOption {
      type = types.listOf (pkgs.formats.toml { }).type;
      default = [ ];
      example = [
        {
          issuer = "https://id.example";
          audiences = [ "croft" ];
        }
      ];
      description = "OpenID Connect issuers whose signed tokens are taken: the keys of `[[access.jwt]]`.";
    };
    passwords = mkOption {
      type = types.nullOr types.externalPath;
      default = null;
      example = "/run/secrets/croft-htpasswd";
      description = "A file of {command}`htpasswd -B`, for clients that can show nothing but a name and a password.";
    };
    passwordGroups = mkOption {
      type = types.attrsOf (types.listOf types.str);
      default = { };
      example = {
        ann = [ "developers" ];
      };
      description = "The groups of users with passwords.";
    };
  };

  config = lib.mkMerge [
    (lib.mkIf (cfg.rules != [ ]) {
      services.croft.settings.access = {
        inherit (cfg) rules;
        tokens = lib.mapAttrsToList (name: who: { inherit name; } // who) cfg.tokens;
        jwt = cfg.issuers;
        basic = lib.mkIf (cfg.passwords != null) {
          file = "credential:passwords";
          groups = cfg.passwordGroups;
        };
      };
    })
    (lib.mkIf (cfg.passwords != null) { services.croft.credentials.passwords = cfg.passwords; })
    {
      assertions = [
        {
          assertion = cfg.rules != [ ] || (cfg.tokens == { } && cfg.issuers == [ ] && cfg.passwords == null);
          message = ''
            services.croft.access knows who somebody is, and has no rule that says what they may do.
            Set services.croft.access.rules.'';
        }
      ];
    }
  ];
}
