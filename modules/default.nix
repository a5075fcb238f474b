# All modules. None does anything until something of it is enabled.
{
  imports = builtins.attrValues (import ./all.nix);
}
