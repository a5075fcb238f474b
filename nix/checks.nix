# What must hold for the flake itself: format, modules alone and together, the hosts' configurations, the reference of options.
{
  pkgs,
  nixpkgs,
  self,
}:
let
  inherit (nixpkgs) lib;

  # The least that makes a module a system.
  ground = {
    imports = [ ../nixos/disk.nix ];
    nixpkgs.hostPlatform = pkgs.stdenv.hostPlatform.system;
    system.stateVersion = "26.05";
  };
  system =
    module:
    lib.nixosSystem {
      modules = [
        ground
        module
      ];
    };

  everything = system {
    imports = [
      self.nixosModules.default
      ./everything.nix
    ];
  };

  # Those of the template `farm`, as somebody has them who starts with it.
  template =
    let
      farm = import ../templates/farm/farm.nix;
    in
    lib.mapAttrs (
      name: _:
      lib.nixosSystem {
        modules = [
          self.nixosModules.default
          farm
          (../templates/farm/hosts + "/${name}.nix")
          ../nixos/disk.nix
          { networking.hostName = name; }
        ];
      }
    ) farm.services.croft.farm.hosts;

  # A farm in a network that encrypts by itself, whose hosts have no certificates.
  insecure =
    let
      hosts = {
        control = {
          roles = [
            "cas"
            "scheduler"
            "monitoring"
          ];
          address = "10.7.0.1";
        };
        worker = {
          roles = [ "worker" ];
          address = "10.7.0.2";
        };
      };
    in
    lib.mapAttrs (
      name: _:
      system {
        imports = [ self.nixosModules.default ];
        networking.hostName = name;
        services.croft.farm = {
          inherit hosts;
          insecure = true;
          clients = [ "10.8.0.0/16" ];
        };
      }
    ) hosts;

  named = prefix: lib.mapAttrs' (name: lib.nameValuePair "${prefix}-${name}");
  systemOf = host: (lib.systems.elaborate host.config.nixpkgs.hostPlatform).system;
  hosts = lib.filterAttrs (_: host: systemOf host == pkgs.stdenv.hostPlatform.system) (
    self.nixosConfigurations
    // named "insecure" insecure
    // named "template" template
    // {
      inherit everything;
    }
  );
in
{
  format = pkgs.runCommand "croft-format" { nativeBuildInputs = [ pkgs.nixfmt ]; } ''
    find ${self} -name '*.nix' -exec nixfmt --check {} +
    touch $out
  '';

  # Every module alone, and all hosts. What NixOS asserts of a system is asked where its top level is.
  modules = pkgs.writeText "croft-modules" (
    lib.concatLines (
      lib.mapAttrsToList (
        name: system:
        "${name} ${builtins.unsafeDiscardStringContext system.config.system.build.toplevel.drvPath}"
      ) (lib.mapAttrs (_: system) self.nixosModules // hosts)
    )
  );

  # Building a configuration has croft check it.
  hosts = pkgs.linkFarm "croft-hosts" (
    lib.mapAttrs (_: host: host.config.services.croft.configFile) hosts
  );

  local-remote-execution =
    pkgs.runCommand "croft-local-remote-execution"
      {
        # Those of nixpkgs are evaluated and not built.
        evaluated = builtins.unsafeDiscardStringContext (
          builtins.toJSON (
            lib.mapAttrs (_: toolchain: {
              inherit (toolchain) hash environment;
              inherit (toolchain.bazel) files flags;
            }) (import ../local-remote-execution { inherit pkgs; }).toolchains
          )
        );
      }
      ''
        diff -ru --exclude='*.nix' ${
          import ../local-remote-execution/example { inherit pkgs; }
        } ${../local-remote-execution/example}
        touch $out
      '';

  options-reference = pkgs.runCommand "croft-options-reference" { } ''
    diff -u ${../docs/options.md} ${
      self.packages.${pkgs.stdenv.hostPlatform.system}.options-reference
    } || {
      echo "docs/options.md is not that of the modules; scripts/nix/check.sh --write makes it anew"
      exit 1
    }
    touch $out
  '';
}
