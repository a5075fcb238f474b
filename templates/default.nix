# `nix flake init --template …#bazel`
rec {
  bazel = {
    path = ./bazel;
    description = "A Bazel project that builds on a farm";
  };
  farm = {
    path = ./farm;
    description = "A farm of NixOS hosts, declared in one place";
  };
  default = bazel;
}
