# What this repository uses of nixpkgs beside the stand-in's own: made with the host's tools, or nothing but a name.
{
  lib,
  system ? "x86_64-linux",
}@args:
let
  base = import ./base-pkgs.nix args;

  # TOML of a Nix value; below the top level tables are inline.
  toml = rec {
    value =
      v:
      if builtins.isAttrs v then
        "{ ${lib.concatStringsSep ", " (lib.mapAttrsToList pair v)} }"
      else if builtins.isList v then
        "[ ${lib.concatMapStringsSep ", " value v} ]"
      else
        builtins.toJSON v;
    pair = key: v: "${builtins.toJSON key} = ${value v}";
    lines = attrs: lib.concatStrings (lib.mapAttrsToList (key: v: "${pair key v}\n") attrs);
  };

  # A derivation, so that a text may name what is yet to be built.
  writeText =
    name: text:
    base.runCommand name {
      inherit text;
      passAsFile = [ "text" ];
    } ''cp "$textPath" "$out"'';

  # The binary that the checks are for, in the store; without it, whatever needs croft itself cannot be built.
  croft = builtins.getEnv "CROFT_IN_STORE";

  named = lib.genAttrs [
    "bazel_8"
    "btrfs-progs"
    "cacert"
    "cargo"
    "cargo-deny"
    "cargo-nextest"
    "clippy"
    "deadnix"
    "nixfmt-tree"
    "python3"
    "rust-analyzer"
    "rustc"
    "rustfmt"
    "shellcheck"
  ] (name: base.fromHost name [ name ]);

  pkgs =
    base
    // named
    // {
      inherit writeText;

      bash = base.fromHost "bash" [
        "bash"
        "sh"
      ];
      curl = base.fromHost "curl" [ "curl" ];
      gawk = base.fromHost "gawk" [ "awk" ];
      gnutar = base.fromHost "gnutar" [ "tar" ];
      gzip = base.fromHost "gzip" [ "gzip" ];

      stdenv = base.stdenv // {
        buildPlatform = base.stdenv.hostPlatform // {
          canExecute = _: true;
        };
        cc =
          base.fromHost "cc" [
            "cc"
            "c++"
            "ld"
            "ar"
          ]
          // {
            bintools = base.fromHost "binutils" [ "ar" ];
            cc = base.fromHost "gcc" [ "gcc" ];
            libc = base.fromHost "libc" [ "ldd" ];
          };
      };
      clangStdenv.cc = pkgs.stdenv.cc // {
        isClang = true;
      };
      jdk = base.fromHost "jdk" [ "java" ] // {
        version = "21";
        home = "/usr/lib/jvm/default-java";
      };
      pkgsStatic = pkgs // {
        # A program that needs nothing of the host where it runs: what a sandbox can have for a toolchain here.
        busybox = base.runCommand "busybox" { } ''
          mkdir -p "$out/bin"
          cp "$(command -v busybox)" "$out/bin/busybox"
          "$out/bin/busybox" --install -s "$out/bin"'';
      };
      callPackage =
        file: extra:
        let
          function = import file;
        in
        function (builtins.intersectAttrs (builtins.functionArgs function) pkgs // extra);

      formats = base.formats // {
        toml = _: {
          type = (base.formats.json { }).type // {
            description = "TOML value";
          };
          generate = name: value: writeText name (toml.lines value);
        };
      };

      closureInfo =
        { rootPaths }:
        base.runCommand "closure-info"
          {
            exportReferencesGraph = lib.concatLists (
              lib.imap1 (number: path: [
                "graph-${toString number}"
                path
              ]) rootPaths
            );
          }
          ''mkdir "$out"; grep -h '^/nix/store/' graph-* | grep -v '[.]drv$' | sort -u > "$out/store-paths"'';

      linkFarm =
        name: entries:
        base.runCommand name { } (
          "mkdir $out\n"
          + lib.concatStrings (lib.mapAttrsToList (link: target: "ln -s ${target} $out/${link}\n") entries)
        );

      dockerTools.buildLayeredImage =
        { name, tag, ... }@image: writeText "${name}-${tag}.json" (builtins.toJSON image.config);

      # The release binary that the test command has built already.
      rustPlatform.buildRustPackage =
        {
          pname,
          version,
          meta ? { },
          passthru ? { },
          ...
        }:
        base.runCommand "${pname}-${version}" { } ''
          mkdir -p "$out/bin"
          ln -s ${if croft == "" then "/nowhere" else builtins.storePath croft} "$out/bin/croft"''
        // passthru
        // {
          inherit
            pname
            version
            meta
            passthru
            ;
        };
    };
in
pkgs
