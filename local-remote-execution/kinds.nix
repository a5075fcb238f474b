# The kinds of toolchains that there are, by name; each is the name of a property of workers, too: toolchain-cc and so on.
{
  cc = ./cc.nix;
  java = ./java.nix;
  python = ./python.nix;
  rust = ./rust.nix;
  shell = ./shell.nix;
}
