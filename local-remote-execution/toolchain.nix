# One toolchain as a value: what workers must have, how they say that they have it, and what Bazel is told.
{ pkgs }:
let
  inherit (pkgs) lib;
in
{
  # Toolchains of one kind take each other's place; the kind is part of the property's name.
  kind,
  # The roots of the closure.
  packages,
  # Those of them whose programs are found by name.
  path ? [ ],
  # What scripts expect at other paths than its own.
  links ? { },
  # files (by path in the module), toolchains (labels in the module), dependencies (modules and versions), flags.
  bazel ? { },
}:
let
  property = "toolchain-${kind}";
  # A store path's own hash covers all that the path was built from, so that the paths of the roots stand for their closure. That it
  # needs no build is what lets a client know it without having the toolchain.
  hash = builtins.substring 0 32 (
    builtins.hashString "sha256" (
      builtins.toJSON {
        inherit (pkgs.stdenv.hostPlatform) system;
        inherit links;
        roots = builtins.sort builtins.lessThan (lib.unique (map (package: "${package}") packages));
      }
    )
  );
in
{
  _type = "croft-toolchain";
  inherit
    kind
    packages
    links
    property
    hash
    ;
  properties.${property} = [ hash ];
  closure = "${pkgs.closureInfo { rootPaths = packages; }}/store-paths";
  environment = lib.optionalAttrs (path != [ ]) { PATH = lib.makeBinPath path; };
  bazel = {
    files = { };
    toolchains = [ ];
    dependencies = { };
    flags = [ ];
  }
  // bazel;
}
