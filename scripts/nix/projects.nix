# Projects that build with the toolchains of local-remote-execution: what their flakes have evaluates.
{ nixpkgs, self }:
let
  inherit (nixpkgs) lib;

  template = (import ../../templates/bazel/flake.nix).outputs {
    inherit nixpkgs;
    croft = self;
  };

  withFlakeParts =
    lib.mkFlake
      {
        inputs = {
          inherit nixpkgs;
          self = { };
        };
      }
      {
        imports = [ self.flakeModules.default ];
        systems = [ "x86_64-linux" ];
        perSystem =
          { config, ... }:
          {
            croft = {
              toolchains = toolchains: [
                toolchains.clang
                toolchains.shell
              ];
              extraConfig = "build --remote_executor=grpcs://farm.example:50051";
              committed = ../../local-remote-execution/example/toolchains;
            };
            devShells.default = config.croft.devShell;
          };
      };
in
lib.concatMapStringsSep " " (made: builtins.unsafeDiscardStringContext made.drvPath) (
  [ template.devShells.x86_64-linux.default ]
  # flake-parts is no part of nixpkgs; the stand-in has it in its lib.
  ++ lib.optionals (lib ? mkFlake) [
    withFlakeParts.devShells.x86_64-linux.default
    withFlakeParts.checks.x86_64-linux.croft-toolchains
  ]
)
