# What a worker with some toolchains has: several of a kind are good, so that a farm can serve the old and the new one for a while.
{ lib }:
toolchains:
let
  links = lib.zipAttrs (map (toolchain: toolchain.links) toolchains);
  torn = lib.attrNames (lib.filterAttrs (_: targets: lib.length (lib.unique targets) > 1) links);
in
{
  packages = lib.concatMap (toolchain: toolchain.packages) toolchains;
  properties = lib.zipAttrsWith (_: values: lib.unique (lib.concatLists values)) (
    map (toolchain: toolchain.properties) toolchains
  );
  # A link has one target: two toolchains that want different ones at the same place need two workers.
  links = lib.throwIf (torn != [ ]) ''
    these toolchains cannot be on one worker, they want different files at ${lib.concatStringsSep ", " torn}:
    give each a worker of its own'' (lib.mapAttrs (_: lib.head) links);
}
