# Addresses as `host:port` and `[host]:port`, and whom they are for.
{ lib }:
{
  port = address: lib.toInt (lib.last (lib.splitString ":" address));
  # Those that a firewall lets through.
  sources = lib.types.either (lib.types.enum [ "everybody" ]) (lib.types.listOf lib.types.str) // {
    description = "list of addresses and networks, or \"everybody\"";
  };
  isLoopback = address: lib.hasPrefix "127." address || lib.hasPrefix "[::1]:" address;
}
