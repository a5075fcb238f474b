# The modules as the flake exports them: each alone with the package, and `default` with all of them.
{ lib, packagesOf }:
let
  # One key, so that the package is defined once however many of the modules somebody imports.
  package = {
    key = "croft/modules/package";
    imports = [
      (
        { lib, pkgs, ... }:
        {
          services.croft.package = lib.mkDefault (packagesOf pkgs).croft;
        }
      )
    ];
  };
  export = file: {
    imports = [
      file
      package
    ];
  };
in
lib.mapAttrs (_: export) (import ./all.nix) // { default = export ./default.nix; }
