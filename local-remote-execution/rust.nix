# Rust, for rules_rust. It links with the project's C toolchain.
{
  pkgs,
  toolchain,
  declaration,
}:
{
  rustc ? pkgs.rustc,
  cargo ? pkgs.cargo,
  rustfmt ? pkgs.rustfmt,
  # An edition that every rustc of the last years knows.
  edition ? "2021",
}:
let
  triple = "${builtins.head (builtins.split "-" pkgs.stdenv.hostPlatform.system)}-unknown-linux-gnu";
  # The rules want files of the build. A program that was copied would not find its libraries, a script calls it at its own path.
  script = program: ''
    #!${pkgs.bash}/bin/bash
    exec ${program} "$@"
  '';
in
toolchain {
  kind = "rust";
  packages = [
    cargo
    rustc
    rustfmt
    pkgs.bash
  ];
  path = [
    cargo
    rustc
  ];
  bazel = {
    dependencies.rules_rust = "0.68.1";
    files = {
      "rust/cargo.sh" = script "${cargo}/bin/cargo";
      "rust/rustc.sh" = script "${rustc}/bin/rustc";
      "rust/rustdoc.sh" = script "${rustc}/bin/rustdoc";
      "rust/rustfmt.sh" = script "${rustfmt}/bin/rustfmt";
      "rust/BUILD.bazel" = ''
        load("@rules_rust//rust:toolchain.bzl", "rust_stdlib_filegroup", "rust_toolchain")

        # rustc finds the standard library beside itself.
        rust_stdlib_filegroup(
            name = "standard_library",
            srcs = [],
        )

        rust_toolchain(
            name = "rust",
            binary_ext = "",
            cargo = "cargo.sh",
            default_edition = "${edition}",
            dylib_ext = ".so",
            exec_triple = "${triple}",
            rust_doc = "rustdoc.sh",
            rust_std = ":standard_library",
            rustc = "rustc.sh",
            rustfmt = "rustfmt.sh",
            staticlib_ext = ".a",
            stdlib_linkflags = [
                "-ldl",
                "-lpthread",
            ],
            target_triple = "${triple}",
        )

      ''
      + declaration {
        implementation = ":rust";
        type = "@rules_rust//rust:toolchain_type";
      };
    };
    toolchains = [ "//rust:toolchain" ];
    # Else the rules would tell rustc of a directory that they fill themselves, with the standard library in it.
    flags = [ "build --@rules_rust//rust/settings:toolchain_generated_sysroot=false" ];
  };
}
