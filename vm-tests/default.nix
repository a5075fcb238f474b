# Every other file of this folder is a story: a function of `pkgs` and `lib` that gives a NixOS test. Its name is that of its check.
{ pkgs, self }:
let
  inherit (pkgs) lib;
  isStory = name: lib.hasSuffix ".nix" name && name != "default.nix";
  tell =
    file:
    let
      story = import (./. + "/${file}") { inherit pkgs lib; };
    in
    pkgs.testers.runNixOSTest (
      story
      // {
        name = lib.removeSuffix ".nix" file;
        defaults.imports = [
          self.nixosModules.default
          (story.defaults or { })
        ];
        globalTimeout = 300;
      }
    );
in
lib.mapAttrs' (file: _: lib.nameValuePair (lib.removeSuffix ".nix" file) (tell file)) (
  lib.filterAttrs (name: _: isStory name) (builtins.readDir ./.)
)
