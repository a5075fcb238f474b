# A machine that builds, with what it needs to speak to a farm: /etc/farm/execute.py has that run a command.
{ pkgs, ... }:
{
  environment.systemPackages = [
    pkgs.curl
    pkgs.python3
  ];
  environment.etc.farm.source = ./client;
}
