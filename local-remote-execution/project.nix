# What a list of toolchains comes to: a Bazel module and flags for those who build, a root and properties for workers.
{ pkgs }:
let
  inherit (pkgs) lib;
in
toolchains:
let
  name = "croft_toolchains";
  platform = "@${name}//:platform";
  system = lib.splitString "-" pkgs.stdenv.hostPlatform.system;
  of = attribute: map (toolchain: toolchain.${attribute}) toolchains;
  bazel = attribute: map (toolchain: toolchain.bazel.${attribute}) toolchains;
  merged = lib.foldl (all: more: all // more) { };

  kinds = of "kind";
  twice = lib.filter (kind: lib.count (other: other == kind) kinds > 1) (lib.unique kinds);
  properties =
    lib.throwIf (twice != [ ])
      "a project has one toolchain of a kind, here are several of: ${toString twice}"
      (merged (of "properties"));

  # PATH and its like are joined, in the order of the toolchains.
  environment = lib.zipAttrsWith (_: lib.concatStringsSep ":") (of "environment");

  files = {
    "MODULE.bazel" = ''
      module(
          name = "${name}",
          version = "0.0.0",
      )
    ''
    + "\n"
    + lib.concatLines (
      lib.mapAttrsToList (module: version: ''bazel_dep(name = "${module}", version = "${version}")'') (
        { platforms = "0.0.11"; } // merged (bazel "dependencies")
      )
    );
    # For builds with --noenable_bzlmod.
    "WORKSPACE" = ''
      workspace(name = "${name}")
    '';
    "BUILD.bazel" = ''
      # Says of a platform that it has these toolchains; without it they are not chosen.
      constraint_setting(name = "toolchains")

      constraint_value(
          name = "this",
          constraint_setting = ":toolchains",
          visibility = ["//visibility:public"],
      )

      platform(
          name = "platform",
          constraint_values = [
              ":this",
              "@platforms//cpu:${lib.head system}",
              "@platforms//os:${lib.last system}",
          ],
          exec_properties = {
      ${
        lib.concatStrings (
          lib.mapAttrsToList (
            property: values: "        \"${property}\": \"${lib.head values}\",\n"
          ) properties
        )
      }    },
          visibility = ["//visibility:public"],
      )
    '';
  }
  // merged (bazel "files");

  # In the store, where a project that does not commit it finds it.
  module = pkgs.runCommand "croft-toolchains" { } (
    ''
      mkdir "$out"
    ''
    + lib.concatStrings (
      lib.mapAttrsToList (path: text: ''
        mkdir -p "$out/${dirOf path}"
        cp ${pkgs.writeText (baseNameOf path) text} "$out/${path}"
        chmod ${if lib.hasPrefix "#!" text then "755" else "644"} "$out/${path}"
      '') files
    )
  );

  # Text for .bazelrc. `location` is the module's directory; one in the repository is written as "%workspace%/…".
  bazelrc =
    {
      location ? "${module}",
      # Whether the project has a MODULE.bazel, which then says: bazel_dep(name = "croft_toolchains")
      modules ? true,
      # More lines, such as where the farm is.
      extraConfig ? "",
    }:
    lib.concatLines (
      [
        "# Written by Nix: the toolchains, where they are, and what a worker must have."
        "common --override_${if modules then "module" else "repository"}=${name}=${location}"
        "build --extra_toolchains=${
          lib.concatMapStringsSep "," (label: "@${name}${label}") (lib.concatLists (bazel "toolchains"))
        }"
        "build --extra_execution_platforms=${platform}"
        "build --host_platform=${platform}"
        "build --platforms=${platform}"
        # The variables of whoever builds would make an action another one for everybody else.
        "build --incompatible_strict_action_env"
      ]
      ++ lib.concatLists (
        lib.mapAttrsToList (variable: value: [
          "build --action_env=${variable}=${value}"
          "build --host_action_env=${variable}=${value}"
        ]) environment
      )
      ++ lib.concatLists (bazel "flags")
      ++ lib.optional (extraConfig != "") (lib.removeSuffix "\n" extraConfig)
    );
in
{
  inherit
    bazelrc
    environment
    files
    module
    properties
    ;
  packages = lib.concatLists (of "packages");

  # For the dev shell: makes croft.bazelrc at the root of the project that the shell is in.
  shellHook =
    options:
    let
      file = pkgs.writeText "croft.bazelrc" (bazelrc options);
    in
    ''
      croft_root=$PWD
      while [ "$croft_root" != / ] && ! [ -e "$croft_root/MODULE.bazel" ] && ! [ -e "$croft_root/WORKSPACE" ]; do
        croft_root=$(dirname "$croft_root")
      done
      if [ "$croft_root" != / ]; then
        ln -sfn ${file} "$croft_root/croft.bazelrc"
      else
        echo "croft.bazelrc is not written: no directory from here upwards has a MODULE.bazel or a WORKSPACE" >&2
      fi
      unset croft_root
    '';

  # Fails unless `directory` is the module, for projects that commit it (their developers then need no Nix to build remotely).
  check =
    directory:
    pkgs.runCommand "croft-toolchains-committed" { } ''
      diff -ru ${module} ${directory} || {
        echo "The toolchains in the repository are not those of its Nix files: copy the module there again." >&2
        exit 1
      }
      touch "$out"
    '';

  # Of a farm that has these toolchains and no others.
  configuration = import ./configuration.nix { inherit pkgs; } toolchains;
}
