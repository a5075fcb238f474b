# Packages that are nothing but names, so that what is generated for them does not change with nixpkgs.
{ lib }:
let
  package =
    name: more:
    {
      outPath = "/nix/store/${builtins.substring 0 32 (builtins.hashString "sha256" name)}-${name}";
      inherit name;
    }
    // more;
  wrapper =
    name: isClang:
    package "${name}-wrapper" {
      inherit isClang;
      targetPrefix = "";
      bintools = package "binutils-wrapper" { };
      cc = package name { };
      libc = package "glibc" { dev = package "glibc-dev" { }; };
    };
  stdenv = {
    cc = wrapper "gcc" false;
    hostPlatform.system = "x86_64-linux";
  };
in
lib.genAttrs [
  "bash"
  "cargo"
  "coreutils"
  "diffutils"
  "findutils"
  "gawk"
  "gnugrep"
  "gnused"
  "gnutar"
  "gzip"
  "python3"
  "rustc"
  "rustfmt"
] (name: package name { })
// {
  inherit lib stdenv;
  clangStdenv.cc = wrapper "clang" true;
  jdk = package "jdk" {
    version = "21.0.8+9";
    home = "${package "jdk" { }}/lib/openjdk";
  };
}
