# A farm whose hosts trust their network. `roles` has those of each host; `clients` are the names of the nodes beside them.
{
  lib,
  roles,
  clients,
}:
let
  # The test driver numbers the nodes in the order of their names.
  nodes = lib.sort lib.lessThan (lib.attrNames roles ++ clients);
  addresses = lib.listToAttrs (
    lib.imap1 (number: name: lib.nameValuePair name "192.168.1.${toString number}") nodes
  );
in
{
  imports = [ ../../nixos/base.nix ];
  services.croft.farm = {
    insecure = true;
    clients = lib.mkForce (map (name: addresses.${name}) clients);
    # In place of those of nixos/farm.nix, where a host of nixos/ brings them.
    hosts = lib.mkForce (
      lib.mapAttrs (name: roles: {
        inherit roles;
        address = addresses.${name};
      }) roles
    );
  };
}
