# C and C++: gcc or clang as nixpkgs wraps them, with their binutils and C library.
{
  pkgs,
  toolchain,
  declaration,
}:
{ compiler }:
let
  inherit (pkgs) lib;
  inherit (compiler) bintools;
  isClang = compiler.isClang or false;
  prefix = compiler.targetPrefix or "";
  program = name: "${compiler}/bin/${prefix}${name}";
  tool = name: "${bintools}/bin/${prefix}${name}";
  libc = lib.getDev compiler.libc;

  # Where headers may come from without being named by a target.
  includes = [
    "${compiler.cc}"
    "${libc}"
  ]
  # Clang's own headers are in the wrapper, and the C++ library is that of gcc.
  ++ lib.optionals isClang [
    "${compiler}"
    "${pkgs.stdenv.cc.cc}"
  ];
in
toolchain {
  kind = "cc";
  packages = [
    compiler
    bintools
    libc
  ];
  bazel = {
    dependencies.rules_cc = "0.1.1";
    files = {
      "cc/cc_toolchain_config.bzl" = builtins.readFile ./bazel/cc_toolchain_config.bzl;
      "cc/BUILD.bazel" = ''
        load("@rules_cc//cc/toolchains:cc_toolchain.bzl", "cc_toolchain")
        load(":cc_toolchain_config.bzl", "cc_toolchain_config")

        cc_toolchain_config(
            name = "config",
            ar = "${tool "ar"}",
            c_compiler = "${program (if isClang then "clang" else "gcc")}",
            compiler = "${if isClang then "clang" else "gcc"}",
            cpu = "${lib.head (lib.splitString "-" pkgs.stdenv.hostPlatform.system)}",
            cxx_compiler = "${program (if isClang then "clang++" else "g++")}",
            include_directories = [
        ${lib.concatMapStrings (path: "        \"${path}\",\n") includes}    ],
            ld = "${tool "ld"}",
            nm = "${tool "nm"}",
            objcopy = "${tool "objcopy"}",
            objdump = "${tool "objdump"}",
            strip = "${tool "strip"}",
        )

        # The compiler stands at its own path and is no input.
        filegroup(name = "nothing")

        cc_toolchain(
            name = "cc",
            all_files = ":nothing",
            compiler_files = ":nothing",
            dwp_files = ":nothing",
            linker_files = ":nothing",
            objcopy_files = ":nothing",
            strip_files = ":nothing",
            toolchain_config = ":config",
        )

      ''
      + declaration {
        implementation = ":cc";
        type = "@bazel_tools//tools/cpp:toolchain_type";
      };
    };
    toolchains = [ "//cc:toolchain" ];
    # Nobody is to look for a compiler on the machine that builds.
    flags = [ "common --repo_env=BAZEL_DO_NOT_DETECT_CPP_TOOLCHAIN=1" ];
  };
}
