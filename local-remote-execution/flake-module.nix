# For flake-parts: `perSystem.croft.toolchains` says what a project builds with, and `croft.devShell` is a shell in which Bazel does.
{ lib, flake-parts-lib, ... }:
let
  inherit (lib) mkOption types;
in
{
  options.perSystem = flake-parts-lib.mkPerSystemOption (
    { config, pkgs, ... }:
    let
      cfg = config.croft;
      lre = import ./. { inherit pkgs; };
    in
    {
      options.croft = {
        toolchains = mkOption {
          type = types.functionTo (types.listOf types.raw);
          default = toolchains: [
            toolchains.cc
            toolchains.shell
          ];
          defaultText = lib.literalMD "C and C++, and a shell";
          example = lib.literalExpression "toolchains: [ toolchains.clang toolchains.java toolchains.shell ]";
          description = "What the project builds with, of those that there are. Workers must have the same.";
        };
        modules = mkOption {
          type = types.bool;
          default = true;
          description = "Whether the project has a {file}`MODULE.bazel`, which then says `bazel_dep(name = \"croft_toolchains\")`.";
        };
        extraConfig = mkOption {
          type = types.lines;
          default = "";
          example = "build --remote_executor=grpcs://farm.example:50051";
          description = "More lines for {file}`croft.bazelrc`.";
        };
        committed = mkOption {
          type = types.nullOr types.path;
          default = null;
          example = lib.literalExpression "./toolchains";
          description = "The directory of the module in the repository, for projects that commit it. A check compares it with what is generated.";
        };
        project = mkOption {
          type = types.raw;
          readOnly = true;
          description = "What the library makes of {option}`croft.toolchains`.";
        };
        devShell = mkOption {
          type = types.package;
          readOnly = true;
          description = "A shell that writes {file}`croft.bazelrc`; for `inputsFrom` of another, or as it is.";
        };
      };

      config = {
        croft = {
          project = lre.project (cfg.toolchains lre.toolchains);
          devShell = pkgs.mkShell {
            shellHook = cfg.project.shellHook (
              {
                inherit (cfg) modules extraConfig;
              }
              // lib.optionalAttrs (cfg.committed != null) {
                location = "%workspace%/${baseNameOf cfg.committed}";
              }
            );
          };
        };
        packages.croft-toolchains = cfg.project.module;
        checks = lib.mkIf (cfg.committed != null) {
          croft-toolchains = cfg.project.check cfg.committed;
        };
      };
    }
  );
}
