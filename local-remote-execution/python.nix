# Python, for rules_python.
{
  pkgs,
  toolchain,
  declaration,
}:
{
  python3 ? pkgs.python3,
}:
let
  program = "${python3}/bin/python3";
in
toolchain {
  kind = "python";
  packages = [ python3 ];
  path = [ python3 ];
  bazel = {
    dependencies.rules_python = "1.0.0";
    files."python/BUILD.bazel" = ''
      load("@rules_python//python:py_runtime.bzl", "py_runtime")
      load("@rules_python//python:py_runtime_pair.bzl", "py_runtime_pair")

      py_runtime(
          name = "python3",
          interpreter_path = "${program}",
          python_version = "PY3",
          stub_shebang = "#!${program}",
      )

      py_runtime_pair(
          name = "pair",
          py3_runtime = ":python3",
      )

    ''
    + declaration {
      implementation = ":pair";
      type = "@rules_python//python:toolchain_type";
    };
    toolchains = [ "//python:toolchain" ];
  };
}
