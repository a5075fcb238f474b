# A machine that builds, with what it needs to speak to a farm: /etc/execute.py has it run a command.
{ pkgs, ... }:
{
  environment.systemPackages = [
    pkgs.curl
    pkgs.python3
  ];
  environment.etc."execute.py".source = ./execute.py;
}
