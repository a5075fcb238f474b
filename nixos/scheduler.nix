# The host that takes actions and hands them to workers.
{
  imports = [
    ./base.nix
    ./farm.nix
  ];
}
