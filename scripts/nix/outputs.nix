# The flake's outputs with some nixpkgs: { nixpkgs, self }. What `--override-input` is for commands, this is for expressions.
reference:
let
  nixpkgs = builtins.getFlake reference;
  self = (import ../../flake.nix).outputs { inherit nixpkgs self; };
in
{
  inherit nixpkgs self;
}
