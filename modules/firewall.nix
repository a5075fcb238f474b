# Which hosts reach which listener. Nothing is open that is not named here.
{ config, lib, ... }:
let
  inherit (lib) mkOption;
  croft = config.services.croft;
  cfg = croft.firewall;
  addresses = import ./addresses.nix { inherit lib; };

  reachable =
    what:
    mkOption {
      type = addresses.sources;
      default = [ ];
      example = [
        "192.168.7.0/24"
        "fd00:7::/64"
      ];
      description = "The addresses or networks that reach the listener for ${what}, or `everybody`.";
    };

  isV6 = lib.hasInfix ":";
  accept =
    family: sources: port:
    lib.optional (
      sources != [ ]
    ) "${family} saddr { ${lib.concatStringsSep ", " sources} } tcp dport ${toString port} accept";
  rules =
    sources: port:
    lib.optionals (sources != "everybody") (
      accept "ip" (lib.filter (source: !isV6 source) sources) port
      ++ accept "ip6" (lib.filter isV6 sources) port
    );

  opened = lib.filterAttrs (name: _: cfg.${name} or [ ] != [ ]) croft.listeners;
  forAll = lib.filterAttrs (name: _: cfg.${name} == "everybody") opened;
  ports = lib.mapAttrs (_: addresses.port);
  someRules = lib.concatLists (
    lib.mapAttrsToList (name: port: rules cfg.${name} port) (ports opened)
  );
in
{
  imports = [ ./unit.nix ];

  options.services.croft.firewall = {
    public = reachable "clients";
    workers = reachable "workers";
    admin = reachable "operators";
  };

  config = lib.mkMerge [
    {
      assertions = lib.mapAttrsToList (name: address: {
        assertion = !addresses.isLoopback address;
        message = ''
          services.croft.firewall.${name} opens a listener that is on loopback, ${address}, which nobody else reaches.
          Set services.croft.listen.${name}, as in "0.0.0.0:${toString (addresses.port address)}".'';
      }) opened;
      networking.firewall.allowedTCPPorts = lib.attrValues (ports forAll);
    }
    (lib.mkIf (someRules != [ ]) {
      # Only its rules can name who may come.
      networking.nftables.enable = true;
      networking.firewall.extraInputRules = lib.concatLines someRules;
    })
  ];
}
