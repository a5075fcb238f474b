# The shell that runs genrules and tests, and the small tools that their scripts call.
{
  pkgs,
  toolchain,
  declaration,
}:
{
  bash ? pkgs.bash,
  coreutils ? pkgs.coreutils,
  tools ? [
    pkgs.diffutils
    pkgs.findutils
    pkgs.gawk
    pkgs.gnugrep
    pkgs.gnused
    pkgs.gnutar
    pkgs.gzip
  ],
}:
let
  packages = [
    bash
    coreutils
  ]
  ++ tools;
in
toolchain {
  kind = "shell";
  inherit packages;
  path = packages;
  links = {
    "/bin/bash" = "${bash}/bin/bash";
    "/bin/sh" = "${bash}/bin/sh";
    "/usr/bin/env" = "${coreutils}/bin/env";
  };
  bazel = {
    files = {
      "shell/shell_toolchain.bzl" = builtins.readFile ./bazel/shell_toolchain.bzl;
      "shell/BUILD.bazel" = ''
        load(":shell_toolchain.bzl", "shell_toolchain")

        shell_toolchain(
            name = "shell",
            path = "${bash}/bin/bash",
        )

      ''
      + declaration {
        implementation = ":shell";
        type = "@bazel_tools//tools/sh:toolchain_type";
      };
    };
    toolchains = [ "//shell:toolchain" ];
    flags = [ "build --shell_executable=${bash}/bin/bash" ];
  };
}
