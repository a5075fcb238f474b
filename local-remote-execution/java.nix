# A JDK, for rules_java: what compiles, what runs tests, and what runs the tools of a build.
{
  pkgs,
  toolchain,
  declaration,
}:
{
  jdk ? pkgs.jdk,
}:
let
  inherit (pkgs) lib;
  major = builtins.head (builtins.split "[^0-9]" jdk.version);
in
toolchain {
  kind = "java";
  packages = [ jdk ];
  path = [ jdk ];
  bazel = {
    dependencies.rules_java = "8.6.1";
    files."java/BUILD.bazel" = ''
      load("@rules_java//java/toolchains:java_runtime.bzl", "java_runtime")
      load("@rules_java//toolchains:default_java_toolchain.bzl", "default_java_toolchain")

      java_runtime(
          name = "jdk",
          java_home = "${jdk.home}",
          version = ${major},
      )

      default_java_toolchain(
          name = "java",
          java_runtime = ":jdk",
          source_version = "${major}",
          target_version = "${major}",
          toolchain_definition = False,
      )

    ''
    + lib.concatMapStringsSep "\n" declaration [
      {
        implementation = ":java";
        type = "@bazel_tools//tools/jdk:toolchain_type";
      }
      {
        name = "runtime";
        implementation = ":jdk";
        type = "@bazel_tools//tools/jdk:runtime_toolchain_type";
      }
      {
        name = "bootstrap_runtime";
        implementation = ":jdk";
        type = "@bazel_tools//tools/jdk:bootstrap_runtime_toolchain_type";
      }
    ];
    toolchains = [
      "//java:toolchain"
      "//java:runtime"
      "//java:bootstrap_runtime"
    ];
  };
}
