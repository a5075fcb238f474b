# The configuration of a farm on one machine whose worker has some toolchains. On NixOS the modules write it.
{ pkgs }:
let
  inherit (pkgs) lib;
in
toolchains:
let
  worker = import ./worker.nix { inherit lib; } toolchains;
in
(pkgs.formats.toml { }).generate "croft.toml" {
  worker = {
    root = {
      closure = "${pkgs.closureInfo { rootPaths = worker.packages; }}/store-paths";
      inherit (worker) links;
    };
    inherit (worker) properties;
  };
  scheduler.properties = lib.mapAttrs (_: _: "exact") worker.properties;
}
